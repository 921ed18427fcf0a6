"""Training one fold: from its newest checkpoint, or from the first weights, to its last step."""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
from etils import epath

from isles_jax.config import flatten
from isles_jax.data import orientation
from isles_jax.runtime import files, interrupt, processes
from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import Bar
from isles_jax.training import checkpoint, event_images, initial, parallel
from isles_jax.training.metric_writer import MetricWriter
from isles_jax.training.networks import count_parameters, make_forward
from isles_jax.training.plan import Plan, feed, training_slices
from isles_jax.training.state import State, init_state

# The profiler leaves out the first steps, which compile and fill caches.
PROFILE_AFTER = 10


def train_fold(plan: Plan, fold: int, held_out: list[str], directory: epath.Path) -> None:
    """Trains a fold to its last step, from its newest checkpoint if there is one.

    It does not train on the cases with the names `held_out`. It writes checkpoints/ and metrics.jsonl to `directory`.

    Raises:
      InputError: no training slice holds lesion; a loss or the state is not finite; all checkpoints are damaged; a
        checkpoint cannot be written.
      Interrupted: a signal asked the command to leave; the state after the current step is saved.
    """
    train = plan.config.train
    per_call = train.steps_per_call
    pool = training_slices(plan, held_out)
    checkpoints = directory / "checkpoints"
    state = _first_state(plan, fold, checkpoints)
    start = int(state.step)
    if start >= plan.steps:
        return
    _announce(plan, fold, state, len(pool), start, directory)
    profiled = _profiled_steps(plan.config, start)
    with (
        Bar(f"fold {fold}", plan.steps, "step", start, "compiling") as bar,
        contextlib.closing(_Log(plan, fold, held_out, directory, start)) as log,
        interrupt.postponed(),
        contextlib.ExitStack() as trace,
    ):
        calls = range(start, plan.steps, per_call)
        for step, (data, indices) in zip(calls, feed(plan, pool, fold, calls), strict=True):
            if profiled and step == profiled.start:
                trace.enter_context(_traced(directory / "profile"))
            if profiled and step == profiled.stop:
                jax.block_until_ready(state)
                trace.close()
            state, metrics = plan.run_steps(state, data, indices)
            log.add(metrics)
            done = step + per_call
            leave = processes.leaving()
            save = done % train.checkpoint_every_steps == 0 or done == plan.steps or leave
            loss = None
            # Metrics are written with each checkpoint, so that a resumed run writes the same lines.
            if save or done % train.log_every_steps == 0:
                loss = log.write(done)
            if save:
                _refuse_broken(state, done, checkpoints)
                checkpoint.save(checkpoints, state, plan.task.record() | {"fold": fold})
                if not leave:
                    log.write_images(done, state)
            bar.advance(per_call, None if loss is None else f"loss {loss:.4f}")
            if leave:
                interrupt.leave_if_requested(f"fold {fold} is saved at step {done} of {plan.steps}")


def _first_state(plan: Plan, fold: int, checkpoints: epath.Path) -> State:
    """The state of the newest checkpoint, or the initial state if there is none, on all devices."""
    train = plan.config.train
    state = init_state(plan.task, plan.steps, fold)
    restored = checkpoint.restore(checkpoints, state)
    if restored is not None:
        resumed: State = parallel.as_seen_by(train.parallel, restored)
        return resumed
    if train.init:
        segmenter = initial.start(state.segmenter, train.init, train.init_sha256, fold, plan.task.classes)
        state = dataclasses.replace(state, segmenter=segmenter)
    first: State = parallel.replicate(state, train.parallel)
    return first


def _announce(plan: Plan, fold: int, state: State, slices: int, start: int, directory: epath.Path) -> None:
    size = f"{count_parameters(state.segmenter.params) / 1e6:.2f} million parameters, {slices} slices"
    steps = f"steps {start} to {plan.steps} of {plan.config.train.batch_size} slices"
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"fold {fold}: {size}, {steps} on {device}; to {directory}", flush=True)


def _refuse_broken(state: State, done: int, checkpoints: epath.Path) -> None:
    """Raises InputError if the state is not finite.

    A step's loss is computed before its update, so it does not show a broken update.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        values = np.asarray(leaf)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise _not_finite(checkpoints, f"after step {done}: {jax.tree_util.keystr(path)}")


def _not_finite(checkpoints: epath.Path, quantity: str) -> InputError:
    return InputError(
        f"{checkpoints.parent}: not finite {quantity}; the last good checkpoint is kept, try a smaller "
        "--config.optimizer.learning_rate"
    )


class _Log:
    """The metrics file and the event images of a fold. Process 0 writes for all."""

    def __init__(self, plan: Plan, fold: int, held_out: list[str], directory: epath.Path, start: int) -> None:
        self._plan = plan
        self._held_out = held_out
        self._checkpoints = directory / "checkpoints"
        # Metrics stay on the device until they are written, because fetching them waits for the device.
        self._pending: list[dict[str, jax.Array]] = []
        self._writer = None
        if processes.first():
            self._writer = MetricWriter(directory, start, tensorboard=plan.config.train.tensorboard)
            self._writer.write_hparams(flatten(plan.config) | {"fold": fold})

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        self._pending.append(metrics)

    def write(self, done: int) -> float:
        """Waits for the device and writes the means over the steps since the last `write`; returns the mean loss.

        Raises:
          InputError: a mean is not finite.
        """
        fetched = jax.device_get(self._pending)
        self._pending = []
        means = {name: float(np.mean([row[name] for row in fetched], dtype=np.float64)) for name in fetched[0]}
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            first = done - sum(len(row["loss"]) for row in fetched) + 1
            raise _not_finite(self._checkpoints, f"in steps {first} to {done}: {', '.join(bad)}")
        if self._writer:
            self._writer.write_scalars(done, means)
        return means["loss"]

    def write_images(self, done: int, state: State) -> None:
        """Draws some held-out slices for TensorBoard, if it is switched on. Training waits, as for a checkpoint."""
        plan = self._plan
        if not (self._writer and plan.config.train.tensorboard):
            return
        forward = make_forward(plan.task.segmenter())
        cases = [orientation.turned(case, plan.task.target.axes) for case in plan.dataset.cases]
        chosen = event_images.choose(plan.slices, cases, self._held_out)
        images = event_images.draw(forward, state.segmenter.variables, plan.slices, cases, chosen)
        self._writer.write_images(done, images)


def _profiled_steps(config: ml_collections.ConfigDict, start: int) -> range:
    """The steps that the profiler traces: `train.profile` of them, rounded up to whole calls."""
    per_call = config.train.steps_per_call
    begin = start + math.ceil(PROFILE_AFTER / per_call) * per_call
    return range(begin, begin + math.ceil(config.train.profile / per_call) * per_call)


@contextlib.contextmanager
def _traced(directory: epath.Path) -> Iterator[None]:
    """Records what the devices do, in files for TensorBoard's profile plugin, XProf and Perfetto."""
    # The profiler writes to local folders only. Each machine's file has its own name.
    with tempfile.TemporaryDirectory() as temporary:
        with jax.profiler.trace(temporary):
            yield
        files.copy(epath.Path(temporary), directory)
