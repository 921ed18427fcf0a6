"""Times of whole parts of a run: an epoch, a fold, and the inference of a case."""

import argparse
import json
import tempfile
import time
from functools import partial

import jax
import numpy as np
from etils import epath

from experiments.benchmarks.timing import Functions, interleave, measure
from experiments.benchmarks.workload import (
    CHANNELS,
    DTYPES,
    fold_keys,
    initial_state,
    make_config,
    make_dataset,
    make_task,
)
from isles_jax.data.case import Case
from isles_jax.data.slices import draw_batch
from isles_jax.prediction import inference
from isles_jax.training import parallel
from isles_jax.training.fold import train_fold
from isles_jax.training.networks import make_forward
from isles_jax.training.plan import prepare
from isles_jax.training.state import init_state


def benchmark_epoch(options: argparse.Namespace) -> dict:
    """Times of an epoch of the proposed system as training runs it: drawn, augmented, metrics read at the end."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(options, folder)
    config = make_config(options, "proposed", **fold_keys(1))
    plan = prepare(config, dataset)
    state = parallel.replicate(init_state(plan.task, plan.steps, 0))
    pool = np.arange(len(plan.slices.labels))
    per_call = config.train.steps_per_call

    def run() -> None:
        nonlocal state
        losses = []
        for start in range(0, plan.steps, per_call):
            rows = [draw_batch(pool, plan.slices.lesion, options.batch, (start + i,)) for i in range(per_call)]
            indices = np.moveaxis(np.reshape(rows, (per_call, jax.device_count(), -1)), 1, 0)
            state, metrics = plan.run_steps(state, plan.data, indices)
            losses.append(metrics["loss"])
        jax.device_get(losses)

    functions: Functions = {"ours": run}
    if options.pytorch:
        from experiments.benchmarks import torch_functions

        functions |= torch_functions.epoch_functions(options.pytorch, initial_state(options, "proposed"), plan)
    name = f"{plan.steps} steps of {options.batch}, {plan.slices.labels.shape[1:]}"
    return {name: interleave(functions, max(1, options.runs // 4)) | {"steps": plan.steps}}


def benchmark_fold(options: argparse.Namespace) -> dict:
    """The time of one fold of the proposed system, measured once: compilation, training, saving and prediction."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(options, folder)
        config = make_config(options, "proposed", **fold_keys(options.epochs))
        names = [case.name for case in dataset.cases]
        held_out = names[: len(names) // config.folds]
        directory = epath.Path(folder) / "fold_0"
        start = time.perf_counter()
        plan = prepare(config, dataset)
        train_fold(plan, 0, held_out, directory)
        trained = time.perf_counter() - start
        inference.predict_fold(dataset, held_out, directory)
        total = time.perf_counter() - start
    entry = {"training_s": round(trained, 2), "total_s": round(total, 2), "steps": plan.steps}
    # The proposed system is the slowest of the eight, so this is more than Table 1 takes.
    entry["table1_at_most_min"] = round(24 * total / 60, 1)
    if options.pytorch:
        from experiments.benchmarks import torch_functions

        entry |= torch_functions.fold_seconds(initial_state(options, "proposed"), plan, held_out)
    print(json.dumps(entry, indent=1))
    return {f"{options.cases} cases of {options.shape}, {options.epochs} epochs": entry}


def benchmark_inference(options: argparse.Namespace) -> dict:
    """Times of a case from its images to its labels."""
    rng = np.random.default_rng(options.seed)
    images = rng.gamma(2.0, 3.0, (*options.shape, len(CHANNELS))).astype(np.float32)
    case = Case("case", images, None, np.eye(4), None)
    functions: Functions = {}
    for dtype in DTYPES:
        task = make_task(make_config(options, "bl5", dtype=dtype))
        folds = [jax.device_put(init_state(task, 1, 0).segmenter.variables)]
        forward = make_forward(task.segmenter())
        predict = partial(inference.predict_case, forward, folds, case, task)
        functions[f"ours, {dtype}"] = lambda predict=predict: predict().argmax(-1)
    if options.pytorch:
        from experiments.benchmarks import torch_functions

        functions |= torch_functions.inference_functions(options.pytorch, initial_state(options, "bl5"), case)
    return {f"one case of {tuple(options.shape)}": measure(functions, options)}
