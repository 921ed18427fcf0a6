"""Times of whole parts of a run: the inference of a case, a fold's training loop, and the command for a new case."""

import argparse
import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import nibabel as nib
import numpy as np
from etils import epath

from experiments.benchmarks.timing import Makers, measure, one_line
from experiments.benchmarks.workload import (
    CHANNELS,
    DTYPES,
    fast_keys,
    initial_state,
    make_config,
    make_dataset,
    make_task,
)
from isles_jax.data.case import Case, Dataset
from isles_jax.phantoms.phantom import write_phantom
from isles_jax.prediction import inference
from isles_jax.runtime.command import InputError
from isles_jax.training import checkpoint, parallel
from isles_jax.training.fold import train_fold
from isles_jax.training.networks import make_forward
from isles_jax.training.plan import Plan, feed, prepare, training_slices
from isles_jax.training.state import init_state

# Steps between two checkpoints of a run, by default.
CHECKPOINT_EVERY = 200
# What the extrapolation is made for: the cases of SPES, and the trainings of Table 1.
SPES_CASES = 30
TRAININGS = 24
# PyTorch's loop is slower, and has no checkpoints that need many steps.
PYTORCH_STEPS = 100


def benchmark_inference(options: argparse.Namespace) -> dict[str, Any]:
    """Times of a case from its images to its labels."""
    rng = np.random.default_rng(options.seed)
    images = rng.gamma(2.0, 3.0, (*options.shape, len(CHANNELS))).astype(np.float32)
    case = Case("case", images, None, np.eye(4), nib.Nifti1Image(images[..., 0], np.eye(4)).header)

    def ours(dtype: str) -> Callable[[], object]:
        task = make_task(make_config(options, "bl5", dtype=dtype))
        folds = [jax.device_put(init_state(task, 1, 0).segmenter.variables)]
        forward = make_forward(task.predictor())
        return lambda: inference.predict_case(forward, folds, case, task).argmax(-1)

    makers: Makers = {f"ours, {dtype}": partial(ours, dtype) for dtype in DTYPES}
    if options.pytorch:
        from experiments.benchmarks import torch_functions

        makers |= torch_functions.inference_makers(options.pytorch, initial_state(options, "bl5"), case)
    return {f"one case of {tuple(options.shape)}": measure(makers, options)}


