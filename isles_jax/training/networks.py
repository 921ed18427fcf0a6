"""The networks of a configuration, built but not initialised, and the compiled function that applies the segmenter."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax import Array

from isles_jax.conv import conv_general_dilated
from isles_jax.data.case import ALL_CLASSES
from isles_jax.models import Discriminator, SUMNet

# The faster convolution (`isles_jax.conv`) compiles for a minute or more on two cores. A network that runs at least
# this often saves more time than that.
LONG_RUN = 1000
# Slices in one call of the network during inference.
BATCH = 8


def make_segmenter(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None, calls: int = 0
) -> SUMNet:
    """The segmentation network of a configuration.

    Args:
      config: the whole configuration.
      num_classes: classes, background included.
      axis_name: device axis over which batch norm's statistics are averaged, or None.
      calls: how often the network will run. With `model.conv="auto"` it decides which convolution is used.
    """
    model = config.model
    return SUMNet(
        num_classes=num_classes, residual=model.residual, width=model.width, batch_norm=model.batch_norm,
        dtype=jnp.dtype(config.dtype), axis_name=axis_name, conv=_convolution(config, calls),
    )  # fmt: skip


def make_critic(config: ml_collections.ConfigDict, axis_name: str | None = None, calls: int = 0) -> Discriminator:
    """The discriminator of a configuration. All critics use this module. Arguments are those of `make_segmenter`."""
    return Discriminator(
        width=config.discriminator.width, dtype=jnp.dtype(config.dtype), axis_name=axis_name,
        conv=_convolution(config, calls),
    )  # fmt: skip


def _convolution(config: ml_collections.ConfigDict, calls: int) -> Callable[..., Array] | None:
    """The convolution that the networks use; None means JAX's own."""
    name = config.model.conv
    if name == "auto":
        name = "winograd" if jax.default_backend() == "cpu" and calls >= LONG_RUN else "lax"
    return conv_general_dilated if name == "winograd" else None


def critic_channels(config: ml_collections.ConfigDict, classes: tuple[str, ...]) -> dict[str, slice]:
    """The class channels that each critic sees, by the critic's name.

    There is one critic for each foreground class and one for all of them together (section 2 of the paper).
    """
    if not (config.discriminator.enabled and config.loss.adversarial):
        return {}
    alone = {name: slice(number, number + 1) for number, name in enumerate(classes, start=1)}
    return {**alone, ALL_CLASSES: slice(1, None)} if len(classes) > 1 else alone


@functools.cache
def make_forward(segmenter: SUMNet) -> Callable[[Any, Array], Array]:
    """The compiled function (variables, images [B, H, W, M]) -> class probabilities, float32 [B, H, W, C].

    It compiles once for each image size. Callers with the same network share the function and its compilations.
    """
    # By its annotation `apply` may also return a pair, which it does only with `mutable`.
    return jax.jit(lambda variables, images: jax.nn.softmax(segmenter.apply(variables, images)))  # type: ignore[arg-type]
