"""Slices: normalised, padded to one size and stacked, and drawn as batches of which half holds lesion."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from isles_jax.data.case import Case
from isles_jax.data.grid import AS_STORED, Target
from isles_jax.data.slices import draw_batch, largest_sides, make_slices, normalise, pad, padded_size, unpad


def make_case(name, shape, seed=0, lesion=True):
    rng = np.random.default_rng(seed)
    images = np.zeros((*shape, 3), np.float32)
    images[2:-2, 3:-1, 1:-1] = rng.gamma(2.0, 3.0, (shape[0] - 4, shape[1] - 4, shape[2] - 2, 3)) + 0.01
    labels = np.zeros(shape, np.uint8)
    if lesion:
        labels[5:9, 5:9, 2:4] = 1
        labels[6:8, 6:8, 2] = 2
    return Case(name, images, labels, np.eye(4), nib.Nifti1Header())


def test_normalise_is_a_z_score_of_the_clipped_brain():
    case = make_case("a", (20, 18, 6))
    brain = (case.images != 0).any(axis=-1)
    result = normalise(case.images, brain)
    assert result.dtype == np.float32
    assert np.all(result[~brain] == 0)
    for channel in range(3):
        inside = case.images[..., channel][brain]
        low, high = np.percentile(inside, 0.5), np.percentile(inside, 99.5)
        clipped = np.clip(inside, low, high)
        np.testing.assert_allclose(result[brain, channel], (clipped - clipped.mean()) / clipped.std(), atol=1e-5)


def test_normalise_ignores_units():
    case = make_case("a", (20, 18, 6))
    brain = (case.images != 0).any(axis=-1)
    changed = case.images * np.float32([10, 0.1, 1000]) + np.float32([5, 0, -100])
    np.testing.assert_allclose(normalise(changed, brain), normalise(case.images, brain), atol=1e-4)


def test_normalise_of_constant_broken_and_empty_images_is_finite():
    images = np.full((4, 4, 2, 2), 3.0, np.float32)
    images[0, 0, 0, 1], images[1, 0, 0, 1] = np.nan, np.inf
    brain = np.ones((4, 4, 2), bool)
    assert np.all(normalise(images, brain)[..., 0] == 0)
    assert np.all(np.isfinite(normalise(images, brain)))
    assert np.all(normalise(images, ~brain) == 0)


@pytest.mark.parametrize("shape", [(64, 64), (63, 50), (1, 97)])
def test_unpad_undoes_pad(shape):
    size = padded_size(shape, 32)
    assert all(side % 32 == 0 and 0 <= side - given < 32 for side, given in zip(size, shape, strict=True))
    array = np.random.default_rng(0).normal(size=(*shape, 3))
    padded = pad(array, size, -1)
    assert padded.shape == (*size, 3)
    np.testing.assert_array_equal(unpad(padded, shape), array)
    assert (padded == -1).sum() == padded.size - array.size


def stacked(cases, target=AS_STORED, dtype="float32"):
    return make_slices(cases, padded_size(largest_sides(cases, target), 32), target, dtype)


def test_slices_of_cases_of_different_shapes():
    cases = (
        make_case("a", (20, 40, 6)),
        make_case("b", (33, 18, 5), seed=1),
        make_case("c", (20, 20, 4), lesion=False),
    )
    slices = stacked(cases)
    # The first and last slice of each case hold no brain.
    assert slices.images.shape == (4 + 3 + 2, 64, 64, 3)
    assert slices.labels.dtype == np.int8
    np.testing.assert_array_equal(slices.case, [0] * 4 + [1] * 3 + [2] * 2)
    np.testing.assert_array_equal(slices.lesion, [False, True, True, False, False, True, True, False, False])
    for number, case in enumerate(cases):
        own = slices.case == number
        assert np.all((slices.labels[own] >= 0).sum(axis=(1, 2)) == np.prod(case.labels.shape[:2]))
        assert np.all(slices.images[own][slices.labels[own] < 0] == 0)
        for value in (1, 2):
            assert (slices.labels[own] == value).sum() == (case.labels == value).sum()


def test_a_case_without_labels_is_refused():
    case = make_case("a", (20, 20, 4))
    with pytest.raises(ValueError, match="a has no labels"):
        stacked((Case("a", case.images, None, case.affine, case.header),))


def test_half_of_a_batch_holds_lesion():
    lesion = np.arange(100) < 20
    pool = np.arange(5, 95)
    for step in range(30):
        batch = draw_batch(pool, lesion, 8, (0, 1, step))
        assert batch.shape == (8,)
        assert batch.dtype == np.int32
        assert len(set(batch)) == 8
        assert set(batch) <= set(pool)
        assert lesion[batch].sum() >= 4


def test_batches_are_functions_of_the_seed():
    lesion, pool = np.arange(100) < 20, np.arange(100)
    first = [draw_batch(pool, lesion, 8, (0, 0, step)).tolist() for step in range(5)]
    assert first == [draw_batch(pool, lesion, 8, (0, 0, step)).tolist() for step in range(5)]
    assert len(set(map(tuple, first))) == 5
    assert first[0] != draw_batch(pool, lesion, 8, (0, 1, 0)).tolist()
    assert first[0] != draw_batch(pool, lesion, 8, (1, 0, 0)).tolist()


def test_small_pools_repeat_slices():
    batch = draw_batch(np.array([3, 7]), np.arange(10) == 7, 8, (0,))
    assert sorted(set(batch)) == [3, 7]
    assert (batch == 7).sum() >= 4


def test_slices_on_a_grid_of_another_spacing():
    cases = (make_case("a", (40, 36, 6)), make_case("b", (20, 18, 6), seed=1))
    fine = replace(cases[0], affine=np.diag([0.5, 0.5, 1, 1]))
    target = Target((1.0, 1.0, 1.0), True)
    slices = stacked((fine, cases[1]), target)
    assert slices.images.shape == (8, 32, 32, 3)
    # The case that has the spacing already is cut to its brain and changed in nothing else.
    box = normalise(cases[1].images, cases[1].brain)[2:-2, 3:-1, 1:-1]
    np.testing.assert_array_equal(slices.images[4:, 8:24, 9:23], np.moveaxis(box, 2, 0))
    half = [(slices.labels[:4] == value).sum() for value in (1, 2)]
    assert sum(half) == pytest.approx((fine.labels > 0).sum() / 4, abs=4)
    whole = stacked(cases)
    np.testing.assert_array_equal(stacked(cases, Target((1.0, 1.0, 1.0))).images, whole.images)


def test_slices_in_half_of_the_memory():
    cases = (make_case("a", (20, 40, 6)),)
    whole, half = stacked(cases), stacked(cases, dtype="float16")
    assert half.images.dtype == np.float16
    np.testing.assert_allclose(half.images, whole.images, atol=2e-3)
    assert np.array_equal(half.images == 0, whole.images == 0)
