"""What the folds of a run share: the slices on the devices, the compiled step, and how batches are drawn."""

import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import ml_collections
import numpy as np

from isles_jax.data import grid
from isles_jax.data.case import Dataset
from isles_jax.data.grid import Target
from isles_jax.data.slices import Slices, draw_batch, largest_sides, make_slices, shape_on_grid
from isles_jax.runtime.command import InputError
from isles_jax.runtime.memory import machine_memory
from isles_jax.runtime.progress import say
from isles_jax.training import parallel
from isles_jax.training.step import make_step
from isles_jax.training.task import Task

# The keys of the configuration that change the compiled step.
STEP_KEYS = ("dtype", "model", "discriminator", "loss", "optimizer", "augment")
# Steps in a call on a GPU or a TPU. More save hardly anything.
STEPS_PER_CALL = 10
# The slices may take this share of a device's memory; a step of the paper's network needs the rest.
SLICES_SHARE = 0.5


@dataclass(frozen=True)
class Plan:
    """What the folds of a run share.

    Attributes:
      task: what the networks are for; its configuration is resolved.
      dataset: all cases have labels.
      slices: of all cases, on the host.
      data: images and labels of the slices on the devices; None if they are too large for that.
      run_steps: the compiled (state, data, indices) -> (state, metrics); one call runs as many steps as indices name.
      steps: the number of steps that every fold is trained.
      per_call: the number of steps in a call.
    """

    task: Task
    dataset: Dataset
    slices: Slices
    data: tuple[jax.Array, jax.Array] | None
    run_steps: Callable[..., Any]
    steps: int
    per_call: int

    def calls(self, start: int) -> range:
        """The first step of each call of a training from the step `start`; the last call may be shorter."""
        # A run that began with fewer steps in a call may stop between two of today's calls.
        return range(start, self.steps, math.gcd(self.per_call, start))

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The whole configuration."""
        return self.task.config


def prepare(config: ml_collections.ConfigDict, dataset: Dataset, target: Target | None = None) -> Plan:
    """Puts the slices on the devices and builds the step.

    Slices that take more than half of a device's memory stay on the host. Then those of the next call of the step are
    sent while the current call runs.

    Args:
      config: resolved.
      dataset: its cases have labels.
      target: the grid of a run that has begun; None: that which `grid.choose` finds for the cases.

    Raises:
      InputError: the batch size is not a multiple of the number of devices, or too large for the data or the memory.
    """
    parallel.keep_compiled()
    devices = jax.device_count()
    batch = config.train.batch_size
    if batch % devices:
        raise InputError(f"--config.train.batch_size: found {batch}, expected a multiple of the {devices} devices")
    task = _task(config, dataset, target) if target else _smallest(config, dataset)
    _check_size(task, dataset)
    slices = make_slices(dataset.cases, task.padded_size, task.target, config.data.dtype)
    # All folds take the same number of steps, so that they share one compilation.
    training = len(slices.labels) * (config.folds - 1) / config.folds
    _check_batch(config, training, slices.labels.shape[1] * slices.labels.shape[2], batch // devices)
    steps = config.train.epochs * math.ceil(training / batch)
    record = task.record()
    record["config"] = {key: record["config"][key] for key in STEP_KEYS} | {"data": {"missing": config.data.missing}}
    run_steps = _parallel_step(json.dumps(record), steps, config.train.parallel)
    data = None
    memory = parallel.memory_bytes()
    needed = slices.images.nbytes + slices.labels.nbytes
    if memory and needed > SLICES_SHARE * memory:
        say(f"the slices take {needed / 1e9:.1f} GB of a device's {memory / 1e9:.1f} GB: streamed from the host")
    else:
        data = parallel.replicate((slices.images, slices.labels), config.train.parallel)
    return Plan(task, dataset, slices, data, run_steps, steps, _steps_per_call(config, steps))


def _task(config: ml_collections.ConfigDict, dataset: Dataset, target: Target) -> Task:
    size = largest_sides(dataset.cases, target)
    return Task(config, dataset.channels, dataset.classes, dataset.label_values, target, size)


def _smallest(config: ml_collections.ConfigDict, dataset: Dataset) -> Task:
    """The task of a new run. Its slices are cut to the brain's box if the networks' slices become smaller by that.

    The real cases of ISLES-2022 have 112x112 pixels, which are padded to 128x128, and their brains fit 96x96.
    """
    target = grid.choose(config.data.spacing_mm, dataset.cases)
    whole = _task(config, dataset, target)
    cut = _task(config, dataset, target._replace(crop=True))
    return cut if math.prod(cut.padded_size) < math.prod(whole.padded_size) else whole


def _steps_per_call(config: ml_collections.ConfigDict, steps: int) -> int:
    """`train.steps_per_call`; if it is not set, what suits the device and divides all that counts steps."""
    train = config.train
    if train.steps_per_call:
        given: int = train.steps_per_call
        return given
    if jax.default_backend() == "cpu":
        return 1
    return math.gcd(STEPS_PER_CALL, steps, train.log_every_steps, train.checkpoint_every_steps)


def _check_size(task: Task, dataset: Dataset) -> None:
    """Raises an InputError if the slices on the network's grid cannot fit the memory."""
    height, width = task.padded_size
    depth = sum(shape_on_grid(case, task.target)[2] for case in dataset.cases)
    needed = depth * height * width * (task.planes * np.dtype(task.config.data.dtype).itemsize + 1)
    memory = machine_memory()
    if needed > memory:
        sizes = f"{needed / 1e9:.0f} GB of slices, of {memory / 1e9:.0f} GB"
        raise InputError(f"--config.data.spacing_mm: found {task.config.data.spacing_mm!r}, which needs {sizes}")


