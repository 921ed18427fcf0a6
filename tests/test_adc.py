"""ADC has one unit in every layout, in training and in prediction; a run of an earlier version keeps what it did."""

import json
import shutil

import numpy as np
import pytest
from helpers import save_volume
from isles_folder import HEALTHY, images, isles_2022, nnunet

from isles_jax import config, predict, report
from isles_jax.cross_validation import cross_validate
from isles_jax.data import layouts
from isles_jax.data.nifti import ReadOptions
from isles_jax.runtime import files
from isles_jax.scoring import run_files


def in_units(root, factor):
    """An nnU-Net folder whose ADC is in other units: `factor` of them are 1e-3 mm2/s."""
    nnunet(root)
    for case in range(1, 4):
        save_volume(root / "imagesTr" / f"c{case}_0001.nii.gz", factor * images(("DWI", "ADC"), case)["ADC"])
    return root


@pytest.mark.parametrize("factor", [1, 1e-3, 1e3])
def test_an_nnunet_folder_is_brought_to_the_unit_of_the_others(factor, tmp_path):
    root = in_units(tmp_path, factor)
    for dataset in (layouts.load(root), layouts.load_images(root, ("DWI", "ADC"))):
        for case in dataset.cases:
            assert np.median(case.images[..., 1][case.brain]) == pytest.approx(HEALTHY, rel=0.05)
        assert any("brought to 1e-3 mm2/s" in note for note in dataset.notes) == (factor != 1)
    as_stored = ReadOptions(adc_as_stored=True)
    for dataset in (layouts.load(root, how=as_stored), layouts.load_images(root, ("DWI", "ADC"), as_stored)):
        for case in dataset.cases:
            assert np.median(case.images[..., 1][case.brain]) == pytest.approx(HEALTHY * factor, rel=0.05)


def settings_of(root):
    settings = config.baseline(residual=True, adversarial=False, overlap=False)
    settings.update_from_flattened_dict({
        "data.root": str(root), "folds": 2, "model.width": 2, "train.epochs": 1, "train.batch_size": 2,
    })  # fmt: skip
    return settings


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on an nnU-Net folder with ADC in 1e-6 mm2/s."""
    folder = tmp_path_factory.mktemp("adc")
    cross_validate(settings_of(in_units(folder / "data", 1e3)), folder / "run")
    return folder / "run"


def test_a_run_says_its_unit_and_predicts_every_layout_in_it(run, tmp_path, capsys):
    description = json.loads((run / "data.json").read_text())
    assert description["units"] == {"ADC": "1e-3 mm2/s"}
    isles_2022(tmp_path / "set", flair=False)
    for name, root in (("set", tmp_path / "set"), ("nnunet", run.parent / "data")):
        predict.main([f"--workdir={run}", f"--input={root}", f"--output={tmp_path / 'out' / name}"])
        out = capsys.readouterr().out
        assert "ADC has the percentiles" not in out
        assert (tmp_path / "out" / name / "summary.csv").exists()


def earlier(run, path):
    """A copy of the run as an earlier version left it, which took ADC of an nnU-Net folder as stored."""
    shutil.copytree(run, path)
    description = json.loads((path / "data.json").read_text())
    del description["units"], description["grid"]["axes"]
    for case in description["cases"].values():
        case["percentiles"]["ADC"] = [float(f"{1e3 * value:.5g}") for value in case["percentiles"]["ADC"]]
    files.write_json(path / "data.json", description)
    run_files.seal(path)
    return path


def test_a_run_of_an_earlier_version_takes_adc_as_it_did(run, tmp_path, capsys):
    old = earlier(run, tmp_path / "run")
    predict.main([f"--workdir={old}", f"--input={run.parent / 'data'}", f"--output={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    assert "ADC has the percentiles" not in printed
    assert "brought to" not in printed
    isles_2022(tmp_path / "set", flair=False)
    predict.main([f"--workdir={old}", f"--input={tmp_path / 'set'}", f"--output={tmp_path / 'out2'}"])
    assert "ADC has the percentiles" in capsys.readouterr().out
    report.main([str(old), f"--output={tmp_path / 'page.html'}"])


def test_a_run_that_an_earlier_version_began_goes_on(run, tmp_path, capsys):
    old = earlier(run, tmp_path / "run")
    (old / "DONE").unlink()
    (old / "fold_1" / "DONE").unlink()
    shutil.rmtree(old / "fold_1" / "predictions")
    cross_validate(settings_of(run.parent / "data"), old)
    assert (old / "DONE").exists()
    assert "units" not in json.loads((old / "data.json").read_text())
