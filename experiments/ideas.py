"""Ideas for better Dice: configs/best.py with one idea added at a time.

python -m experiments.ideas --workdir=DIR
"""

import sys
from collections.abc import Sequence

from experiments.best import CHOICES as TO_BEST
from experiments.best import DICE
from experiments.rows import Rows, changed_rows
from experiments.study import command
from isles_jax.config import baseline
from isles_jax.runtime.command import run_command

UNET = ["--config.model.network=unet"]
# Name of the row: what differs from configs/best.py.
IDEAS = {
    "best": [],
    "Dice as well": DICE,
    "Dice + cross-entropy": [*DICE, "--config.loss.lovasz=0", "--config.loss.boundary=0"],
    "batch 16 and rate 1.4e-3": ["--config.train.batch_size=16", "--config.optimizer.learning_rate=1.4e-3"],
    "rate 3e-3": ["--config.optimizer.learning_rate=3e-3"],
    "U-Net": UNET,
    "U-Net and batch norm all": [*UNET, "--config.model.batch_norm=all"],
}


def idea_rows(overrides: Sequence[str]) -> Rows:
    """The configuration of each idea, by name; `overrides` are applied to all."""
    choices = {name: [*TO_BEST["best"], *changes] for name, changes in IDEAS.items()}
    return changed_rows(baseline(residual=True, adversarial=False, overlap=True), choices, overrides)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains configs/best.py with one idea added at a time, and compares each with configs/best.py alone."""
    command("ideas", main.__doc__, idea_rows, sys.argv[1:] if arguments is None else arguments, reference="best")


if __name__ == "__main__":
    run_command(main)
