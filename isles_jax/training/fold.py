"""Training one fold: from slices to checkpoints and metrics."""

import contextlib
import dataclasses
import functools
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from etils import epath

from isles_jax.config import flatten, to_dict
from isles_jax.data.case import Dataset
from isles_jax.data.slices import Slices, draw_batch, make_slices
from isles_jax.models import MULTIPLE
from isles_jax.networks import make_forward, make_segmenter
from isles_jax.runtime import files, interrupt, processes
from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import Bar
from isles_jax.training import checkpoint, event_images, parallel
from isles_jax.training.metric_writer import MetricWriter
from isles_jax.training.state import State, init_state
from isles_jax.training.step import make_step

# The keys of the configuration that change the compiled step.
STEP_KEYS = ("dtype", "model", "discriminator", "loss", "optimizer", "augment")
# The first steps compile and fill caches, so the profiler leaves them out.
PROFILE_AFTER = 10
# The slices may take this share of a device's memory; a step of the paper's network needs the rest.
SLICES_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the folds of a run share.

    Attributes:
      config: resolved.
      dataset: every case labelled.
      slices: of all cases, on the host.
      data: images and labels of the slices on the devices; None where they are too large.
      run_steps: the compiled step, (state, data, indices) -> (state, metrics), for `train.steps_per_call` steps.
      steps: steps of a fold's whole training.
    """

    config: ml_collections.ConfigDict
    dataset: Dataset
    slices: Slices
    data: tuple[jax.Array, jax.Array] | None
    run_steps: Callable[..., Any]
    steps: int


def prepare(config: ml_collections.ConfigDict, dataset: Dataset, memory: int | None = None) -> Plan:
    """Puts the labelled cases on the devices and builds the step; all folds take the same number of steps.

    Args:
      config: resolved (`config.resolve`).
      dataset: every case labelled.
      memory: bytes of a device's memory; None: what the device reports. Slices that take more than half of it stay on
        the host, and those of a call are sent while the call before runs.

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
    settings = json.dumps({key: value for key, value in to_dict(config).items() if key in STEP_KEYS})
    run_steps = _parallel_step(settings, dataset.classes, steps, config.train.parallel)
    memory, size, on_devices = memory or parallel.memory_bytes(), slices.images.nbytes + slices.labels.nbytes, None
    if memory and size > SLICES_SHARE * memory:
        print(f"the slices take {size / 1e9:.1f} GB of a device's {memory / 1e9:.1f} GB: streamed from the host")
    else:
        on_devices = parallel.replicate((slices.images, slices.labels), config.train.parallel)
    return Plan(config, dataset, slices, on_devices, run_steps, steps)


@functools.lru_cache(maxsize=4)
def _parallel_step(settings: str, classes: tuple[str, ...], steps: int, kind: str) -> Callable[..., Any]:
    """The step on all devices; runs of one process that need the same step share it and its compilation."""
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
      Interrupted: a signal asked to leave; the state after the current step is saved.
    """
    config, per_call = plan.config, plan.config.train.steps_per_call
    pool = _training_slices(plan, held_out)
    checkpoints = directory / "checkpoints"
    state = _first_state(plan, fold, checkpoints)
    start = int(state.step)
    if start >= plan.steps:
        return
    _announce(plan, fold, state, len(pool), start, directory)
    log = _Log(plan, fold, held_out, directory, start)
    with log, interrupt.postponed(), _Profile(config.train.profile, start, directory / "profile") as profile:
        calls = range(start, plan.steps, per_call)
        for step, (data, indices) in zip(calls, _feed(plan, pool, fold, calls), strict=True):
            profile.before_call(step, per_call, state)
            state, metrics = plan.run_steps(state, data, indices)
            log.add(metrics)
            done, leave = step + per_call, processes.leaving()
            save = done % config.train.checkpoint_every_steps == 0 or done == plan.steps or leave
            # Each checkpoint has a line of metrics, so that a resumed run writes the same lines.
            if save or done % config.train.log_every_steps == 0:
                log.write(done)
            if save:
                _refuse_broken(state, done, checkpoints)
                checkpoint.save(checkpoints, state, _meta(plan, fold))
                if not leave:
                    log.write_images(done, state)
            log.advance(per_call)
            if leave:
                interrupt.leave_if_requested(f"fold {fold} is saved at step {done} of {plan.steps}")


def _training_slices(plan: Plan, held_out: list[str]) -> np.ndarray:
    """Indices of the slices of all cases that are not held out."""
    training = [number for number, case in enumerate(plan.dataset.cases) if case.name not in held_out]
    pool = np.flatnonzero(np.isin(plan.slices.case, training))
    if not plan.slices.lesion[pool].any():
        raise InputError(
            f"{plan.dataset.root}: found no lesion in {len(training)} training cases, expected some to learn from"
        )
    return pool


def _first_state(plan: Plan, fold: int, checkpoints: epath.Path) -> State:
    """The state of the newest checkpoint, or else the initial one, on all devices."""
    state = init_state(plan.config, plan.dataset.classes, len(plan.dataset.channels), plan.steps, fold)
    restored, kind = checkpoint.restore(checkpoints, state), plan.config.train.parallel
    return parallel.replicate(state, kind) if restored is None else parallel.as_seen_by(kind, restored)


def _announce(plan: Plan, fold: int, state: State, slices: int, start: int, directory: epath.Path) -> None:
    count = parameter_overview.count_parameters(state.segmenter.params)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"fold {fold}: {count / 1e6:.2f} million parameters, {slices} slices, steps {start} to {plan.steps} of "
          f"{plan.config.train.batch_size} slices on {device}; to {directory}", flush=True)  # fmt: skip


def _meta(plan: Plan, fold: int) -> dict[str, Any]:
    """What a checkpoint holds beside the state: enough to rebuild and use its network."""
    dataset = plan.dataset
    return {
        "config": to_dict(plan.config), "fold": fold, "classes": list(dataset.classes),
        "channels": list(dataset.channels), "label_values": [int(value) for value in dataset.label_values],
    }  # fmt: skip


def _batches(plan: Plan, pool: np.ndarray, fold: int, steps: range) -> np.ndarray:
    """The slices of some steps, as [devices, steps, slices on a device]."""
    seed, size = plan.config.seed, plan.config.train.batch_size
    rows = np.stack([draw_batch(pool, plan.slices.lesion, size, (seed, fold, step)) for step in steps])
    return np.moveaxis(rows.reshape(len(steps), jax.device_count(), -1), 1, 0)


def _feed(plan: Plan, pool: np.ndarray, fold: int, calls: range) -> Iterator[tuple[Any, np.ndarray]]:
    """Data and indices of each call of the step, prepared while the call before runs."""
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


def _refuse_broken(state: State, done: int, checkpoints: epath.Path) -> None:
    """Refuses to save a state that is not finite: the losses of a step do not show what its own update broke."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        values = np.asarray(leaf)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise _not_finite(checkpoints, f"after step {done}: {jax.tree_util.keystr(path)}")


