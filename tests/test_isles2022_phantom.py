"""The phantom as ISLES-2022: what the set is mixed of, how near it is to patients, and a whole run on it."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from etils import epath
from helpers import checksums, files_in, tiny_config
from scipy import ndimage

from isles_jax import predict
from isles_jax.cross_validation import cross_validate
from isles_jax.data import grid, layouts
from isles_jax.phantoms import diffusion, emboli, phantom
from isles_jax.phantoms.head import FIELD_OF_VIEW_MM, make_head
from isles_jax.phantoms.isles2022 import COARSE
from isles_jax.phantoms.scans import ADC
from isles_jax.phantoms.tissue import grid_mm
from isles_jax.runtime.command import InputError
from isles_jax.scoring import scores


def write(root, cases=24, shape=(56, 56, 36), difficulty=1.0, seed=0):
    phantom.write_phantom(root, cases=cases, shape=shape, difficulty=difficulty, seed=seed, layout="isles2022")
    return root


def head_of(shape, seed, difficulty=1.0):
    return make_head(grid_mm(shape, FIELD_OF_VIEW_MM), difficulty, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "isles2022")


@pytest.fixture(scope="module")
def dataset(root):
    return layouts.load(root)


@pytest.fixture(scope="module")
def fine(tmp_path_factory):
    """Five patients on the grid of the published cases: 2 mm."""
    return layouts.load(write(tmp_path_factory.mktemp("fine") / "isles2022", 5, (112, 112, 73))).cases


def lesions_ml(case):
    """The volumes of a case's pieces, which touch by a face, an edge or a corner."""
    labels, _ = ndimage.label(case.labels == 1, np.ones((3, 3, 3)))
    return np.bincount(labels.ravel())[1:] * np.prod(case.spacing_mm) / 1000


def volumes_ml(dataset):
    return np.array([lesions_ml(case).sum() for case in dataset.cases])


def test_it_is_as_mixed_as_the_real_set(dataset):
    assert (dataset.layout, dataset.channels, dataset.classes) == ("ISLES-2022", ("DWI", "ADC"), ("lesion",))
    assert dataset.phantom
    assert len(dataset.cases) == 24
    assert len({case.patient for case in dataset.cases}) == 20
    assert len({case.images.shape for case in dataset.cases}) == 4
    assert len({np.round(case.spacing_mm, 2).tobytes() for case in dataset.cases}) == 4
    volumes = volumes_ml(dataset)
    assert (volumes == 0).sum() == 2
    assert ((volumes > 0) & (volumes < 1)).sum() >= 3
    assert volumes.max() > 30
    # Two of the three units are other than 1e-3 mm2/s.
    assert sum("brought to 1e-3 mm2/s" in note for note in dataset.notes) == 2
    assert grid.choose("median", dataset.cases).crop


def test_the_seed_fixes_every_byte(root, tmp_path):
    first = {name: value for name, value in checksums(root).items() if name.endswith(".gz")}
    same = checksums(write(tmp_path / "same", cases=6))
    other = checksums(write(tmp_path / "other", cases=6, seed=1))
    files = [name for name in same if name.endswith(".gz")]
    assert len(files) == 18
    assert all(same[name] == first[name] for name in files)
    assert not any(other[name] == first[name] for name in files if "_msk" not in name)


def test_a_phantom_of_an_earlier_version_is_another_one(tmp_path):
    settings = {"cases": 1, "shape": (24, 24, 8), "difficulty": 1.0, "seed": 0, "layout": "isles2022"}
    earlier = epath.Path(tmp_path) / "phantom"
    assert phantom.provide(earlier, begun=False, **settings)
    assert not phantom.provide(earlier, begun=False, **settings)
    marker = earlier / "phantom.json"
    content = json.loads(marker.read_text())
    del content["digital perfusion phantom"]["edition"]
    marker.write_text(json.dumps(content, indent=1) + "\n")
    with pytest.raises(InputError, match="found another phantom"):
        phantom.provide(earlier, begun=False, **settings)
    # A run that began with it goes on with it.
    assert not phantom.provide(earlier, begun=True, **settings)


def test_the_units_of_adc_are_those_of_real_downloads(root):
    medians = []
    for path in sorted(root.rglob("*_adc.nii.gz"))[:3]:
        adc = nib.load(path).get_fdata()
        medians.append(np.median(adc[adc > 0]))
    assert np.round(np.log10(medians)).tolist() == [-3, 0, 3]


