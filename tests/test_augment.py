import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from isles_jax.training import augment as module

pytestmark = pytest.mark.device

# Compiled, as in a step. Without that, JAX would compile each operation alone, which takes longer.
augment = jax.jit(module.augment, static_argnames=("rotation_degrees", "scale", "intensity", "both"))
STILL = {"rotation_degrees": 0.0, "scale": 0.0, "intensity": 0.0}


@pytest.fixture(params=["cpu", "tpu"], autouse=True)
def form(request, take_form):
    """Each platform's form of the resampling, on this CPU."""
    take_form(request.param)
    return request.param


def example(batch=6, height=20, width=16):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, height, width, 3)).astype(np.float32)
    images[:, :3] = 0
    labels = rng.integers(0, 3, (batch, height, width)).astype(np.int32)
    labels[:, :, -2:] = -1
    return jax.random.split(jax.random.key(3), batch), images, labels


@pytest.mark.parametrize("both", [False, True])
def test_without_rotation_scale_and_intensity_only_flips_remain(both):
    keys, images, labels = example(24)
    new_images, new_labels = augment(keys, images, labels, **STILL, both=both)
    seen = set()
    for image, label, new_image, new_label in zip(images, labels, new_images, new_labels, strict=True):
        flipped = {(x, y): image[::x, ::y] for x, y in itertools.product((1, -1), repeat=2)}
        [(x, y)] = [turn for turn, flip in flipped.items() if np.allclose(new_image, flip, atol=1e-5)]
        seen.add((x, y))
        np.testing.assert_array_equal(new_label, label[::x, ::y])
    assert seen == set(itertools.product((1, -1), (1, -1) if both else (1,)))


@pytest.mark.slow
def test_a_slice_depends_on_its_own_key_only():
    keys, images, labels = example()
    together = augment(keys, images, labels)
    for i in range(len(images)):
        alone = augment(keys[i : i + 1], images[i : i + 1], labels[i : i + 1])
        np.testing.assert_allclose(together[0][i], alone[0][0], atol=1e-6)
        np.testing.assert_array_equal(together[1][i], alone[1][0])
    assert not np.allclose(together[0][0], augment(keys[1:2], images[:1], labels[:1])[0][0])


def test_pixels_from_outside_the_image_are_masked():
    keys, images, labels = example()
    images, labels = np.ones_like(images), np.ones_like(labels)
    new_images, new_labels = augment(keys, images, labels, rotation_degrees=10.0, scale=0.5, intensity=0.0)
    assert set(np.unique(new_labels)) == {-1, 1}
    # Far outside the image is 0, and a label of 1 never lies there.
    assert np.all(np.asarray(new_images)[np.asarray(new_labels) == 1] >= 0.25)
    assert np.any(np.asarray(new_images) == 0)


def test_image_and_label_move_together():
    keys, _, _ = example()
    x, y = np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5, indexing="ij")
    disc = ((x - 9) ** 2 + (y + 5) ** 2 < 150).astype(np.int32)
    images = np.repeat(disc[None, ..., None], 6, axis=0).astype(np.float32)
    labels = np.repeat(disc[None], 6, axis=0)
    new_images, new_labels = augment(keys, images, labels, rotation_degrees=10.0, scale=0.2, intensity=0.0)
    agree = (np.asarray(new_images[..., 0]) > 0.5) == (np.asarray(new_labels) == 1)
    assert agree.mean() > 0.995
    areas = np.sum(np.asarray(new_labels) == 1, axis=(1, 2)) / disc.sum()
    assert np.ptp(areas) > 0.1
    assert areas.min() > 0.8**2 - 0.02
    assert areas.max() < 1.2**2 + 0.02


def test_intensity_leaves_the_background_alone():
    keys, images, labels = example()
    new_images, _ = augment(keys, images, labels, rotation_degrees=0.0, scale=0.0, intensity=0.5)
    new_images = np.asarray(new_images)
    outside = np.zeros(images.shape[:3], bool)
    outside[:, :3] = True
    for i, image in enumerate(images):
        background = outside[i] if np.all(new_images[i][outside[i]] == 0) else outside[i][::-1]
        assert np.all(new_images[i][background] == 0)
        inside = image[3:].reshape(-1, 3)
        changed = new_images[i][~background].reshape(-1, 3)
        # A line in each channel, with a gain of at most 1.5 and an offset of at most 0.5.
        gain = changed.std(axis=0) / inside.std(axis=0)
        assert np.all((gain > 0.49) & (gain < 1.51))
        assert np.all(np.abs(changed.mean(axis=0) - gain * inside.mean(axis=0)) < 0.51)


