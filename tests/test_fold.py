"""What a fold's training asks of the compiler and of the device, looked at from outside."""

import dataclasses
import subprocess
import sys
import threading

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
from isles_jax.training import checkpoint, fold, plan
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
    monkeypatch.setattr(fold, "_refuse_broken", allow(fold._refuse_broken))
    return state


@pytest.mark.slow
def test_one_compilation_serves_all_folds_and_nothing_is_read_between_logs(
    small_config, phantom_root, tmp_path, compiled, guard
):
    often = {"train.epochs": 2, "train.log_every_steps": 4, "train.checkpoint_every_steps": 8}
    often["train.checkpoint_every_seconds"] = 0.0
    config = small_config(False, False, False, **often)
    dataset = layouts.load(phantom_root, penumbra=1, core=2)
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
