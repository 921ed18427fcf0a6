"""SIGTERM and SIGINT (Ctrl-C): a command leaves at once where nothing is lost, and training only after a step.

Files are written under another name first, so leaving anywhere leaves nothing half-written. A second signal ends the
process as if no one listened.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

# The signal that asked to leave, and how many `postponed` blocks are open.
_asked: list[int] = []
_open: list[None] = []


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to leave; the text says what was saved."""


def _note(number: int, frame: FrameType | None) -> None:
    _asked.append(number)
    for heard in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(heard) is _note:  # one that is ignored stays so
            signal.signal(heard, signal.SIG_DFL)
    # Once is enough: two signals that arrive together must not break into what the first one started.
    if not _open and len(_asked) == 1:
        raise Interrupted


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Listens to SIGTERM and SIGINT, in the main thread. Afterwards the handlers before are back, nothing is asked."""
    # A shell starts background jobs of scripts with SIGINT ignored, and it stays so.
    heard = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _note) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Inside, a signal is noted and nothing else; the code asks `requested` where it can leave."""
    _open.append(None)
    try:
        yield
    finally:
        _open.pop()


def ask(number: int) -> None:
    """Notes a request to leave that did not come as a signal to this process."""
    _asked.append(number)


def requested() -> bool:
    """Whether a signal asked to leave."""
    return bool(_asked)


def leave_if_requested(saved: str = "") -> None:
    """Raises `Interrupted` if a signal asked to leave; `saved` says what was saved."""
    if _asked:
        raise Interrupted(saved)


def exit_code() -> int:
    """128 and the signal's number, as shells count: 143 for SIGTERM, 130 for SIGINT."""
    return 128 + (_asked[0] if _asked else signal.SIGINT)


def words(saved: str) -> str:
    """One line for the user about a command that left."""
    name = signal.Signals(exit_code() - 128).name
    return f"stopped by {name}{': ' + saved if saved else ''}; to go on, run the same command again"
