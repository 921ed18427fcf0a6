"""The way to configs/best.py and past it: bl6 with its augmentation, and one idea added at a time.

python -m experiments.ideas --workdir=DIR
"""

from collections.abc import Sequence

from experiments.best import AUGMENTED, DICE
from experiments.rows import Rows, changed_rows
from experiments.study import command
from isles_jax.config import baseline
from isles_jax.runtime.command import run_command

UNET = ["--config.model.network=unet"]
# Name of the row: what differs from bl6 with both mirrors and the stronger augmentation.
IDEAS = {
    "augmented": [],
    "Dice as well": DICE,
    "Dice + cross-entropy": [*DICE, "--config.loss.lovasz=0", "--config.loss.boundary=0"],
    "batch 16 and rate 1.4e-3": ["--config.train.batch_size=16", "--config.optimizer.learning_rate=1.4e-3"],
    "rate 3e-3": ["--config.optimizer.learning_rate=3e-3"],
    "U-Net": UNET,
    "best": [*UNET, "--config.model.batch_norm=all"],
}


def idea_rows(overrides: Sequence[str]) -> Rows:
    """The configuration of each idea, by name; `overrides` are applied to all."""
    choices = {name: [*AUGMENTED, *changes] for name, changes in IDEAS.items()}
    return changed_rows(baseline(residual=True, adversarial=False, overlap=True), choices, overrides)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains bl6 with the augmentation of configs/best.py and one idea at a time, and compares each with no idea."""
    command("ideas", main.__doc__, idea_rows, arguments, reference="augmented")


if __name__ == "__main__":
    run_command(main)
