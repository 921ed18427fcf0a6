"""The frame of every command: errors of the user as one line, exit codes, and flags."""

import argparse
import errno
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from isles_jax.runtime import interrupt


class InputError(ValueError):
    """A mistake in what the user gave (a file, a key, a folder): shown as one line, without a traceback."""


class Parser(argparse.ArgumentParser):
    """Reads a command's flags; a mistake in them is one line, as every other."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse with what is wrong.

        Raises:
          InputError: always.
        """
        raise InputError(f"{message}; --help lists the flags")


def add_folds_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --folds=0,2 as a sequence of numbers, or None."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(word) for word in text.split(","))

    folds = "average these folds, as in 0,2, even if one is not finished; default: all finished ones"
    parser.add_argument("--folds", type=numbers, metavar="NUMBERS", help=folds)


def run_command(main: Callable[[], None]) -> None:
    """Runs a command; whatever the user must act on is one line on stderr (one for each bad case of a folder).

    Exit codes: 2 for a mistake of the user's or a disk that is full, 143 after SIGTERM, 130 after SIGINT, 141 without a
    line where the reader of the output has left, as `| head` does.
    """
    with interrupt.listening():
        try:
            main()
            sys.stdout.flush()
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, InputError):
                line, code = f"error: {error}", 2
            elif isinstance(error, KeyboardInterrupt) or interrupt.requested():
                # A library that was left in mid-air may have turned the interruption into another exception.
                saved = str(error) if isinstance(error, interrupt.Interrupted) else ""
                line, code = interrupt.words(saved), interrupt.exit_code()
            elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                line, code = f"error: {error.filename or 'a file'}: cannot be written ({error.strerror})", 2
            elif isinstance(error, BrokenPipeError) and _unread():
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush fails again
                sys.exit(128 + signal.SIGPIPE)
            else:
                raise
            print(line, file=sys.stderr)
            sys.exit(code)


def _unread() -> bool:
    """Whether it is stdout's reader that has left, not that of some connection."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # nothing asked for: errors alone are told
    return bool(poll.poll(0))


def one_line(error: BaseException) -> str:
    """What the flags' parser or ml_collections found wrong, for a message."""
    text = error.args[0] if error.args else type(error).__name__
    while isinstance(text, BaseException):  # ml_collections wraps a KeyError, whose own text would be quoted
        text = text.args[0]
    return ". ".join(line.strip() for line in str(text).splitlines() if line.strip())
