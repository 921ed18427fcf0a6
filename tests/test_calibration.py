"""Calibration: closed forms, and a count voxel by voxel."""

import json

import nibabel as nib
import numpy as np
import pytest

from isles_jax import cross_validation
from isles_jax.data.case import Case
from isles_jax.runtime import files
from isles_jax.scoring import calibration


def make_case(labels, seed=0):
    images = (np.random.default_rng(seed).random((*labels.shape, 1)) > 0.3).astype(np.float32)
    return Case("x", images, labels, np.eye(4), nib.Nifti1Header())


def test_histograms_count_each_voxel_of_the_brain():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (5, 4, 3)).astype(np.uint8)
    probabilities = rng.dirichlet(np.ones(3), (5, 4, 3)).astype(np.float32)
    probabilities[0, 0, 0] = (0, 0, 1)
    case = make_case(labels)
    case.images[0, 0, 0] = 1
    expected = {name: np.zeros((3, calibration.BINS)) for name in ("confidence", "penumbra", "core")}
    for place in np.argwhere(case.brain):
        p, truth = probabilities[tuple(place)], labels[tuple(place)]
        for name, value in (("confidence", int(p.argmax())), ("penumbra", 1), ("core", 2)):
            expected[name][:, min(int(p[value] * 10), 9)] += (1, p[value], truth == value)
    found = calibration.histograms(probabilities, case, ("penumbra", "core"))
    assert json.loads(json.dumps(found)) == found
    for name, counts in {"confidence": found["confidence"], **found["classes"]}.items():
        np.testing.assert_allclose(
            [counts[key] for key in ("voxels", "probability", "hits")], expected[name], atol=1e-3
        )


def test_the_error_of_a_constant_probability_is_its_distance_from_the_frequency():
    labels = np.zeros((10, 10, 1), np.uint8)
    labels[:3] = 1
    case = make_case(labels)
    case.images[:] = 1
    maps = np.broadcast_to(np.array([0.25, 0.75], np.float32), (10, 10, 1, 2))
    histograms = calibration.histograms(maps, case, ("lesion",))
    summary = calibration.curves([histograms, histograms])
    curve = summary["classes"]["lesion"]
    assert (summary["cases"], curve["voxels"][7], sum(curve["voxels"])) == (2, 200, 200)
    assert (curve["probability"][7], curve["frequency"][7]) == (0.75, 0.3)
    assert curve["probability"][:7] == [None] * 7
    assert curve["error"] == pytest.approx(0.45)
    assert summary["confidence"]["error"] == pytest.approx(0.45)


def test_probabilities_that_are_drawn_are_calibrated():
    """Labels are drawn with the predicted probabilities; the error is then only that of the counts."""
    rng = np.random.default_rng(3)
    maps = rng.dirichlet(np.ones(3), (60, 60, 20))
    labels = (rng.random((60, 60, 20, 1)) > maps.cumsum(-1)).sum(-1).astype(np.uint8)
    summary = calibration.curves([calibration.histograms(maps, make_case(labels), ("a", "b"))])
    # 50 400 voxels in ten bins: a share has a standard deviation of at most 0.5 / sqrt(5000), 0.007.
    assert max(curve["error"] for curve in (summary["confidence"], *summary["classes"].values())) < 0.02
    wrong = calibration.curves([calibration.histograms(maps[..., [0, 2, 1]], make_case(labels), ("a", "b"))])
    assert wrong["classes"]["a"]["error"] > 0.1


