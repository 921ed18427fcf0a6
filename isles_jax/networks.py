"""The networks of a configuration, built but not initialised, and the compiled function that applies the segmenter."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax import Array

from isles_jax.conv import conv_general_dilated
from isles_jax.models import Discriminator, SUMNet

# A network that runs this often repays the longer compilation of `isles_jax.conv` (a minute and more on two cores).
LONG_RUN = 1000
# Slices in one call of the network in inference.
BATCH = 8


def make_segmenter(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None, calls: int = 0
) -> SUMNet:
    """The segmentation network of a configuration.

    Args:
      config: the whole configuration.
      num_classes: classes, background included.
      axis_name: device axis over which batch norm's statistics are averaged, or None.
      calls: how often the network will run; decides whether `model.conv="auto"` takes the faster convolution.
    """
    model = config.model
    return SUMNet(
        num_classes=num_classes, residual=model.residual, width=model.width, batch_norm=model.batch_norm,
        dtype=jnp.dtype(config.dtype), axis_name=axis_name, conv=_convolution(config, calls),
    )  # fmt: skip


def make_critic(config: ml_collections.ConfigDict, axis_name: str | None = None, calls: int = 0) -> Discriminator:
    """The discriminator of a configuration; one module serves all critics. Arguments as for `make_segmenter`."""
    return Discriminator(
        width=config.discriminator.width, dtype=jnp.dtype(config.dtype), axis_name=axis_name,
        conv=_convolution(config, calls),
    )  # fmt: skip


def _convolution(config: ml_collections.ConfigDict, calls: int) -> Callable[..., Array] | None:
    """The networks' convolution; None stands for `lax`."""
    repaid = jax.default_backend() == "cpu" and calls >= LONG_RUN
    return conv_general_dilated if config.model.conv == "winograd" or (config.model.conv == "auto" and repaid) else None


def critic_channels(config: ml_collections.ConfigDict, classes: tuple[str, ...]) -> dict[str, slice]:
    """Which class channels each critic sees: each foreground class alone, and all of them (section 2 of the paper)."""
    if not (config.discriminator.enabled and config.loss.adversarial):
        return {}
    alone = {name: slice(number, number + 1) for number, name in enumerate(classes, start=1)}
    return {**alone, "all classes": slice(1, None)} if len(classes) > 1 else alone


@functools.cache
def make_forward(segmenter: SUMNet) -> Callable[[Any, Array], Array]:
    """A compiled (variables, images [B, H, W, M]) -> float32 probabilities [B, H, W, C]; one compilation for each size.

    Callers that ask for the same network share the function and its compilations.
    """
    # Flax types the result as a pair too, which `apply` returns only with `mutable`.
    return jax.jit(lambda variables, images: jax.nn.softmax(segmenter.apply(variables, images)))  # type: ignore[arg-type]