@pytest.mark.slow
def test_jit_and_low_integer_types():
    keys, images, labels = example()
    compiled = augment(keys, images, labels.astype(np.int8))
    assert compiled[1].dtype == jnp.int8
    np.testing.assert_array_equal(compiled[1], module.augment(keys, images, labels)[1])


def test_everything_stays_float32_with_x64():
    """A user who turns on JAX's float64 gets the same augmentation."""
    keys, images, labels = example()
    expected = augment(keys, images, labels)
    with jax.enable_x64(True):
        found = augment(keys, images, labels)
    assert found[0].dtype == jnp.float32
    assert found[1].dtype == jnp.int32
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])


def both_forms(image, label, mirror, degrees, size):
    turn = np.deg2rad(degrees)
    move = [jnp.float32(x) for x in (mirror, np.cos(turn) / size, np.sin(turn) / size)]
    image, label = jnp.asarray(image, jnp.float32), jnp.asarray(label, jnp.int32)
    return module._interpolate(image, label, *move), module._in_two_passes(image, label, *move)


@pytest.mark.parametrize("mirror", [1, -1])
@pytest.mark.parametrize("size", [0.93, 1.0, 1.07])
@pytest.mark.slow
def test_without_rotation_two_passes_are_bilinear_interpolation(mirror, size):
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(20, 16, 2)), rng.integers(-1, 3, (20, 16))
    (expected, labels), (got, got_labels) = both_forms(image, label, mirror, 0.0, size)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_array_equal(got_labels, labels)


@pytest.mark.parametrize("degrees", [-10, -3, 3, 10])
@pytest.mark.slow
def test_two_passes_follow_the_same_rotation(degrees):
    """On a smooth image the two interpolations agree; a label comes from within a pixel of the same place."""
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.normal(size=(64, 96, 2)), (3, 3, 0))
    x, y = np.meshgrid(np.arange(64), np.arange(96), indexing="ij")
    (expected, of_rows), (got, got_rows) = both_forms(image / image.std(), x, 1, degrees, 1.05)
    of_columns, got_columns = (labels for _, labels in both_forms(image, y, 1, degrees, 1.05))
    inside = (np.asarray(of_rows) >= 0) & (np.asarray(got_rows) >= 0)
    assert inside.mean() > 0.5
    assert np.abs(np.asarray(got - expected))[inside].max() < 0.15
    assert np.abs(np.asarray(got_rows - of_rows))[inside].max() <= 1
    np.testing.assert_array_equal(np.asarray(got_columns)[inside], np.asarray(of_columns)[inside])
    # What one takes from outside the slice, the other does, but for a margin of a pixel.
    assert np.mean((np.asarray(of_rows) < 0) != (np.asarray(got_rows) < 0)) < 0.02


def test_large_rotations_are_always_interpolated_directly(form, monkeypatch):
    keys, images, labels = example()
    monkeypatch.setattr(module, "_in_two_passes", None)
    moved, _ = augment(keys, images, labels, rotation_degrees=11.0)
    assert np.all(np.isfinite(moved))
    if form == "tpu":
        with pytest.raises(TypeError, match="not callable"):
            augment(keys, images, labels, rotation_degrees=10.0)


@pytest.mark.parametrize("left_out", [0.0, 0.25, 0.9, 1.0])
def test_each_slice_keeps_one_of_its_channels(left_out):
    there = np.tile([[True, True, True], [True, False, True], [False, True, False]], (1000, 1))
    keys = jax.random.split(jax.random.key(0), len(there))
    kept = np.asarray(module.keep_channels(keys, there, left_out))
    assert not (kept & ~there).any()
    assert kept.any(axis=-1).all()
    for have, rows in ((3, kept[::3]), (2, kept[1::3][:, [0, 2]])):
        # A channel is lost unless its draw is high, or the highest of those that are there.
        expected = 1 - left_out + left_out**have / have
        np.testing.assert_allclose(rows.mean(axis=0), expected, atol=4 * np.sqrt(0.25 / 1000))
    # A slice without any channel stays as it is.
    assert np.asarray(module.keep_channels(keys[:1], np.zeros((1, 3), bool))).all()
