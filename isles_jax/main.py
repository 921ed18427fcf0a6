"""The command that cross-validates one system: it trains, predicts and scores every fold, and prints its Dice.

python -m isles_jax.main --config=configs/proposed.py
"""

from isles_jax.runtime import interrupt

if __name__ == "__main__":
    interrupt.listen()  # the other imports take a while

from collections.abc import Sequence

from isles_jax.runtime import files, processes
from isles_jax.runtime.command import Parser, run_command

EXAMPLE = """Another system, on your own data; then to go on with it:
  python -m isles_jax.main --config=configs/bl5.py \\
      --config.data.root=/data/SPES --workdir=runs/spes
  python -m isles_jax.main --workdir=runs/spes"""


def _parser() -> Parser:
    parser = Parser(prog="isles-jax train", description=main.__doc__, epilog=EXAMPLE)
    config = (
        "Python file with the settings of a system: configs/bl1.py to configs/bl7.py, configs/proposed.py, which are "
        "found from any folder, or your own. Default: the settings of the run that has begun in the workdir, or else "
        "configs/proposed.py. --config.KEY=VALUE overrides one setting, as in --config.train.epochs=20; isles-jax "
        "settings lists all of them"
    )
    parser.add_argument("--config", metavar="FILE", help=config)
    workdir = (
        "folder or bucket for checkpoints, predictions, table and report; default: runs/NAME, where NAME is the "
        "setting `name`. To resume a run, its workdir is enough; for a finished run, its Dice is printed. On SIGTERM "
        "(exit code 143) and Ctrl-C (130), training is saved first. A mistake or a full disk has exit code 2"
    )
    parser.add_argument("--workdir", metavar="DIR", help=workdir)
    coordinator = (
        "HOST:PORT of process 0, if you start several processes (machines) by hand to train together. Not needed on a "
        "TPU slice of several hosts, or under Slurm or Open MPI, where the processes find each other"
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help=coordinator)
    parser.add_argument("--processes", type=int, metavar="N", help="with --coordinator: the number of processes")
    process = "with --coordinator: the number of this process, from 0"
    parser.add_argument("--process", type=int, metavar="K", help=process)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Cross-validates one system: trains, predicts and scores every fold, then prints its Dice."""
    options, overrides = _parser().parse_known_args(arguments)
    # Imported here because they load slowly; --help and mistakes in the flags come first.
    from isles_jax.config import begun, resolve
    from isles_jax.runtime import overrides as config_flags
    from isles_jax.runtime.progress import say

    config = config_flags.read(config_flags.DEFAULT if options.config is None else options.config, overrides)
    workdir = f"runs/{config.name}" if options.workdir is None else options.workdir
    stored = files.location(workdir) / "config.json"
    resumed = options.config is None and stored.exists()
    if resumed:
        config = config_flags.override(begun(files.read_json_like(stored, {}), stored), overrides)
    processes.start(options.coordinator, options.processes, options.process)
    if resumed:
        say(f"{workdir}: the run goes on with its own settings, those of {stored.name}")
    # Several processes report mistakes together, in `cross_validate`. A finished run does not need its data.
    if processes.count() == 1 and not (files.location(workdir) / "DONE").exists():
        root = resolve(config).data.root
        if root:
            files.check_data(root)
            files.refuse_inside(workdir, root)
    # JAX takes seconds to load; mistakes in the configuration come first.
    from isles_jax.cross_validation import cross_validate

    processes.run(lambda: print(cross_validate(config, workdir)))


if __name__ == "__main__":
    run_command(main)
