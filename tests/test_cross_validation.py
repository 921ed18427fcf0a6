"""What stops a run before it starts, or in its course."""

import shutil

import jax
import pytest
from helpers import tiny_config

from isles_jax.cross_validation import cross_validate
from isles_jax.runtime.command import InputError


@pytest.mark.slow
def test_changed_data_are_refused(tmp_path, phantom_root):
    shutil.copytree(phantom_root, tmp_path / "data")
    settings = tiny_config("bl1", **{"data.root": str(tmp_path / "data"), "fold": 0})
    cross_validate(settings, tmp_path / "run")
    [path, *_] = sorted((tmp_path / "data").rglob("*MR_DWI*.nii"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (tmp_path / "run" / "fold_0" / "DONE").unlink()
    with pytest.raises(InputError, match="the data changed"):
        cross_validate(settings, tmp_path / "run")


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(tmp_path, phantom_root, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    settings = tiny_config("bl1", **{"data.root": str(phantom_root), "train.batch_size": 12})
    with pytest.raises(InputError, match="found 12, expected a multiple of the 8 devices"):
        cross_validate(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_few_labelled_cases_are_refused_before_anything_is_written(tmp_path, phantom_root):
    shutil.copytree(phantom_root, tmp_path / "data")
    for path in sorted((tmp_path / "data").rglob("*.OT.*.nii"))[1:]:
        path.unlink()
    with pytest.raises(InputError, match="found 1 labelled cases, expected one for each of 2"):
        cross_validate(tiny_config("bl1", **{"data.root": str(tmp_path / "data")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, phantom_root):
    settings = tiny_config("bl1", **{"data.root": str(phantom_root), "optimizer.learning_rate": 1e30, "fold": 0})
    with pytest.raises(InputError, match=r"not finite in steps \d+ to \d+: .*cross_entropy"):
        cross_validate(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "fold_0" / "DONE").exists()
