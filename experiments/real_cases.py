"""Real cases of ISLES-2022, each left out once: does what holds on the phantom happen on patients, too?

python -m experiments.real_cases --workdir=DIR --config.data.root=/data/isles2022

Four cases show whether the software works on patients, and cannot show how well. So the table has every case, and no
mean. The sizes are for four cases and two CPU cores.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from experiments import nnunet, peers
from experiments.best import FLIPS, STRONGER
from experiments.rows import Rows, changed_rows, run_rows
from experiments.study import Seeds, refuse_table
from isles_jax.config import baseline
from isles_jax.runtime.command import Parser, run_command
from isles_jax.scoring import scores

# A quarter of the paper's width. A fold trains on about 200 slices and sees each of them twenty times.
SIZE = [
    "--config.folds=4",
    "--config.model.width=16",
    "--config.discriminator.width=8",
    "--config.train.epochs=20",
]
# Name of the row: what differs from configs/proposed.py.
NOT_ADVERSARIAL = ["--config.discriminator.enabled=False", "--config.loss.adversarial=0"]
SYSTEMS = {
    "bl1": [
        *NOT_ADVERSARIAL,
        "--config.model.residual=False",
        "--config.loss.lovasz=0",
        "--config.loss.boundary=0",
    ],
    "bl6": NOT_ADVERSARIAL,
    "proposed": [],
    "best": [*NOT_ADVERSARIAL, *FLIPS, *STRONGER],
    "unet": [*NOT_ADVERSARIAL, "--config.model.network=unet"],
}
COLUMNS = ("row", "seed", "case", "dice", "lesion_f1", "volume_pred_ml", "volume_true_ml")


def real_rows(overrides: Sequence[str]) -> Rows:
    """The configuration of each row, by name; `overrides` are applied to all."""
    proposed = baseline(residual=True, adversarial=True, overlap=True)
    return changed_rows(proposed, SYSTEMS, [*SIZE, *overrides])


def write(path: epath.Path, runs: Seeds) -> None:
    """Writes a CSV with one line for each row, seed and case: Dice, F1 of the lesions, and volumes in ml."""
    refuse_table(path)
    lines = [
        {"row": name, "seed": str(seed)} | line
        for name, seeds in runs.items()
        for seed, run in enumerate(seeds)
        for line in run.rows
    ]
    scores.write_csv(path, COLUMNS, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains five systems, and nnU-Net if asked to, on all real cases but one at a time, and scores each case."""
    parser = Parser(prog="python -m experiments.real_cases", description=main.__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs and real_cases.csv are written")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default 1)")
    parser.add_argument("--trainer", help="also run nnU-Net with this one of its trainers (needs the extra `peers`)")
    arguments = sys.argv[1:] if arguments is None else arguments
    options, overrides = parser.parse_known_args(arguments)
    if options.trainer:
        peers.require("nnunetv2", "torch")
    workdir = epath.Path(options.workdir)
    refuse_table(workdir / "real_cases.csv")
    runs = run_rows(real_rows(overrides), workdir, seeds=options.seeds) or {}
    if options.trainer:
        theirs = []
        for seed, run in enumerate(runs["bl6"]):
            place = nnunet.Workplace(options.workdir / "nnunet", seed)
            nnunet.train(run, place, options.trainer, "cpu")
            theirs.append(nnunet.score(run, place, options.trainer))
        runs[theirs[0].name] = theirs
    write(workdir / "real_cases.csv", runs)
    print(f"\n{workdir / 'real_cases.csv'}")


if __name__ == "__main__":
    run_command(main)
