"""What a run tells: metrics as JSON lines in a file, TensorBoard events if wanted, progress on the terminal."""

import json
import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
from etils import epath

from isles_jax.runtime import files
from isles_jax.runtime.command import InputError


class MetricWriter:
    """What one fold's training tells, with clu's method names: scalars in `metrics.jsonl`, and all in event files."""

    def __init__(self, directory: epath.PathLike, first_step: int, *, tensorboard: bool = False) -> None:
        """Opens the file; lines after `first_step`, from a run that was cut off, are dropped.

        Args:
          directory: the fold's folder.
          first_step: the step that training goes on from.
          tensorboard: also write a new event file; what older ones hold after `first_step` is marked as replaced.

        Raises:
          InputError: as `require_tensorboard`.
        """
        self._events = None
        if tensorboard:
            events = require_tensorboard(directory)
            # The name's time has whole seconds; TensorBoard reads the files in the order of their names.
            suffix = f".{first_step:09d}"
            self._events = events.SummaryWriter(str(directory), purge_step=first_step + 1, filename_suffix=suffix)
        self._path = epath.Path(directory) / "metrics.jsonl"
        self._lines = []
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                try:
                    kept = json.loads(line)["step"] <= first_step
                except (ValueError, KeyError):
                    break  # the last line of a run that was killed while writing it
                if kept:
                    self._lines.append(line)
        self.flush()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one line for `step`; a value that is not finite is written as null."""
        values = {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}
        self._lines.append(json.dumps({"step": step, **values}))
        if self._events:
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)
        self.flush()

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds uint8 [H, W, 3] pictures, to the event file only."""
        if self._events:
            for name, image in images.items():
                self._events.add_image(name, image, step, dataformats="HWC")
            self.flush()

    def write_hparams(self, settings: Mapping[str, Any]) -> None:
        """Adds the settings of the run, for TensorBoard's HPARAMS page, to the event file only."""
        if self._events:
            from tensorboardX.summary import hparams

            values = {
                key: value if isinstance(value, (bool, int, float, str)) else str(value)
                for key, value in settings.items()
            }
            for summary in hparams(values, {"loss": 0.0}):
                self._events.file_writer.add_summary(summary)
            self.flush()

    def flush(self) -> None:
        """Makes the files what was written so far."""
        files.write_atomic(self._path, "".join(line + "\n" for line in self._lines))
        if self._events:
            self._events.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._events:
            self._events.close()


def require_tensorboard(directory: epath.PathLike) -> Any:
    """The module that writes event files in `directory`.

    Raises:
      InputError: it is not installed; the folder is in a bucket.
    """
    if files.is_bucket(directory):
        raise InputError(
            f"--config.train.tensorboard: event files cannot be written to {directory}, expected a local --workdir"
        )
    try:
        import PIL  # noqa: F401, for pictures
        import tensorboardX
    except ImportError as error:
        raise InputError(
            f"--config.train.tensorboard: {error.name} is not installed, expected it for event files: "
            f"pip install tensorboardX pillow, or uv run --extra tensorboard"
        ) from error
    return tensorboardX
