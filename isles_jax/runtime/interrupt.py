"""SIGTERM and SIGINT (Ctrl-C): a command leaves at once, except where it first has something to save.

Files are written under a temporary name first, so a command that leaves at any moment leaves nothing half-written.
A second signal ends the process at once.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

# The signals received so far; the first one decides the exit code.
_received: list[int] = []
# One entry for each open `postponed` block.
_postponed: list[None] = []


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to leave; the text says what was saved."""


def _handle(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    for other in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(other) is _handle:  # a signal that was ignored stays ignored
            signal.signal(other, signal.SIG_DFL)
    # Two signals may arrive together. The second must not interrupt what the first one started.
    if not _postponed and len(_received) == 1:
        raise Interrupted


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Handles SIGTERM and SIGINT inside the block, in the main thread; restores the earlier handlers afterwards."""
    # A shell starts the background jobs of a script with SIGINT ignored; such a signal stays ignored.
    handled = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _handle) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Inside the block, a signal is only recorded; the code checks `requested` where it can leave."""
    _postponed.append(None)
    try:
        yield
    finally:
        _postponed.pop()


def request(number: int) -> None:
    """Records a request to leave that reached this process in another way than by a signal."""
    _received.append(number)


def requested() -> bool:
    """Whether a signal asked the command to leave."""
    return bool(_received)


def leave_if_requested(saved: str = "") -> None:
    """Leaves if a signal asked for it.

    Args:
      saved: tells the user what was saved.

    Raises:
      Interrupted: a signal was received.
    """
    if _received:
        raise Interrupted(saved)


def exit_code() -> int:
    """128 plus the signal's number, as shells count: 143 for SIGTERM, 130 for SIGINT."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def message(saved: str) -> str:
    """The line that tells the user that the command left, and what was saved."""
    name = signal.Signals(exit_code() - 128).name
    return f"stopped by {name}{': ' + saved if saved else ''}; to go on, run the same command again"
