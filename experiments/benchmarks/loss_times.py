"""Times of the losses, beside PyTorch's."""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import Makers, interleave
from isles_jax import losses

# Shapes of the logits, channels last.
SIZES = ((8, 96, 128, 3), (2, 96, 96, 96, 3), (8, 512, 512, 21))
BINS = 16384
LOSSES = ("lovasz", "dice", "tversky", "focal", "distance", "band")


def jax_makers(logits: np.ndarray, labels: np.ndarray, distances: np.ndarray) -> Makers:
    """This package's losses, compiled."""
    x, y, far = jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(distances)
    functions = {
        "lovasz, ours, exact": (losses.lovasz_softmax, y),
        "lovasz, ours, bucketed": (lambda x, y: losses.lovasz_softmax(x, y, bins=BINS), y),
        "dice, ours": (losses.soft_dice, y),
        "tversky, ours": (lambda x, y: losses.tversky(x, y, alpha=0.3, beta=0.7), y),
        "focal, ours": (losses.focal, y),
        "distance, ours": (losses.boundary_distance, far),
    }

    def compiled(function: Callable[..., Any], *arguments: Any) -> Callable[[], object]:
        run = jax.jit(function)
        return lambda: jax.block_until_ready(run(*arguments))

    def band(y: jax.Array) -> jax.Array:
        return losses.boundary_mask(y, x.shape[-1], spatial_ndim=y.ndim - 1)

    makers: Makers = {name: partial(compiled, jax.value_and_grad(f), x, t) for name, (f, t) in functions.items()}
    return makers | {"band, ours": partial(compiled, band, y)}


def torch_makers(logits: np.ndarray, labels: np.ndarray, distances: np.ndarray) -> Makers:
    """PyTorch's losses, on channels first."""
    import torch

    from experiments.benchmarks import torch_losses

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count())
    x = torch.from_numpy(np.moveaxis(logits, -1, 1).copy()).to(device).requires_grad_()
    y = torch.from_numpy(labels.astype(np.int64)).to(device)
    far = torch.from_numpy(np.moveaxis(distances, -1, 1).copy()).to(device)

    def make(function: Callable[..., Any], arguments: tuple[Any, ...], compiled: bool) -> Callable[[], object]:
        function = torch.compile(function, dynamic=False) if compiled else function

        def run() -> None:
            result = function(*arguments)
            if result.requires_grad:
                x.grad = None
                result.backward()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    # For each loss: the forms in which it is written, what they take, and whether they are also measured compiled.
    forms = {
        "lovasz": [
            ("loop", torch_losses.lovasz_loop, (x, y), False),
            ("batched", torch_losses.lovasz_batched, (x, y), True),
        ],
        "focal": [("cross-entropy", torch_losses.focal, (x, y), True)],
        "distance": [("softmax", torch_losses.boundary_distance, (x, far), True)],
        "band": [
            ("labels", torch_losses.band_labels, (y, logits.shape[-1]), False),
            ("one-hot", torch_losses.band_one_hot, (y, logits.shape[-1]), True),
        ],
    }
    for name, alpha in {"dice": 0.5, "tversky": 0.3}.items():
        forms[name] = [
            ("one-hot", torch_losses.overlap_one_hot, (x, y, alpha, 1 - alpha), True),
            ("gathered", torch_losses.overlap_gathered, (x, y, alpha, 1 - alpha), True),
        ]
    makers: Makers = {}
    for loss, rows in forms.items():
        for form, function, arguments, compiled in rows:
            makers[f"{loss}, PyTorch, {form}"] = partial(make, function, arguments, False)
            if compiled:
                makers[f"{loss}, PyTorch, {form}, compiled"] = partial(make, function, arguments, True)
    return makers


def benchmark_losses(options: argparse.Namespace) -> dict[str, Any]:
    """Times of the losses, forward and backward, and of the boundary band."""
    results = {}
    for size in SIZES[: options.sizes]:
        rng = np.random.default_rng(options.seed)
        labels = rng.integers(0, size[-1], size[:-1], dtype=np.int32)
        # As in a half-trained network, the right class is ahead by about one standard deviation.
        logits = rng.standard_normal(size, dtype=np.float32) + (labels[..., None] == np.arange(size[-1]))
        floats = rng.random((size[-1], labels.size), dtype=np.float32)
        distances = rng.standard_normal(size, dtype=np.float32)
        makers = jax_makers(logits, labels, distances)
        if options.pytorch:
            makers |= torch_makers(logits, labels, distances)
        makers = {name: make for name, make in makers.items() if name.split(",")[0] in options.losses}
        makers["numpy sort of the same floats"] = lambda floats=floats: lambda: np.sort(floats, axis=1)
        print(f"\n{list(size)}")
        results[str(list(size))] = rows = interleave(makers, options.runs, options.seconds, options.deadline)
        timed = {name: entry for name, entry in rows.items() if "median_ms" in entry}
        for name, entry in timed.items():
            kind = name.split(",")[0]
            pytorch = [t for n, t in timed.items() if n.startswith(f"{kind}, PyTorch")]
            if pytorch and "ours" in name:
                for key, ratio in (("median_ms", "times_as_fast_as_best_pytorch"), ("min_ms", "the_same_by_minima")):
                    entry[ratio] = round(min(t[key] for t in pytorch) / entry[key], 2)
            ratios = [entry.get(key, "") for key in ("times_as_fast_as_best_pytorch", "the_same_by_minima")]
            times = f"{entry['median_ms']:10.2f} ms  (min {entry['min_ms']:.2f}, {entry['runs']} runs)"
            print(f"  {name:38s} {times}  {' '.join(map(str, ratios))}")
    return results
