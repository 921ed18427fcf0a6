"""The network's grid: what is resampled and what is not, and that volumes come back to where they were."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from isles_jax.data import grid
from isles_jax.data.case import Case
from isles_jax.data.grid import Target

TURN = np.array([[0.96, -0.25, 0.1], [0.27, 0.95, -0.17], [-0.05, 0.19, 0.98]])
AFFINES = {
    "straight": np.eye(3),
    "oblique": np.linalg.qr(TURN)[0],
    "left-handed and oblique": np.linalg.qr(TURN)[0] @ np.diag([-1, 1, 1]),
}
SPACINGS = {"isotropic": (1.1, 1.1, 1.1), "finer in the plane": (0.9, 0.9, 5.0), "uneven": (1.3, 2.6, 3.1)}


def make_case(spacing, affine=None, size_mm=(60.0, 70.0, 50.0), seed=0, field=None):
    """A ball of a brain with a smooth image and a lesion; voxels of `spacing`, the same anatomy in mm for all."""
    shape = tuple(round(side / step) for side, step in zip(size_mm, spacing, strict=True))
    points = (np.moveaxis(np.indices(shape), 0, -1) + 0.5) * spacing
    brain = np.linalg.norm((points - [31, 36, 25]) / [24, 28, 20], axis=-1) < 1
    image = 100 + points @ [1.0, 0.5, -0.7] if field is None else np.full(shape, field)
    lesion = np.linalg.norm(points - [38, 30, 26], axis=-1) < 9
    whole = np.eye(4)
    whole[:3, :3] = (np.eye(3) if affine is None else affine) @ np.diag(spacing)
    whole[:3, 3] = (12.5, -31, 8)
    images = np.where(brain, image, 0).astype(np.float32)[..., None]
    return Case("a", images, (lesion & brain).astype(np.uint8), whole, nib.Nifti1Header())


def world(affine, places):
    return (affine @ np.append(places, 1))[:3]


def ball(affine, shape):
    """A network's probability of a lesion, as it would be with voxels as small as one likes: soft over 3 mm."""
    places = np.indices(shape).reshape(3, -1)
    points = (affine[:3, :3] @ places + affine[:3, 3:]).T.reshape(*shape, 3)
    return (1 / (1 + np.exp((np.linalg.norm(points - ball.centre, axis=-1) - 9) / 1.5))).astype(np.float32)


@pytest.mark.parametrize("turned", AFFINES)
@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize("wanted", [(2.0, 2.0, 2.0), (0.8, 1.0, 4.0)])
def test_probabilities_come_back_to_their_place(turned, spacing, wanted):
    case = make_case(spacing, AFFINES[turned])
    ball.centre = world(case.affine, ndimage.center_of_mass(case.labels))
    made = grid.make_grid(case, Target(wanted))
    inside = grid.to_network(case, made)
    lesion = ball(inside.affine, made.shape)
    back = grid.to_case(np.stack([1 - lesion, lesion], axis=-1), made, case)
    assert back.shape == (*case.labels.shape, 2)
    truth = ball(case.affine, case.labels.shape)
    for one, other in ((back[..., 1], truth), (back.argmax(axis=-1), truth > 0.5)):
        apart = np.subtract(ndimage.center_of_mass(one), ndimage.center_of_mass(other))
        assert np.abs(apart).max() < 0.05, apart
    mask = back.argmax(axis=-1)
    assert 2 * (mask * (truth > 0.5)).sum() / (mask.sum() + (truth > 0.5).sum()) > 0.95


@pytest.mark.parametrize("turned", AFFINES)
@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
def test_labels_go_to_the_networks_grid_and_back(turned, spacing):
    case = make_case(spacing, AFFINES[turned])
    made = grid.make_grid(case, Target((1.7, 1.7, 1.7)))
    inside = grid.to_network(case, made)
    shares = np.stack([inside.labels == 0, inside.labels == 1], axis=-1).astype(np.float32)
    mask = grid.to_case(shares, made, case).argmax(axis=-1)
    apart = np.subtract(ndimage.center_of_mass(mask), ndimage.center_of_mass(case.labels))
    # Whole voxels are rounded on both grids, so the bound is wider than for probabilities.
    assert np.abs(apart).max() < 0.1, apart
    assert 2 * (mask * case.labels).sum() / (mask.sum() + case.labels.sum()) > 0.94


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
def test_a_smooth_map_comes_back_voxel_for_voxel(spacing):
    case = make_case(spacing, AFFINES["left-handed and oblique"])
    made = grid.make_grid(case, Target((2.0, 2.0, 2.0)))
    inside = grid.to_network(case, made)
    # A linear function of the world is itself on any grid, so that a shift of a tenth of a voxel would show.
    places = np.indices(made.shape).reshape(3, -1)
    values = (inside.affine[:3, :3] @ places + inside.affine[:3, 3:]).T.reshape(*made.shape, 3).astype(np.float32)
    back = grid.to_case(values, made, case)
    places = np.indices(case.labels.shape).reshape(3, -1)
    truth = (case.affine[:3, :3] @ places + case.affine[:3, 3:]).T.reshape(*case.labels.shape, 3)
    # Beyond the box the nearest value is repeated, and a blurred map is flat at its edge.
    well = ndimage.binary_erosion(case.brain, iterations=3)
    assert well.any()
    np.testing.assert_allclose(back[well], truth[well], atol=0.02)


