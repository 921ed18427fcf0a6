"""What the pre-convolution's first weights do: bl1 with a first bias of 1 (the default) and of 0, and PyTorch's SUMNet.

python -m experiments.first_weights --workdir=DIR --seeds=5

DIR is the workdir of an `experiments.table1` whose row `bl1` is finished, for each of --seeds. With a bias of 0, the
pre-convolution's ReLU hides all values below the mean. PyTorch's SUMNet is trained with PyTorch's first weights, and
again with our pre-convolution: the identity with a bias of 1. All see the same batches. Needs the extra `peers`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import ml_collections

from experiments import peers
from experiments.rows import average, read_seeds, run_rows
from experiments.study import write_table
from isles_jax import models
from isles_jax.runtime.command import Parser, run_command
from isles_jax.scoring import table
from isles_jax.training.networks import NETWORKS

HIDDEN = "bl1, first bias 0"


def torch_sumnet_with_ours(config: ml_collections.ConfigDict, channels: int, outputs: int) -> tuple[Any, Callable]:
    """`peers.torch_sumnet`, but for the pre-convolution, which starts as ours."""
    import torch

    network, loss = peers.torch_sumnet(config, channels, outputs)
    first = models.pass_through(None, (1, 1, channels, 3))[0, 0].T.copy()
    with torch.no_grad():
        network.preconv.weight.copy_(torch.from_numpy(first)[:, :, None, None])
        network.preconv.bias.fill_(models.SUMNet.preconv_bias)
    return network, loss


STARTERS: dict[str, peers.Starter] = {
    "PyTorch SUMNet": partial(peers.TorchNetwork, peers.torch_sumnet),
    "PyTorch SUMNet with our pre-convolution": partial(peers.TorchNetwork, torch_sumnet_with_ours),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains bl1 with a first bias of 0, and PyTorch's SUMNet twice, and compares them with a finished bl1."""
    parser = Parser(prog="python -m experiments.first_weights", description=main.__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="workdir of experiments.table1; peers/ is added")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default 1)")
    options = parser.parse_args(arguments)
    peers.require("torch")
    rows = read_seeds(options.workdir, ("bl1",), options.seeds)
    config = rows["bl1"][0].config.copy_and_resolve_references()
    config.name = HIDDEN
    with mock.patch.dict(NETWORKS, sumnet=partial(NETWORKS["sumnet"], preconv_bias=0.0)):
        hidden = run_rows({HIDDEN: config}, options.workdir, seeds=options.seeds)
    assert hidden, "run_rows returns None only if it was given a part"
    rows |= hidden
    for name, start in STARTERS.items():
        rows[name], _ = peers.run_seeds(name, start, rows["bl1"], options.workdir)
    print(table.table([average(runs) for runs in rows.values()], "bl1"))
    write_table(options.workdir / "first_weights.csv", rows, "bl1")
    print(f"\n{options.workdir / 'first_weights.csv'}")


if __name__ == "__main__":
    run_command(main)
