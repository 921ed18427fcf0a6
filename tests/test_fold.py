"""What a fold's training asks of the compiler and of the device, looked at from outside."""

import dataclasses
import itertools
import json
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import ROOT, environment, tiny_config
from jax._src.array import ArrayImpl

from isles_jax.cross_validation import cross_validate
from isles_jax.data import layouts
from isles_jax.runtime.command import InputError
from isles_jax.scoring import calls
from isles_jax.training import checkpoint, fold, parallel, plan, watch
from isles_jax.training.fold import train_fold
from isles_jax.training.plan import _parallel_step, prepare


@pytest.fixture
def compiled():
    """Names of the functions that XLA compiles while the test runs."""
    names = []

    def listen(event, duration, **words):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(words["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def guard(monkeypatch):
    """A dict; while its `training` is true, no array's values may come to the host but to be logged or saved.

    JAX's own guard sees nothing on CPU, where host and device share memory: every reading goes through `_value`.
    """
    state, value = {"training": False, "allowed": False}, ArrayImpl._value

    def guarded(array):
        saving = threading.current_thread() is not threading.main_thread()
        assert saving or state["allowed"] or not state["training"], "an array was read between two logs"
        return value.fget(array)

    def allow(function):
        def allowed(*arguments):
            state["allowed"] = True
            with jax.transfer_guard_device_to_host("allow"):
                result = function(*arguments)
            state["allowed"] = False
            return result

        return allowed

    monkeypatch.setattr(ArrayImpl, "_value", property(guarded))
    monkeypatch.setattr(fold._Log, "_fetch", allow(fold._Log._fetch))
    monkeypatch.setattr(watch.Watch, "_fetch", allow(watch.Watch._fetch))
    monkeypatch.setattr(fold, "_refuse_broken", allow(fold._refuse_broken))
    return state


@pytest.mark.slow
def test_one_compilation_serves_all_folds_and_nothing_is_read_between_logs(
    small_config, phantom_root, tmp_path, compiled, guard, monkeypatch
):
    often = {"train.epochs": 2, "train.log_every_steps": 4, "train.checkpoint_every_steps": 8}
    often["train.checkpoint_every_seconds"] = 0.0
    config = small_config(False, False, False, **often)
    dataset = layouts.load(phantom_root, penumbra=1, core=2)
    # Held-out slices are segmented at several moments even of so short a training.
    monkeypatch.setattr(watch, "SHARE", 10)
    _parallel_step.cache_clear()
    shared, calls, compilations = prepare(config, dataset), [], []

    def step(*arguments):
        guard["training"] = True
        calls.append(arguments[0])
        before, result = len(compiled), shared.run_steps(*arguments)
        compilations.extend(compiled[before:])
        return result

    for number in (0, 1):
        held_out = [case.name for case in dataset.cases[2 * number : 2 * number + 2]]
        with jax.transfer_guard_device_to_host("disallow"):
            train_fold(
                dataclasses.replace(shared, run_steps=step), number, held_out, epath.Path(tmp_path) / str(number)
            )
        guard["training"] = False
    assert len(calls) == 2 * shared.steps > 16
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(calls[:-1])), "the state is donated"
    assert len(compilations) == 1, compilations
    for number in (0, 1):
        held_out = (tmp_path / str(number) / watch.FILE).read_text().splitlines()
        assert 1 < len(held_out) < shared.steps


STREAMING = """
import sys
from pathlib import Path
from etils import epath
from isles_jax import config
from isles_jax.data import layouts
from isles_jax.training import parallel
from isles_jax.training.fold import train_fold
from isles_jax.training.plan import prepare

root, output = map(Path, sys.argv[1:])
made = config.baseline(residual=False, adversarial=False, overlap=False)
made.update_from_flattened_dict({"model.width": 4, "train.epochs": 2, "train.batch_size": 4})
dataset = layouts.load(root, penumbra=1, core=2)
for name in ("resident", "streamed"):
    shared = prepare(config.resolve(made), dataset)
    assert (shared.data is None) == (name == "streamed")
    train_fold(shared, 0, [case.name for case in dataset.cases[:2]], epath.Path(output) / name)
    parallel.memory_bytes = lambda: 1000  # from now on, the device is too small for the data
"""


@pytest.mark.slow
def test_streaming_changes_no_bit(phantom_root, tmp_path):
    command = [sys.executable, "-c", STREAMING, str(phantom_root), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("streamed from the host") == 1
    folders = [epath.Path(tmp_path) / name / "checkpoints" for name in ("resident", "streamed")]
    resident, streamed = (jax.tree.leaves(checkpoint.load_variables(folder)[0]) for folder in folders)
    for one, other in zip(resident, streamed, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("platform", "given", "every", "expected"),
    [
        ("cpu", None, 200, 1),
        ("gpu", None, 200, 10),
        ("tpu", None, 200, 10),
        ("gpu", None, 6, 10),
        ("gpu", None, 1, 5),
        ("cpu", 5, 200, 5),
    ],
)
def test_steps_in_a_call_suit_the_device_and_divide_the_intervals(
    small_config, phantom_root, monkeypatch, platform, given, every, expected
):
    keys = {"train.epochs": 10, "train.log_every_steps": 20, "train.checkpoint_every_steps": every * 5}
    config = small_config(False, False, False, **keys, **{"train.steps_per_call": given})
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(parallel, "keep_compiled", lambda: None)
    monkeypatch.setattr(plan, "_parallel_step", lambda *_: None)
    dataset = layouts.load(phantom_root, penumbra=1, core=2)
    made = prepare(config, dataset)
    assert made.per_call == expected
    # The number of steps does not depend on it.
    assert made.steps == prepare(small_config(False, False, False, **keys), dataset).steps
    assert [step for call in calls_of(made, 0) for step in call] == list(range(made.steps))
    # A run that stopped between two calls goes on in calls that end at the same intervals.
    rest = calls_of(made, 3)
    assert [step for call in rest for step in call] == list(range(3, made.steps))
    assert set(range(0, made.steps, every * 5)) - {0} <= {call.stop for call in rest}


def calls_of(made, start):
    """The steps of each call."""
    calls = made.calls(start)
    return [range(step, min(step + calls.step, made.steps)) for step in calls]


def test_a_line_of_metrics_is_written_once_the_next_call_has_begun(tmp_path, phantom_root, monkeypatch):
    """And the lines of a run that was stopped between two of them are those of a run that was not."""
    begun = []

    def step(state, data, indices):
        number = int(state.step)
        begun.append(number)
        return state.replace(step=state.step + 1), {"loss": np.float32([1.0 + number / 7])}

    read = fold._Log._fetch

    def fetch(log, rows):
        if rows and log._lines:
            fetched.append((log._lines[0][0], begun[-1]))
        return read(log, rows)

    fetched = []
    monkeypatch.setattr(plan, "_parallel_step", lambda *_: step)
    monkeypatch.setattr(fold._Log, "_fetch", fetch)
    keys = {
        "data.root": str(phantom_root),
        "train.epochs": 3,
        "train.batch_size": 4,
        "train.log_every_steps": 3,
        "fold": 0,
    }
    config = tiny_config("bl1", **keys, **{"train.checkpoint_every_steps": 4})
    # An hour passes between two looks at the clock of the records, so that no part is too short to show.
    hours = itertools.count(time.monotonic(), 3600)
    monkeypatch.setattr(calls, "time", SimpleNamespace(monotonic=lambda: next(hours)))
    cross_validate(config, tmp_path / "whole")
    # Step 3 is done when step number 3, the fourth, has begun.
    assert (3, 3) in fetched
    whole = (tmp_path / "whole" / "fold_0" / "metrics.jsonl").read_text()
    losses = {line["step"]: line["loss"] for line in map(json.loads, whole.splitlines())}
    assert losses[3] == np.mean(np.float32([1, 1 + 1 / 7, 1 + 2 / 7]), dtype=np.float64)

    leaving = iter([False] * 4 + [True] + [False] * 1000)
    monkeypatch.setattr(fold.processes, "leaving", lambda: next(leaving))
    monkeypatch.setattr(fold.interrupt, "leave_if_requested", lambda saved="": (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cross_validate(config, tmp_path / "stopped")
    assert checkpoint.newest(tmp_path / "stopped" / "fold_0" / "checkpoints") == 5
    monkeypatch.setattr(fold.interrupt, "leave_if_requested", lambda saved="": None)
    cross_validate(config, tmp_path / "stopped")
    assert (tmp_path / "stopped" / "fold_0" / "metrics.jsonl").read_text() == whole
    # Both calls trained, and each has its record.
    assert [call["seconds"]["training"] > 1800 for call in calls.read(tmp_path / "stopped")] == [True, True]


def test_a_state_that_an_update_broke_is_not_saved(tmp_path, phantom_root, monkeypatch):
    """The loss of a step does not show it: it was computed before."""

    def step(state, data, indices):
        after = jax.tree.map(lambda x: x * jnp.where(state.step == 2, jnp.inf, 1.0), state.segmenter.params)
        segmenter = state.segmenter.replace(params=after)
        return state.replace(step=state.step + 1, segmenter=segmenter), {"loss": np.ones(1)}

    monkeypatch.setattr(plan, "_parallel_step", lambda *_: step)
    keys = {"data.root": str(phantom_root), "train.log_every_steps": 2}
    with pytest.raises(InputError, match=r"fold_0: not finite after step 3: .*conv"):
        cross_validate(tiny_config("bl1", **keys), tmp_path / "run")
    assert checkpoint.newest(tmp_path / "run" / "fold_0" / "checkpoints") == 2
