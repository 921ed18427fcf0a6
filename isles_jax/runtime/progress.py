"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def track(items: Sequence[Item], title: str, unit: str, at_least: int = 50) -> Iterator[Item]:
    """The items one by one, with a bar if there are many of them."""
    if len(items) < at_least:
        yield from items
        return
    with Bar(title, len(items), unit) as bar:
        for item in items:
            yield item
            bar.advance()


class Bar:
    """The progress of one piece of work, with its speed and the time left.

    On a terminal it is a bar. Elsewhere it is a plain line, at most one every ten seconds.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self._title, self._total, self._unit, self._first, self._done = title, total, unit, done, done
        self._start, self._printed, self._note = time.monotonic(), time.monotonic(), ""
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
            self._print()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Counts `count` more units as done; `note` is shown after the numbers until the next note replaces it."""
        self._done += count
        self._note = self._note if note is None else note
        if self._progress:
            self._progress.update(self._task, completed=self._done, speed=self._speed(), note=self._note)
        elif time.monotonic() - self._printed > 10 and self._done < self._total:
            self._print()

    def _speed(self) -> str:
        rate = (self._done - self._first) / max(time.monotonic() - self._start, 1e-9)
        return f"{rate:.1f} {self._unit}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s/{self._unit}"

    def _print(self) -> None:
        self._printed = time.monotonic()
        elapsed = self._printed - self._start
        left = elapsed / max(self._done - self._first, 1) * (self._total - self._done)
        line = f"{self._title}: {self._done}/{self._total} {self._unit}s, {self._speed()}, {left:.0f} s left"
        print(f"{line}  {self._note}".rstrip(), flush=True)
