"""Times of the losses, beside PyTorch's."""

import argparse
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import interleave
from isles_jax import losses

# Shapes of the logits, channels last.
SIZES = ((8, 96, 128, 3), (2, 96, 96, 96, 3), (8, 512, 512, 21))
BINS = 16384


def jax_functions(logits: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], object]]:
    """This package's losses, compiled."""
    x, y = jnp.asarray(logits), jnp.asarray(labels)
    num_classes, spatial = x.shape[-1], y.ndim - 1
    exact = jax.jit(jax.value_and_grad(losses.lovasz_softmax))
    bucketed = jax.jit(jax.value_and_grad(lambda x, y: losses.lovasz_softmax(x, y, bins=BINS)))
    band = jax.jit(lambda y: losses.boundary_mask(y, num_classes, spatial_ndim=spatial))
    return {
        "lovasz, ours, exact": lambda: jax.block_until_ready(exact(x, y)),
        "lovasz, ours, bucketed": lambda: jax.block_until_ready(bucketed(x, y)),
        "band, ours": lambda: jax.block_until_ready(band(y)),
    }


def torch_functions(logits: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], object]]:
    """PyTorch's losses, on channels first."""
    import torch

    from experiments.benchmarks import torch_losses

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count())
    x = torch.from_numpy(np.moveaxis(logits, -1, 1).copy()).to(device).requires_grad_()
    y = torch.from_numpy(labels.astype(np.int64)).to(device)

    def run(function, *arguments):
        result = function(*arguments)
        if result.requires_grad:
            x.grad = None
            result.backward()
        if device == "cuda":
            torch.cuda.synchronize()

    lovasz = {
        "loop": torch_losses.lovasz_loop,
        "batched": torch_losses.lovasz_batched,
        "compiled": torch.compile(torch_losses.lovasz_batched),
    }
    band = {"one-hot": torch_losses.band_one_hot, "labels": torch_losses.band_labels}
    band["one-hot, compiled"] = torch.compile(torch_losses.band_one_hot)
    table = {f"lovasz, PyTorch, {name}": (lambda f=f: run(f, x, y)) for name, f in lovasz.items()}
    return table | {f"band, PyTorch, {name}": (lambda f=f: run(f, y, logits.shape[-1])) for name, f in band.items()}


def benchmark_losses(options: argparse.Namespace) -> dict:
    """Times of Lovasz-softmax, forward and backward, and of the boundary band."""
    results = {}
    for size in SIZES[: options.sizes]:
        rng = np.random.default_rng(options.seed)
        labels = rng.integers(0, size[-1], size[:-1], dtype=np.int32)
        # As in a half-trained network, the right class is ahead by about one standard deviation.
        logits = rng.standard_normal(size, dtype=np.float32) + (labels[..., None] == np.arange(size[-1]))
        floats = rng.random((size[-1], labels.size), dtype=np.float32)
        functions = jax_functions(logits, labels)
        if options.pytorch:
            functions |= torch_functions(logits, labels)
        functions["numpy sort of the same floats"] = lambda floats=floats: np.sort(floats, axis=1)
        runs = options.runs if labels.size * size[-1] < 10**7 else max(3, options.runs // 4)
        results[str(list(size))] = times = interleave(functions, runs)
        print(f"\n{list(size)}, {runs} runs")
        for name, entry in times.items():
            kind = name.split(",")[0]
            pytorch = [t["median_ms"] for n, t in times.items() if n.startswith(f"{kind}, PyTorch")]
            if pytorch and "ours" in name:
                entry["times_as_fast_as_best_pytorch"] = round(min(pytorch) / entry["median_ms"], 2)
            ratio = entry.get("times_as_fast_as_best_pytorch", "")
            print(f"  {name:34s} {entry['median_ms']:10.2f} ms  (min {entry['min_ms']:.2f})  {ratio}")
    return results
