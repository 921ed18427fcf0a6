import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from isles_jax import checkpoint, parallel
from isles_jax.config import InputError, to_dict
from isles_jax.state import init_state, make_segmenter

CLASSES = ("penumbra", "core")


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def equal(a, b):
    a, b = leaves(a), leaves(b)
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def made(small_config):
    config = small_config()
    return config, parallel.replicate(init_state(config, CLASSES, 3, 10, 0))


def at(state, step):
    """The state as it might be at another step: other numbers everywhere."""
    return jax.tree.map(lambda x: x + step if x.dtype == jnp.float32 else x, state).replace(step=jnp.int32(step))


@pytest.fixture(scope="module")
def original(made, tmp_path_factory):
    config, state = made
    directory = tmp_path_factory.mktemp("original") / "checkpoints"
    meta = {"config": to_dict(config), "classes": list(CLASSES), "channels": ["Tmax", "TTP", "DWI"], "fold": 0}
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
    restored = checkpoint.restore(directory, state)
    assert equal(restored, at(state, 6))
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_a_checkpoint_alone_rebuilds_its_network(saved):
    directory, state = saved
    variables, config, meta = checkpoint.load_variables(directory)
    assert equal(variables, at(state, 6).segmenter.variables)
    assert meta["classes"] == list(CLASSES)
    assert isinstance(config, ml_collections.ConfigDict)
    segmenter = make_segmenter(config, 3)
    assert (segmenter.width, segmenter.residual) == (4, True)
    assert segmenter.apply(variables, jnp.zeros((1, 32, 32, 3))).shape == (1, 32, 32, 3)


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
def test_any_damaged_file_of_the_newest_step_means_the_step_before(saved, tmp_path, kind):
    directory, _ = saved
    files = sorted(path.relative_to(directory / "6") for path in (directory / "6").rglob("*") if path.is_file())
    assert len(files) > 10
    for name in files:
        copy = tmp_path / "copy"
        shutil.copytree(directory, copy)
        damage(copy / "6" / name, kind)
        if (copy / "6" / name).exists() and (copy / "6" / name).read_bytes() == (directory / "6" / name).read_bytes():
            continue  # an empty file cannot be emptied
        with pytest.warns(UserWarning, match="6 is passed over"):
            assert checkpoint.newest(copy) == 4, name
        shutil.rmtree(copy)


def test_a_damaged_step_is_removed_when_the_step_before_is_restored(saved):
    directory, state = saved
    damage(
        max((directory / "6" / "params").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size), "flipped"
    )
    with pytest.warns(UserWarning, match="not as it was written"):
        restored = checkpoint.restore(directory, state)
    assert equal(restored, at(state, 4))
    assert checkpoint.steps(directory) == [4]
    checkpoint.save(directory, at(state, 6), {"config": {}})
    assert checkpoint.newest(directory) == 6


def test_nothing_readable_left_is_an_error(saved):
    directory, state = saved
    for step in (4, 6):
        damage(directory / str(step) / "_CHECKPOINT_METADATA", "removed")
    with pytest.warns(UserWarning, match="passed over"), pytest.raises(InputError, match="no readable checkpoint"):
        checkpoint.restore(directory, state)
    assert checkpoint.steps(directory) == [4, 6], "nothing is deleted"


def test_a_first_save_that_was_cut_off_is_no_damage(saved):
    directory, state = saved
    shutil.rmtree(directory / "4")
    damage(directory / "6" / checkpoint.MANIFEST, "removed")
    with pytest.warns(UserWarning, match="did not finish"):
        assert checkpoint.restore(directory, state) is None
    assert checkpoint.steps(directory) == []
