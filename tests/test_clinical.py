"""The clinical rule: its definition voxel by voxel, and its threshold against a search by brute force."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest

from isles_jax.data import layouts
from isles_jax.data.case import Case
from isles_jax.scoring import clinical


def make_case(tmax, dwi, labels=None):
    images = np.stack([tmax, np.full_like(tmax, 20), dwi], axis=-1).astype(np.float32)
    return Case("x", images, labels, np.eye(4), nib.Nifti1Header())


def dice(found, truth):
    size = found.sum() + truth.sum()
    return 2 * (found & truth).sum() / size if size else 1.0


def test_the_rule_voxel_by_voxel():
    # Tmax at and above 6 s, DWI at and above twice its median (100), and a voxel outside the brain.
    tmax = np.array([6.0, 6.1, 6.1, 6.1, 1.0, 1.0, 1.0, 0.0]).reshape(8, 1, 1)
    dwi = np.array([300.0, 100.0, 200.0, 201.0, 300.0, 100.0, 50.0, 0.0]).reshape(8, 1, 1)
    case = make_case(tmax, dwi)
    dataless = dataclasses.replace(case, images=np.where(case.brain[..., None], case.images, 0))
    dataless.images[7] = 0
    relative = np.median(dwi[:7]) / 100
    labels = clinical.clinical_rule(dataless, 2.0 / relative)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels.ravel(), [0, 1, 1, 2, 0, 0, 0, 0])
    other = clinical.clinical_rule(dataless, 2.0 / relative, classes=("core", "x", "penumbra"))
    np.testing.assert_array_equal(other.ravel(), [0, 3, 3, 1, 0, 0, 0, 0])
    turned = dataclasses.replace(dataless, images=dataless.images[..., ::-1].copy())
    np.testing.assert_array_equal(
        clinical.clinical_rule(turned, 2.0 / relative, channels=("DWI", "TTP", "Tmax")), labels
    )


def test_gain_does_not_matter(phantom_root):
    case = layouts.load(phantom_root, penumbra=1, core=2).cases[0]
    louder = dataclasses.replace(case, images=case.images * np.float32([1, 1, 8]))
    np.testing.assert_array_equal(clinical.clinical_rule(case, 1.3), clinical.clinical_rule(louder, 1.3))


def test_the_fitted_threshold_is_the_best_of_the_grid(phantom_root):
    cases = layouts.load(phantom_root, penumbra=1, core=2).cases[:3]
    scores = [
        np.mean([dice(clinical.clinical_rule(case, threshold) == 2, case.labels == 2) for case in cases])
        for threshold in clinical.GRID
    ]
    fitted = clinical.fit_core_threshold(cases)
    assert fitted == clinical.GRID[int(np.argmax(scores))]
    assert max(scores) > np.mean(scores)
    assert clinical.GRID[0] < fitted < clinical.GRID[-1]


def test_a_case_without_core_counts_as_one_where_none_is_found():
    tmax = np.full((4, 1, 1), 9.0)
    empty = make_case(tmax, np.array([1.0, 1.0, 1.0, 1.09]).reshape(4, 1, 1), np.zeros((4, 1, 1), np.uint8))
    # Nothing is found from 1.1 times the median on; the lowest threshold of equals wins.
    assert clinical.fit_core_threshold([empty]) == pytest.approx(1.1)
