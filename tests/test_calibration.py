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
    assert json.loads((workdir / "calibration.json").read_text()) == calibration.curves([counts, counts])
