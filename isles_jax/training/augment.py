"""Random changes of training slices: flip, rotation, scale, intensity; pure, and compiled with the step."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates


def augment(
    keys: Array,
    images: Array,
    labels: Array,
    *,
    rotation_degrees: float = 10.0,
    scale: float = 0.1,
    intensity: float = 0.1,
) -> tuple[Array, Array]:
    """Changes each slice by a random flip, rotation, scale and change of intensity of its own.

    Args:
      keys: [B] random keys, one for each slice, so that a slice's change does not depend on the device that makes it.
      images: float32 [B, H, W, M], 0 outside the brain; the first spatial axis is left-right.
      labels: integer [B, H, W]; negative where there is no pixel.
      rotation_degrees: rotations are uniform in plus or minus this.
      scale: scales are uniform in 1 plus or minus this.
      intensity: each channel is multiplied by 1 plus or minus up to this, and up to this is added, inside the brain.

    Returns:
      Images and labels of the same shapes and types. What is moved in from outside the slice is 0, with label -1.
    """

    def one(key: Array, image: Array, label: Array) -> tuple[Array, Array]:
        height, width, channels = image.shape
        # One draw for all: every further one would cost a second of compilation.
        drawn = jax.random.uniform(key, (3 + 2 * channels,), minval=-1.0)
        mirror = jnp.where(drawn[0] < 0, -1.0, 1.0)
        turn = jnp.deg2rad(rotation_degrees) * drawn[1]
        size = 1.0 + scale * drawn[2]
        # Where each pixel comes from: mirrored, turned and scaled about the centre.
        centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
        x, y = jnp.meshgrid(jnp.arange(height) - centre[0], jnp.arange(width) - centre[1], indexing="ij")
        cos, sin = jnp.cos(turn) / size, jnp.sin(turn) / size
        places = [mirror * (cos * x - sin * y) + centre[0], sin * x + cos * y + centre[1]]

        image = jax.vmap(lambda plane: map_coordinates(plane, places, order=1), in_axes=-1, out_axes=-1)(image)
        label = map_coordinates(label, places, order=0, cval=-1)
        brain = jnp.any(image != 0, axis=-1, keepdims=True)
        factor, shift = 1.0 + intensity * drawn[3 : 3 + channels], intensity * drawn[3 + channels :]
        return jnp.where(brain, image * factor + shift, 0.0), label

    return jax.vmap(one)(keys, images, labels)
