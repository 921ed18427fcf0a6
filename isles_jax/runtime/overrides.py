"""Configurations from the command line: --config=FILE and --config.KEY=VALUE, by ml_collections' own rules."""

import os
import runpy
import traceback
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from isles_jax.runtime.command import InputError, one_line


def read(file: str, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """The configuration of a file with each --config.KEY=VALUE applied to it.

    Args:
      file: a Python file with `get_config`. A relative path that does not exist is looked up among the files that come
        with the package.
      overrides: what the command line holds beside the command's own flags.

    Raises:
      InputError: there is no such file, or it has a mistake; an unknown flag or key; a value of another type.
    """
    # The files are inside the package in a wheel, and beside it in a checkout.
    candidates = [Path(file), *(folder / file for folder in Path(__file__).parents[1:3])]
    path = next((str(candidate) for candidate in candidates if candidate.is_file()), file)
    if not os.path.isfile(path):
        raise InputError(f"--config={path}: found no such file, expected one like configs/proposed.py")
    return override(_run(path), overrides)


def _run(path: str) -> ml_collections.ConfigDict:
    """What `get_config` of a Python file returns; an InputError for whatever goes wrong in the file."""
    try:
        config = runpy.run_path(path)["get_config"]()
    except (Exception, SystemExit) as error:
        if isinstance(error, KeyError) and error.args == ("get_config",):
            raise InputError(f"--config={path}: found no function get_config, expected one") from error
        # The last line of the file that was at work; a mistake in the syntax has a line of its own.
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == path else (lines or [None])[-1]
        where = "" if line is None else f", line {line}"
        raise InputError(
            f"--config={path}: found a mistake{where} ({type(error).__name__}: {one_line(error)})"
        ) from error
    if not isinstance(config, ml_collections.ConfigDict):
        found = type(config).__name__
        raise InputError(f"--config={path}: get_config returns a value of type {found}, expected a ConfigDict")
    return config


def override(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """The configuration with each --config.KEY=VALUE applied to it, in place; errors as in `read`."""
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, "", values, sys_argv=list(overrides))
        _, *rest = values(["program", *overrides])
    except flags.Error as error:
        raise InputError(f"{one_line(error)}; --help lists the flags") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"--config: found no key {one_line(error)}") from error
    if rest:
        raise InputError(f"found {rest[0]!r}, expected flags only; --help lists them")
    return values.config
