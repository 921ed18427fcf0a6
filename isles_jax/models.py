"""SUMNet, Residual-SUMNet and the discriminators that train them.

SUMNet (Nandamuri et al. 2019, arXiv 1901.06920) is a VGG11-like encoder whose pooling indices guide the decoder's
unpooling. Residual-SUMNet (Rajan, Sathish and Sheet, section 2) adds a shortcut around the convolutions of each encoder
stage. All layouts are channels last.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

__all__ = ["Discriminator", "SUMNet", "max_pool", "max_unpool"]

# (first convolutions' channels, last convolution's channels) of the five stages, as multiples of `width`.
ENCODER: tuple[tuple[float, ...], ...] = ((1,), (2,), (4, 4), (8, 8), (8, 8))
# The same for the decoder, from the deepest stage to the first; the last is half the width.
DECODER: tuple[tuple[float, ...], ...] = ((8, 8), (8, 4), (4, 2), (1,), (0.5,))
# Sides of the input must be divisible by 2 ** (number of poolings).
MULTIPLE = 2 ** len(ENCODER)


def he_normal(key: Array | np.random.Generator, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Any:
    """A kernel [..., inputs, outputs] of normal numbers with variance 2 / (inputs of one output) (He et al. 2015).

    Args:
      key: a JAX key, or a NumPy generator, which compiles nothing.
      shape: of the kernel.
      dtype: of the kernel; the numbers are drawn in float32.
    """
    draw = key.standard_normal if isinstance(key, np.random.Generator) else partial(jax.random.normal, key)
    return (np.float32(np.sqrt(2 / np.prod(shape[:-1]))) * draw(tuple(shape), np.float32)).astype(dtype)


def pass_through(
    key: Array | np.random.Generator | None, shape: Sequence[int], dtype: DTypeLike = np.float32
) -> np.ndarray:
    """A kernel [1, 1, inputs, outputs] that hands each input on to an output, in turn; an initialiser, `key` unused.

    The pre-convolution starts with it: three random mixtures, cut at 0 by ReLU, can hide a tissue from later layers.
    """
    inputs, outputs = shape[-2:]
    return (np.arange(inputs)[:, None] % outputs == np.arange(outputs) % inputs).astype(dtype)[None, None]


def kernel_init(layer: str) -> Callable[..., Any]:
    """The initialiser of a layer's kernel, by the layer's name; the networks and `training.state` both use it."""
    return pass_through if layer == "preconv" else he_normal


def _windows(x: Array) -> list[Array]:
    """The four pixels of each 2x2 window, in row-major order: four arrays [B, H/2, W/2, C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    return [x[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


def _scatter(values: Array, index: Array) -> Array:
    b, h, w, c = values.shape
    four = [jnp.where(index == k, values, 0) for k in range(4)]
    rows = [jnp.stack(four[2 * i : 2 * i + 2], axis=3) for i in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, c)


def _gather(x: Array, index: Array) -> Array:
    a, b, c, d = _windows(x)
    return jnp.where(index < 2, jnp.where(index == 0, a, b), jnp.where(index == 2, c, d))


def _pool(x: Array) -> tuple[Array, Array]:
    best, *others = _windows(x)
    index = jnp.zeros(best.shape, jnp.int8)
    for k, other in enumerate(others, start=1):
        larger = other > best
        best, index = jnp.where(larger, other, best), jnp.where(larger, jnp.int8(k), index)
    return best, index


# The derivatives are written by hand: autodiff of a maximum divides the gradient among tied pixels (frequent among
# ReLU's zeros), where PyTorch gives all of it to the first, and this form needs no memory beyond the index.
@jax.custom_vjp
def max_pool(x: Array) -> tuple[Array, Array]:
    """2x2 max pooling with the place of each maximum.

    Args:
      x: [B, H, W, C], H and W even.

    Returns:
      The maxima [B, H/2, W/2, C] and, int8, their places 0..3 in row-major order; the first one wins a tie.
    """
    return _pool(x)


def _pool_forward(x: Array) -> tuple[tuple[Array, Array], Array]:
    pooled, index = _pool(x)
    return (pooled, index), index


max_pool.defvjp(_pool_forward, lambda index, gradients: (_scatter(gradients[0], index),))


@jax.custom_vjp
def max_unpool(x: Array, index: Array) -> Array:
    """The inverse placement of `max_pool`: each value goes to its place in a 2x2 window, zeros elsewhere.

    Args:
      x: [B, H, W, C].
      index: int8 [B, H, W, C], from `max_pool`.

    Returns:
      [B, 2H, 2W, C].
    """
    return _scatter(x, index)


max_unpool.defvjp(
    lambda x, index: (_scatter(x, index), index), lambda index, gradient: (_gather(gradient, index), None)
)


class SUMNet(nn.Module):
    """SUMNet, or with `residual=True` Residual-SUMNet.

    Attributes:
      num_classes: classes, background included.
      residual: y = ReLU(F(x) + P(x)) around each encoder stage's convolutions F, where P is the identity, or a 1x1
        convolution with batch norm where the channels differ (He et al. 2016).
      width: channels of the first stage; 64 is the published network.
      batch_norm: "encoder", "all" (decoder too) or "none" (the published SUMNet of 2018).
      dtype: compute type; parameters and statistics are float32.
      axis_name: device axis over which batch norm's statistics are averaged, or None.
      conv: stands in for `lax.conv_general_dilated`, as in Flax's `nn.Conv`; None: that itself.
    """

    num_classes: int = 3
    residual: bool = False
    width: int = 64
    batch_norm: str = "encoder"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    conv: Callable[..., Array] | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Images [B, H, W, M] (H and W divisible by 32) to float32 logits [B, H, W, num_classes]."""
        _, height, width, _ = images.shape
        if height % MULTIPLE or width % MULTIPLE:
            raise ValueError(f"SUMNet takes sides divisible by {MULTIPLE}, got {height} x {width}")
        if self.batch_norm not in ("encoder", "all", "none"):
            raise ValueError(f'batch_norm is "encoder", "all" or "none", got {self.batch_norm!r}')
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype,
                       axis_name=self.axis_name)  # fmt: skip

        def convolution(channels: int, size: tuple[int, int], name: str, use_bias: bool = True) -> nn.Conv:
            return nn.Conv(channels, size, use_bias=use_bias, dtype=self.dtype, kernel_init=kernel_init(name),
                           conv_general_dilated=self.conv, name=name)  # fmt: skip

        def conv(x: Array, channels: float, name: str, normed: bool, size: int = 3) -> Array:
            # A bias before a batch norm has no effect, but its rounding makes devices drift apart.
            channels = max(1, int(channels * self.width))
            x = convolution(channels, (size, size), f"conv{name}", use_bias=not normed)(x)
            return norm(name=f"norm{name}")(x) if normed else x

        x = images.astype(self.dtype)
        x = nn.relu(convolution(3, (1, 1), "preconv")(x))
        skips = []
        normed = self.batch_norm != "none"
        for stage, widths in enumerate(ENCODER, start=1):
            x = self._encoder_stage(x, stage, widths, partial(conv, normed=normed))
            pooled, index = max_pool(x)
            skips.append((x, index))
            x = pooled
        for stage, widths in zip(range(len(DECODER), 0, -1), DECODER, strict=True):
            skip, index = skips.pop()
            x = jnp.concatenate([max_unpool(x, index), skip], axis=-1)
            # The public SUMNet counts a decoder's convolutions backwards: donv5b, then donv5a.
            for channels, letter in zip(widths, "ba" if len(widths) == 2 else ("",), strict=True):
                x = nn.relu(conv(x, channels, f"_up{stage}{letter}", self.batch_norm == "all"))
        x = convolution(self.num_classes, (1, 1), "output")(x)
        return x.astype(jnp.float32)

    def _encoder_stage(self, x: Array, stage: int, widths: tuple, conv: Callable[..., Array]) -> Array:
        shortcut = x
        for i, channels in enumerate(widths):
            if i:
                x = nn.relu(x)
            x = conv(x, channels, f"{stage}{'ab'[i] if len(widths) > 1 else ''}")
        if not self.residual:
            return nn.relu(x)
        if shortcut.shape != x.shape:
            shortcut = conv(shortcut, widths[-1], f"{stage}_shortcut", size=1)
        return nn.relu(x + shortcut)


class Discriminator(nn.Module):
    """A critic of segmentation maps: how real do they look, as one logit for each slice.

    Five 3x3 convolutions (width x 1, 2, 2, 4, 4) with LeakyReLU 0.2, batch norm on all but the first, 2x2 max pooling
    between them, the mean over all places and one linear output without sigmoid.

    Attributes:
      width: channels of the first layer.
      dtype: compute type; parameters and statistics are float32.
      axis_name: device axis over which batch norm's statistics are averaged, or None.
      conv: stands in for `lax.conv_general_dilated`, as in Flax's `nn.Conv`; None: that itself.
    """

    width: int = 64
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    conv: Callable[..., Array] | None = None

    @nn.compact
    def __call__(self, maps: Array, train: bool = False) -> Array:
        """Maps [B, H, W, K] (H and W at least 32) to float32 critic logits [B]."""
        if min(maps.shape[1:3]) < 32:
            raise ValueError(f"Discriminator takes sides of at least 32, got {maps.shape[1]} x {maps.shape[2]}")
        x = maps.astype(self.dtype)
        for i, channels in enumerate((1, 2, 2, 4, 4)):
            if i:
                # An odd last row or column is dropped, as in PyTorch's pooling.
                x, _ = max_pool(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2])
            name = f"conv{i + 1}"
            x = nn.Conv(channels * self.width, (3, 3), use_bias=i == 0, dtype=self.dtype, kernel_init=kernel_init(name),
                        conv_general_dilated=self.conv, name=name)(x)  # fmt: skip
            if i:
                x = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype, axis_name=self.axis_name,
                                 name=f"norm{i + 1}")(x)  # fmt: skip
            x = nn.leaky_relu(x, 0.2)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        return nn.Dense(1, kernel_init=kernel_init("output"), name="output")(x)[:, 0]
