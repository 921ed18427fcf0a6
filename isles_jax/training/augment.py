"""Random changes of training slices: flip, rotation, scale, intensity, channels left out; compiled with the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.ndimage import map_coordinates

# Two one-dimensional passes differ from bilinear interpolation, and more so for a larger rotation: on a smooth image by
# less than 0.15 standard deviations at 10 degrees, and by up to 0.6 at 45.
LARGEST_ROTATION_IN_TWO_PASSES = 10.0
# The share of channels that training leaves out with `data.missing="zero"`. Larger shares cost more where all channels
# are there, and gain little where one is not (docs/data.md).
LEFT_OUT = 0.1


def augment(
    keys: Array,
    images: Array,
    labels: Array,
    *,
    rotation_degrees: float = 10.0,
    scale: float = 0.1,
    intensity: float = 0.1,
    both: bool = False,
) -> tuple[Array, Array]:
    """Changes each slice by a random flip, rotation, scale and change of intensity of its own.

    A TPU gathers single pixels slowly. There, with rotations of at most 10 degrees, matrix products resample a slice
    along one axis and then along the other. The result differs a little from the bilinear interpolation of other
    platforms; a label comes from within a pixel of the same place.

    Args:
      keys: [B] random keys, one for each slice, so that a slice's change does not depend on the device that makes it.
      images: float32 [B, H, W, M], 0 outside the brain; the first spatial axis is left-right.
      labels: integer [B, H, W]; negative where there is no pixel.
      rotation_degrees: rotations are uniform in plus or minus this.
      scale: scales are uniform in 1 plus or minus this.
      intensity: each channel is multiplied by 1 plus or minus up to this, and up to this is added, inside the brain.
      both: flips along both spatial axes instead of the first alone, each at random.

    Returns:
      Images and labels of the same shapes and types. What is moved in from outside the slice is 0, with label -1.
    """

    def one(key: Array, image: Array, label: Array) -> tuple[Array, Array]:
        channels = image.shape[-1]
        # One draw for all: every further one would cost a second of compilation.
        drawn = jax.random.uniform(key, (3 + 2 * channels + both,), minval=-1.0, dtype=jnp.float32)
        mirror = jnp.where(drawn[0] < 0, -1.0, 1.0)
        turn = jnp.deg2rad(rotation_degrees) * drawn[1]
        size = 1.0 + scale * drawn[2]
        move = mirror, jnp.cos(turn) / size, jnp.sin(turn) / size
        if rotation_degrees <= LARGEST_ROTATION_IN_TWO_PASSES:
            image, label = lax.platform_dependent(image, label, *move, tpu=_in_two_passes, default=_interpolate)
        else:
            image, label = _interpolate(image, label, *move)
        if both:
            image, label = (jnp.where(drawn[-1] < 0, x[:, ::-1], x) for x in (image, label))
        brain = jnp.any(image != 0, axis=-1, keepdims=True)
        gain, offset = intensity * drawn[3 : 3 + 2 * channels].reshape(2, channels)
        return jnp.where(brain, image * (1.0 + gain) + offset, 0.0), label

    return jax.vmap(one)(keys, images, labels)


def keep_channels(keys: Array, there: Array, left_out: float = LEFT_OUT) -> Array:
    """Which channels each slice keeps, so that a network learns to do without one.

    Each channel is left out with the probability `left_out`. If that would leave out all that a slice has, it keeps one
    of them, each with the same probability.

    Args:
      keys: [B] random keys, one for each slice; those of `augment`.
      there: bool [B, M], the channels that each slice has.
      left_out: from 0 to 1.

    Returns:
      Bool [B, M]; True only for channels that are there, and for all if none is.
    """

    def one(key: Array, there: Array) -> Array:
        # With another number in the key, the draw is independent of the one in `augment`.
        drawn = jax.random.uniform(jax.random.fold_in(key, 1), there.shape, dtype=jnp.float32)
        drawn = jnp.where(there, drawn, -1.0)
        return (drawn >= left_out) | (drawn == drawn.max())

    return jax.vmap(one)(keys, there)


def _pixels(count: int) -> Array:
    """The numbers of a line's pixels, in float32 whatever JAX's default type is."""
    return jnp.arange(count, dtype=jnp.float32)


# In both forms, the pixel at (x, y) from the centre is taken from (mirror (cos x - sin y), sin x + cos y).


def _interpolate(image: Array, label: Array, mirror: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    """Bilinear interpolation of an image [H, W, M], and the nearest label [H, W]."""
    height, width = label.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2], jnp.float32)
    x, y = jnp.meshgrid(_pixels(height) - centre[0], _pixels(width) - centre[1], indexing="ij")
    places = [mirror * (cos * x - sin * y) + centre[0], sin * x + cos * y + centre[1]]
    image = jax.vmap(lambda plane: map_coordinates(plane, places, order=1), in_axes=-1, out_axes=-1)(image)
    return image, map_coordinates(label, places, order=0, cval=-1)


def _in_two_passes(image: Array, label: Array, mirror: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    """The same by two one-dimensional interpolations, as batches of matrix products (Catmull and Smith 1980)."""
    height, width = label.shape
    x = _pixels(height) - (height - 1) / 2
    y = _pixels(width) - (width - 1) / 2
    # Between the passes, a pixel has its new row x and its old column v. There y is (v - sin x) / cos.
    rows = mirror * ((cos**2 + sin**2) * x - sin * y[:, None]) / cos + (height - 1) / 2
    columns = sin * x[:, None] + cos * y + (width - 1) / 2

    def resample(planes: Array, weights: Callable[[Array], Array]) -> Array:
        of_rows = weights(rows[..., None] - jnp.arange(height))
        of_columns = weights(columns[..., None] - jnp.arange(width))
        halfway = jnp.einsum("vxu,uvm->xvm", of_rows, planes, precision="highest")
        return jnp.einsum("xyv,xvm->xym", of_columns, halfway, precision="highest")

    image = resample(image, lambda distance: jnp.maximum(0.0, 1.0 - jnp.abs(distance)))
    # Labels are shifted by 1 here, so that a place that no pixel reaches becomes -1.
    found = resample(
        (label + 1).astype(jnp.float32)[..., None],
        lambda distance: ((distance > -0.5) & (distance <= 0.5)).astype(jnp.float32),
    )
    return image, found[..., 0].astype(label.dtype) - 1
