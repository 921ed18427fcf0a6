"""One command for all: `isles-jax train`, `isles-jax predict` and so on, each the `main` of a module."""

import importlib
import sys

from isles_jax.runtime.command import InputError, run_command

# Subcommand: the module whose `main` it calls, and what it does.
COMMANDS = {
    "train": ("main", "cross-validate one system: train, predict and score every fold"),
    "predict": ("predict", "segment new cases with the networks of a run"),
    "evaluate": ("evaluate", "score label volumes of any tool"),
    "report": ("report", "compare finished runs in a table and a page"),
    "export": ("export", "write a run's networks as safetensors or StableHLO"),
    "phantom": ("phantom", "write a digital phantom data set"),
    "convert": ("convert", "write a data set in the layout of nnU-Net"),
}


def usage() -> str:
    """The text of --help."""
    lines = ["Segmentation of ischaemic stroke lesions in MRI.", "", "usage: isles-jax COMMAND [FLAGS]", ""]
    lines += [f"  {name:9} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join([*lines, "", "isles-jax COMMAND --help lists a command's flags."])


def main() -> None:
    """The command `isles-jax`."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name not in COMMANDS:
        raise InputError(f"isles-jax {name}: found no such command, expected one of {', '.join(COMMANDS)}")
    # Only the module that is asked for is imported.
    importlib.import_module(f"isles_jax.{COMMANDS[name][0]}").main(arguments)


def run() -> None:
    """The entry point that `pip install` makes."""
    run_command(main)
