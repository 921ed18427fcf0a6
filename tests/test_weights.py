"""Trained networks in one safetensors file."""

import json
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import task_of

from isles_jax import export
from isles_jax.config import to_dict
from isles_jax.runtime.command import InputError
from isles_jax.training import weights
from isles_jax.training.state import init_state


def header_of(path):
    with safetensors.safe_open(path, "numpy") as opened:
        return json.loads(opened.metadata()["isles_jax"])


def test_the_file_holds_every_number_and_what_it_takes_to_use_it(untrained_run, weights_file, tmp_path):
    workdir, task, variables = untrained_run
    tensors, header = safetensors.numpy.load_file(weights_file), header_of(weights_file)
    assert header["classes"] == ["penumbra", "core"]
    assert header["channels"] == ["Tmax", "TTP", "DWI"]
    assert header["label_values"] == [5, 9]
    assert header["config"] == to_dict(task.config)
    assert header["steps"] == {"0": 0, "1": 0}, "the finished folds"
    assert header["versions"]["jax"] == jax.__version__
    expected = {
        "/".join([f"fold_{fold}", *(key.key for key in path)]): leaf
        for fold in (0, 1)
        for path, leaf in jax.tree.leaves_with_path(variables[fold])
    }
    assert tensors.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(tensors[name], leaf, err_msg=name)
    # The same networks are the same file, also when they come from one.
    export.main([f"--workdir={weights_file}", f"--output={tmp_path / 'again.safetensors'}"])
    assert (tmp_path / "again.safetensors").read_bytes() == weights_file.read_bytes()
    export.main([f"--workdir={workdir}", f"--output={tmp_path / 'one.safetensors'}", "--folds=2"])
    assert {name.split("/")[0] for name in safetensors.numpy.load_file(tmp_path / "one.safetensors")} == {"fold_2"}


def test_unusable_files_are_refused_by_name(weights_file, tmp_path, monkeypatch):
    def refused(content, words, *more):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            weights.load(tmp_path / "x.safetensors", *more)
        assert "\n" not in str(caught.value)
        assert str(tmp_path / "x.safetensors") in str(caught.value)

    tensors, header = safetensors.numpy.load_file(weights_file), header_of(weights_file)
    refused(safetensors.numpy.save(tensors | {"fold_0/x": np.zeros(1)}, {"isles_jax": json.dumps(header)}), "checksum")
    del header["sha256"]
    metadata = {"isles_jax": json.dumps(header)}
    refused(weights_file.read_bytes()[:-10], "not a readable safetensors file")
    refused(b"", "not a readable safetensors file")
    refused(safetensors.numpy.save(tensors), "found no 'isles_jax' in its header")
    refused(weights_file.read_bytes(), "found no fold 2, expected one of 0, 1", [2])
    name = "fold_1/params/conv1/kernel"
    other = tensors | {name: tensors[name][..., :1]}
    refused(safetensors.numpy.save(other, metadata), rf"found {name} of shape .* expected \(3, 3, 3, 4\)")
    del other[name]
    refused(safetensors.numpy.save(other, metadata), f"found {name} of shape None")
    with pytest.raises(InputError, match="found no such file"):
        weights.load(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"x\.txt: expected a name that ends in \.safetensors or \.stablehlo"):
        export.main([f"--workdir={weights_file}", f"--output={tmp_path / 'x.txt'}"])
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(InputError, match=r"safetensors is not installed.* --extra export"):
        weights.load(weights_file)


def test_networks_without_batch_norm_come_back(small_config, tmp_path):
    config = small_config(adversarial=False, **{"model.batch_norm": "none"})
    task = task_of(config, ("a", "b"), ("x", "y", "z"), label_values=(1, 2))
    network, variables = task.segmenter(), init_state(task, 1, 0).segmenter.variables
    trained = weights.Trained(task, {}, {4: 7}, {4: variables})
    weights.save(tmp_path / "x.safetensors", trained)
    found = weights.load(tmp_path / "x.safetensors")
    assert found.steps == {4: 7}
    assert found.folds[4].keys() == {"params"}
    jax.tree.map(np.testing.assert_array_equal, found.folds[4]["params"], variables["params"])
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    assert jax.eval_shape(network.apply, found.folds[4], images).shape == (1, 32, 32, 3)


def test_any_flipped_bit_is_refused(weights_file, tmp_path):
    content, path = weights_file.read_bytes(), tmp_path / "x.safetensors"
    for place in np.random.default_rng(0).integers(0, 8 * len(content), 100):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=r"x\.safetensors: (not a readable|found)"):
            weights.load(path)


def test_a_file_without_a_checksum_is_read_with_a_note(weights_file, tmp_path, capsys):
    header = header_of(weights_file)
    del header["sha256"]
    path = tmp_path / "old.safetensors"
    tensors = safetensors.numpy.load_file(weights_file)
    path.write_bytes(safetensors.numpy.save(tensors, {"isles_jax": json.dumps(header)}))
    found, expected = weights.load(path), weights.load(weights_file)
    assert capsys.readouterr().err == f"note: {path}: an earlier version wrote it, without a checksum\n"
    jax.tree.map(np.testing.assert_array_equal, found.folds, expected.folds)