def test_the_grid_is_that_of_the_published_cases(tmp_path):
    root = write(tmp_path / "one", cases=1, shape=(112, 112, 73))
    [path] = root.rglob("*_dwi.nii.gz")
    image = nib.load(path)
    assert image.shape == (112, 112, 73)
    assert image.header.get_zooms() == (2, 2, 2)
    assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
    turn = np.abs(np.diag(image.affine[:3, :3])) / 2
    assert (turn < 1).all()
    assert (turn > np.cos(np.deg2rad(35))).all()
    np.testing.assert_allclose(image.affine[:3, :3].T @ image.affine[:3, :3], 4 * np.eye(3), atol=1e-5)
    np.testing.assert_allclose(image.affine @ [55.5, 55.5, 36, 1], [0, 0, 0, 1], atol=1e-4)


def test_infarcts_come_in_one_to_fifty_pieces_of_the_stated_volumes():
    head = head_of(COARSE, 0)
    counts = {kind: [] for kind in emboli.KINDS}
    for seed in range(50):
        kind = tuple(emboli.KINDS)[seed % 3]
        infarcts = emboli.draw(kind, head, np.random.default_rng(seed))
        volumes = [4 / 3 * np.pi * np.prod(infarct.radii) / 1000 for infarct in infarcts]
        (low, high), most = emboli.KINDS[kind]
        assert low <= volumes[0] <= high
        assert all(0.01 - 1e-6 <= volume <= 3 + 1e-6 for volume in volumes[1:])
        assert 1 <= len(infarcts) <= most + 1 <= 50
        counts[kind].append(len(infarcts))
    assert set(counts["single"]) == {1}
    assert max(counts["territory"] + counts["shower"]) > 40
    assert min(counts["territory"] + counts["shower"]) < 10


def test_infarcts_lie_in_tissue_and_on_one_side_of_the_midline():
    sides = {kind: [] for kind in emboli.KINDS}
    for seed in range(24):
        kind = tuple(emboli.KINDS)[seed % 3]
        head = head_of(COARSE, seed)
        infarcts = emboli.draw(kind, head, np.random.default_rng(seed))
        infarct_mm = emboli.depth_mm(infarcts, head, np.random.default_rng(seed))
        mask = diffusion.read(head, infarct_mm, 1.0, np.random.default_rng(seed))
        assert not (mask & ~head.brain).any()
        assert head.fractions[mask][:, 0].max(initial=0) < 0.5
        # The reader's error is less than 3 mm; no infarct of the cerebrum is in the cerebellum, and none is opposite.
        if not any(infarct.hind for infarct in infarcts):
            assert not (mask & (head.hind > 3)).any()
        x = np.array([infarct.centre[0] for infarct in infarcts])
        sides[kind].append(len({np.sign(value) for value in x[np.abs(x) > 8]}))
    assert max(sides["territory"] + sides["single"]) == 1
    assert max(sides["shower"]) == 2
    assert min(sides["shower"]) == 1


def test_the_pieces_at_2_mm_are_those_of_patients(fine):
    pieces = [lesions_ml(case) for case in fine]
    assert [len(volumes) for volumes in pieces].count(0) == 1
    assert 15 < max(map(len, pieces)) <= 50
    assert min(len(volumes) for volumes in pieces if len(volumes)) == 1
    assert max(volumes.max(initial=0) for volumes in pieces) > 10
    assert np.median(np.concatenate(pieces)) < 0.3


def in_numbers(case):
    """What a case looks like, in numbers: shares of the brain, percentiles, ratios."""
    dwi, adc = np.moveaxis(case.images, -1, 0)
    lesion, brain = case.labels == 1, case.brain
    healthy = brain & ~lesion
    ratio = dwi / np.median(dwi[healthy])
    water = healthy & (adc > 2.6) & (ndimage.distance_transform_edt(brain, case.spacing_mm) > 12)
    return {
        "brain, share": brain.mean(),
        "CSF, share": (adc[healthy] > 1.8).mean(),
        "ADC, 5%": np.percentile(adc[healthy], 5),
        "ADC, 50%": np.percentile(adc[healthy], 50),
        "ADC, 95%": np.percentile(adc[healthy], 95),
        "DWI, 5%": np.percentile(ratio[healthy], 5),
        "DWI, 95%": np.percentile(ratio[healthy], 95),
        "DWI, 99.5%": np.percentile(ratio[healthy], 99.5),
        "DWI of water": np.median(ratio[water]),
        "lesion's DWI": np.median(ratio[lesion]),
        "lesion's ADC": np.median(adc[lesion]),
    }


