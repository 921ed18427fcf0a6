"""Timing: functions that take turns, the load of other processes, and the largest matrix product for comparison."""

import argparse
import contextlib
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from isles_jax.scoring import calls

# For each name, what makes the function that is timed.
Makers = dict[str, Callable[[], Callable[[], object]]]
ACCELERATOR = jax.default_backend() != "cpu"
# Runs after the first that do not count. PyTorch records its CUDA graphs in the second and the third.
WARM_UP = 2 if ACCELERATOR else 0
PACKAGES = (
    *("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    *("libtpu", "flax", "numpy", "torch", "triton"),
)
GPU_FACTS = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit")
TUNABLES = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=18446744073709551615"


def keep_memory() -> None:
    """Restarts this command with a C library (glibc) that keeps freed memory; returns in the new process.

    JAX and PyTorch each free gigabytes at the end of a step. If the C library returns them to the system, the system
    clears the pages again for the function whose turn is next. This took up to a third of a step's time.
    `isles_jax.runtime.memory.keep_freed` would come too late here, because JAX's threads have begun.

    On a GPU, JAX reserves half of the memory instead of three quarters, and PyTorch has the other half.
    """
    if os.environ.get("GLIBC_TUNABLES") != TUNABLES:
        shared = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5", **os.environ}
        os.execve(sys.executable, sys.orig_argv, shared | {"GLIBC_TUNABLES": TUNABLES})


def _cpu_seconds() -> tuple[float, float]:
    """CPU seconds spent by the whole machine and by this process; zeros where the system has no /proc/stat."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return 0.0, 0.0
    busy = sum(map(int, fields)) - int(fields[3]) - int(fields[4])
    return busy / os.sysconf("SC_CLK_TCK"), time.process_time()


def one_line(error: Exception) -> str:
    """The reason for a failure, as one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def interleave(
    makers: Makers, runs: int, seconds: float = math.inf, deadline: float = math.inf
) -> dict[str, dict[str, Any]]:
    """Milliseconds of each function, taking turns, after a few runs to warm up.

    Args:
      makers: each makes a function that is timed. A function may have a `note`, which stands in its row.
      runs: of each function.
      seconds: after this time there are no more runs than three.
      deadline: by `time.monotonic`. Later, no function is made.

    Returns:
      For each function: the seconds to make it and run it once, which include compilation; the median, the smallest and
      the largest time; the smallest CPU time; how many runs count, and whether other processes took less than a tenth
      of the machine in all of them. If it fails, its row is {"failed": the reason}. If it is not made, its row is
      {"skipped": the reason}.
    """
    rows: dict[str, dict[str, Any]] = {}
    functions: dict[str, Callable[[], object]] = {}

    def attempt(name: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever a compiler or a device raises: the other functions are timed all the same
            rows[name] = {"failed": one_line(error)}
            functions.pop(name, None)
            print(f"  {name:42s} failed: {rows[name]['failed']}", flush=True)
            return None

    for name, make in makers.items():
        if time.monotonic() > deadline:
            rows[name] = {"skipped": "no time was left"}
            print(f"  {name:42s} skipped: no time was left", flush=True)
            continue
        start = time.perf_counter()
        rows[name] = {}
        function = attempt(name, make)
        if function is not None:
            functions[name] = function
            attempt(name, function)
        if name in functions:
            rows[name]["first_s"] = round(time.perf_counter() - start, 2)
            if note := getattr(function, "note", ""):
                rows[name]["note"] = note
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in functions}
    start = time.monotonic()
    for run in range(WARM_UP + runs):
        if run >= WARM_UP + 3 and time.monotonic() - start > seconds:
            break
        for name, function in list(functions.items()):
            entry = attempt(name, partial(_timed, function))
            if entry and run >= WARM_UP:
                times[name].append(entry)
    for name in functions:
        rows[name] |= _summary(times[name])
    return rows


def _timed(function: Callable[[], object]) -> tuple[float, float, float]:
    """Milliseconds of one run, the share of the machine that other processes took, and this process's CPU seconds."""
    machine, own = _cpu_seconds()
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    machine, own = (after - before for after, before in zip(_cpu_seconds(), (machine, own), strict=True))
    return 1e3 * seconds, (machine - own) / (seconds * os.cpu_count()), own


def _summary(rows: list[tuple[float, float, float]]) -> dict[str, Any]:
    quiet = [t for t, others, _ in rows if others < 0.1]
    kept = quiet if len(quiet) >= 3 else [t for t, _, _ in rows]
    values = {"median_ms": statistics.median(kept), "min_ms": min(kept), "max_ms": max(kept)}
    # Summed over all CPUs. Other processes on the machine change it little.
    values["cpu_ms"] = 1e3 * min(own for _, _, own in rows)
    return {key: round(value, 3) for key, value in values.items()} | {
        "runs": len(kept),
        "quiet": len(kept) == len(quiet),
    }


def matrix_limit(dtype: str, side: int) -> float:
    """FLOP/s of a large matrix product in JAX.

    On CPU it is taken from CPU time, as are the shares of it, so that other processes change it little.
    """
    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: a @ a)
    entry = interleave({"product": lambda: lambda: product(a).block_until_ready()}, 8)["product"]
    return 2 * side**3 / _seconds(entry)


