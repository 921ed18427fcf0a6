"""Configurations from the command line: --config=FILE and --config.KEY=VALUE, by ml_collections' own rules."""

import difflib
import os
import re
import runpy
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from isles_jax.runtime.command import VALUES, InputError, one_line

# The settings of a run that names none.
DEFAULT = "configs/proposed.py"
# A setting is suggested in place of a wrong name from this likeness on, between 0 and 1.
LIKE = 0.6
# Settings are suggested together if their likeness differs by less.
AS_LIKE = 0.05


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
        raise InputError(f"--config={path}: found no such file, expected one like {DEFAULT}")
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
    except (flags.Error, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        problem = _explain(error, _settings(config), overrides)
        raise InputError(" ".join(problem.split())) from error
    if rest:
        raise InputError(f"found {rest[0]!r}, expected flags only; --help lists them")
    return values.config


def _settings(config: ml_collections.ConfigDict, section: str = "config") -> dict[str, str]:
    """What is expected of each setting, by the name of its flag without the dashes."""
    expected: dict[str, str] = {}
    for key, value in config.items():
        name = f"{section}.{key}"
        if isinstance(value, ml_collections.ConfigDict):
            expected |= _settings(value, name)
        else:
            expected[name] = VALUES.get(config.get_type(key).__name__, "another value")
    return expected


def _explain(error: Exception, settings: dict[str, str], overrides: Sequence[str]) -> str:
    """The mistake in the command line as one line, with the settings that were probably meant."""
    if isinstance(error, flags.IllegalFlagValueError):
        flag = str(error).removesuffix(f": {error.__context__}").removeprefix("flag ")
        name = flag.removeprefix("--").partition("=")[0]
        inside = [setting for setting in settings if setting.startswith(f"{name}.")]
        if inside:
            return f"{flag}: found a section, expected one of its settings, such as --{inside[0]}"
        return f"{flag}: expected {settings[name]}" if name in settings else f"{flag}: found no such flag"
    if isinstance(error, flags.UnrecognizedFlagError):
        wrong = [flag for flag in overrides if flag.lstrip("-").partition("=")[0] == error.flagname]
        what, help_text = "flag", "--help lists the flags, isles-jax settings the settings"
    else:
        named = [(flag, re.match("-{1,2}(?:no)?(config[.][^=]*)", flag)) for flag in overrides]
        wrong = [flag for flag, match in named if match and match[1] not in settings]
        what, help_text = "setting", "isles-jax settings lists the settings"
    if not wrong:
        return f"{one_line(error)}; --help lists the flags"
    flag = wrong[0]
    name, *value = flag.lstrip("-").split("=", 1)
    meant = [f"--{'='.join([setting, *value])}" for setting in _nearest(name, settings)]
    return f"{flag}: found no such {what}" + (f", expected {' or '.join(meant)}?" if meant else f"; {help_text}")


def _nearest(name: str, settings: Iterable[str]) -> list[str]:
    """The settings that a wrong name resembles most, in whole and in its last part; none if it resembles none."""

    def likeness(setting: str) -> float:
        pairs = ((name, setting), (name.split(".")[-1], setting.split(".")[-1]))
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs) / 2

    found = {setting: likeness(setting) for setting in settings}
    least = max(LIKE, max(found.values(), default=0) - AS_LIKE)
    return sorted((setting for setting in found if found[setting] >= least), key=lambda setting: -found[setting])
