"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


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