def _seconds(entry: dict[str, float]) -> float:
    return entry["median_ms"] / 1e3 if ACCELERATOR else entry["cpu_ms"] / 1e3 / os.cpu_count()


def measure(
    makers: Makers, options: argparse.Namespace, flops: float = 0.0, calls: dict[str, int] | None = None
) -> dict[str, Any]:
    """Times with ratios to the best PyTorch eager, milliseconds for one step, and the share of the matrix limit."""
    results = interleave(makers, options.runs, options.seconds, options.deadline)
    timed = {name: entry for name, entry in results.items() if "median_ms" in entry}
    for name, entry in timed.items():
        for key in ("median_ms", "min_ms", "max_ms", "cpu_ms"):
            entry[key] = round(entry[key] / (calls or {}).get(name, 1), 3)
    for name, entry in timed.items():
        entry |= _ratios(entry, timed)
        limit = options.limits.get("bfloat16" if "bfloat16" in name or "autocast" in name else "float32")
        if flops and limit:
            entry["share_of_matrix_limit"] = round(flops / _seconds(entry) / limit, 3)
        _print(name, entry)
    return results | {"gflop": round(flops / 1e9, 2)}


def _ratios(entry: dict[str, Any], timed: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Times relative to the fastest PyTorch eager, and to the fastest PyTorch of all."""
    ratios = {}
    beside = (
        ("ratio_to_eager", "PyTorch, eager", "median_ms"),
        ("cpu_ratio_to_eager", "PyTorch, eager", "cpu_ms"),
        ("ratio_to_pytorch", "PyTorch", "median_ms"),
    )
    for ratio, start, key in beside:
        others = [other[key] for name, other in timed.items() if name.startswith(start)]
        if others:
            ratios[ratio] = round(entry[key] / min(others), 3)
    return ratios


def _print(name: str, entry: dict[str, Any]) -> None:
    keys = ("ratio_to_eager", "cpu_ratio_to_eager", "ratio_to_pytorch", "share_of_matrix_limit", "note")
    facts = "  ".join(f"{key} {entry[key]}" for key in keys if key in entry)
    runs = f"{entry['runs']} runs{'' if entry['quiet'] else ', not quiet'}"
    times = f"{entry['median_ms']:10.2f} ms ({entry['min_ms']:.2f} to {entry['max_ms']:.2f}, {runs})"
    print(f"  {name:42s} {times}  first {entry['first_s']:.1f} s  {facts}", flush=True)


def describe_machine(options: argparse.Namespace) -> dict[str, Any]:
    """The machine, the date, the versions and the options, for the file of results."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    kept = jax.config.jax_compilation_cache_dir
    return {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} x {calls.processor()}; {device}",
        "gpus": _gpus(),
        "versions": {"python": platform.python_version(), **versions},
        # If there are some, the first runs need not compile.
        "compiled_before": len(list(Path(kept).iterdir())) if kept and Path(kept).is_dir() else 0,
        "options": {key: value for key, value in vars(options).items() if key not in ("output", "deadline")},
    }


def _gpus() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU; nothing where the program does not exist or does not answer."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FACTS)}", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        print(f"note: nvidia-smi says nothing of the GPUs: {one_line(error)}")
        return []
    return [dict(zip(GPU_FACTS, line.split(", "), strict=False)) for line in text.splitlines() if line]
