"""The ablation: the proposed system with one choice changed at a time.

python -m experiments.ablation --workdir=DIR

The choices are those that the paper leaves open, and the compute type. With the workdir of `experiments.table1`, the
row `proposed` is not trained again.
"""

from collections.abc import Sequence

from experiments.rows import Rows, changed_rows
from experiments.study import command
from isles_jax.config import baseline
from isles_jax.runtime.command import run_command

# Name of the row: what differs from configs/proposed.py.
CHOICES = {
    "proposed": [],
    "adversarial 1e-2": ["--config.loss.adversarial=1e-2"],
    "adversarial 1e-1": ["--config.loss.adversarial=1e-1"],
    "adversarial 1": ["--config.loss.adversarial=1.0"],
    "critics see probabilities": ["--config.discriminator.hard=False"],
    "RaSGAN": ["--config.discriminator.average=True"],
    "decoder batch norm": ["--config.model.batch_norm=all"],
    "boundary 5": ["--config.loss.boundary_size=5"],
    "Lovasz per image": ["--config.loss.lovasz_per_image=True"],
    "bfloat16": ["--config.dtype=bfloat16"],
}
# The rows that differ in what the critics see, or in what they weigh.
CRITICS = ("proposed", "adversarial 1e-2", "adversarial 1e-1", "adversarial 1", "critics see probabilities", "RaSGAN")


def ablation_rows(overrides: Sequence[str]) -> Rows:
    """The configuration of each choice, by name; `overrides` are applied to all."""
    return changed_rows(baseline(residual=True, adversarial=True, overlap=True), CHOICES, overrides)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the proposed system with one choice changed at a time and compares each with the default."""
    command("ablation", main.__doc__, ablation_rows, arguments)


if __name__ == "__main__":
    run_command(main)
