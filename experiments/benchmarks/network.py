"""Times of the network alone: the forward pass and the training steps, on one batch."""

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from experiments.benchmarks.timing import ACCELERATOR, Makers, measure
from experiments.benchmarks.workload import DTYPES, STEPS, initial_state, make_batch, make_config, make_task
from isles_jax.training import parallel
from isles_jax.training.networks import make_forward
from isles_jax.training.state import init_state
from isles_jax.training.step import make_step


def our_step(config: ml_collections.ConfigDict, batch: tuple[np.ndarray, ...]) -> Callable[[], dict[str, jax.Array]]:
    """A function that runs the compiled step once on a batch, waits for it, and returns the metrics.

    One call is `train.steps_per_call` steps.
    """
    per_call = config.train.steps_per_call
    task = make_task(config)
    step = parallel.parallelize(make_step(task, STEPS, parallel.AXIS), config.train.parallel)
    state = parallel.replicate(init_state(task, STEPS, 0))
    on_devices = parallel.replicate(batch)
    indices = np.tile(np.arange(len(batch[0]), dtype=np.int32), (per_call, 1))
    indices = np.moveaxis(indices.reshape(per_call, jax.device_count(), -1), 1, 0)

    def run() -> dict[str, jax.Array]:
        nonlocal state
        state, metrics = step(state, on_devices, indices)
        return jax.block_until_ready((state, metrics))[1]

    return run


def step_flops(config: ml_collections.ConfigDict, batch: tuple[np.ndarray, ...]) -> float:
    """Arithmetic of one step with direct convolutions, as XLA counts it before it optimises anything."""
    config = config.copy_and_resolve_references()
    config.train.steps_per_call = 1
    config.model.conv = "lax"
    task = make_task(config)
    step = make_step(task, STEPS, parallel.AXIS, "cpu")
    # XLA counts on a CPU only. Nothing runs there.
    mesh = Mesh(np.array(jax.devices("cpu")[:1]), (parallel.AXIS,))
    whole = PartitionSpec()
    mapped = jax.shard_map(step, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    arguments = init_state(task, STEPS, 0), batch, np.arange(len(batch[0]), dtype=np.int32)[None]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    flops: float = jax.jit(mapped).lower(*shapes).cost_analysis()["flops"]
    return flops


def check_agreement(options: argparse.Namespace) -> dict[str, Any]:
    """Relative differences between PyTorch's logits and losses and ours, from the same weights and batch."""
    if not options.pytorch:
        return {}
    from experiments.benchmarks import torch_functions

    batch = make_batch(options)
    results = {}
    for system in ("bl5", "proposed"):
        config = make_config(options, system)
        setup = initial_state(options, system)
        forward = jax.jit(make_task(config).segmenter().apply)
        ours = np.asarray(forward(setup[0].segmenter.variables, batch[0]))
        pytorch = torch_functions.logits(setup[0], batch)
        results[f"{system}, logits"] = float(np.linalg.norm(ours - pytorch) / np.linalg.norm(ours))
        loss = float(our_step(config, batch)()["loss"][0])
        pytorch_loss = torch_functions.first_loss(setup, batch)
        results[f"{system}, loss"] = abs(loss - pytorch_loss) / pytorch_loss
    print(json.dumps(results, indent=1))
    return results


def benchmark_forward(options: argparse.Namespace) -> dict[str, Any]:
    """Times of the softmax maps of a batch, as inference computes them."""
    images, _ = batch = make_batch(options)

    def ours(dtype: str) -> Callable[[], object]:
        task = make_task(make_config(options, "bl5", dtype=dtype))
        variables = jax.device_put(init_state(task, 1, 0).segmenter.variables)
        forward = make_forward(task.predictor())
        x = jnp.asarray(images)
        return lambda: forward(variables, x).block_until_ready()

    makers: Makers = {f"ours, {dtype}": partial(ours, dtype) for dtype in DTYPES}
    if options.pytorch:
        from experiments.benchmarks import torch_functions

        makers |= torch_functions.forward_makers(options.pytorch, initial_state(options, "bl5"), batch)
    flops = step_flops(make_config(options, "bl5"), batch) / 3
    return {f"batch {options.batch}": measure(makers, options, flops)}


def benchmark_step(options: argparse.Namespace, system: str = "bl5") -> dict[str, Any]:
    """Times of a training step of Residual-SUMNet with cross-entropy and Adam."""
    batch = make_batch(options)
    makers: Makers = {}
    calls = {}
    for keys in our_variants(system, options.fastest_alone):
        name = ", ".join(["ours", *(f"{key.split('.')[-1]}={value}" for key, value in keys.items())])
        makers[name] = partial(our_step, make_config(options, system, **keys), batch)
        calls[name] = keys.get("train.steps_per_call", 1)
    if options.pytorch:
        from experiments.benchmarks import torch_functions

        makers |= torch_functions.step_makers(options.pytorch, initial_state(options, system), batch)
    flops = step_flops(make_config(options, system), batch)
    return {f"batch {options.batch}": measure(makers, options, flops, calls)}


def benchmark_adversarial(options: argparse.Namespace) -> dict[str, Any]:
    """Times of a step of the proposed system: four losses, three critics, one forward pass of the segmenter."""
    return benchmark_step(options, "proposed")


def benchmark_compiled(options: argparse.Namespace) -> dict[str, Any]:
    """Times of the adversarial step in its fastest form beside PyTorch's compiled ones; nothing without PyTorch."""
    return benchmark_step(options, "proposed") if options.pytorch else {}


def our_variants(system: str, fastest_alone: bool) -> list[dict[str, Any]]:
    """The settings in which a step is timed. On an accelerator, each costs up to a minute of compilation.

    Args:
      system: "bl5" or "proposed". The types are compared with the cheaper one.
      fastest_alone: without the slower forms.
    """
    if not ACCELERATOR:
        return [{"dtype": "float32"}]
    single: dict[str, Any] = {"dtype": "bfloat16"}
    scanned = single | {"train.steps_per_call": 10}
    if fastest_alone:
        return [scanned]
    return [single, scanned] if system == "proposed" else [{"dtype": "float32"}, single, scanned]
