import jax
import nibabel as nib
import numpy as np
import pytest
import safetensors.numpy
from helpers import random_case, save_case

from isles_jax import export, predict
from isles_jax.config import to_dict
from isles_jax.runtime.command import InputError
from isles_jax.training import weights
from isles_jax.training.networks import make_forward


def test_predictions_from_the_file_are_those_of_the_run(untrained_run, weights_file, tmp_path):
    save_case(tmp_path / "x", random_case((30, 41, 5)))
    for source in (untrained_run[0], weights_file):
        out = tmp_path / source.suffix
        predict.main([f"--workdir={source}", f"--input={tmp_path / 'x'}", f"--output={out / 'out'}", "--probabilities"])
    for name in ("x.nii.gz", "probabilities/x.nii.gz"):
        here, there = (tmp_path / source.suffix / "out" / name for source in (untrained_run[0], weights_file))
        assert here.read_bytes() == there.read_bytes()
    assert len(np.unique(nib.load(there).get_fdata())) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("flips", [False, True])
def test_the_inference_function_needs_nothing_but_the_weights(untrained_run, weights_file, tmp_path, flips):
    """Any batch, any sides divisible by 32, the folds averaged, for all platforms, whatever `model.conv` is."""
    if flips:
        content = to_dict(untrained_run[1].config)
        content["predict"]["flips"] = True
        content["model"]["conv"] = "winograd"
        trained = weights.load(weights_file)
        trained.task.config.predict.flips = True
        trained.task.config.model.conv = "winograd"
        weights.save(tmp_path / "flips.safetensors", trained)
        assert to_dict(weights.load(tmp_path / "flips.safetensors").task.config) == content
    source = tmp_path / "flips.safetensors" if flips else untrained_run[0]
    export.main([f"--workdir={source}", f"--output={tmp_path / 'inference.stablehlo'}"])
    read = jax.export.deserialize((tmp_path / "inference.stablehlo").read_bytes())
    assert read.platforms == ("cpu", "cuda", "tpu")
    tensors = safetensors.numpy.load_file(weights_file)
    forward = make_forward(untrained_run[1].predictor())
    for shape in ((8, 32, 64, 3), (3, 64, 32, 3))[: 1 if flips else 2]:
        images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        found = [forward(variables, images) for variables in untrained_run[2][:2]]
        if flips:
            found += [forward(variables, images[:, ::-1])[:, ::-1] for variables in untrained_run[2][:2]]
        np.testing.assert_allclose(read.call(tensors, images), np.mean(found, axis=0), atol=1e-5)


def test_without_flatbuffers_the_extra_is_named(weights_file, tmp_path, monkeypatch):
    trained = weights.load(weights_file, [0])

    class Exported:
        def serialize(self):
            raise ImportError("flatbuffers")

    monkeypatch.setattr(jax.export, "export", lambda *_, **__: lambda *_: Exported())
    monkeypatch.setattr(weights, "load", lambda *_: trained)
    with pytest.raises(InputError, match=r"flatbuffers is not installed.* --extra export"):
        export.main([f"--workdir={weights_file}", f"--output={tmp_path / 'x.stablehlo'}"])
    assert not (tmp_path / "x.stablehlo").exists()
