"""SIGTERM and SIGINT (Ctrl-C): a command leaves at once, except where it first has something to save.

The handler ends the process itself, and raises no exception. The signal may arrive in the middle of a library's code,
such as a callback of the garbage collector, which could lose the exception or be broken by it. Ending the process is
safe because files are written under a temporary name first. A second signal ends the process at once.
"""

import atexit
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

# The signals received so far; the first one decides the exit code.
_received: list[int] = []
# One entry for each open `postponed` block.
_postponed: list[None] = []
# Folders that must not outlive the process.
_temporary: list[Path] = []
# What the user can do next.
_advice = ["run the same command again"]


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to leave; the text says what was saved."""


def _handle(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    for other in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(other) is _handle:  # a signal that was ignored stays ignored
            signal.signal(other, signal.SIG_DFL)
    # Two signals may arrive together. The first one ends the process.
    if not _postponed and len(_received) == 1:
        leave()


def leave(saved: str = "") -> None:
    """Ends the process: one line on stderr, no temporary folder left, 143 or 130 as the exit code."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        if sys.stdout is not None and os.isatty(1):
            os.write(1, b"\x1b[?25h\n")  # a progress bar hides the cursor
        os.write(2, f"{message(saved)}\n".encode())
    for folder in _temporary:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(exit_code())


def listen() -> dict[int, Any]:
    """Handles SIGTERM and SIGINT from now on; the main thread calls it. Returns the earlier handlers."""
    # A shell starts the background jobs of a script with SIGINT ignored; such a signal stays ignored.
    handled = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, _handle) for number in handled}


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Handles SIGTERM and SIGINT inside the block, in the main thread; restores the earlier handlers afterwards."""
    before = listen()
    advice = _advice[0]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()
        _advice[0] = advice


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Inside the block, a signal is only recorded; see `requested`. The process leaves at the end of the block."""
    _postponed.append(None)
    try:
        yield
    finally:
        _postponed.pop()
    # Not after an exception, which may say what was saved. The caller handles a request that came without a signal.
    if not _postponed and _received and signal.getsignal(_received[0]) is signal.SIG_DFL:
        leave()


def remove_at_exit(folder: Path) -> None:
    """Removes a folder, if it is still there, when the process ends, by itself or by a signal."""
    _temporary.append(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def advise(text: str) -> None:
    """Sets what a command that is interrupted tells the user to do next, instead of running it again."""
    _advice[0] = text


def request(number: int) -> None:
    """Records a request to leave that reached this process in another way than by a signal."""
    _received.append(number)


def requested() -> bool:
    """Whether a signal asked the command to leave."""
    return bool(_received)


def leave_if_requested(saved: str = "") -> None:
    """Raises `Interrupted` if a signal asked the command to leave; `saved` tells the user what was saved."""
    if _received:
        raise Interrupted(saved)


def exit_code() -> int:
    """128 plus the signal's number, as shells count: 143 for SIGTERM, 130 for SIGINT."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def message(saved: str) -> str:
    """The line that tells the user that the command left, what was saved, and what to do next."""
    name = signal.Signals(exit_code() - 128).name
    return f"stopped by {name}{': ' + saved if saved else ''}; to go on, {_advice[0]}"
