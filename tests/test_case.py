"""A case: where its brain is, and the size of its voxels."""

import nibabel as nib
import numpy as np
import pytest
from helpers import OBLIQUE, spes_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from isles_jax.data import layouts
from isles_jax.data.case import Case, check_names
from isles_jax.runtime.command import InputError


def test_brain_mask_and_spacing(tmp_path):
    images = np.zeros((2, 2, 1, 3), np.float32)
    images[0, 0, 0] = (0, np.nan, 0)
    images[0, 1, 0] = (np.nan, 0, -2)
    images[1, 0, 0] = (np.inf, 0, 0)
    np.testing.assert_array_equal(
        Case("a", images, None, np.eye(4), nib.Nifti1Header()).brain[..., 0], [[False, True], [False, False]]
    )
    case = layouts.load(spes_folder(tmp_path), penumbra=1, core=2).cases[0]
    np.testing.assert_allclose(case.spacing_mm, np.linalg.norm(OBLIQUE[:3, :3], axis=0), rtol=1e-6)


@pytest.mark.parametrize("name", ["", "a\rb", "a\nb", "a\tb", "\udcff", "x" * 241, "ä" * 121])
def test_names_that_cannot_be_written_are_refused(name):
    with pytest.raises(InputError, match="found a case with the name") as caught:
        check_names("data", ["b", name])
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="found a class with the name"):
        check_names("data", ["b"], [name])
    check_names("data", ["x" * 240, "ä" * 120, "a b", "=1"], ["c"])


def test_names_that_clash_are_refused():
    for cases, classes in ((("a", "a"), ()), (("a",), ("b", "b")), (("a",), ("b", "whole lesion"))):
        with pytest.raises(InputError, match="data: found"):
            check_names("data", cases, classes)
    check_names("data", ["a"], ["whole lesion"])


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3, width=32), min_size=9, max_size=9))
def test_a_voxels_volume_is_the_determinant(numbers):
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(numbers, (3, 3))
    case = Case("a", np.zeros((1, 1, 1, 1), np.float32), None, affine, nib.Nifti1Header())
    assert case.voxel_ml == pytest.approx(abs(np.linalg.det(affine)) / 1000, abs=1e-12)
