"""Training one fold: from its newest checkpoint, or from the first weights, to its last step."""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from isles_jax.config import flatten
from isles_jax.data import orientation
from isles_jax.runtime import files, interrupt, processes
from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import Bar, say
from isles_jax.training import checkpoint, event_images, initial, parallel
from isles_jax.training.metric_writer import MetricWriter
from isles_jax.training.networks import count_parameters, make_forward
from isles_jax.training.plan import Plan, feed, training_slices
from isles_jax.training.state import State, init_state
from isles_jax.training.watch import Watch

# The profiler leaves out the first steps, which compile and fill caches.
PROFILE_AFTER = 10

# Metrics by name, each with the numbers of some steps in order.
Rows = dict[str, list[float]]


def train_fold(
    plan: Plan, fold: int, held_out: list[str], directory: epath.Path, part: tuple[int, int] = (0, 1)
) -> None:
    """Trains a fold to its last step, from its newest checkpoint if there is one.

    It does not train on the cases with the names `held_out`. It writes checkpoints/, metrics.jsonl and held_out.jsonl
    to `directory`. The bar shows the whole run, of which the fold is a `part`: how many folds come before it, and how
    many there are.

    Raises:
      InputError: no training slice holds lesion; a loss or the state is not finite; all checkpoints are damaged; a
        checkpoint cannot be written.
      Interrupted: a signal asked the command to leave; the state after the current step is saved.
    """
    pool = training_slices(plan, held_out)
    checkpoints = directory / "checkpoints"
    state, unwritten = _first_state(plan, fold, checkpoints)
    start = int(state.step)
    if start >= plan.steps:
        return
    _announce(plan, fold, state, len(pool), start, directory)
    calls = plan.calls(start)
    profiled = _profiled_steps(plan.config, calls)
    watch = Watch(plan, held_out, directory, start)
    with (
        interrupt.postponed(),
        _bar(plan, fold, start, part) as bar,
        contextlib.closing(_Log(plan, fold, held_out, directory, start, unwritten)) as log,
        checkpoint.Saver(checkpoints) as saver,
        contextlib.ExitStack() as trace,
    ):
        for step, (data, indices) in zip(calls, feed(plan, pool, fold, calls), strict=True):
            if profiled and step == profiled.start:
                trace.enter_context(_traced(directory / "profile"))
            if profiled and step == profiled.stop:
                jax.block_until_ready(state)
                trace.close()
            state, metrics = plan.run_steps(state, data, indices)
            done = min(step + calls.step, plan.steps)
            log.add(done, metrics)
            watch.look(done, state.segmenter.variables)
            leave = processes.leaving()
            if done == plan.steps or leave or _is_due(plan.config, saver, done):
                watch.flush()
                # Metrics are written before the checkpoint, so that a resumed run writes the same lines.
                meta = plan.task.record() | {"fold": fold, "unwritten": log.flush()}
                _refuse_broken(state, done, checkpoints)
                saver.save(state, meta)
                if not leave:
                    log.write_images(done, state)
            saver.check()
            bar.advance(done - step, log.note)
            if leave:
                saver.wait()
                interrupt.leave_if_requested(f"fold {fold} is saved at step {done} of {plan.steps}")


def _bar(plan: Plan, fold: int, start: int, part: tuple[int, int]) -> Bar:
    before, folds = part
    title = f"fold {fold}" if folds == 1 else f"fold {fold} ({before + 1} of {folds})"
    return Bar(title, folds * plan.steps, "step", before * plan.steps + start, "compiling")


def _is_due(config: ml_collections.ConfigDict, saver: checkpoint.Saver, done: int) -> bool:
    """Whether it is time for a checkpoint. The clock of process 0 decides for all."""
    train = config.train
    if done % train.checkpoint_every_steps:
        return False
    return processes.on_first(lambda: saver.idle_seconds() >= float(train.checkpoint_every_seconds))


def _first_state(plan: Plan, fold: int, checkpoints: epath.Path) -> tuple[State, Rows]:
    """The state of the newest checkpoint, or the initial state if there is none, on all devices.

    With it come the metrics of the steps before it that are not in a line of metrics.jsonl yet.
    """
    train = plan.config.train
    state = init_state(plan.task, plan.steps, fold)
    restored = checkpoint.restore(checkpoints, state)
    if restored is not None:
        saved, meta = restored
        return parallel.as_seen_by(train.parallel, saved), meta.get("unwritten", {})
    if train.init:
        segmenter = initial.start(state.segmenter, train.init, train.init_sha256, fold, plan.task)
        state = dataclasses.replace(state, segmenter=segmenter)
    return parallel.replicate(state, train.parallel), {}


def _announce(plan: Plan, fold: int, state: State, slices: int, start: int, directory: epath.Path) -> None:
    size = f"{count_parameters(state.segmenter.params) / 1e6:.2f} million parameters, {slices} slices"
    steps = f"steps {start} to {plan.steps} of {plan.config.train.batch_size} slices"
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    say(f"fold {fold}: {size}, {steps} on {device}; to {directory}")


