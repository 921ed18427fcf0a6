"""Times of this package's parts beside PyTorch's: `python -m experiments.benchmark losses`.

PyTorch is optional (`pip install isles-jax[bench]`); it runs in the same process, on the same number of threads, and
the two take turns, so that a busy machine slows both. Reported are medians and ratios of medians.

A further subject is one more function in `SUBJECTS`.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np

from isles_jax import losses

# Logits, channels last.
SIZES = ((8, 96, 128, 3), (2, 96, 96, 96, 3), (8, 512, 512, 21))
BINS = 16384


def interleave(functions: dict[str, Callable[[], object]], runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each function, taking turns: the median and the least of `runs`, after one to warm up."""
    times = {name: [] for name in functions}
    for run in range(runs + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if run:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: {"median_ms": statistics.median(t), "min_ms": min(t)} for name, t in times.items()}


def torch_lovasz_loop(logits, labels):
    """The reference's form: class by class, present ones only. Logits [B, C, ...], labels [B, ...]."""
    import torch

    probabilities = logits.softmax(1).transpose(0, 1).flatten(1)
    labels, terms = labels.flatten(), []
    for c, p in enumerate(probabilities):
        foreground = (labels == c).float()
        if foreground.sum() == 0:
            continue
        errors, order = torch.sort((foreground - p).abs(), dim=0, descending=True)
        terms.append(torch.dot(errors, torch_jaccard_steps(foreground[order])))
    return torch.stack(terms).mean()


def torch_lovasz_batched(logits, labels):
    """One sort for all classes."""
    import torch

    probabilities = logits.softmax(1).transpose(0, 1).flatten(1)
    foreground = (labels.flatten() == torch.arange(len(probabilities), device=labels.device)[:, None]).float()
    errors, order = torch.sort((foreground - probabilities).abs(), dim=1, descending=True)
    terms = (errors * torch_jaccard_steps(foreground.gather(1, order))).sum(1)
    present = (foreground.sum(1) > 0).float()
    return (terms * present).sum() / present.sum()


def torch_jaccard_steps(foreground):
    import torch

    total = foreground.sum(-1, keepdim=True)
    jaccard = 1 - (total - foreground.cumsum(-1)) / (total + (1 - foreground).cumsum(-1))
    return torch.cat([jaccard[..., :1], jaccard[..., 1:] - jaccard[..., :-1]], dim=-1)


def torch_band_one_hot(labels, num_classes: int):
    """Dilation minus erosion of each class by max pooling, the usual form. Labels [B, H, W] or [B, D, H, W]."""
    import torch.nn.functional as F  # noqa: N812

    pool = F.max_pool2d if labels.ndim == 3 else F.max_pool3d
    maps = F.one_hot(labels, num_classes).movedim(-1, 1).float()
    return (pool(maps, 3, 1, 1) + pool(-maps, 3, 1, 1) > 0).any(1)


def torch_band_labels(labels, num_classes: int):
    """The same band from the largest and the smallest label of each window: the shortest form there is."""
    import torch.nn.functional as F  # noqa: N812

    pool = F.max_pool2d if labels.ndim == 3 else F.max_pool3d
    maps = labels[:, None].float()
    return (pool(maps, 3, 1, 1) + pool(-maps, 3, 1, 1) > 0)[:, 0]


def jax_functions(logits: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], object]]:
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
    """PyTorch's, each in its own layout: channels first."""
    import torch

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
        "loop": torch_lovasz_loop,
        "batched": torch_lovasz_batched,
        "compiled": torch.compile(torch_lovasz_batched),
    }
    band = {"one-hot": torch_band_one_hot, "labels": torch_band_labels}
    band["one-hot, compiled"] = torch.compile(torch_band_one_hot)
    table = {f"lovasz, PyTorch, {name}": (lambda f=f: run(f, x, y)) for name, f in lovasz.items()}
    return table | {f"band, PyTorch, {name}": (lambda f=f: run(f, y, logits.shape[-1])) for name, f in band.items()}


def benchmark_losses(arguments: argparse.Namespace) -> dict:
    """Lovasz-softmax forward and backward, and the boundary band."""
    results = {}
    for size in SIZES[: arguments.sizes]:
        rng = np.random.default_rng(arguments.seed)
        labels = rng.integers(0, size[-1], size[:-1], dtype=np.int32)
        # Half-trained: the right class is ahead by about one standard deviation.
        logits = rng.standard_normal(size, dtype=np.float32) + (labels[..., None] == np.arange(size[-1]))
        floats = rng.random((size[-1], labels.size), dtype=np.float32)
        functions = jax_functions(logits, labels)
        if not arguments.no_torch:
            functions |= torch_functions(logits, labels)
        functions["numpy sort of the same floats"] = lambda floats=floats: np.sort(floats, axis=1)
        runs = arguments.runs if labels.size * size[-1] < 10**7 else max(3, arguments.runs // 4)
        results[str(list(size))] = times = interleave(functions, runs)
        print(f"\n{list(size)}, {runs} runs")
        for name, entry in times.items():
            kind = name.split(",")[0]
            theirs = [t["median_ms"] for n, t in times.items() if n.startswith(f"{kind}, PyTorch")]
            if theirs and "ours" in name:
                entry["times_as_fast_as_best_pytorch"] = round(min(theirs) / entry["median_ms"], 2)
            ratio = entry.get("times_as_fast_as_best_pytorch", "")
            print(f"  {name:34s} {entry['median_ms']:10.2f} ms  (least {entry['min_ms']:.2f})  {ratio}")
    return results


SUBJECTS = {"losses": benchmark_losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument(
        "--runs", type=int, default=12, help="runs of each function (a quarter of it at the largest size)"
    )
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of the sizes, the small ones first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-torch", action="store_true", help="this package and the floor only")
    parser.add_argument("--output", help="write the results to this JSON file")
    arguments = parser.parse_args()
    results = SUBJECTS[arguments.subject](arguments)
    if arguments.output:
        versions = {}
        for package in ("jax", "numpy", "torch"):
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                versions[package] = None
        about = {
            "subject": arguments.subject,
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {jax.devices()[0].device_kind}",
            "seed": arguments.seed,
            "versions": versions,
        }
        with open(arguments.output, "w") as file:
            json.dump(about | {"results": results}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
