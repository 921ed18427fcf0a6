"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from isles_jax.runtime.command import fitted

Item = TypeVar("Item")


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line to stdout, or to another stream, as `command.fitted` breaks it."""
    stream = stream or sys.stdout
    print(fitted(text, stream), file=stream, flush=True)


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
    """The progress of one piece of work, with its speed and about the time left.

    A piece may be a part of a whole: then `total` are the units of the whole, and `done` those of the parts before.
    On a terminal it is a bar. Elsewhere it is a plain line, at most one every ten seconds. The speed does not count the
    first piece, whose time is mostly compilation.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0, note: str = "") -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._note = note
        self._first = done
        self._done = done
        self._printed = time.monotonic()
        # The speed is measured from this moment, when so many units were done.
        self._since = self._printed, done
        console = Console(file=sys.stdout)
        self._progress = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[speed]}"),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._task = self._progress.add_task(title, total=total, completed=done, speed="", left="", note=note)

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
        first = self._done == self._first
        self._done += count
        if first and self._done < self._total:
            self._printed = time.monotonic()
            self._since = self._printed, self._done
        if note is not None:
            self._note = note
        if self._progress:
            speed, left = self._speed(), self._left()
            self._progress.update(self._task, completed=self._done, speed=speed, left=left, note=self._note)
        elif time.monotonic() - self._printed > 10 and self._done < self._total:
            self._print()

    def _rate(self) -> float:
        """Units a second; 0 if none is done since the first."""
        start, done = self._since
        return (self._done - done) / max(time.monotonic() - start, 1e-9)

    def _speed(self) -> str:
        rate = self._rate()
        if not rate:
            return ""
        return f"{rate:.1f} {self._unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{self._unit}"

    def _left(self) -> str:
        rate = self._rate()
        if not rate:
            return ""
        seconds = (self._total - self._done) / rate
        return f"{seconds:.0f} s left" if seconds < 100 else f"{seconds / 60:.0f} min left"

    def _print(self) -> None:
        self._printed = time.monotonic()
        parts = [f"{self._title}: {self._done}/{self._total} {self._unit}s"]
        parts += filter(None, (self._speed(), self._left()))
        print(f"{', '.join(parts)}  {self._note}".rstrip(), flush=True)
