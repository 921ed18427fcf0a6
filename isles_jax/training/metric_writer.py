"""Metrics of a fold's training as JSON lines and, if switched on, as TensorBoard event files."""

import json
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from isles_jax.runtime import files
from isles_jax.runtime.command import InputError

# The file is written again for new lines after this time at the earliest, because each time all lines are written.
FLUSH_SECONDS = 5.0


class MetricWriter:
    """Writes scalars to a file of JSON lines, and scalars, images and settings to event files. Method names are clu's.

    New lines are on disk after a few seconds, and after `flush` or `close`.
    """

    def __init__(
        self, directory: epath.PathLike, first_step: int, *, name: str = "metrics.jsonl", tensorboard: bool = False
    ) -> None:
        """Opens the file. It loses the lines after `first_step` that an interrupted run left.

        Args:
          directory: the fold's folder.
          first_step: the step from which training resumes.
          name: of the file.
          tensorboard: also write a new event file, which tells TensorBoard to ignore older events after `first_step`.

        Raises:
          InputError: see `require_tensorboard`.
        """
        self._events = None
        if tensorboard:
            events = require_tensorboard(directory)
            # TensorBoard reads files in the order of their names. The time in a name counts whole seconds only.
            suffix = f".{first_step:09d}"
            self._events = events.SummaryWriter(str(directory), purge_step=first_step + 1, filename_suffix=suffix)
        self._path = epath.Path(directory) / name
        self._lines: list[str] = []
        for line in files.read_text(self._path).splitlines() if self._path.exists() else ():
            try:
                kept = json.loads(line)["step"] <= first_step
            except (ValueError, KeyError):
                break  # a killed run may have left half a line at the end
            if kept:
                self._lines.append(line)
        self.flush()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one line for `step`. A value that is not finite is written as null."""
        values = {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}
        self._lines.append(json.dumps({"step": step, **values}))
        if self._events:
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures, uint8 [H, W, 3], to the event file only."""
        if self._events:
            for name, image in images.items():
                self._events.add_image(name, image, step, dataformats="HWC")
            self.flush()

    def write_hparams(self, settings: Mapping[str, Any]) -> None:
        """Adds the settings of the run to the event file only, for TensorBoard's HPARAMS page."""
        if self._events:
            from tensorboardX.summary import hparams

            simple = (bool, int, float, str)
            values = {key: value if isinstance(value, simple) else str(value) for key, value in settings.items()}
            for summary in hparams(values, {"loss": 0.0}):
                self._events.file_writer.add_summary(summary)
            self.flush()

    def flush(self) -> None:
        """Writes what was added.

        Raises:
          InputError: the file cannot be written.
        """
        files.write_atomic(self._path, "".join(line + "\n" for line in self._lines))
        if self._events:
            self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what was added, and closes the event file."""
        self.flush()
        if self._events:
            self._events.close()


def require_tensorboard(directory: epath.PathLike) -> Any:
    """The module tensorboardX, after checking that it can write event files to `directory`.

    Raises:
      InputError: a package is not installed; the folder is in a bucket.
    """
    if files.is_bucket(directory):
        raise InputError(
            f"--config.train.tensorboard: event files cannot be written to {directory}, expected a local --workdir"
        )
    try:
        import PIL  # noqa: F401 - tensorboardX needs it for images
        import tensorboardX
    except ImportError as error:
        raise InputError(
            f"--config.train.tensorboard: {error.name} is not installed, expected it for event files: "
            "pip install tensorboardX pillow, or uv run --extra tensorboard"
        ) from error
    return tensorboardX
