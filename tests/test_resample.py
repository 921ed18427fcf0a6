"""A sequence on another grid is brought to that of the first one by the headers alone."""

import numpy as np
import pytest
from helpers import save_volume
from scipy.spatial.transform import Rotation

from isles_jax.data import resample
from isles_jax.data.nifti import ReadOptions, read_images, with_labels
from isles_jax.runtime.command import InputError

# Rotated by 20 degrees about an oblique axis, with voxels of 2 x 2.5 x 4 mm.
TURN = Rotation.from_rotvec(np.radians(20) * np.array([1, 2, 2]) / 3).as_matrix()
OBLIQUE = np.block([[TURN * [-2.0, 2.5, 4.0], np.array([[31.0], [-12.5], [7.25]])], [np.zeros(3), 1]])
STRAIGHT = np.diag([0.8, 0.8, 0.8, 1])
ON = ReadOptions(resample=True)
NAMES = ("DWI", "FLAIR")


def smooth(shape, affine):
    """A linear function of the place in the world, around 500, at the voxels of a grid."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    x, y, z = np.tensordot(affine[:3, :3], index, 1) + affine[:3, 3, None, None, None]
    return (500 + 2 * x - y + 3 * z).astype(np.float32)


def scaled(affine, factor, shift=(0, 0, 0)):
    """The affine of voxels that are `factor` times as large, whose first one lies `shift` voxels away."""
    return affine @ np.block([[np.diag(np.broadcast_to(factor, 3)), np.array(shift)[:, None]], [np.zeros(3), 1]])


def pair(folder, second, affine, shape=(12, 10, 8), first_affine=OBLIQUE):
    """The paths of an image on one grid and of `second` on another."""
    save_volume(folder / "dwi.nii.gz", smooth(shape, first_affine), first_affine)
    save_volume(folder / "flair.nii.gz", second, affine)
    return [folder / "dwi.nii.gz", folder / "flair.nii.gz"]


@pytest.mark.parametrize("affine", [OBLIQUE, scaled(OBLIQUE, 0.5, (-2, -2, -2)), STRAIGHT])
def test_a_linear_image_stays_linear_in_the_world(tmp_path, affine):
    """Linear interpolation between voxels is exact for it, and so is a Gaussian, away from the edges."""
    shape = (60, 60, 60)
    # The middle of both volumes is at one place.
    middle = OBLIQUE @ [5.5, 4.5, 3.5, 1] - affine @ [29.5, 29.5, 29.5, 1]
    affine = affine + np.hstack([np.zeros((4, 3)), middle[:, None]])
    case = read_images("a", pair(tmp_path, smooth(shape, affine), affine), NAMES, ON)
    np.testing.assert_allclose(case.images[3:-3, 3:-3, 2:-2, 1], case.images[3:-3, 3:-3, 2:-2, 0], rtol=2e-4)
    assert "FLAIR lies on another grid; brought to that of the first sequence by the headers" in case.notes


def test_another_order_of_the_axes_moves_voxels_and_changes_none(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(1, 1000, (12, 10, 8)).astype(np.float32)
    turn = np.array([[0, 0, -1, 11], [1, 0, 0, 0], [0, -1, 0, 7], [0, 0, 0, 1.0]])
    # Voxel (i, j, k) of the turned volume is voxel (11 - k, i, 7 - j).
    turned = np.empty((10, 8, 12), np.float32)
    for i, j, k in np.ndindex(turned.shape):
        turned[i, j, k] = values[11 - k, i, 7 - j]
    case = read_images("a", pair(tmp_path, turned, OBLIQUE @ turn), NAMES, ON)
    # Values are up to 1000 and change by as much from voxel to voxel.
    np.testing.assert_allclose(case.images[..., 1], values, atol=2e-3)


def test_larger_voxels_do_not_make_the_brain_larger(tmp_path):
    first = smooth((12, 10, 8), OBLIQUE)
    brain = np.zeros(first.shape, bool)
    brain[3:8, 3:7, 2:6] = True
    save_volume(tmp_path / "dwi.nii.gz", np.where(brain, first, 0), OBLIQUE)
    coarse = np.zeros((6, 5, 8), np.float32)
    coarse[1:5, 1:4, 2:6] = 700
    save_volume(tmp_path / "flair.nii.gz", coarse, scaled(OBLIQUE, (2, 2, 1), (0.5, 0.5, 0)))
    case = read_images("a", [tmp_path / "dwi.nii.gz", tmp_path / "flair.nii.gz"], NAMES, ON)
    np.testing.assert_array_equal(case.brain, brain)
    np.testing.assert_array_equal(case.images[..., 1], np.where(brain, 700, 0))


def test_beyond_the_volume_there_is_nothing(tmp_path):
    half = smooth((6, 10, 8), OBLIQUE)
    case = read_images("a", pair(tmp_path, half, OBLIQUE), NAMES, ON)
    np.testing.assert_allclose(case.images[:6, ..., 1], half, rtol=1e-5)
    assert not case.images[6:, ..., 1].any()


def test_the_border_of_the_head_is_not_darkened():
    """Half of a voxel inside the head counts as the whole of its value."""
    volume = np.zeros((8, 1, 1), np.float32)
    volume[2:6] = 100
    out = resample.image(volume, volume > 0, np.eye(4), (8, 1, 1), scaled(np.eye(4), 1, (0.25, 0, 0)))
    np.testing.assert_allclose(out.ravel(), [0, 0, 100, 100, 100, 100, 0, 0], rtol=1e-6)
    out = resample.image(volume, volume > 0, np.eye(4), (8, 1, 1), scaled(np.eye(4), 1, (-0.25, 0, 0)))
    np.testing.assert_allclose(out.ravel(), [0, 0, 100, 100, 100, 100, 0, 0], rtol=1e-6)


def test_labels_go_to_the_class_with_the_largest_share():
    """By brute force: twice as large voxels along one axis, each a mean over its neighbours."""
    labels = np.array([0, 1, 1, 2, 2, 2, 0, 0], np.uint8).reshape(8, 1, 1)
    same = resample.labels(labels, np.eye(4), (8, 1, 1), np.eye(4))
    np.testing.assert_array_equal(same, labels)
    # At the middle of two voxels, each has one half, and the smaller integer wins a tie.
    between = resample.labels(labels, np.eye(4), (7, 1, 1), scaled(np.eye(4), 1, (0.5, 0, 0)))
    assert between.ravel().tolist() == [0, 1, 1, 2, 2, 0, 0]
    nearer = resample.labels(labels, np.eye(4), (7, 1, 1), scaled(np.eye(4), 1, (0.4, 0, 0)))
    assert nearer.ravel().tolist() == [0, 1, 1, 2, 2, 2, 0]
    assert not resample.labels(np.zeros_like(labels), np.eye(4), (3, 3, 3), np.eye(4)).any()


def test_labels_drawn_on_another_sequence(tmp_path):
    affine = scaled(OBLIQUE, 0.5, (-0.25, -0.25, -0.25))
    fine = np.zeros((24, 20, 16), np.uint8)
    fine[6:14, 4:12, 4:10] = 1
    case = read_images("a", pair(tmp_path, smooth((24, 20, 16), affine), affine), NAMES, ON)
    save_volume(tmp_path / "mask.nii.gz", fine, affine)
    with pytest.raises(InputError, match=r"mask\.nii\.gz: shape 24x20x16; expected 12x10x8 as in dwi\.nii\.gz; --conf"):
        with_labels(case, tmp_path / "mask.nii.gz", (1,))
    labels = with_labels(case, tmp_path / "mask.nii.gz", (1,), ON).labels
    expected = np.zeros((12, 10, 8), np.uint8)
    expected[3:7, 2:6, 2:5] = 1
    np.testing.assert_array_equal(labels, expected)


def test_what_cannot_be_brought_is_refused(tmp_path):
    away = smooth((6, 6, 6), scaled(OBLIQUE, 1, (40, 0, 0)))
    paths = pair(tmp_path, away, scaled(OBLIQUE, 1, (40, 0, 0)))
    with pytest.raises(InputError, match=r"flair\.nii\.gz: lies outside of dwi\.nii\.gz; expected volumes that overl"):
        read_images("a", paths, NAMES, ON)
    with pytest.raises(InputError, match=r"flair\.nii\.gz: shape 6x6x6; expected 12x10x8 as in dwi\.nii\.gz; --conf"):
        read_images("a", paths, NAMES)
    save_volume(tmp_path / "flair.nii.gz", smooth((12, 10, 9), OBLIQUE), OBLIQUE, codes=(0, 0))
    with pytest.raises(InputError, match=r"flair\.nii\.gz: its header says nothing reliable about where it lies"):
        read_images("a", paths, NAMES, ON)


def test_volumes_on_one_grid_are_read_as_without_it(tmp_path):
    paths = pair(tmp_path, smooth((12, 10, 8), OBLIQUE) + 1, OBLIQUE)
    np.testing.assert_array_equal(read_images("a", paths, NAMES, ON).images, read_images("a", paths, NAMES).images)
