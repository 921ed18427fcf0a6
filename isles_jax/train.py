"""Training one fold: from slices to checkpoints."""

import contextlib
import dataclasses
import functools
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from etils import epath

from isles_jax import checkpoint, files, interrupt, panels, parallel, predict, processes
from isles_jax.config import InputError, flatten, to_dict
from isles_jax.data.case import Dataset
from isles_jax.data.slices import Slices, draw_batch, make_slices
from isles_jax.models import MULTIPLE
from isles_jax.state import State, init_state, make_segmenter
from isles_jax.step import make_step
from isles_jax.writer import Bar, Writer

# The keys of the configuration that the compiled step knows.
_OF_THE_STEP = ("dtype", "model", "discriminator", "loss", "optimizer", "augment")
# The first steps compile and fill caches.
PROFILE_AFTER = 10
# The slices may take this share of a device's memory; a step of the paper's network needs the rest.
_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the folds of a run share: data on the devices (None: too large), one compiled step, the number of steps."""

    config: ml_collections.ConfigDict
    dataset: Dataset
    slices: Slices
    data: tuple[jax.Array, jax.Array] | None
    step: Callable[..., Any]
    steps: int


def prepare(config: ml_collections.ConfigDict, dataset: Dataset, memory: int | None = None) -> Plan:
    """Puts the labelled cases on the devices and builds the step; all folds take the same number of steps.

    Args:
      config: resolved (`config.resolve`).
      dataset: every case labelled.
      memory: bytes of a device's memory; None: as many as it says. Slices that take more than half of it stay on the
        host, and each call's are sent while the call before runs.

    Raises:
      InputError: the batch does not divide over the devices.
    """
    parallel.keep_compiled()
    devices, batch = jax.device_count(), config.train.batch_size
    if batch % devices:
        raise InputError(f"--config.train.batch_size: found {batch}, expected a multiple of the {devices} devices")
    slices = make_slices(dataset.cases, MULTIPLE)
    training = len(slices.labels) * (config.folds - 1) / config.folds
    per_call = config.train.steps_per_call
    steps = math.ceil(config.train.epochs * math.ceil(training / batch) / per_call) * per_call
    settings = json.dumps({key: value for key, value in to_dict(config).items() if key in _OF_THE_STEP})
    step = _parallel_step(settings, dataset.classes, steps, config.train.parallel)
    memory, size, on_devices = memory or parallel.memory_bytes(), slices.images.nbytes + slices.labels.nbytes, None
    if memory and size > _SHARE * memory:
        print(f"the slices take {size / 1e9:.1f} GB of a device's {memory / 1e9:.1f} GB: streamed from the host")
    else:
        on_devices = parallel.replicate((slices.images, slices.labels), config.train.parallel)
    return Plan(config, dataset, slices, on_devices, step, steps)


@functools.lru_cache(maxsize=4)
def _parallel_step(settings: str, classes: tuple[str, ...], steps: int, kind: str) -> Callable[..., Any]:
    """The step on all devices; runs in one process that need the same step share it, and its compilation."""
    config = ml_collections.ConfigDict(json.loads(settings))
    return parallel.parallelize(make_step(config, classes, steps, parallel.AXIS), kind)


def train_fold(plan: Plan, fold: int, held_out: list[str], directory: epath.Path) -> None:
    """Trains a fold to its last step, from its newest checkpoint if there is one.

    Args:
      plan: from `prepare`.
      fold: number of the fold.
      held_out: names of the cases that are not trained on.
      directory: the fold's folder; checkpoints/ and metrics.jsonl are written there.

    Raises:
      InputError: no training slice holds lesion; a loss or a state that is not finite; no sound checkpoint; a
        checkpoint that cannot be written.
      Interrupted: a signal asked to leave; the state after the step at hand was saved.
    """
    config, dataset, slices = plan.config, plan.dataset, plan.slices
    pool = _training_slices(dataset, slices, held_out)
    state = init_state(config, dataset.classes, len(dataset.channels), plan.steps, fold)
    count = parameter_overview.count_parameters(state.segmenter.params)
    checkpoints = directory / "checkpoints"
    restored = checkpoint.restore(checkpoints, state)
    kind = config.train.parallel
    state = parallel.replicate(state, kind) if restored is None else parallel.as_seen_by(kind, restored)
    start = int(state.step)
    if start >= plan.steps:
        return
    _announce(plan, fold, count, len(pool), start, directory)
    meta = _meta(plan, fold)
    writing, per_call, waiting = _writer(config, fold, directory, start), config.train.steps_per_call, []
    profile, tracing = config.train.profile, contextlib.ExitStack()
    with writing as writer, interrupt.postponed(), tracing, Bar(f"fold {fold}", plan.steps, "step", start) as bar:
        calls = range(start, plan.steps, per_call)
        for step, (data, indices) in zip(calls, _feed(plan, pool, fold, calls), strict=True):
            warm = step - start - PROFILE_AFTER
            if profile and 0 <= warm < per_call:
                tracing.enter_context(_trace(directory / "profile"))
            if profile and profile <= warm < profile + per_call:
                jax.block_until_ready(state)
                tracing.close()
            state, metrics = plan.step(state, data, indices)
            waiting.append(metrics)
            done, note, leave = step + per_call, None, processes.leaving()
            save = done % config.train.checkpoint_every_steps == 0 or done == plan.steps or leave
            # A line at each checkpoint: the lines of a run that goes on from there are the same.
            if save or done % config.train.log_every_steps == 0:
                means = _read(waiting, done, checkpoints)
                if writer:
                    writer.write_scalars(done, means)
                waiting, note = [], f"loss {means['loss']:.4f}"
            if save:
                _refuse_broken(state, done, checkpoints)
                checkpoint.save(checkpoints, state, meta)
                if writer and config.train.tensorboard and not leave:
                    writer.write_images(done, _pictures(plan, state, held_out))
            bar.advance(per_call, note)
            if leave:
                interrupt.leave_if_requested(f"fold {fold} is saved at step {done} of {plan.steps}")


@contextlib.contextmanager
def _trace(directory: epath.Path) -> Iterator[None]:
    """Records what the devices do meanwhile; TensorBoard's profile plugin, XProf and Perfetto read it."""
    # By way of a local folder, as the profiler knows no buckets. Each machine's file has its own name.
    with tempfile.TemporaryDirectory() as temporary:
        with jax.profiler.trace(temporary):
            yield
        files.copy(epath.Path(temporary), directory)


