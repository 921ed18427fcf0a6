"""Starting from the weights of another run."""

import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import CHANNELS, leaves, spes_folder, task_of, tiny_config

from isles_jax import config
from isles_jax.cross_validation import cross_validate
from isles_jax.runtime.command import InputError
from isles_jax.training import checkpoint, initial, parallel, weights
from isles_jax.training.networks import NETWORKS
from isles_jax.training.state import init_state

CLASSES = ("penumbra", "core")


@pytest.fixture
def network(untrained_run):
    """The segmenter of a new run with the settings of `untrained_run`, and other random numbers."""
    made = untrained_run[1].config.copy_and_resolve_references()
    made.seed = 99
    return init_state(task_of(made, CLASSES), 10, 0).segmenter


def start(network, path, fold=0, task=None):
    """The network with the weights of a run; by default, its task is that of the run."""
    return initial.start(network, path, initial.digest(path), fold, task or weights.load(path).task)


def same(one, other):
    one, other = leaves(one), leaves(other)
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("fold", [0, 1])
def test_a_fold_starts_from_its_own_weights(fold, untrained_run, network, capsys):
    run, _, variables = untrained_run
    started = start(network, run, fold)
    assert same(started.variables, variables[fold])
    assert same(started.opt_state, network.opt_state)
    assert f"fold {fold}: starts from fold {fold} of" in capsys.readouterr().out


def test_a_fold_that_was_not_trained_starts_from_the_mean(untrained_run, network, capsys):
    run, _, variables = untrained_run
    started = leaves(start(network, run, 2).variables)
    first, second = leaves(variables[0]), leaves(variables[1])
    for name, value in started.items():
        np.testing.assert_allclose(value, (first[name] + second[name]) / 2, atol=1e-6)
    assert "the mean of the weights of folds 0, 1" in capsys.readouterr().out


