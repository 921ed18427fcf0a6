"""Cross-validated lesion segmentation in one command: train, predict and score every fold, then print the table.

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
    None,  # a default would be loaded, and could fail, before the command line is read
    "File of the system to run: configs/bl1.py to configs/bl7.py or configs/proposed.py (the default), found from any "
    "folder, or a file of your own. Any key is overridden by --config.KEY=VALUE, as in --config.train.epochs=20; "
    "isles_jax/config.py explains them all.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "workdir",
    None,
    "Folder or bucket for checkpoints, predictions, table and report; runs/NAME if not given, with the config's name. "
    "The same command resumes what is there, and of a finished run prints the table. SIGTERM and Ctrl-C save and "
    "leave; exit codes: 143 and 130 for those, 2 for a mistake or a full disk.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0 where several processes (machines) train together, started one by one with this command; "
    "not needed on a TPU slice of several hosts nor under Slurm or Open MPI, where they are found.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("processes", None, "With --coordinator: the number of processes.", flag_values=FLAGS)
flags.DEFINE_integer("process", None, "With --coordinator: which process this one is, from 0.", flag_values=FLAGS)
flags.DEFINE_boolean("help", False, "Show this text.", short_name="h", flag_values=FLAGS)


def usage() -> str:
    """What --help shows."""
    lines = [__doc__.strip(), ""]
    for name in ("config", "workdir", "coordinator", "processes", "process", "help"):
        lines += [f"--{name}", textwrap.fill(FLAGS[name].help, 100, initial_indent="    ", subsequent_indent="    ")]
    example = "python -m isles_jax.main --config=configs/bl5.py --config.data.root=/data/SPES --workdir=runs/spes"
    return "\n".join([*lines, "", "Your own data, another system:", f"    {example}"])


def parse(arguments: Sequence[str]) -> None:
    """Reads the command line into FLAGS.

    Raises:
      InputError: an unknown flag or key, a value of another type, a config file that cannot be read.
    """
    try:
        rest = FLAGS([*arguments[:1], *_with_config(arguments[1:])])
        if FLAGS.help:
            return
        path = config_flags.get_config_filename(FLAGS["config"])
        if not os.path.isfile(path):
            raise InputError(f"--config={path}: found no such file, expected one like {DEFAULT}")
        FLAGS.config.to_dict()  # a file that fails does so only when it is read
    except flags.Error as error:
        raise InputError(one_line(error)) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"--config: found no key {one_line(error)}") from error
    if len(rest) > 1:
        raise InputError(f"found {rest[1]!r}, expected flags only; --help lists them")


def _with_config(arguments: Sequence[str]) -> list[str]:
    """The arguments with one --config=FILE in front: the one given, else the default.

    A file that is not there as given may be one of those that come with the package.
    """
    path, rest, words = DEFAULT, [], iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--config", "-config"):
            path = value if equals else next(words, "")
        else:
            rest.append(word)
    # In the wheel the eight files lie in the package, in a checkout beside it.
    places = [Path(path), *(folder / path for folder in Path(__file__).parents[:2])]
    return [f"--config={next((place for place in places if place.is_file()), path)}", *rest]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parse([sys.argv[0], *(sys.argv[1:] if arguments is None else arguments)])
    if FLAGS.help:
        print(usage())
        return
    workdir = FLAGS.workdir or f"runs/{FLAGS.config.name}"
    processes.start(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    if processes.count() == 1:  # several processes find mistakes together, in `cross_validate`
        root = resolve(FLAGS.config).data.root
        if root and not files.is_bucket(root):
            files.check_folder(Path(root))
    # JAX and the rest: --help and mistakes in the settings should not wait for them.
    from isles_jax.cross_validation import cross_validate

    processes.run(lambda: print(cross_validate(FLAGS.config, workdir)))


if __name__ == "__main__":
    run_command(main)
