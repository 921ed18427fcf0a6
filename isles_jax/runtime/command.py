"""What all commands share: their flags, their one-line errors and their exit codes."""

import argparse
import difflib
import errno
import gc
import io
import os
import re
import select
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from isles_jax.runtime import interrupt, memory

# What is printed fits this many columns.
WIDTH = 80
# What the value of a flag or of a setting is, by the name of its type.
VALUES = {
    "bool": "True or False",
    "float": "a number",
    "int": "a whole number",
    "numbers": "whole numbers with commas between them",
    "str": "a text",
    "tuple": "values with commas between them",
}


class InputError(ValueError):
    """A mistake in what the user gave (a file, a key, a folder). Commands print it as one line, without a traceback."""


class Parser(argparse.ArgumentParser):
    """Parses a command's flags. A mistake in them is an `InputError`, so that it is printed like every other."""

    def __init__(self, **options: Any) -> None:
        lines = (options.get("description") or "").splitlines()
        options["description"] = "\n".join(textwrap.fill(line, WIDTH) for line in lines)
        # Abbreviations could become ambiguous with a new flag. The examples keep their lines.
        super().__init__(**options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse does. A misspelt flag is named first; argparse would name the flag that is then missing."""
        given = sys.argv[1:] if args is None else args
        flags = [name for name in self._option_string_actions if name.startswith("--")]
        for argument in given:
            name, *value = argument.split("=", 1)
            if name in self._option_string_actions or not name.startswith("-") or "." in name:
                continue
            for meant in difflib.get_close_matches(f"--{name.lstrip('-')}", flags, 1, 0.75):
                raise InputError(f"{argument}: found no such flag, expected {'='.join([meant, *value])}?")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises an InputError; argparse calls this to report a mistake."""
        # argparse names a value's type as a program does, as in: invalid int value: 'two'
        found = re.fullmatch("(.*): invalid (.*) value: (.*)", message, re.DOTALL)
        if found and found[2].strip("_") in VALUES:
            message = f"{found[1]}: found {found[3]}, expected {VALUES[found[2].strip('_')]}"
        raise InputError(f"{message}; --help lists the flags")


def add_folds_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --folds, whose value 0,2 becomes (0, 2); without the flag, the value is None."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(number) for number in text.split(","))

    folds = "average the networks of these folds, as in 0,2, finished or not; default: all finished folds"
    parser.add_argument("--folds", type=numbers, metavar="NUMBERS", help=folds)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how a data set is read.

    The value DWI,ADC of --channels becomes ("DWI", "ADC"); without the flag, the value is ().
    """

    def names(text: str) -> tuple[str, ...]:
        return tuple(name.strip() for name in text.split(",")) if text else ()

    channels = "channels to read, with commas between them; default: all those of the layout"
    parser.add_argument("--channels", type=names, default=(), metavar="NAMES", help=channels)
    integer = "the integer that marks %s in label volumes of SPES (default %%(default)s)"
    parser.add_argument("--penumbra", type=int, default=1, metavar="INTEGER", help=integer % "penumbra")
    parser.add_argument("--core", type=int, default=2, metavar="INTEGER", help=integer % "core")
    grids = "bring sequences on other grids to that of the first one, by the headers"
    parser.add_argument("--resample", action="store_true", help=grids)


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
    _refuse_environment()
    memory.keep_freed()
    # JAX makes many objects while it traces, and few of them become garbage. With Python's threshold of 700 objects,
    # the search for garbage takes a fifth of that time.
    gc.set_threshold(50_000)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a character, such as that in "0.8 ± 0.1"
    with interrupt.listening():
        try:
            main()
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            saved = str(error) if isinstance(error, interrupt.Interrupted) else ""
            print(fitted(interrupt.message(saved), sys.stderr), file=sys.stderr)
            sys.exit(interrupt.exit_code())
        except Exception as error:
            problem = problem_of(error)
            if problem:
                print(fitted(f"error: {problem}", sys.stderr), file=sys.stderr)
                sys.exit(2)
            if isinstance(error, BrokenPipeError) and _reader_of_stdout_has_ended():
                # Python flushes stdout once more at exit, which would fail again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(128 + signal.SIGPIPE)
            raise


def _refuse_environment() -> None:
    """Exits with code 2 and one line if no command can work in what the shell gave: closed streams, no folder."""
    problem = ""
    if None in (sys.stdout, sys.stderr):
        # The next file that is opened would take the place of the stream, and get what libraries print.
        problem = "found a closed stdout or stderr, expected both open; to hide what is printed, use >/dev/null"
    try:
        os.getcwd()
    except OSError as error:
        problem = problem or f"found no working directory ({error.strerror}), expected one; go to another with cd"
    if problem:
        print(f"error: {problem}", file=sys.stderr or sys.stdout)
        sys.exit(2)


def fitted(text: str, stream: TextIO) -> str:
    """A line as it is printed to a stream: on a terminal it is broken between words, elsewhere it stays whole."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    lines = text.splitlines()
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": "  "}
    return "\n".join(textwrap.fill(line, width, **options) for line in lines)


def problem_of(error: Exception) -> str:
    """What the user must act on; "" for an error of the program."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error.filename or 'a file'}: cannot be written ({error.strerror})"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: cannot be read or written ({error.strerror})"
    if isinstance(error, MemoryError):
        return f"out of memory ({' '.join(str(error).split()) or 'no more can be allocated'})"
    # By its name, because importing JAX takes seconds.
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
        advice = "in training, a smaller --config.train.batch_size or --config.dtype=bfloat16 needs less"
        return f"{str(error).splitlines()[0]}; {advice}"
    return ""


def _reader_of_stdout_has_ended() -> bool:
    """Whether stdout is closed. A connection that breaks elsewhere raises BrokenPipeError too."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # with no event asked for, poll reports errors only
    return bool(poll.poll(0))


# What ml_collections adds to the name of an unknown key: the whole configuration.
_WHOLE_CONFIG = re.compile(r'\. Other fields present: ".*}"', re.DOTALL)


def one_line(error: BaseException) -> str:
    """The text of an exception of absl or ml_collections as one line."""
    text = error.args[0] if error.args else type(error).__name__
    while isinstance(text, BaseException):  # ml_collections wraps a KeyError, whose own text would be quoted
        text = text.args[0] if text.args else type(text).__name__
    text = _WHOLE_CONFIG.sub("", str(text))
    return ". ".join(line.strip() for line in text.splitlines() if line.strip())