def _refuse_broken(state: State, done: int, checkpoints: epath.Path) -> None:
    """Raises InputError if the state is not finite.

    A step's loss is computed before its update, so it does not show a broken update.
    """
    finite = jax.device_get(_are_finite(parallel.one_copy(state)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(finite):
        if not leaf:
            raise _not_finite(checkpoints, f"after step {done}: {jax.tree_util.keystr(path)}")


@jax.jit
def _are_finite(tree: Any) -> Any:
    """For each array whether all of its numbers are finite. The device looks, so that one bit of each is fetched."""
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def _not_finite(checkpoints: epath.Path, quantity: str) -> InputError:
    return InputError(
        f"{checkpoints.parent}: not finite {quantity}; the last good checkpoint is kept, try a smaller "
        "--config.optimizer.learning_rate"
    )


class _Log:
    """The metrics file and the event images of a fold. Process 0 writes for all.

    A line of the file holds the means over `train.log_every_steps` steps. Fetching metrics waits for the device, so a
    line is written after the next call of the step has begun.
    """

    def __init__(
        self, plan: Plan, fold: int, held_out: list[str], directory: epath.Path, start: int, unwritten: Rows
    ) -> None:
        self._plan = plan
        self._held_out = held_out
        self._checkpoints = directory / "checkpoints"
        # The metrics of the calls since the last line, some of them still on the device.
        self._rows: list[Mapping[str, Any]] = [unwritten] if unwritten else []
        # The last step and the metrics of each line that is complete and not written.
        self._lines: list[tuple[int, list[Mapping[str, Any]]]] = []
        self.note: str | None = None
        self._writer = None
        if processes.first():
            self._writer = MetricWriter(directory, start, tensorboard=plan.config.train.tensorboard)
            self._writer.write_hparams(flatten(plan.config) | {"fold": fold})

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def add(self, done: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of the call that ends with the step `done`, and writes the lines of the calls before it.

        Raises:
          InputError: a mean is not finite.
        """
        self._write_lines()
        self._rows.append(metrics)
        if done % self._plan.config.train.log_every_steps == 0 or done == self._plan.steps:
            self._lines.append((done, self._rows))
            self._rows = []
        self._done = done

    def flush(self) -> Rows:
        """Waits for the device and writes all lines to disk; returns the metrics of the steps after the last one.

        Raises:
          InputError: a mean is not finite.
        """
        self._write_lines()
        rows = self._fetch(self._rows)
        if rows:
            self._means(self._done, rows)
        if self._writer:
            self._writer.flush()
        return {name: values.tolist() for name, values in rows.items()}

    def _write_lines(self) -> None:
        for done, rows in self._lines:
            means = self._means(done, self._fetch(rows))
            if self._writer:
                self._writer.write_scalars(done, means)
            self.note = f"loss {means['loss']:.4f}"
        self._lines = []

    def _fetch(self, rows: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """One float32 array for each metric, with the numbers of all steps in order."""
        fetched = jax.device_get(rows)
        names = fetched[0] if fetched else ()
        return {name: np.concatenate([np.asarray(row[name], np.float32) for row in fetched]) for name in names}

    def _means(self, done: int, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        means = {name: float(np.mean(values, dtype=np.float64)) for name, values in rows.items()}
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            first = done - len(rows["loss"]) + 1
            raise _not_finite(self._checkpoints, f"in steps {first} to {done}: {', '.join(bad)}")
        return means

    def write_images(self, done: int, state: State) -> None:
        """Draws some held-out slices for TensorBoard, if it is switched on. Training waits, as for a checkpoint."""
        plan = self._plan
        if not (self._writer and plan.config.train.tensorboard):
            return
        forward = make_forward(plan.task.predictor())
        cases = [orientation.turned(case, plan.task.target.axes) for case in plan.dataset.cases]
        chosen = event_images.choose(plan.slices, cases, self._held_out)
        images = event_images.draw(forward, state.segmenter.variables, plan.slices, cases, chosen)
        self._writer.write_images(done, images)


def _profiled_steps(config: ml_collections.ConfigDict, calls: range) -> range:
    """The steps that the profiler traces: `train.profile` of them, rounded up to whole calls."""
    per_call = calls.step
    begin = calls.start + math.ceil(PROFILE_AFTER / per_call) * per_call
    return range(begin, begin + math.ceil(config.train.profile / per_call) * per_call)


@contextlib.contextmanager
def _traced(directory: epath.Path) -> Iterator[None]:
    """Records what the devices do, in files for TensorBoard's profile plugin, XProf and Perfetto."""
    # The profiler writes to local folders only. Each machine's file has its own name.
    with tempfile.TemporaryDirectory() as temporary:
        with jax.profiler.trace(temporary):
            yield
        files.copy(epath.Path(temporary), directory)