def test_a_run_is_calibrated_only_if_every_case_was_counted(tmp_path):
    """A run that an earlier version began has counts of some cases; their calibration would not be the run's."""
    labels = np.ones((3, 3, 3), np.uint8)
    counts = calibration.histograms(np.full((3, 3, 3, 2), 0.5, np.float32), make_case(labels), ("lesion",))
    workdir = files.location(tmp_path)
    files.write_json(workdir / "fold_0" / "calibration" / "a.json", counts)
    cross_validation._write_calibration([["a"], ["b"]], workdir)
    assert not (workdir / "calibration.json").exists()
    files.write_json(workdir / "fold_1" / "calibration" / "b.json", counts)
    cross_validation._write_calibration([["a"], ["b"]], workdir)
    found = json.loads((workdir / "calibration.json").read_text())
    assert found == calibration.curves([counts, counts]) | {"temperature": calibration.temperature([[counts]] * 2)}
    del counts["temperatures"]  # as an earlier version wrote it
    files.write_json(workdir / "fold_1" / "calibration" / "b.json", counts)
    cross_validation._write_calibration([["a"], ["b"]], workdir)
    assert json.loads((workdir / "calibration.json").read_text())["temperature"] is None


def drawn(temperature, seed, shape=(40, 40, 10)):
    """The histograms of a case whose labels are drawn with probabilities that are shown at a temperature."""
    rng = np.random.default_rng(seed)
    maps = rng.dirichlet(np.ones(3), shape)
    labels = (rng.random((*shape, 1)) > maps.cumsum(-1)).sum(-1).astype(np.uint8)
    shown = calibration.tempered(maps.astype(np.float32), temperature)
    return calibration.histograms(shown, make_case(labels), ("a", "b")), shown, labels


def test_temperatures_undo_each_other_and_keep_the_most_probable_class():
    maps = np.random.default_rng(0).dirichlet(np.ones(4), 1000).astype(np.float32)
    for temperature in (0.5, 3.0):
        changed = calibration.tempered(maps, temperature)
        np.testing.assert_allclose(changed.sum(-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(changed.argmax(-1), maps.argmax(-1))
        np.testing.assert_allclose(calibration.tempered(changed, 1 / temperature), maps, atol=2e-5)
    np.testing.assert_allclose(calibration.tempered(maps, 1.0), maps, atol=1e-6)
    assert np.isfinite(calibration.tempered(np.eye(3, dtype=np.float32), 0.25)).all()


@pytest.mark.parametrize("shown", [0.5, 1.0, 2.0])
def test_the_temperature_that_is_found_undoes_that_which_was_shown(shown):
    folds = [[drawn(shown, 3 * fold + case)[0] for case in range(3)] for fold in range(2)]
    found = calibration.temperature(folds)
    assert found["value"] == 1 / shown
    assert found["pays"] == (shown != 1)
    before, after = found["error"]
    assert before == calibration.curves(folds[0] + folds[1])["confidence"]["error"]
    assert after < 0.02
    assert (before > 0.05) == (shown != 1)


def test_each_fold_is_judged_at_the_temperature_of_the_others():
    """By brute force: the two folds want different temperatures, and each gets that of the other."""
    first, second = drawn(0.5, 0), drawn(2.0, 1)
    found = calibration.temperature([[first[0]], [second[0]]])
    nll, voxels, gap = 0.0, 0, np.zeros((2, calibration.BINS))
    for (_, shown, labels), temperature in ((first, 0.5), (second, 2.0)):
        brain = make_case(labels).brain
        changed = calibration.tempered(shown, temperature)[brain]
        truth = labels[brain]
        # A probability below 1e-7 counts as 1e-7.
        nll -= np.log(np.maximum(changed[np.arange(len(truth)), truth], 1e-7)).sum(dtype=np.float64)
        voxels += len(truth)
        bins = np.minimum((changed.max(-1) * calibration.BINS).astype(int), calibration.BINS - 1)
        for place, p, hit in zip(bins, changed.max(-1), changed.argmax(-1) == truth, strict=True):
            gap[:, place] += p, hit
    assert found["nll"][1] == pytest.approx(nll / voxels, rel=1e-4)
    assert found["error"][1] == pytest.approx(np.abs(gap[0] - gap[1]).sum() / voxels, abs=1e-4)
    assert not found["pays"]
