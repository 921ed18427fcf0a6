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
LOSSES = ("lovasz", "dice", "tversky", "focal", "distance", "band")


Functions = dict[str, Callable[[], object]]


def jax_functions(logits: np.ndarray, labels: np.ndarray, distances: np.ndarray) -> Functions:
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
    compiled = {name: (jax.jit(jax.value_and_grad(f)), target) for name, (f, target) in functions.items()}
    table = {name: (lambda f=f, t=t: jax.block_until_ready(f(x, t))) for name, (f, t) in compiled.items()}
    band = jax.jit(lambda y: losses.boundary_mask(y, x.shape[-1], spatial_ndim=y.ndim - 1))
    return table | {"band, ours": lambda: jax.block_until_ready(band(y))}


def torch_functions(logits: np.ndarray, labels: np.ndarray, distances: np.ndarray) -> Functions:
    """PyTorch's losses, on channels first."""
    import torch

    from experiments.benchmarks import torch_losses

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count())
    x = torch.from_numpy(np.moveaxis(logits, -1, 1).copy()).to(device).requires_grad_()
    y = torch.from_numpy(labels.astype(np.int64)).to(device)
    far = torch.from_numpy(np.moveaxis(distances, -1, 1).copy()).to(device)

    def run(function, *arguments):
        result = function(*arguments)
        if result.requires_grad:
            x.grad = None
            result.backward()
        if device == "cuda":
            torch.cuda.synchronize()

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
    table = {}
    for loss, rows in forms.items():
        for form, function, arguments, compiled in rows:
            variants = {form: function} | ({f"{form}, compiled": torch.compile(function)} if compiled else {})
            for name, f in variants.items():
                table[f"{loss}, PyTorch, {name}"] = lambda f=f, a=arguments: run(f, *a)
    return table


def benchmark_losses(options: argparse.Namespace) -> dict:
    """Times of the losses, forward and backward, and of the boundary band."""
    results = {}
    for size in SIZES[: options.sizes]:
        rng = np.random.default_rng(options.seed)
        labels = rng.integers(0, size[-1], size[:-1], dtype=np.int32)
        # As in a half-trained network, the right class is ahead by about one standard deviation.
        logits = rng.standard_normal(size, dtype=np.float32) + (labels[..., None] == np.arange(size[-1]))
        floats = rng.random((size[-1], labels.size), dtype=np.float32)
        distances = rng.standard_normal(size, dtype=np.float32)
        functions = jax_functions(logits, labels, distances)
        if options.pytorch:
            functions |= torch_functions(logits, labels, distances)
        functions = {name: f for name, f in functions.items() if name.split(",")[0] in options.losses}
        functions["numpy sort of the same floats"] = lambda floats=floats: np.sort(floats, axis=1)
        runs = options.runs if labels.size * size[-1] < 10**7 else max(3, options.runs // 4)
        results[str(list(size))] = times = interleave(functions, runs)
        print(f"\n{list(size)}, {runs} runs")
        for name, entry in times.items():
            kind = name.split(",")[0]
            pytorch = [t for n, t in times.items() if n.startswith(f"{kind}, PyTorch")]
            if pytorch and "ours" in name:
                for key, ratio in (("median_ms", "times_as_fast_as_best_pytorch"), ("min_ms", "the_same_by_minima")):
                    entry[ratio] = round(min(t[key] for t in pytorch) / entry[key], 2)
            ratios = [entry.get(key, "") for key in ("times_as_fast_as_best_pytorch", "the_same_by_minima")]
            times = f"{entry['median_ms']:10.2f} ms  (min {entry['min_ms']:.2f})"
            print(f"  {name:38s} {times}  {' '.join(map(str, ratios))}")
    return results