def _training_slices(dataset: Dataset, slices: Slices, held_out: list[str]) -> np.ndarray:
    training = [number for number, case in enumerate(dataset.cases) if case.name not in held_out]
    pool = np.flatnonzero(np.isin(slices.case, training))
    if not slices.lesion[pool].any():
        raise InputError(
            f"{dataset.root}: found no lesion in {len(training)} training cases, expected some to learn from"
        )
    return pool


def _announce(plan: Plan, fold: int, count: int, slices: int, start: int, directory: epath.Path) -> None:
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"fold {fold}: {count / 1e6:.2f} million parameters, {slices} slices, steps {start} to {plan.steps} of "
          f"{plan.config.train.batch_size} slices on {device}; to {directory}", flush=True)  # fmt: skip


def _meta(plan: Plan, fold: int) -> dict[str, Any]:
    """What a checkpoint says of itself, enough to rebuild and use its network."""
    dataset = plan.dataset
    return {
        "config": to_dict(plan.config), "fold": fold, "classes": list(dataset.classes),
        "channels": list(dataset.channels), "label_values": [int(value) for value in dataset.label_values],
    }  # fmt: skip


def _writer(
    config: ml_collections.ConfigDict, fold: int, directory: epath.Path, start: int
) -> contextlib.AbstractContextManager[Writer | None]:
    """On process 0 the fold's writer, with the settings written; None on others."""
    if not processes.first():
        return contextlib.nullcontext()
    writer = Writer(directory, start, tensorboard=config.train.tensorboard)
    writer.write_hparams(flatten(config) | {"fold": fold})
    return writer


def _pictures(plan: Plan, state: State, held_out: list[str]) -> dict[str, np.ndarray]:
    """How the network does on some held-out slices; training waits for it, as it does for a checkpoint."""
    forward = predict.make_forward(make_segmenter(plan.config, len(plan.dataset.classes) + 1))
    chosen = panels.choose(plan.slices, plan.dataset.cases, held_out)
    return panels.draw(forward, state.segmenter.variables, plan.slices, plan.dataset.cases, chosen)


def _batches(plan: Plan, pool: np.ndarray, fold: int, steps: range) -> np.ndarray:
    """The slices of some steps, as [devices, steps, slices on a device]."""
    seed, size = plan.config.seed, plan.config.train.batch_size
    rows = np.stack([draw_batch(pool, plan.slices.lesion, size, (seed, fold, step)) for step in steps])
    return np.moveaxis(rows.reshape(len(steps), jax.device_count(), -1), 1, 0)


def _feed(plan: Plan, pool: np.ndarray, fold: int, calls: range) -> Iterator[tuple[Any, np.ndarray]]:
    """Data and indices of each call of the step, made ready while the call before runs."""
    before = None
    for step in calls:
        data, indices = plan.data, _batches(plan, pool, fold, range(step, step + calls.step))
        if data is None:
            rows = indices.ravel()
            chosen = plan.slices.images[rows], plan.slices.labels[rows]
            data = parallel.replicate(chosen, plan.config.train.parallel)
            indices = np.arange(rows.size, dtype=np.int32).reshape(indices.shape)
        if before is not None:
            yield before
        before = data, indices
    assert before is not None
    yield before


def _read(waiting: list[dict[str, jax.Array]], done: int, checkpoints: epath.Path) -> dict[str, float]:
    """Means of the metrics since the last log; the only place where training waits for the device."""
    fetched = jax.device_get(waiting)
    means = {name: float(np.mean([row[name] for row in fetched], dtype=np.float64)) for name in fetched[0]}
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    if bad:
        first = done - sum(len(row["loss"]) for row in fetched) + 1
        raise _not_finite(checkpoints, f"in steps {first} to {done}: {', '.join(bad)}")
    return means


def _refuse_broken(state: State, done: int, checkpoints: epath.Path) -> None:
    """Refuses to save a state that is not finite: the losses of a step do not show what its own update broke."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        values = np.asarray(leaf)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise _not_finite(checkpoints, f"after step {done}: {jax.tree_util.keystr(path)}")


def _not_finite(checkpoints: epath.Path, found: str) -> InputError:
    return InputError(
        f"{checkpoints.parent}: not finite {found}; the last good checkpoint is kept, try a smaller "
        f"--config.optimizer.learning_rate"
    )
