"""What all commands share: their flags, their one-line errors and their exit codes."""

import argparse
import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from isles_jax.runtime import interrupt


class InputError(ValueError):
    """A mistake in what the user gave (a file, a key, a folder). Commands print it as one line, without a traceback."""


class Parser(argparse.ArgumentParser):
    """Parses a command's flags. A mistake in them is an `InputError`, so that it is printed like every other."""

    def __init__(self, **options: Any) -> None:
        # Abbreviated flags would become ambiguous with each new one. The examples keep their lines.
        super().__init__(**options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Reports a mistake; argparse calls this.

        Raises:
          InputError: always.
        """
        raise InputError(f"{message}; --help lists the flags")


def add_folds_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --folds, whose value 0,2 becomes (0, 2); without the flag, the value is None."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(number) for number in text.split(","))

    folds = "average the networks of these folds, as in 0,2, finished or not; default: all finished folds"
    parser.add_argument("--folds", type=numbers, metavar="NUMBERS", help=folds)


def local_path(text: str) -> Path:
    """A flag's value as a path on this machine; an empty one or a path with a scheme, as s3://..., is a mistake."""
    if not text or "://" in text:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a path on this machine")
    return Path(text)


def run_command(main: Callable[[], None]) -> None:
    """Runs a command and prints what the user must act on as one line on stderr (one line for each bad case).

    Exit codes: 2 for a mistake of the user's, a full disk, a file that the system refuses, or a device whose memory is
    full; 143 after SIGTERM; 130 after SIGINT; 141, without a line, if the program that reads the output has ended, as
    `| head` does.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a character, such as that in "0.8 ± 0.1"
    with interrupt.listening():
        try:
            main()
            sys.stdout.flush()
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, InputError):
                line, code = f"error: {error}", 2
            elif isinstance(error, KeyboardInterrupt):
                saved = str(error) if isinstance(error, interrupt.Interrupted) else ""
                line, code = interrupt.message(saved), interrupt.exit_code()
            elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                line, code = f"error: {error.filename or 'a file'}: cannot be written ({error.strerror})", 2
            elif isinstance(error, OSError) and error.filename is not None:
                line, code = f"error: {error.filename}: cannot be read or written ({error.strerror})", 2
            elif type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):  # JAX loads slowly
                advice = "in training, a smaller --config.train.batch_size or --config.dtype=bfloat16 needs less"
                line, code = f"error: {str(error).splitlines()[0]}; {advice}", 2
            elif isinstance(error, BrokenPipeError) and _reader_of_stdout_has_ended():
                # Python flushes stdout once more at exit; into the closed pipe, that would fail again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(128 + signal.SIGPIPE)
            else:
                raise
            print(line, file=sys.stderr)
            sys.exit(code)


def _reader_of_stdout_has_ended() -> bool:
    """Tells a closed stdout from a connection that broke elsewhere, which raises BrokenPipeError too."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # with no event asked for, poll reports errors only
    return bool(poll.poll(0))


def one_line(error: BaseException) -> str:
    """The text of an exception of absl or ml_collections as one line."""
    text = error.args[0] if error.args else type(error).__name__
    while isinstance(text, BaseException):  # ml_collections wraps a KeyError, whose own text would be quoted
        text = text.args[0]
    return ". ".join(line.strip() for line in str(text).splitlines() if line.strip())
