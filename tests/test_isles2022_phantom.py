"""The phantom as ISLES-2022: what the set is mixed of, and a whole run on it."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from helpers import files_in, tiny_config

from isles_jax import predict
from isles_jax.cross_validation import cross_validate
from isles_jax.data import grid, layouts
from isles_jax.phantoms import phantom, scans
from isles_jax.phantoms.tissue import CORE_FLOW, grid_mm, make_tissue
from isles_jax.scoring import scores


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "isles2022"
    phantom.write_phantom(root, cases=24, shape=(48, 48, 12), difficulty=1.0, seed=0, layout="isles2022")
    return root


@pytest.fixture(scope="module")
def dataset(root):
    return layouts.load(root)


def volumes_ml(dataset):
    return np.array([(case.labels == 1).sum() * np.prod(case.spacing_mm) / 1000 for case in dataset.cases])


def test_it_is_as_mixed_as_the_real_set(dataset):
    assert (dataset.layout, dataset.channels, dataset.classes) == ("ISLES-2022", ("DWI", "ADC"), ("lesion",))
    assert dataset.phantom
    assert len(dataset.cases) == 24
    assert len({case.patient for case in dataset.cases}) == 20
    assert len({case.images.shape for case in dataset.cases}) > 10
    assert len({np.round(case.spacing_mm, 2).tobytes() for case in dataset.cases}) == 4
    volumes = volumes_ml(dataset)
    assert (volumes == 0).sum() == 2
    assert ((volumes > 0) & (volumes < 1)).sum() >= 3
    assert volumes.max() > 30
    # Two of the three units are other than 1e-3 mm2/s.
    assert sum("brought to 1e-3 mm2/s" in note for note in dataset.notes) == 2
    assert grid.choose("median", dataset.cases).crop


def test_lesions_restrict_diffusion_and_the_rest_does_not(dataset):
    for case in dataset.cases:
        adc, brain = case.images[..., 1], case.brain
        assert np.median(adc[brain & (case.labels == 0)]) == pytest.approx(0.8, abs=0.06)
        if (case.labels == 1).sum() > 20:
            assert 0.35 < np.median(adc[case.labels == 1]) < 0.65
            assert np.median(case.images[..., 0][case.labels == 1]) > np.median(case.images[..., 0][brain])


def test_two_scans_of_a_patient_show_one_lesion(dataset):
    volumes = dict(zip((case.name for case in dataset.cases), volumes_ml(dataset), strict=True))
    for name, volume in volumes.items():
        if name.endswith("ses-0002"):
            first = volumes[name.replace("ses-0002", "ses-0001")]
            assert volume == pytest.approx(first, rel=0.25)
            assert volume > 0


def test_the_adc_is_that_of_the_tissue():
    points = grid_mm((64, 64, 16))
    tissue = make_tissue(points, 0.0, np.random.default_rng(3))
    dwi, adc = scans.scan_adc(points, tissue, 0.0, np.random.default_rng(4))
    same, _ = scans.scan_adc(points, tissue, 0.0, np.random.default_rng(4))
    np.testing.assert_array_equal(dwi, same)
    assert np.all((adc == 0) == (~tissue.brain)) or np.all(adc[~tissue.brain] == 0)
    healthy = tissue.brain & (tissue.flow > 0.9)
    for kind, wanted in ((1, 0.85), (2, 0.75)):
        pure = healthy & (tissue.fractions[..., kind] > 0.97)
        assert np.median(adc[pure]) == pytest.approx(wanted, abs=0.03)
    dead = tissue.brain & (tissue.flow < 0.2) & (tissue.fractions[..., 2] > 0.9)
    assert 0.75 * 0.47 < np.median(adc[dead]) < 0.75 * 0.59


def test_no_occlusion_and_the_same_patient_on_another_grid():
    tissue = make_tissue(grid_mm((32, 32, 8)), 1.0, np.random.default_rng(0), 0.0)
    assert tissue.late.max() == 0
    assert tissue.flow.min() > CORE_FLOW
    coarse = make_tissue(grid_mm((32, 32, 8)), 1.0, np.random.default_rng(1), 0.5)
    fine = make_tissue(grid_mm((64, 64, 16)), 1.0, np.random.default_rng(1), 0.5)
    shares = [(tissue.flow < 0.3).mean() for tissue in (coarse, fine)]
    assert shares[0] == pytest.approx(shares[1], rel=0.15)


@pytest.mark.slow
def test_a_whole_run_resumes_and_predicts_on_each_cases_own_grid(tmp_path, capsys):
    run = tmp_path / "run"
    keys = {"data.phantom.layout": "isles2022", "data.phantom.cases": 8, "data.phantom.shape": (32, 32, 8)}
    settings = tiny_config("bl6", **keys)
    text = cross_validate(settings, run)
    assert "8 cases" in text
    dataset = layouts.load(run / "phantom")
    assert {"report.html", "cases.csv", "summary.json", "DONE"} <= files_in(run).keys()
    folds = json.loads((run / "folds.json").read_text())
    [together] = [fold for fold in folds if "sub-phantom0005_ses-0001" in fold]
    assert "sub-phantom0005_ses-0002" in together
    target = json.loads((run / "data.json").read_text())["grid"]
    assert target["crop"]
    page = (run / "report.html").read_text()
    assert "8 cases of 7 patients, 2-fold cross-validation by patient." in page
    assert "bl6 worked on the box of each brain, with voxels of 6 x 6 x 14 mm" in page
    rows = {row["case"]: row for row in scores.read_cases_csv(run / "cases.csv")}
    for case in dataset.cases:
        [path] = run.glob(f"fold_*/predictions/{case.name}.nii.gz")
        image, mask = nib.load(path), nib.load(case.files[0])
        assert image.shape == case.labels.shape
        np.testing.assert_array_equal(image.affine, mask.affine)
        assert (image.header["qform_code"], image.header["sform_code"]) == (2, 1)
        both = 2 * (np.asarray(image.dataobj) * case.labels).sum()
        total = np.asarray(image.dataobj).sum(dtype=int) + case.labels.sum(dtype=int)
        assert rows[case.name]["dice"] == pytest.approx(both / total if total else 1, abs=1e-6)
    # What is left of a run that was stopped ends with the same bytes.
    expected = {name: path.read_bytes() for name, path in files_in(run).items()}
    for name in ("fold_1", "DONE", "cases.csv", "report.html"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    capsys.readouterr()
    assert cross_validate(settings, run) == text
    after = {name: path.read_bytes() for name, path in files_in(run).items()}
    assert after["cases.csv"] == expected["cases.csv"]
    assert all(after[name] == expected[name] for name in after if "/predictions/" in name)
    # A network of the run segments a subject alone, and returns to its grid.
    subject = run / "phantom" / dataset.cases[2].patient
    predict.main(
        [f"--workdir={run}", f"--input={subject}", f"--output={tmp_path / 'out'}", "--folds=0", "--probabilities"]
    )
    assert "ADC in 1e-6 mm2/s" in capsys.readouterr().out
    [path] = (tmp_path / "out" / "probabilities").iterdir()
    assert nib.load(path).shape == (*dataset.cases[2].labels.shape, 2)
    np.testing.assert_allclose(nib.load(path).get_fdata().sum(axis=-1), 1, atol=1e-5)
