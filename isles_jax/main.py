"""Cross-validates one system: trains, predicts and scores every fold, then prints the table.

python -m isles_jax.main --config=configs/proposed.py
"""

import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from isles_jax.config import resolve
from isles_jax.runtime import files, processes
from isles_jax.runtime.command import InputError, one_line, run_command

DEFAULT = "configs/proposed.py"
FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file(
    "config",
    None,  # absl would load a default, and might fail, before it reads the command line
    "Python file with the settings of a system: configs/bl1.py to configs/bl7.py, configs/proposed.py (the default), "
    "which are found from any folder, or your own. --config.KEY=VALUE overrides one setting, as in "
    "--config.train.epochs=20; isles_jax/config.py explains all of them.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "workdir",
    None,
    "Folder or bucket for checkpoints, predictions, table and report. Default: runs/NAME, where NAME is the "
    "setting `name`. Run the same command again to resume; for a finished run, it prints the table. On SIGTERM "
    "(exit code 143) and Ctrl-C (130), training is saved first. A mistake or a full disk has exit code 2.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, if you start several processes (machines) by hand to train together. Not needed on a TPU "
    "slice of several hosts, or under Slurm or Open MPI, where the processes find each other.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("processes", None, "With --coordinator: the number of processes.", flag_values=FLAGS)
flags.DEFINE_integer("process", None, "With --coordinator: the number of this process, from 0.", flag_values=FLAGS)
flags.DEFINE_boolean("help", False, "Show this text.", short_name="h", flag_values=FLAGS)


def usage() -> str:
    """The text of --help."""
    lines = [__doc__.strip(), ""]
    for name in ("config", "workdir", "coordinator", "processes", "process", "help"):
        lines += [f"--{name}", textwrap.fill(FLAGS[name].help, 100, initial_indent="    ", subsequent_indent="    ")]
    example = "python -m isles_jax.main --config=configs/bl5.py --config.data.root=/data/SPES --workdir=runs/spes"
    return "\n".join([*lines, "", "Another system, on your own data:", f"    {example}"])


def parse(arguments: Sequence[str]) -> None:
    """Parses the command line, the program's name first, into FLAGS.

    Raises:
      InputError: an unknown flag or key; a value of another type; a config file that cannot be read.
    """
    try:
        rest = FLAGS([*arguments[:1], *_with_config(arguments[1:])])
        if FLAGS.help:
            return
        path = config_flags.get_config_filename(FLAGS["config"])
        if not os.path.isfile(path):
            raise InputError(f"--config={path}: found no such file, expected one like {DEFAULT}")
        FLAGS.config.to_dict()  # loads the file now, so that its errors are reported here
    except flags.Error as error:
        raise InputError(f"{one_line(error)}; --help lists the flags") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"--config: found no key {one_line(error)}") from error
    if len(rest) > 1:
        raise InputError(f"found {rest[1]!r}, expected flags only; --help lists them")


def _with_config(arguments: Sequence[str]) -> list[str]:
    """Moves --config=FILE to the front of the arguments, where absl needs it before --config.KEY=VALUE.

    Without the flag, FILE is the default. A relative path that does not exist is looked up among the files that come
    with the package.
    """
    path, rest, remaining = DEFAULT, [], iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            path = value if equals else next(remaining, "")
        else:
            rest.append(argument)
    # The eight files are inside the package in a wheel, and beside it in a checkout.
    candidates = [Path(path), *(folder / path for folder in Path(__file__).parents[:2])]
    return [f"--config={next((file for file in candidates if file.is_file()), path)}", *rest]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; `arguments` are its flags, or None for those of the command line."""
    parse([sys.argv[0], *(sys.argv[1:] if arguments is None else arguments)])
    if FLAGS.help:
        print(usage())
        return
    workdir = f"runs/{FLAGS.config.name}" if FLAGS.workdir is None else FLAGS.workdir
    files.location(workdir)
    processes.start(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    if processes.count() == 1:  # several processes report mistakes together, in `cross_validate`
        root = resolve(FLAGS.config).data.root
        if root and not files.is_bucket(root):
            files.check_folder(Path(root))
            files.refuse_inside(workdir, root)
    # Imported here because JAX takes seconds to load; --help and mistakes in the flags come first.
    from isles_jax.cross_validation import cross_validate

    processes.run(lambda: print(cross_validate(FLAGS.config, workdir)))


if __name__ == "__main__":
    run_command(main)