def benchmark_fold(options: argparse.Namespace) -> dict[str, Any]:
    """The training loop of the proposed system over the first steps of a fold: its rate, and where its time goes."""
    keys = fast_keys() | {"train.epochs": options.epochs, "augment.enabled": True}
    per_call = keys.get("train.steps_per_call", 1)
    every = min(CHECKPOINT_EVERY, options.steps // 2) // per_call * per_call
    if not every:
        raise InputError(f"--steps={options.steps}: expected at least {2 * per_call}, two calls of the compiled step")
    config = make_config(options, "proposed", **keys, **{"train.checkpoint_every_steps": every})
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(options, folder)
        names = [case.name for case in dataset.cases]
        held_out = names[: len(names) // config.folds]
        plan = prepare(config, dataset)
        entry = time_loops(plan, held_out, options.steps // every * every, epath.Path(folder))
        # The first prediction compiles what the second finds ready.
        first, second = (_prediction_seconds(dataset, held_out, epath.Path(folder) / f) for f in ("unsaved", "whole"))
        entry["first_prediction_s"] = round(first, 2)
        entry["prediction_of_a_case_s"] = round(second / len(held_out), 2)
    entry[f"extrapolated_to_{SPES_CASES}_cases"] = _extrapolated(entry, plan)
    for variant in options.pytorch:
        entry[f"PyTorch, {variant}, steps_per_s"] = _pytorch_rate(variant, options, plan)
    print(json.dumps(entry, indent=1))
    return {f"{options.cases} cases of {tuple(options.shape)}": entry}


def time_loops(plan: Plan, held_out: list[str], steps: int, directory: epath.Path) -> dict[str, Any]:
    """Where the time of a fold's training goes, by the differences between loops that do less and less.

    The loops are the whole training; the same without checkpoints but the last; the step with batches drawn for each
    call; and the step alone, on one batch. The first two also start and save once. A short training, up to its first
    checkpoint, does this too, and its time is taken off. Small shares may be below 0, because times vary.

    Args:
      plan: its `train.checkpoint_every_steps` divides `steps`.
      held_out: names of the cases that are not trained on.
      steps: of each loop.
      directory: gets the folds "short", "unsaved" and "whole".

    Returns:
      Rates in steps a second, shares of the whole training's time, seconds, and what they were measured with.
    """
    train = plan.config.train
    every = train.checkpoint_every_steps
    pool = training_slices(plan, held_out)
    first = _step_seconds(plan, pool, plan.per_call, drawn=False)
    alone = _step_seconds(plan, pool, steps, drawn=False) / steps
    drawn = _step_seconds(plan, pool, steps, drawn=True) / steps
    # The first training imports and compiles what the others find ready.
    _, short = (_fold_seconds(plan, held_out, every, every, directory / f"short_{i}") for i in range(2))
    counted = steps - every
    unsaved = (_fold_seconds(plan, held_out, steps, steps, directory / "unsaved") - short) / counted
    whole = (_fold_seconds(plan, held_out, steps, every, directory / "whole") - short) / counted
    parts = {"step": alone, "input": drawn - alone, "metrics": unsaved - drawn, "checkpoints": whole - unsaved}
    return {
        "steps": counted,
        "batch": train.batch_size,
        "dtype": plan.config.dtype,
        "steps_per_call": plan.per_call,
        "log_every_steps": train.log_every_steps,
        "checkpoint_every_steps": every,
        "first_call_s": round(first, 2),
        "step_alone_steps_per_s": round(1 / alone, 3),
        "whole_training_steps_per_s": round(1 / whole, 3),
        "shares": {name: round(seconds / whole, 3) for name, seconds in parts.items()},
        "start_and_last_checkpoint_s": round(short - every * unsaved, 2),
    }


def _step_seconds(plan: Plan, pool: np.ndarray, steps: int, *, drawn: bool) -> float:
    """Seconds of a loop of steps, with batches drawn for each call, or the first batch again and again."""
    train = plan.config.train
    calls = range(0, steps, plan.per_call)
    state = parallel.replicate(init_state(plan.task, plan.steps, 0), train.parallel)
    batches = feed(plan, pool, 0, calls)
    if not drawn:
        batches = itertools.repeat(next(batches), len(calls))
    start = time.perf_counter()
    for data, indices in batches:
        state, _ = plan.run_steps(state, data, indices)
    jax.block_until_ready(state)
    return time.perf_counter() - start


def _fold_seconds(plan: Plan, held_out: list[str], steps: int, every: int, directory: epath.Path) -> float:
    """Seconds of a fold's training up to a step, with a checkpoint every so many steps."""
    config = plan.config.copy_and_resolve_references()
    config.train.checkpoint_every_steps = every
    shortened = dataclasses.replace(plan, task=dataclasses.replace(plan.task, config=config), steps=steps)
    start = time.perf_counter()
    train_fold(shortened, 0, held_out, directory)
    return time.perf_counter() - start


def _prediction_seconds(dataset: Dataset, held_out: list[str], directory: epath.Path) -> float:
    """Seconds of the prediction of a fold's held-out cases."""
    start = time.perf_counter()
    inference.predict_fold(dataset, held_out, directory)
    return time.perf_counter() - start


def _extrapolated(entry: dict[str, Any], plan: Plan) -> dict[str, float]:
    """A whole fold of SPES, and all of Table 1 as if each training cost as much, by the rates that were measured."""
    config = plan.config
    slices = len(plan.slices.labels) / len(plan.dataset.cases) * SPES_CASES
    steps = config.train.epochs * math.ceil(slices * (config.folds - 1) / config.folds / config.train.batch_size)
    predicted = SPES_CASES / config.folds * entry["prediction_of_a_case_s"]
    fold = steps / entry["whole_training_steps_per_s"] + entry["start_and_last_checkpoint_s"] + predicted
    return {"steps": steps, "fold_min": round(fold / 60, 2), "table1_at_most_min": round(TRAININGS * fold / 60, 1)}


def _pytorch_rate(variant: str, options: argparse.Namespace, plan: Plan) -> float | dict[str, str]:
    if time.monotonic() > options.deadline:
        return {"skipped": "no time was left"}
    from experiments.benchmarks import torch_functions

    setup = initial_state(options, "proposed")
    try:
        return round(torch_functions.training_rate(variant, setup, plan, min(options.steps, PYTORCH_STEPS)), 3)
    except Exception as error:  # whatever a compiler or the device raises
        return {"failed": one_line(error)}


def benchmark_predict(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the command for a new case, from its start to the page, with the folds of an untrained network.

    The second call finds what the first one compiled, where compiled programs are kept.
    """
    config = make_config(options, "bl5", **fast_keys())
    task = dataclasses.replace(make_task(config), label_values=(1, 2))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_phantom(root / "phantom", cases=1, shape=tuple(options.shape), difficulty=1.0, seed=options.seed)
        for fold in range(config.folds):
            directory = root / "run" / f"fold_{fold}"
            state = parallel.replicate(init_state(task, 1, fold), config.train.parallel)
            checkpoint.save(directory / "checkpoints", state, task.record() | {"fold": fold})
            (directory / "DONE").touch()
        seconds = [_command_seconds(root, f"predicted_{i}") for i in range(2)]
    entry = {"first_s": round(seconds[0], 2), "second_s": round(seconds[1], 2), "dtype": config.dtype}
    print(json.dumps(entry, indent=1))
    return {f"one case of {tuple(options.shape)}, {config.folds} folds": entry}


def _command_seconds(root: Path, output: str) -> float:
    # The command has the memory settings and an empty cache of a user's own process, and takes no more of a device's
    # memory than it needs, because this process holds some of it.
    own = ("GLIBC_TUNABLES", "XLA_PYTHON_CLIENT_MEM_FRACTION", "JAX_COMPILATION_CACHE_DIR")
    environment = {key: value for key, value in os.environ.items() if key not in own}
    environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XDG_CACHE_HOME": str(root / "cache")}
    command = [sys.executable, "-m", "isles_jax.predict", f"--workdir={root / 'run'}"]
    command += [f"--input={root / 'phantom' / '01'}", f"--output={root / output}"]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode or not (root / output / "01.html").exists():
        raise RuntimeError(f"isles_jax.predict ended with {done.returncode}: {done.stderr[-500:]}")
    return seconds
