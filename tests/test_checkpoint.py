import contextlib
import gc
import io
import logging
import resource
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from helpers import leaves, task_of

from isles_jax.runtime.command import InputError
from isles_jax.training import checkpoint, parallel
from isles_jax.training.state import init_state

CLASSES = ("penumbra", "core")


@contextlib.contextmanager
def note_of(words):
    """Inside, a line with these words is printed."""
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        yield
    assert printed.getvalue().startswith("note: ")
    assert words in printed.getvalue()


def equal(a, b):
    a, b = leaves(a), leaves(b)
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def made(small_config):
    config = small_config()
    return config, parallel.replicate(init_state(task_of(config, CLASSES), 10, 0))


def at(state, step):
    """The state as it might be at another step: other numbers everywhere."""
    return jax.tree.map(lambda x: x + step if x.dtype == jnp.float32 else x, state).replace(step=jnp.int32(step))


@pytest.fixture(scope="module")
def original(made, tmp_path_factory):
    config, state = made
    directory = tmp_path_factory.mktemp("original") / "checkpoints"
    meta = task_of(config, CLASSES).record() | {"fold": 0}
    for step in (2, 4, 6):
        checkpoint.save(directory, at(state, step), meta)
    return directory, state


@pytest.fixture
def saved(original, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(original[0], tmp_path / "checkpoints"), original[1]


def test_the_newest_two_are_kept_and_the_newest_is_restored(saved):
    directory, state = saved
    assert checkpoint.steps(directory) == [4, 6]
    restored, _ = checkpoint.restore(directory, state)
    assert equal(restored, at(state, 6))
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_a_checkpoint_alone_rebuilds_its_network(saved):
    directory, state = saved
    variables, task, meta = checkpoint.load_variables(directory)
    assert equal(variables, at(state, 6).segmenter.variables)
    assert meta["classes"] == list(CLASSES)
    assert isinstance(task.config, ml_collections.ConfigDict)
    segmenter = task.segmenter()
    assert (segmenter.width, segmenter.residual) == (4, True)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(segmenter.apply, variables, images).shape == (1, 32, 32, 3)


def test_nothing_saved_is_nothing_restored(made, tmp_path):
    assert checkpoint.restore(tmp_path / "checkpoints", made[1]) is None
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoint.load_variables(tmp_path / "checkpoints")


def damage(path, kind):
    content = path.read_bytes()
    if kind == "removed":
        path.unlink()
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("kind", ["removed", "emptied", "truncated", "flipped"])
def test_any_damaged_file_of_the_newest_step_means_the_step_before(saved, kind):
    directory, _ = saved
    paths = sorted(path for path in (directory / "6").rglob("*") if path.is_file())
    assert len(paths) > 10
    for path in paths:
        content = path.read_bytes()
        if kind != "removed" and not content:
            continue  # an empty file cannot be emptied
        damage(path, kind)
        with note_of("6 is skipped"):
            assert checkpoint.newest(directory) == 4, path
        path.write_bytes(content)
    assert checkpoint.newest(directory) == 6


def test_a_damaged_step_is_removed_when_the_step_before_is_restored(saved):
    directory, state = saved
    damage(
        max((directory / "6" / "params").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size), "flipped"
    )
    with note_of("not as it was written"):
        restored, _ = checkpoint.restore(directory, state)
    assert equal(restored, at(state, 4))
    assert checkpoint.steps(directory) == [4]
    checkpoint.save(directory, at(state, 6), {"config": {}})
    assert checkpoint.newest(directory) == 6


def test_nothing_readable_left_is_an_error(saved):
    directory, state = saved
    for step in (4, 6):
        damage(directory / str(step) / "_CHECKPOINT_METADATA", "removed")
    with note_of("skipped"), pytest.raises(InputError, match="no readable checkpoint"):
        checkpoint.restore(directory, state)
    assert checkpoint.steps(directory) == [4, 6], "nothing is deleted"


@pytest.mark.parametrize("kind", ["removed", "emptied", "truncated", "flipped"])
def test_the_only_step_damaged_is_an_error_whatever_file_it_is(original, tmp_path, kind):
    only = shutil.copytree(original[0] / "6", tmp_path / "checkpoints" / "6")
    paths = sorted(path for path in only.rglob("*") if path.is_file() and path.stat().st_size)
    assert len(paths) > 10
    for path in paths:
        content = path.read_bytes()
        damage(path, kind)
        with note_of("6 is skipped"), pytest.raises(InputError, match="no readable"):
            checkpoint.newest(only.parent)
        path.write_bytes(content)
    assert checkpoint.newest(only.parent) == 6


def test_what_a_kill_during_a_save_leaves_is_removed(saved):
    directory, state = saved
    shutil.copytree(directory / "6", directory / "8.orbax-checkpoint-tmp")
    (directory / checkpoint.SAVING).write_text("8")
    # The oldest step was being deleted.
    damage(directory / "4" / checkpoint.MANIFEST, "removed")
    damage(directory / "4" / "_CHECKPOINT_METADATA", "removed")
    assert equal(checkpoint.restore(directory, state)[0], at(state, 6))
    assert sorted(path.name for path in directory.iterdir()) == ["4", "6"]
    checkpoint.save(directory, at(state, 8), {"config": {}})
    assert sorted(path.name for path in directory.iterdir()) == ["6", "8"]
    assert checkpoint.newest(directory) == 8


@pytest.fixture
def no_room():
    """A limit on the size of files stands for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_save_for_which_there_is_no_room_is_refused_before_it_begins(saved, no_room):
    directory, state = saved
    no_room()
    with pytest.raises(InputError, match=r"checkpoints/8: cannot be written \(File too large\)$"):
        checkpoint.save(directory, at(state, 8), {"config": {}})
    assert sorted(path.name for path in directory.iterdir()) == ["4", "6"]
    assert checkpoint.newest(directory) == 6


FILLED = """
import resource, sys
import jax.numpy as jnp
from isles_jax.training import checkpoint, failed_save, parallel
from isles_jax import config
from isles_jax.runtime import command
from isles_jax.training.state import init_state
from isles_jax.training.task import Task

def main():
    settings = config.baseline(residual=True, adversarial=True, overlap=True)
    settings.update_from_flattened_dict({"model.width": 4, "discriminator.width": 4, "train.epochs": 1})
    task = Task(config.resolve(settings), ("Tmax", "TTP", "DWI"), ("penumbra", "core"))
    state = parallel.replicate(init_state(task, 10, 0))
    checkpoint._reserve = lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    checkpoint.save(sys.argv[1], state.replace(step=jnp.int32(8)), {"config": {}})

command.run_command(main)
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_while_orbax_writes_is_one_line(saved):
    directory, state = saved
    command = [sys.executable, "-c", FILLED, str(directory)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {directory}/8: cannot be written (File too large); the checkpoints before are kept\n"
    )
    assert (directory / checkpoint.SAVING).exists()
    assert equal(checkpoint.restore(directory, state)[0], at(state, 6))
    assert sorted(path.name for path in directory.iterdir()) == ["4", "6"]


def test_a_refused_save_complains_in_one_line_alone(saved, no_room, monkeypatch, capfd, caplog):
    directory, state = saved
    monkeypatch.setattr(checkpoint, "_reserve", lambda *_: no_room())
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    before = sys.stderr, logging.root.manager.disable
    with warnings.catch_warnings():
        with pytest.raises(InputError, match=r"checkpoints/8: cannot be written \(File too large\)"):
            checkpoint.save(directory, at(state, 8), {"config": {}})
        gc.collect()
    assert (sys.stderr, logging.root.manager.disable) == before
    assert complaints == []
    assert caplog.records == []
    assert capfd.readouterr().err == ""


# --- while training goes on ------------------------------------------------------------------------------------------


def test_a_save_keeps_the_state_that_it_was_given(made, tmp_path):
    """The next step takes the arrays' memory, as the compiled step does, while the thread still waits to write."""
    config, state = made
    meta = task_of(config, CLASSES).record()
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    directory = tmp_path / "checkpoints"
    given = jax.tree.map(jnp.copy, at(state, 8))
    with pytest.MonkeyPatch.context() as patch, checkpoint.Saver(directory) as saver:
        go = threading.Event()
        save = checkpoint.save
        patch.setattr(checkpoint, "save", lambda *arguments: (go.wait(), save(*arguments)))
        saver.save(given, meta | {"unwritten": {"loss": [0.5, 0.25]}})
        assert saver.idle_seconds() == 0.0
        overwrite(given)
        assert given.step.is_deleted()
        go.set()
    restored, read = checkpoint.restore(directory, state)
    assert equal(restored, at(state, 8))
    assert read["unwritten"] == {"loss": [0.5, 0.25]}
    assert saver.idle_seconds() > 0.0


def fails(directory, state, no_room, then):
    """A training with a save that fails, which does something else `then`."""
    with checkpoint.Saver(directory) as saver:
        no_room()
        saver.save(at(state, 8), {"config": {}})
        then(saver)
        if then is not ends:
            pytest.fail("no error")


def checks(saver):
    while not saver.idle_seconds():
        time.sleep(0.01)
    saver.check()


def ends(saver):
    pass


def finds_another_error(saver):
    raise InputError("not finite")


@pytest.mark.parametrize("then", [checks, checkpoint.Saver.wait, ends])
def test_a_save_that_fails_is_an_error_of_the_training(saved, no_room, then):
    directory, state = saved
    with pytest.raises(InputError, match=r"checkpoints/8: cannot be written"):
        fails(directory, state, no_room, then)
    assert checkpoint.newest(directory) == 6


def test_the_next_save_raises_the_error_of_the_one_before(saved, no_room):
    directory, state = saved
    with pytest.raises(InputError, match=r"checkpoints/8: cannot be written"):
        fails(directory, state, no_room, lambda saver: saver.save(at(state, 10), {"config": {}}))


def test_another_error_is_not_hidden_by_that_of_a_save(saved, no_room):
    directory, state = saved
    with pytest.raises(InputError, match="not finite"):
        fails(directory, state, no_room, finds_another_error)


def test_a_first_save_that_was_cut_off_is_no_damage(saved):
    directory, state = saved
    shutil.rmtree(directory / "4")
    damage(directory / "6" / checkpoint.MANIFEST, "removed")
    (directory / checkpoint.SAVING).write_text("6")
    with note_of("did not finish"):
        assert checkpoint.restore(directory, state) is None
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"_CHECKPOINT_METADATA": 1}', "[" * 5000])
def test_a_manifest_that_does_not_list_every_file_is_damage(saved, content):
    (saved[0] / "6" / checkpoint.MANIFEST).write_text(content)
    with note_of("6 is skipped"):
        assert checkpoint.newest(saved[0]) == 4
