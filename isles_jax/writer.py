"""What a run tells: metrics as JSON lines in a file, TensorBoard events if wanted, progress on the terminal."""

import json
import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from isles_jax import files
from isles_jax.config import InputError


class Writer:
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

    def __enter__(self) -> "Writer":
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


class Bar:
    """A progress bar with speed and time left on a terminal, plain lines at most every ten seconds otherwise."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self._title, self._total, self._unit, self._first, self._done = title, total, unit, done, done
        self._start, self._said, self._note = time.monotonic(), time.monotonic(), ""
        console = Console(file=sys.stdout)
        self._progress = None
        if console.is_terminal:
            speed, note = TextColumn("{task.fields[speed]}"), TextColumn("{task.fields[note]}")
            columns = (
                TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), speed, TimeRemainingColumn(), note,
            )  # fmt: skip
            self._progress = Progress(*columns, console=console)
            self._task = self._progress.add_task(title, total=total, completed=done, speed="", note="")

    def __enter__(self) -> "Bar":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress:
            self._progress.stop()
        elif kind is None and self._done > self._first:
            self._say()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Moves on by `count`; `note` stays until the next one."""
        self._done += count
        self._note = self._note if note is None else note
        if self._progress:
            self._progress.update(self._task, completed=self._done, speed=self._speed(), note=self._note)
        elif time.monotonic() - self._said > 10 and self._done < self._total:
            self._say()

    def _speed(self) -> str:
        rate = (self._done - self._first) / max(time.monotonic() - self._start, 1e-9)
        return f"{rate:.1f} {self._unit}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s/{self._unit}"

    def _say(self) -> None:
        self._said = time.monotonic()
        elapsed = self._said - self._start
        left = elapsed / max(self._done - self._first, 1) * (self._total - self._done)
        said = f"{self._title}: {self._done}/{self._total} {self._unit}s, {self._speed()}, {left:.0f} s left"
        print(f"{said}  {self._note}".rstrip(), flush=True)
