"""Training one fold: from slices to checkpoints."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from etils import epath

from isles_jax import checkpoint, parallel
from isles_jax.config import InputError, to_dict
from isles_jax.data.case import Dataset
from isles_jax.data.slices import Slices, draw_batch, make_slices
from isles_jax.models import MULTIPLE
from isles_jax.state import init_state
from isles_jax.step import make_step
from isles_jax.writer import Bar, Writer


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the folds of a run share: data on the devices, one compiled step, the number of steps."""

    config: ml_collections.ConfigDict
    dataset: Dataset
    slices: Slices
    data: tuple[jax.Array, jax.Array]
    step: Callable[..., Any]
    steps: int


def prepare(config: ml_collections.ConfigDict, dataset: Dataset) -> Plan:
    """Puts the labelled cases on the devices and builds the step; all folds take the same number of steps.

    Args:
      config: resolved (`config.resolve`).
      dataset: every case labelled.

    Raises:
      InputError: the batch does not divide over the devices.
    """
    devices, batch = jax.device_count(), config.train.batch_size
    if batch % devices:
        raise InputError(f"--config.train.batch_size: found {batch}, expected a multiple of the {devices} devices")
    slices = make_slices(dataset.cases, MULTIPLE)
    training = len(slices.labels) * (config.folds - 1) / config.folds
    per_call = config.train.steps_per_call
    steps = math.ceil(config.train.epochs * math.ceil(training / batch) / per_call) * per_call
    step = parallel.parallelize(make_step(config, dataset.classes, steps, parallel.AXIS), config.train.parallel)
    return Plan(config, dataset, slices, parallel.replicate((slices.images, slices.labels)), step, steps)


def train_fold(plan: Plan, fold: int, held_out: list[str], directory: epath.Path) -> None:
    """Trains a fold to its last step, from its newest checkpoint if there is one.

    Args:
      plan: from `prepare`.
      fold: number of the fold.
      held_out: names of the cases that are not trained on.
      directory: the fold's folder; checkpoints/ and metrics.jsonl are written there.

    Raises:
      InputError: no training slice holds lesion; a loss that is not finite; no sound checkpoint.
    """
    config, dataset, slices = plan.config, plan.dataset, plan.slices
    pool = _training_slices(dataset, slices, held_out)
    state = init_state(config, dataset.classes, len(dataset.channels), plan.steps, fold)
    count = parameter_overview.count_parameters(state.segmenter.params)
    checkpoints = directory / "checkpoints"
    restored = checkpoint.restore(checkpoints, state)
    state = parallel.replicate(state) if restored is None else restored
    start = int(state.step)
    if start >= plan.steps:
        return
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"fold {fold}: {count / 1e6:.2f} million parameters, {len(pool)} slices, steps {start} to {plan.steps} of "
          f"{config.train.batch_size} slices on {device}; to {directory}", flush=True)  # fmt: skip
    meta = {
        "config": to_dict(config), "fold": fold, "classes": list(dataset.classes), "channels": list(dataset.channels),
        "label_values": [int(value) for value in dataset.label_values],
    }  # fmt: skip
    writer, per_call, waiting = Writer(directory, start), config.train.steps_per_call, []
    with Bar(f"fold {fold}", plan.steps, "step", start) as bar:
        for step in range(start, plan.steps, per_call):
            indices = _batches(plan, pool, fold, range(step, step + per_call))
            state, metrics = plan.step(state, plan.data, indices)
            waiting.append(metrics)
            done, note = step + per_call, None
            if done % config.train.log_every_steps == 0 or done == plan.steps:
                means = _read(waiting, done, checkpoints)
                writer.write_scalars(done, means)
                waiting, note = [], f"loss {means['loss']:.4f}"
            # Before the first reading of a call's loss nothing is saved, so no checkpoint holds what is not finite.
            if done % config.train.checkpoint_every_steps == 0 or done == plan.steps:
                if waiting:
                    _read(waiting, done, checkpoints)
                checkpoint.save(checkpoints, state, meta)
            bar.advance(per_call, note)


def _training_slices(dataset: Dataset, slices: Slices, held_out: list[str]) -> np.ndarray:
    training = [number for number, case in enumerate(dataset.cases) if case.name not in held_out]
    pool = np.flatnonzero(np.isin(slices.case, training))
    if not slices.lesion[pool].any():
        raise InputError(
            f"{dataset.root}: found no lesion in {len(training)} training cases, expected some to learn from"
        )
    return pool


def _batches(plan: Plan, pool: np.ndarray, fold: int, steps: range) -> np.ndarray:
    """The slices of some steps, as [devices, steps, slices on a device]."""
    seed, size = plan.config.seed, plan.config.train.batch_size
    rows = np.stack([draw_batch(pool, plan.slices.lesion, size, (seed, fold, step)) for step in steps])
    return np.moveaxis(rows.reshape(len(steps), jax.device_count(), -1), 1, 0)


def _read(waiting: list[dict[str, jax.Array]], done: int, checkpoints: epath.Path) -> dict[str, float]:
    """Means of the metrics since the last log; the only place where training waits for the device."""
    fetched = jax.device_get(waiting)
    means = {name: float(np.mean([row[name] for row in fetched], dtype=np.float64)) for name in fetched[0]}
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    if bad:
        first = done - sum(len(row["loss"]) for row in fetched) + 1
        raise InputError(
            f"{checkpoints.parent}: not finite in steps {first} to {done}: {', '.join(bad)}; the last good checkpoint "
            f"is kept, try a smaller --config.optimizer.learning_rate"
        )
    return means
