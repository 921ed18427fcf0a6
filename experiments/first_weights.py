"""What the first bias of the pre-convolution does: bl1 with 1 (the default) and with 0, and PyTorch's SUMNet.

python -m experiments.first_weights --workdir=DIR --seeds=5

DIR is the workdir of an `experiments.table1` whose row `bl1` is finished, for each of --seeds. With a bias of 0, the
pre-convolution's ReLU hides all values below the mean. All three see the same batches. PyTorch's has its own first
weights. Needs the extra `peers`.
"""

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import ml_collections

from experiments import peers
from experiments.rows import average, read_seeds, run_rows
from experiments.study import write_table
from isles_jax import models
from isles_jax.reporting import table
from isles_jax.runtime.command import Parser, run_command

HIDDEN = "bl1, first bias 0"
PEER = "PyTorch SUMNet, CE"


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains bl1 with a first bias of 0, and PyTorch's SUMNet, and compares them with a finished bl1."""
    parser = Parser(prog="python -m experiments.first_weights", description=main.__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="workdir of experiments.table1; peers/ is added")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default 1)")
    options = parser.parse_args(arguments)
    peers.require("torch")
    rows = read_seeds(options.workdir, ("bl1",), options.seeds)
    config = ml_collections.ConfigDict(rows["bl1"][0].config)
    config.name = HIDDEN
    with mock.patch.object(models, "OFFSET", 0.0):
        hidden = run_rows({HIDDEN: config}, options.workdir, seeds=options.seeds)
    assert hidden, "run_rows returns None only if it was given a part"
    rows |= hidden
    rows[PEER], _ = peers.run_seeds(PEER, rows["bl1"], options.workdir)
    print(table.table([average(runs) for runs in rows.values()], "bl1"))
    write_table(options.workdir / "first_weights.csv", rows, "bl1")
    print(f"\n{options.workdir / 'first_weights.csv'}")


if __name__ == "__main__":
    run_command(main)