def test_a_constant_brain_stays_constant_up_to_its_border():
    case = make_case((0.9, 0.9, 2.0), field=7.0)
    inside = grid.to_network(case, grid.make_grid(case, Target((2.0, 2.0, 2.0))))
    assert inside.brain.any()
    np.testing.assert_allclose(inside.images[inside.brain], 7, rtol=1e-5)
    volumes = [case.brain.sum() * abs(np.linalg.det(case.affine[:3, :3])) for case in (case, inside)]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.03)


def test_labels_are_those_of_the_largest_share():
    case = make_case((1.0, 1.0, 1.0))
    inside = grid.to_network(case, grid.make_grid(case, Target((2.0, 2.0, 2.0))))
    volumes = [(one.labels == 1).sum() * abs(np.linalg.det(one.affine[:3, :3])) for one in (case, inside)]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.1)
    assert set(np.unique(inside.labels)) == {0, 1}
    assert inside.labels.dtype == np.uint8


def test_thick_slices_are_never_interpolated_between():
    case = make_case((1.0, 1.0, 5.0))
    made = grid.make_grid(case, Target((2.0, 2.0, 2.0)))
    assert made.step.tolist() == [2, 2, 1]
    # A network of thick slices leaves the slices of thin ones apart, too.
    assert grid.make_grid(make_case((1.0, 1.0, 1.0)), Target((1.5, 1.5, 6.0))).step.tolist() == [1.5, 1.5, 1]
    inside = grid.to_network(case, made)
    for number, place in enumerate(range(int(made.start[2]), int(made.start[2]) + made.shape[2])):
        alone = Case("a", case.images[:, :, place : place + 1], None, case.affine, case.header)
        if alone.brain.all(axis=2).sum() > 100:
            assert inside.brain[:, :, number].any()
    np.testing.assert_allclose(np.linalg.norm(inside.affine[:3, :3], axis=0), (2, 2, 5))


def test_cutting_to_the_box_alone_changes_no_value():
    case = make_case((2.0, 2.0, 2.0))
    made = grid.make_grid(case, Target((2.05, 1.96, 2.0), crop=True))
    inside = grid.to_network(case, made)
    box = ndimage.find_objects(case.brain.astype(int))[0]
    np.testing.assert_array_equal(inside.images, case.images[box])
    np.testing.assert_array_equal(inside.labels, case.labels[box])
    back = grid.to_case(inside.images, made, case)
    np.testing.assert_array_equal(back[case.brain], case.images[case.brain])


def test_what_needs_nothing_is_the_case_itself():
    case = make_case((2.0, 2.0, 2.0))
    for target in (Target(), Target((2.0, 2.0, 2.0)), Target((2.09, 1.92, 2.0))):
        made = grid.make_grid(case, target)
        assert made is None
        assert grid.to_network(case, made) is case
        assert grid.to_case(case.images, made, case) is case.images


def test_the_targets_spacing_is_chosen_from_the_cases():
    same = [make_case((2.0, 2.0, 2.0)), make_case((2.05, 2.0, 1.96))]
    mixed = [*same, make_case((1.0, 1.0, 5.0))]
    assert grid.choose("0", mixed) == Target(None, False)
    assert grid.choose("median", mixed) == Target((2.0, 2.0, 2.0), True)
    assert grid.choose("1.5", same) == Target((1.5, 1.5, 1.5), True)
    assert grid.choose("2,2,4", same) == Target((2.0, 2.0, 4.0), True)
    # Nothing to be resampled, nothing cut.
    assert grid.choose("median", same) == Target((2.025, 2.0, 1.98), False)
    assert grid.choose("2", same) == Target((2.0, 2.0, 2.0), False)


def test_a_box_of_one_voxel_and_a_case_without_brain():
    images = np.zeros((9, 8, 7, 1), np.float32)
    case = Case("a", images, None, np.eye(4), nib.Nifti1Header())
    assert grid.make_grid(case, Target((3.0, 3.0, 3.0), True)) is None
    images = images.copy()
    images[4, 5, 6] = 1
    case = Case("a", images, None, np.eye(4), nib.Nifti1Header())
    made = grid.make_grid(case, Target((3.0, 3.0, 3.0), True))
    assert made.shape == (1, 1, 1)
    np.testing.assert_allclose(made.start, (4, 5, 6))
