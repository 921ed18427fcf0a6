"""The way from bl6 to the augmentation of configs/best.py: bl6 with one choice changed at a time.

python -m experiments.best --workdir=DIR

With the workdir of `experiments.table1`, the row `bl6` is not trained again.
"""

from collections.abc import Sequence

from experiments.rows import Rows, changed_rows
from experiments.study import command
from isles_jax.config import baseline
from isles_jax.runtime.command import run_command

FLIPS = ["--config.augment.flips=both", "--config.predict.flips=True"]
STRONGER = ["--config.augment.rotation_degrees=30", "--config.augment.scale=0.25", "--config.augment.intensity=0.3"]
AUGMENTED = [*FLIPS, *STRONGER]
DICE = ["--config.loss.dice=1"]
# Name of the row: what differs from configs/bl6.py.
CHOICES = {
    "bl6": [],
    "mirrored prediction": ["--config.predict.flips=True"],
    "both mirrors": FLIPS,
    "stronger augmentation": STRONGER,
    "augmented": AUGMENTED,
    "Dice instead of overlap losses": [*DICE, "--config.loss.lovasz=0", "--config.loss.boundary=0"],
    "Dice as well": DICE,
    "batch norm all": ["--config.model.batch_norm=all"],
    "rate 3e-3": ["--config.optimizer.learning_rate=3e-3"],
}


def best_rows(overrides: Sequence[str]) -> Rows:
    """The configuration of each choice, by name; `overrides` are applied to all."""
    return changed_rows(baseline(residual=True, adversarial=False, overlap=True), CHOICES, overrides)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains bl6 with one choice changed at a time, and compares each with bl6."""
    command("best", main.__doc__, best_rows, arguments, reference="bl6")


if __name__ == "__main__":
    run_command(main)