def test_it_is_as_near_to_patients_as_patients_to_each_other(fine, real_set):
    real = [in_numbers(case) for case in real_set.cases]
    made = [in_numbers(case) for case in fine if (case.labels == 1).any()]
    for name in real[0]:
        values = [numbers[name] for numbers in real]
        # Four cases do not show all that patients are: half of their middle value is added on both sides.
        low, high = min(values) - 0.5 * np.median(values), max(values) + 0.5 * np.median(values)
        assert low < np.median([numbers[name] for numbers in made]) < high, name


def test_lesions_restrict_diffusion_and_the_rest_does_not(fine):
    for case in fine:
        dwi, adc = np.moveaxis(case.images, -1, 0)
        solid = case.brain & (case.labels == 0) & (adc < 1.2)
        assert np.median(adc[solid]) == pytest.approx(0.85, abs=0.06)
        assert 0 < (adc[case.brain] < 0).mean() < 0.005
        assert 0 < (dwi[case.brain] < 0).mean() < 0.005
        lesion = case.labels == 1
        if lesion.sum() > 100:
            assert np.median(adc[lesion]) < np.median(adc[solid])
            assert np.median(dwi[lesion]) > 1.2 * np.median(dwi[solid])


def test_two_scans_of_a_patient_show_one_lesion(dataset):
    volumes = dict(zip((case.name for case in dataset.cases), volumes_ml(dataset), strict=True))
    for name, volume in volumes.items():
        if name.endswith("ses-0002"):
            first = volumes[name.replace("ses-0002", "ses-0001")]
            assert volume == pytest.approx(first, rel=0.25)
            assert volume > 0


def test_the_adc_is_that_of_the_tissue():
    head = head_of((112, 112, 73), 3, 0.0)
    none = emboli.depth_mm([], head, np.random.default_rng(4))
    dwi, adc = diffusion.scan(head, none, 0.0, 0.0, np.random.default_rng(5))
    same, _ = diffusion.scan(head, none, 0.0, 0.0, np.random.default_rng(5))
    np.testing.assert_array_equal(dwi, same)
    assert np.all(adc[~head.brain] == 0)
    inner = head.brain & (head.depth > 4) & (head.old < 0.01)
    for kind in range(3):
        pure = inner & (head.fractions[..., kind] > 0.97)
        assert np.median(adc[pure]) == pytest.approx(ADC[kind], rel=0.05)
    infarct_mm = np.where(np.abs(head.points).max(axis=0) < 50, 10, -10).astype(np.float32)
    for days in (0.0, 1.0):
        _, adc = diffusion.scan(head, infarct_mm, days, 0.0, np.random.default_rng(5))
        dead = inner & (infarct_mm > 0) & (head.fractions[..., 2] > 0.97)
        assert np.median(adc[dead]) == pytest.approx(ADC[2] * diffusion.SLOWER[int(days)], rel=0.05)


def test_a_scan_keeps_what_it_measures():
    x = np.arange(40)
    slow, fast = (np.cos(2 * np.pi * cycles * x / 40)[:, None, None] * np.ones((1, 8, 8)) for cycles in (5, 18))
    np.testing.assert_allclose(diffusion._measured(slow + fast), slow, atol=1e-5)


def test_a_patient_is_the_same_on_another_grid():
    shares = []
    for shape in ((56, 56, 36), (112, 112, 73)):
        head = head_of(shape, 1)
        infarcts = emboli.draw("territory", head_of(COARSE, 1), np.random.default_rng(2))
        infarct_mm = emboli.depth_mm(infarcts, head, np.random.default_rng(3))
        shares.append([head.brain.mean(), head.fractions[head.brain][:, 0].mean(), (infarct_mm > 0).mean()])
    np.testing.assert_allclose(*shares, rtol=0.1)


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
    assert "bl6 worked on the box of each brain, and on voxels of 7 x 7 x 18.2 mm where a case has others" in page
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