def _check_batch(config: ml_collections.ConfigDict, training: float, pixels: int, on_device: int) -> None:
    """Raises an InputError if a batch has more slices than a fold trains on, or cannot fit the memory."""
    batch = config.train.batch_size
    if batch > training:
        raise InputError(
            f"--config.train.batch_size: found {batch}, expected at most the {training:.0f} training slices"
        )
    # The gradient needs the float32 feature maps of the network's first two convolutions, and much more.
    needed = 8 * on_device * pixels * config.model.width
    memory = machine_memory()
    if needed > memory:
        sizes = f"{needed / 1e9:.0f} GB at the least, of {memory / 1e9:.0f} GB"
        raise InputError(f"--config.train.batch_size: found {batch}, which needs {sizes}, expected a smaller one")


@functools.lru_cache(maxsize=4)
def _parallel_step(record: str, steps: int, kind: str) -> Callable[..., Any]:
    """The step on all devices. Runs in one process that need the same step share its compilation."""
    return parallel.parallelize(make_step(Task.read(json.loads(record)), steps, parallel.AXIS), kind)


def training_slices(plan: Plan, held_out: list[str]) -> np.ndarray:
    """Indices of the slices of all cases that are not held out.

    Raises:
      InputError: none of them holds lesion; all of these cases lack the same channel.
    """
    cases = plan.dataset.cases
    training = [number for number, case in enumerate(cases) if case.name not in held_out]
    pool = np.flatnonzero(np.isin(plan.slices.case, training))
    if not plan.slices.lesion[pool].any():
        raise InputError(
            f"{plan.dataset.root}: found no lesion in {len(training)} training cases, expected some to learn from"
        )
    for channel in plan.dataset.channels:
        if all(channel in cases[number].absent for number in training):
            found = f"no {channel} in any of {len(training)} training cases"
            raise InputError(f"{plan.dataset.root}: found {found}, expected it in some")
    return pool


def feed(plan: Plan, pool: np.ndarray, fold: int, calls: range) -> Iterator[tuple[Any, np.ndarray]]:
    """Prepares each call of `run_steps` while the previous call runs.

    The calls start at the steps `calls`. They train on the slices with the indices `pool`.

    Yields:
      The data, as `run_steps` takes them, and int32 [devices, steps, slices on a device], indices into the data.
    """
    prepared = (_prepare_call(plan, pool, fold, range(start, min(start + calls.step, calls.stop))) for start in calls)
    ready = next(prepared)
    for following in prepared:
        yield ready
        ready = following
    yield ready


def _prepare_call(plan: Plan, pool: np.ndarray, fold: int, steps: range) -> tuple[Any, np.ndarray]:
    seed = plan.config.seed
    size = plan.config.train.batch_size
    rows = np.stack([draw_batch(pool, plan.slices.lesion, size, (seed, fold, step)) for step in steps])
    indices = np.moveaxis(rows.reshape(len(steps), jax.device_count(), -1), 1, 0)
    if plan.data is not None:
        return plan.data, indices
    chosen = plan.slices.images[indices.ravel()], plan.slices.labels[indices.ravel()]
    data = parallel.replicate(chosen, plan.config.train.parallel)
    return data, np.arange(indices.size, dtype=np.int32).reshape(indices.shape)
