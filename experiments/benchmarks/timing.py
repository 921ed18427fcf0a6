"""Timing: functions that take turns, the load of other processes, and the largest matrix product for comparison."""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp

Functions = dict[str, Callable[[], object]]
ACCELERATOR = jax.default_backend() != "cpu"


def keep_memory() -> None:
    """Restarts this command with a C library (glibc) that keeps freed memory; returns in the new process.

    JAX and PyTorch each free gigabytes at the end of a step. If the C library returns them to the system, the system
    clears the pages again for the function whose turn is next. This took up to a third of a step's time.
    """
    tunables = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483647"
    if os.environ.get("GLIBC_TUNABLES") != tunables:
        os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": tunables})


def _cpu_seconds() -> tuple[float, float]:
    """CPU seconds spent by the whole machine and by this process; zeros where the system has no /proc/stat."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return 0.0, 0.0
    busy = sum(map(int, fields)) - int(fields[3]) - int(fields[4])
    return busy / os.sysconf("SC_CLK_TCK"), time.process_time()


def interleave(functions: Functions, runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each function, taking turns, after one run to warm up.

    Returns:
      For each function: the median, the smallest and the largest time; the smallest CPU time; how many runs count, and
      whether other processes took less than a tenth of the machine in all of them.
    """
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in functions}
    for run in range(runs + 1):
        for name, function in functions.items():
            machine, own = _cpu_seconds()
            start = time.perf_counter()
            function()
            seconds = time.perf_counter() - start
            machine, own = (after - before for after, before in zip(_cpu_seconds(), (machine, own), strict=True))
            if run:
                times[name].append((1e3 * seconds, (machine - own) / (seconds * os.cpu_count()), own))
    results = {}
    for name, rows in times.items():
        quiet = [t for t, others, _ in rows if others < 0.1]
        kept = quiet if len(quiet) >= 3 else [t for t, _, _ in rows]
        values = {"median_ms": statistics.median(kept), "min_ms": min(kept), "max_ms": max(kept)}
        # Summed over all CPUs. Other processes on the machine change it little.
        values["cpu_ms"] = 1e3 * min(own for _, _, own in rows)
        results[name] = {key: round(value, 3) for key, value in values.items()}
        results[name] |= {"runs": len(kept), "quiet": len(kept) == len(quiet)}
    return results


def matrix_limit(dtype: str, side: int) -> float:
    """FLOP/s of a large matrix product in JAX.

    On CPU it is taken from CPU time, as are the shares of it, so that other processes change it little.
    """
    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    entry = interleave({"product": lambda: product(a).block_until_ready()}, 8)["product"]
    return 2 * side**3 / _seconds(entry)


def _seconds(entry: dict[str, float]) -> float:
    return entry["median_ms"] / 1e3 if ACCELERATOR else entry["cpu_ms"] / 1e3 / os.cpu_count()


def measure(
    functions: Functions, options: argparse.Namespace, flops: float = 0.0, calls: dict[str, int] | None = None
) -> dict:
    """Times with ratios to the best PyTorch eager, milliseconds for one step, and the share of the matrix limit."""
    results = interleave(functions, options.runs)
    for name, entry in results.items():
        for key in ("median_ms", "min_ms", "max_ms", "cpu_ms"):
            entry[key] = round(entry[key] / (calls or {}).get(name, 1), 3)
    eager = [entry for name, entry in results.items() if name.startswith("PyTorch, eager")]
    for name, entry in results.items():
        for key, ratio in (("median_ms", "ratio_to_eager"), ("cpu_ms", "cpu_ratio_to_eager")):
            if eager:
                entry[ratio] = round(entry[key] / min(other[key] for other in eager), 3)
        if flops:
            low = "bfloat16" in name or "autocast" in name
            limit = options.limits["bfloat16" if low else "float32"]
            entry["share_of_matrix_limit"] = round(flops / _seconds(entry) / limit, 3)
        shares = "  ".join(
            f"{key} {entry[key]}"
            for key in ("ratio_to_eager", "cpu_ratio_to_eager", "share_of_matrix_limit")
            if key in entry
        )
        runs = f"{entry['runs']} runs{'' if entry['quiet'] else ', not quiet'}"
        times = f"{entry['median_ms']:10.2f} ms ({entry['min_ms']:.2f} to {entry['max_ms']:.2f}, {runs})"
        print(f"  {name:42s} {times}  {shares}", flush=True)
    return results | {"gflop": round(flops / 1e9, 2)}


def describe_machine(options: argparse.Namespace) -> dict:
    """The machine, the date, the versions and the options, for the file of results."""
    versions = {}
    for package in ("jax", "jaxlib", "flax", "numpy", "torch"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].split(":")[1].strip() if names else platform.processor()
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} x {cpu}; {device}",
        "versions": versions,
        "options": {key: value for key, value in vars(options).items() if key != "output"},
    }
