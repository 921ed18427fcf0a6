"""Configurations from the command line: --config=FILE and --config.KEY=VALUE, by ml_collections' own rules."""

import os
from collections.abc import Callable, Sequence
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
      InputError: there is no such file; an unknown flag or key; a value of another type.
    """
    # The files are inside the package in a wheel, and beside it in a checkout.
    candidates = [Path(file), *(folder / file for folder in Path(__file__).parents[1:3])]
    path = next((str(candidate) for candidate in candidates if candidate.is_file()), file)
    if not os.path.isfile(path):
        raise InputError(f"--config={path}: found no such file, expected one like configs/proposed.py")
    return _parse(config_flags.DEFINE_config_file, None, [f"--config={path}", *overrides])


def override(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """The configuration with each --config.KEY=VALUE applied to it, in place; errors as in `read`."""
    return _parse(config_flags.DEFINE_config_dict, config, list(overrides))


def _parse(define: Callable[..., object], default: object, arguments: list[str]) -> ml_collections.ConfigDict:
    """The value that the arguments give the flag --config, which `define` adds to absl's flags."""
    values = flags.FlagValues()
    try:
        define("config", default, "", values, sys_argv=arguments)
        _, *rest = values(["program", *arguments])
        values.config.to_dict()  # loads the file now, so that its errors are reported here
    except flags.Error as error:
        raise InputError(f"{one_line(error)}; --help lists the flags") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"--config: found no key {one_line(error)}") from error
    if rest:
        raise InputError(f"found {rest[0]!r}, expected flags only; --help lists them")
    return values.config