def test_a_file_gives_what_its_run_gives(untrained_run, network, tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "weights.safetensors"
    weights.save(path, weights.load(untrained_run[0], (1,)))
    assert same(start(network, path, 0).variables, untrained_run[2][1]), "its only fold"
    before = initial.digest(path)
    weights.save(path, weights.load(untrained_run[0], (0,)))
    with pytest.raises(InputError, match="are not those of SHA-256"):
        initial.start(network, path, before, 0, untrained_run[1])


def test_other_classes_start_a_new_output_layer(untrained_run, capsys):
    run, task, variables = untrained_run
    here = task_of(task.config, ("lesion",))
    network = init_state(here, 10, 0).segmenter
    started = leaves(start(network, run, 0, here).variables)
    source, new = leaves(variables[0]), leaves(network.variables)
    outputs = [name for name in new if "output" in name]
    assert len(outputs) == 2
    for name, value in started.items():
        np.testing.assert_array_equal(value, new[name] if name in outputs else source[name])
    assert "its classes are penumbra, core, so the output layer starts anew" in capsys.readouterr().out


class OfTwoLayers(nn.Module):
    """A network whose last layer has a name of its own."""

    num_classes: int = 3
    divisor = 32

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Conv(self.num_classes, (1, 1), name="last")(nn.Conv(4, (3, 3), name="body")(images))


def test_the_output_layer_is_the_one_that_grows_with_the_classes(small_config, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "two", lambda config, size, num_classes, **_: OfTwoLayers(num_classes))
    made = small_config(adversarial=False)
    made.model.network = "two"
    there, here = task_of(made, label_values=(1, 2)), task_of(made, ("lesion",))
    saved = init_state(there, 10, 7)
    checkpoint.save(tmp_path / "fold_0" / "checkpoints", parallel.replicate(saved), there.record() | {"fold": 0})
    (tmp_path / "fold_0" / "DONE").touch()
    network = init_state(here, 10, 0).segmenter
    started = start(network, tmp_path, 0, here).params
    assert same(started["body"], saved.segmenter.params["body"])
    assert same(started["last"], network.params["last"])


MISFITS = [
    (CHANNELS, {"model.width": 8}, r"has the shape .* there and .* in this run; expected a network with the same"),
    (CHANNELS, {"model.batch_norm": "none"}, r"there and None in this run|None there"),
    (CHANNELS, {"model.batch_norm": "all"}, r"None there and|there and None"),
    (("DWI", "FLAIR"), {"model.width": 8}, r"has the shape .* there and .* in this run; expected a network"),
    (("DWI", "FLAIR"), {"model.network": "unet"}, r"None there and|there and None"),
]


@pytest.mark.parametrize(("channels", "keys", "words"), MISFITS)
def test_layers_that_do_not_fit_are_refused_in_one_line(channels, keys, words, untrained_run):
    made = untrained_run[1].config.copy_and_resolve_references()
    made.update_from_flattened_dict(keys)
    task = task_of(made, CLASSES, channels)
    network = init_state(task, 10, 0).segmenter
    with pytest.raises(InputError, match=words) as caught:
        start(network, untrained_run[0], 0, task)
    assert "\n" not in str(caught.value)


# The layers whose kernels have an input for each channel. In SUMNet the shortcut comes after the first convolution.
FIRST = {"sumnet": ["preconv"], "unet": ["conv1a", "conv1_shortcut"]}
OTHER_CHANNELS = [
    (("DWI", "Tmax", "TTP"), "the first convolution takes DWI, Tmax and TTP"),
    (("TTP", "FLAIR"), "the first convolution takes TTP, FLAIR starts anew"),
    (("a", "DWI", "b", "Tmax"), "the first convolution takes DWI and Tmax, a and b start anew"),
    (("Tmax",), "the first convolution takes Tmax"),
    (("a", "b", "c"), "the first convolution starts anew"),
]


@pytest.mark.parametrize(("channels", "words"), OTHER_CHANNELS)
@pytest.mark.parametrize("model", FIRST)
def test_other_channels_take_their_planes_by_name(model, channels, words, small_config, tmp_path, capsys):
    made = small_config(adversarial=False)
    made.update_from_flattened_dict({"model.network": model, "model.residual": True, "model.width": 6})
    run, there = tmp_path / "run", task_of(made, label_values=(1, 2))
    saved = parallel.replicate(init_state(there, 10, 7))
    checkpoint.save(run / "fold_0" / "checkpoints", saved, there.record() | {"fold": 0})
    (run / "fold_0" / "DONE").touch()
    here = task_of(made, channels=channels)
    network = init_state(here, 10, 0).segmenter
    # Biases and the weights of a normalisation start as constants, which would hide whose they are.
    network = network.replace(params=jax.tree.map(lambda x: x + np.float32(0.5), network.params))
    started = start(network, run, 0, here)
    printed = capsys.readouterr().out
    assert f"its channels are Tmax, TTP, DWI, so {words}\n" in printed
    source, new, got = (
        flatten_dict(jax.device_get(one), sep="/") for one in (saved.segmenter.params, network.params, started.params)
    )
    shared = set(channels) & set(CHANNELS)
    for name, value in got.items():
        layer, _, kind = name.partition("/")
        if layer not in FIRST[model]:
            np.testing.assert_array_equal(value, source[name])
        elif kind == "kernel":
            for number, channel in enumerate(channels):
                plane = source[name][:, :, CHANNELS.index(channel)] if channel in shared else new[name][:, :, number]
                np.testing.assert_array_equal(value[:, :, number], plane)
        else:
            np.testing.assert_array_equal(value, source[name] if shared else new[name])


def test_channels_in_another_order_give_the_same_logits(untrained_run):
    run, task, variables = untrained_run
    here = task_of(task.config, channels=("DWI", "Tmax", "TTP"))
    started = start(init_state(here, 10, 0).segmenter, run, 0, here)
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    expected = task.segmenter().apply(variables[0], images)
    found = here.segmenter().apply(started.variables, images[..., [2, 0, 1]])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_run_starts_from_another_and_says_so(tmp_path, capsys):
    spes_folder(tmp_path / "set", cases=("a", "b", "c"))
    keys = {"data.root": str(tmp_path / "set"), "train.epochs": 1, "train.batch_size": 2}
    cross_validate(tiny_config("bl1", **keys), tmp_path / "first")
    settings = tiny_config("bl1", **keys, **{"train.init": str(tmp_path / "first")})
    cross_validate(settings, tmp_path / "second")
    assert "fold 1: starts from fold 1 of" in capsys.readouterr().out
    digest = initial.digest(tmp_path / "first")
    assert json.loads((tmp_path / "second" / "config.json").read_text())["train"]["init_sha256"] == digest
    assert digest in (tmp_path / "second" / "report.html").read_text()
    assert checkpoint.read_meta(tmp_path / "second/fold_0/checkpoints")["config"]["train"]["init_sha256"] == digest
    # The weights are not needed any more once the run is finished.
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "first", moved)
    cross_validate(settings, tmp_path / "second")
    stored = json.loads((tmp_path / "second" / "config.json").read_text())
    cross_validate(config.begun(stored, "config.json"), tmp_path / "second")
    wrong = tiny_config("bl1", **keys, **{"train.init": str(moved), "train.init_sha256": "0" * 64})
    with pytest.raises(InputError, match=r"init_sha256: found '0000.*, expected "):
        cross_validate(wrong, tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_weights_that_are_nowhere(tmp_path):
    with pytest.raises(InputError, match="nowhere: found no fold_"):
        cross_validate(tiny_config("bl1", **{"train.init": str(tmp_path / "nowhere")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    made = config.baseline(residual=True, adversarial=False, overlap=False)
    made.train.init_sha256 = "ab"
    with pytest.raises(InputError, match="init_sha256: found 'ab', expected train"):
        config.resolve(made)
