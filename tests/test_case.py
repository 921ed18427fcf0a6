"""A case: where its brain is, and the size of its voxels."""

import nibabel as nib
import numpy as np
import pytest
from helpers import OBLIQUE, header_of, spes_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from isles_jax.data import layouts
from isles_jax.data.case import Case, check_names, radiological
from isles_jax.prediction import numbers
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


def test_the_holes_of_a_brain_are_filled():
    """A hole is closed within its slice's sides. It may reach the first slice, but a notch in the rim is no hole."""
    images = np.zeros((7, 7, 3, 1), np.float32)
    images[1:6, 1:6] = 40.0
    images[3, 3, :2] = 0.0
    images[1, 3, 1] = 0.0
    brain = Case("a", images, None, np.eye(4), header_of(np.eye(4))).brain
    expected = np.zeros((7, 7, 3), bool)
    expected[1:6, 1:6] = True
    expected[1, 3, 1] = False
    np.testing.assert_array_equal(brain, expected)


@pytest.mark.parametrize("seed", range(5))
def test_filling_agrees_with_scipy(seed):
    """Between two empty slices, all that is connected with the outside is connected with the sides of the slices."""
    images = np.zeros((9, 8, 7, 1), np.float32)
    images[..., 1:-1, :] = np.random.default_rng(seed).random((9, 8, 5, 1)) > 0.3
    expected = ndimage.binary_fill_holes(images[..., 0] > 0)
    np.testing.assert_array_equal(Case("a", images, None, np.eye(4), header_of(np.eye(4))).brain, expected)


SHIFTED = np.eye(4)
SHIFTED[0, 3] = 0.9
MIRRORED = np.diag([-1.0, 1, 1, 1])


@pytest.mark.parametrize(
    ("qform", "sform", "oriented"),
    [
        ((np.eye(4), 1), (np.eye(4), 2), True),
        ((np.eye(4), 0), (np.eye(4), 2), True),
        ((np.eye(4), 1), (np.eye(4), 0), True),
        ((np.eye(4), 0), (np.eye(4), 0), False),
        ((np.eye(4), 1), (SHIFTED, 1), True),
        ((np.eye(4), 1), (MIRRORED, 1), False),
        ((MIRRORED, 0), (np.eye(4), 1), True),
    ],
)
def test_which_headers_say_where_left_is(qform, sform, oriented):
    header = nib.Nifti1Header()
    header.set_data_shape((9, 8, 6))
    header.set_qform(*qform)
    header.set_sform(*sform)
    case = Case("a", np.ones((9, 8, 6, 1), np.float32), None, np.eye(4), header)
    assert case.oriented == oriented
    assert (radiological(case)[1] == "RLAP") == oriented
    labels = np.zeros((9, 8, 6), np.uint8)
    labels[:3] = 1
    assert numbers.side(labels, case) == ("left" if oriented else "")


@pytest.mark.parametrize(("field", "value"), [("quatern_b", 3.0), ("quatern_c", np.nan), ("qoffset_x", 3e38)])
def test_a_damaged_qform_says_nothing(field, value):
    header = header_of(np.eye(4))
    header.set_data_shape((9, 8, 6))
    header[field] = value
    assert not Case("a", np.ones((9, 8, 6, 1), np.float32), None, np.eye(4), header).oriented


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
