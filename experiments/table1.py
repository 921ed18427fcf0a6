"""The paper's Table 1: eight systems on the same folds of one data set.

python -m experiments.table1 --workdir=DIR --config.data.root=/data/SPES2015_Training
"""

import itertools
from collections.abc import Sequence

from experiments.rows import Rows
from experiments.study import command
from isles_jax.config import baseline
from isles_jax.runtime.command import run_command
from isles_jax.runtime.overrides import override


def table_rows(overrides: Sequence[str]) -> Rows:
    """The eight systems by name, in the paper's order.

    Args:
      overrides: --config.KEY=VALUE, applied to each.

    Raises:
      InputError: an unknown key or a value of another type.
    """
    configs = [
        baseline(residual=residual, adversarial=adversarial, overlap=overlap)
        for residual, adversarial, overlap in itertools.product((False, True), repeat=3)
    ]
    return {config.name: override(config, overrides) for config in configs}


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the eight systems of the paper on one data set and writes its Table 1. Run it again to resume."""
    command("table1", main.__doc__, table_rows, arguments)


if __name__ == "__main__":
    run_command(main)
