"""The command `isles-jax`, whose subcommands are the `main` functions of the command modules."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from isles_jax import __version__
from isles_jax.runtime import interrupt

# Each subcommand: the module whose `main` it calls, and what it does.
COMMANDS = {
    "train": ("main", "cross-validate one system: train, predict and score every fold"),
    "predict": ("predict", "segment new cases with the networks of a run"),
    "evaluate": ("evaluate", "score label volumes of any tool"),
    "report": ("report", "compare finished runs in a table and a page"),
    "export": ("export", "write the networks of a run as safetensors or StableHLO"),
    "phantom": ("phantom", "write a digital phantom data set"),
    "convert": ("convert", "write a data set in the raw layout of nnU-Net"),
    "check": ("check", "read a data set as training would, and say what it is"),
    "settings": ("settings", "list the settings of a run: meaning, value and default"),
}


def usage() -> str:
    """The text of --help."""
    lines = ["Segmentation of ischaemic stroke lesions in MRI.", "", "usage: isles-jax COMMAND [FLAGS]", ""]
    lines += [f"  {name:9} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    more = ["isles-jax COMMAND --help lists the flags of a command.", "isles-jax --version prints the version."]
    return "\n".join([*lines, "", *more])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a subcommand, or prints the list of them. A mistake in what the user gave is an InputError."""
    name, *flags = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(f"isles-jax {__version__}")
        return
    if name not in COMMANDS:
        from isles_jax.runtime.command import InputError

        meant = difflib.get_close_matches(name, COMMANDS, 1)
        expected = f"{meant[0]}?" if meant else f"one of {', '.join(COMMANDS)}"
        raise InputError(f"isles-jax {name}: found no such command, expected {expected}")
    # Only the module of this subcommand is imported, so that --help is quick.
    importlib.import_module(f"isles_jax.{COMMANDS[name][0]}").main(flags)


def run() -> None:
    """The entry point that the installed script `isles-jax` calls."""
    interrupt.listen()  # the other imports take a while
    from isles_jax.runtime.command import run_command

    run_command(main)