def _not_finite(checkpoints: epath.Path, quantity: str) -> InputError:
    return InputError(
        f"{checkpoints.parent}: not finite {quantity}; the last good checkpoint is kept, try a smaller "
        f"--config.optimizer.learning_rate"
    )


class _Log:
    """The fold's progress bar, its metrics file and its event images; metrics stay on the device until `write`."""

    def __init__(self, plan: Plan, fold: int, held_out: list[str], directory: epath.Path, start: int) -> None:
        self._plan, self._held_out, self._checkpoints = plan, held_out, directory / "checkpoints"
        self._waiting: list[dict[str, jax.Array]] = []
        self._note: str | None = None
        self._bar = Bar(f"fold {fold}", plan.steps, "step", start)
        # Process 0 writes for all.
        self._writer = None
        if processes.first():
            self._writer = MetricWriter(directory, start, tensorboard=plan.config.train.tensorboard)
            self._writer.write_hparams(flatten(plan.config) | {"fold": fold})

    def __enter__(self) -> "_Log":
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, trace)
        if self._writer:
            self._writer.close()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Keeps the metrics of one call."""
        self._waiting.append(metrics)

    def write(self, done: int) -> None:
        """Writes the means since the last call of `write`; this waits for the device."""
        fetched = jax.device_get(self._waiting)
        means = {name: float(np.mean([row[name] for row in fetched], dtype=np.float64)) for name in fetched[0]}
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            first = done - sum(len(row["loss"]) for row in fetched) + 1
            raise _not_finite(self._checkpoints, f"in steps {first} to {done}: {', '.join(bad)}")
        if self._writer:
            self._writer.write_scalars(done, means)
        self._waiting, self._note = [], f"loss {means['loss']:.4f}"

    def write_images(self, done: int, state: State) -> None:
        """Draws some held-out slices for TensorBoard, if it is wanted; training waits, as it does for a checkpoint."""
        plan = self._plan
        if not (self._writer and plan.config.train.tensorboard):
            return
        forward = make_forward(make_segmenter(plan.config, len(plan.dataset.classes) + 1))
        chosen = event_images.choose(plan.slices, plan.dataset.cases, self._held_out)
        images = event_images.draw(forward, state.segmenter.variables, plan.slices, plan.dataset.cases, chosen)
        self._writer.write_images(done, images)

    def advance(self, steps: int) -> None:
        """Moves the bar on."""
        self._bar.advance(steps, self._note)
        self._note = None


class _Profile:
    """Traces `steps` steps with JAX's profiler, after the first few of a call to `train_fold`; 0 traces nothing."""

    def __init__(self, steps: int, start: int, directory: epath.Path) -> None:
        self._steps, self._first, self._directory = steps, start + PROFILE_AFTER, directory
        self._trace = contextlib.ExitStack()

    def __enter__(self) -> "_Profile":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._trace.__exit__(kind, error, trace)

    def before_call(self, step: int, per_call: int, state: State) -> None:
        """Starts or stops the trace where the call that begins at `step` is the one to do so."""
        warm = step - self._first
        if self._steps and 0 <= warm < per_call:
            self._trace.enter_context(_traced(self._directory))
        if self._steps and self._steps <= warm < self._steps + per_call:
            jax.block_until_ready(state)
            self._trace.close()


@contextlib.contextmanager
def _traced(directory: epath.Path) -> Iterator[None]:
    """Records what the devices do; TensorBoard's profile plugin, XProf and Perfetto read the files."""
    # The profiler writes to local folders only. Each machine's file has its own name.
    with tempfile.TemporaryDirectory() as temporary:
        with jax.profiler.trace(temporary):
            yield
        files.copy(epath.Path(temporary), directory)
