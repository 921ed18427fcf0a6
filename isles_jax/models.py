"""SUMNet, Residual-SUMNet, a U-Net, and the discriminators that train them.

SUMNet (Nandamuri et al. 2019, arXiv 1901.06920) is a VGG11-like encoder whose pooling indices guide the decoder's
unpooling. Residual-SUMNet (Rajan, Sathish and Sheet, section 2) adds a shortcut around the convolutions of each encoder
stage. The U-Net (Ronneberger et al. 2015, arXiv 1505.04597) goes up by transposed convolutions instead, and may have
the same shortcuts. All layouts are channels last.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

__all__ = ["Discriminator", "SUMNet", "UNet", "max_pool", "max_unpool"]

# (first convolutions' channels, last convolution's channels) of the five stages, as multiples of `width`.
ENCODER: tuple[tuple[float, ...], ...] = ((1,), (2,), (4, 4), (8, 8), (8, 8))
# The same for the decoder, from the deepest stage to the first; the last is half the width.
DECODER: tuple[tuple[float, ...], ...] = ((8, 8), (8, 4), (4, 2), (1,), (0.5,))
# Sides of SUMNet's input must be divisible by 2 ** (number of poolings).
MULTIPLE = 1 << len(ENCODER)
# A layer with fewer inputs or outputs than this has few: see `convolve`.
FEW_CHANNELS = 8
# A step keeps this share of batch norm's running statistics.
MOMENTUM = 0.9


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
    kernel: np.ndarray = np.arange(inputs)[:, None] % outputs == np.arange(outputs) % inputs
    return kernel.astype(dtype)[None, None]


# Pooling and its derivatives have two forms. Slices and `where` suit CPUs and GPUs. On a TPU, XLA's window operations
# need no copies into another layout. In both, all of a window's gradient goes to the first maximum in row-major order,
# as in PyTorch; autodiff of `jnp.max` would share the gradient among ties (frequent among ReLU's zeros).


def _windows(x: Array) -> list[Array]:
    """The four pixels of each 2x2 window, in row-major order: four arrays [B, H/2, W/2, C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    return [x[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


def _first_maximum(x: Array) -> tuple[Array, Array]:
    """The maximum of each window and, int8, its place 0..3."""
    best, *others = _windows(x)
    index = jnp.zeros(best.shape, jnp.int8)
    for k, other in enumerate(others, start=1):
        larger = other > best
        best, index = jnp.where(larger, other, best), jnp.where(larger, jnp.int8(k), index)
    return best, index


def _scatter(values: Array, index: Array) -> Array:
    b, h, w, c = values.shape
    four = [jnp.where(index == k, values, 0) for k in range(4)]
    rows = [jnp.stack(four[2 * i : 2 * i + 2], axis=3) for i in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, c)


def _spread(values: Array, index: Array) -> Array:
    """`_scatter` as one comparison, for GPUs: there, stacking copies everything once more."""
    b, h, w, c = values.shape
    place = jnp.arange(4, dtype=jnp.int8).reshape(2, 1, 2, 1)
    spread = jnp.where(index[:, :, None, :, None] == place, values[:, :, None, :, None], 0)
    return spread.reshape(b, 2 * h, 2 * w, c)


def _gather(values: Array, index: Array) -> Array:
    a, b, c, d = _windows(values)
    return jnp.where(index < 2, jnp.where(index == 0, a, b), jnp.where(index == 2, c, d))


def _reduce_windows(x: Array, start: float, reduce: Callable[..., Any]) -> Array:
    reduced: Array = lax.reduce_window(x, start, reduce, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return reduced


def _window_maximum(x: Array) -> Array:
    return _reduce_windows(x, -jnp.inf, lax.max)


def _window_scatter(values: Array, x: Array) -> Array:
    # The gradient of a maximum by reduce_window is XLA's select-and-scatter, which takes the first maximum.
    scattered: Array = jax.vjp(_window_maximum, x)[1](values)[0]
    return scattered


def _window_gather(values: Array, x: Array) -> Array:
    # By the scatter's own places, so that the two cannot differ on a tie.
    b, h, w, c = x.shape
    places = _window_scatter(jnp.ones((b, h // 2, w // 2, c), x.dtype), x)
    return _reduce_windows(jnp.where(places > 0, values, 0), 0.0, lax.add)


# The index serves CPUs and GPUs, and x a TPU; XLA removes what the platform does not need.


def _place(values: Array, index: Array, x: Array) -> Array:
    """Values [B, H/2, W/2, C] at the first maximum of each window of x [B, H, W, C], zeros elsewhere: [B, H, W, C]."""
    placed: Array = lax.platform_dependent(
        values,
        index,
        x,
        tpu=lambda v, _, x: _window_scatter(v, x),
        cuda=lambda v, i, _: _spread(v, i),
        default=lambda v, i, _: _scatter(v, i),
    )
    return placed


def _pick(values: Array, index: Array, x: Array) -> Array:
    """Values [B, H, W, C] at the first maximum of each window of x [B, H, W, C]: [B, H/2, W/2, C]."""
    picked: Array = lax.platform_dependent(
        values, index, x, tpu=lambda v, _, x: _window_gather(v, x), default=lambda v, i, _: _gather(v, i)
    )
    return picked


@jax.custom_vjp
def max_pool(x: Array) -> tuple[Array, Array]:
    """2x2 max pooling with the place of each maximum.

    Args:
      x: [B, H, W, C], H and W even.

    Returns:
      The maxima [B, H/2, W/2, C] and, int8, their places 0..3 in row-major order; the first one wins a tie.
    """
    pooled: tuple[Array, Array] = lax.platform_dependent(
        x, tpu=lambda x: (_window_maximum(x), _first_maximum(x)[1]), default=_first_maximum
    )
    return pooled


def _pool_forward(x: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    pooled, index = max_pool(x)
    return (pooled, index), (index, x)


max_pool.defvjp(_pool_forward, lambda residuals, gradients: (_place(gradients[0], *residuals),))


@jax.custom_vjp
def max_unpool(values: Array, index: Array, x: Array | None = None) -> Array:
    """The inverse placement of `max_pool`: each value goes to its place in a 2x2 window, zeros elsewhere.

    Args:
      values: [B, H, W, C].
      index: int8 [B, H, W, C], from `max_pool`.
      x: [B, 2H, 2W, C], what was pooled; with it, the function is fast on a TPU, too. It has no gradient.

    Returns:
      [B, 2H, 2W, C].
    """
    return _scatter(values, index) if x is None else _place(values, index, x)


def _unpool_backward(residuals: tuple[Array, Array | None], gradient: Array) -> tuple[Array, None, None]:
    index, x = residuals
    return (_gather(gradient, index) if x is None else _pick(gradient, index, x)), None, None


max_unpool.defvjp(lambda values, index, x=None: (max_unpool(values, index, x), (index, x)), _unpool_backward)


def convolve(x: Array, kernel: Array, strides: Sequence[int], padding: Any, **options: Any) -> Array:
    """`lax.conv_general_dilated` for the networks' layers; on a TPU, layers of few channels are matrix products.

    A TPU's convolution puts channels side by side in places for 128 of them, so that 2 or 3 leave it idle. As planes,
    with pixels side by side, the same layer and its gradients take half the time or less.
    """

    def plain(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)

    if min(kernel.shape[2:]) >= FEW_CHANNELS:
        return plain(x, kernel)
    convolved: Array = lax.platform_dependent(x, kernel, tpu=_convolve_planes, default=plain)
    return convolved


def _convolve_planes(x: Array, kernel: Array) -> Array:
    """Convolution in stride 1 with a margin of zeros, as one product of the shifted planes and the kernel."""
    (side, _, _, outputs), (_, height, width, _) = kernel.shape, x.shape
    margin = side // 2
    planes = jnp.pad(jnp.moveaxis(x, -1, 0), ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    shifted = [planes[:, :, i : i + height, j : j + width] for i in range(side) for j in range(side)]
    return jnp.einsum("pbhw,pk->bhwk", jnp.concatenate(shifted), kernel.reshape(-1, outputs))


def upsample(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """A transposed convolution of stride 2 with a 2x2 kernel, for the hook that Flax's `nn.Conv` has for convolutions.

    Each pixel becomes 2x2 pixels, which no other pixel reaches. For CPUs and GPUs this is one matrix product, because
    the gradient of `nn.ConvTranspose` takes a CPU tens of times as long. A TPU convolves pixels with zeros in between,
    which needs no copies into another layout.

    Args:
      x: [B, H, W, C].
      kernel: [2, 2, C, K]; pixel (i, j) times `kernel[u, v]` is pixel (2i + u, 2j + v).

    Returns:
      [B, 2H, 2W, K].
    """
    upsampled: Array = lax.platform_dependent(x, kernel, tpu=_upsample_dilated, default=_upsample_product)
    return upsampled


def _upsample_dilated(x: Array, kernel: Array) -> Array:
    turned = jnp.flip(kernel, (0, 1))
    margins = ((1, 1), (1, 1))
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, turned, (1, 1), margins, lhs_dilation=(2, 2), dimension_numbers=numbers)


def _upsample_product(x: Array, kernel: Array) -> Array:
    b, h, w, inputs = x.shape
    product = x.reshape(-1, inputs) @ jnp.moveaxis(kernel, 2, 0).reshape(inputs, -1)
    return product.reshape(b, h, w, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)


class _Segmenter(nn.Module):
    """The attributes, layers and encoder stages that SUMNet and the U-Net share; each describes its attributes."""

    num_classes: int = 3
    residual: bool = False
    width: int = 64
    batch_norm: str = "encoder"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    conv: Callable[..., Array] | None = None
    norm: Callable[..., nn.Module] = nn.BatchNorm

    def _check(self, images: Array) -> None:
        _, height, width, _ = images.shape
        if height % self.divisor or width % self.divisor:
            raise ValueError(f"{type(self).__name__} takes sides divisible by {self.divisor}, got {height} x {width}")
        if self.batch_norm not in ("encoder", "all", "none"):
            raise ValueError(f'batch_norm is "encoder", "all" or "none", got {self.batch_norm!r}')

    def _convolution(self, channels: int, side: int, name: str, **options: Any) -> nn.Conv:
        usual = {"kernel_init": he_normal, "bias_init": nn.initializers.zeros}
        usual["conv_general_dilated"] = self.conv or convolve
        return nn.Conv(channels, (side, side), dtype=self.dtype, name=name, **(usual | options))

    def _layer(self, x: Array, channels: float, name: str, normed: bool, train: bool, side: int = 3) -> Array:
        """A convolution to `channels` times the width, and batch norm where it is asked for."""
        channels = max(1, int(channels * self.width))
        # A bias before a batch norm has no effect, but its rounding makes devices drift apart.
        x = self._convolution(channels, side, f"conv{name}", use_bias=not normed)(x)
        if not normed:
            return x
        norm = self.norm(not train, momentum=MOMENTUM, dtype=self.dtype, axis_name=self.axis_name, name=f"norm{name}")
        normalised: Array = norm(x)
        return normalised

    def _encoder_stage(self, x: Array, stage: int, widths: Sequence[float], train: bool) -> Array:
        layer = partial(self._layer, normed=self.batch_norm != "none", train=train)
        shortcut = x
        for i, channels in enumerate(widths):
            if i:
                x = nn.relu(x)
            x = layer(x, channels, f"{stage}{'ab'[i] if len(widths) > 1 else ''}")
        if not self.residual:
            return nn.relu(x)
        if shortcut.shape != x.shape:
            shortcut = layer(shortcut, widths[-1], f"{stage}_shortcut", side=1)
        return nn.relu(x + shortcut)

    def _decoder_layer(self, x: Array, channels: float, name: str, train: bool) -> Array:
        return nn.relu(self._layer(x, channels, f"_up{name}", self.batch_norm == "all", train))

    def _logits(self, x: Array) -> Array:
        return self._convolution(self.num_classes, 1, "output")(x).astype(jnp.float32)


class SUMNet(_Segmenter):
    """SUMNet, or with `residual=True` Residual-SUMNet.

    Attributes:
      num_classes: classes, background included.
      residual: y = ReLU(F(x) + P(x)) around each encoder stage's convolutions F, where P is the identity, or a 1x1
        convolution with batch norm where the channels differ (He et al. 2016).
      width: channels of the first stage; 64 is the published network.
      batch_norm: "encoder", "all" (decoder too) or "none" (the published SUMNet of 2018).
      dtype: compute type; parameters and statistics are float32.
      axis_name: device axis over which batch norm's statistics are averaged, or None.
      conv: stands in for `lax.conv_general_dilated`, as in Flax's `nn.Conv`; None: `convolve`.
      norm: stands in for Flax's `nn.BatchNorm`.
      preconv_bias: the first value of the pre-convolution's biases. With 1, its ReLU cuts only what is more than one
        standard deviation below the mean.
    """

    preconv_bias: float = 1.0

    @property
    def divisor(self) -> int:
        """What divides the sides of a slice."""
        return MULTIPLE

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Images [B, H, W, M] (H and W divisible by 32) to float32 logits [B, H, W, num_classes]."""
        self._check(images)
        x = images.astype(self.dtype)
        first_bias = nn.initializers.constant(self.preconv_bias)
        x = nn.relu(self._convolution(3, 1, "preconv", kernel_init=pass_through, bias_init=first_bias)(x))
        skips = []
        for stage, widths in enumerate(ENCODER, start=1):
            x = self._encoder_stage(x, stage, widths, train)
            pooled, index = max_pool(x)
            skips.append((index, x))
            x = pooled
        for stage, widths in zip(range(len(DECODER), 0, -1), DECODER, strict=True):
            index, skip = skips.pop()
            x = jnp.concatenate([max_unpool(x, index, skip), skip], axis=-1)
            # The public SUMNet counts a decoder's convolutions backwards: donv5b, then donv5a.
            for channels, letter in zip(widths, "ba" if len(widths) == 2 else ("",), strict=True):
                x = self._decoder_layer(x, channels, f"{stage}{letter}", train)
        return self._logits(x)


class UNet(_Segmenter):
    """The U-Net with padded convolutions, so that the logits are as large as the images.

    Each stage has two 3x3 convolutions with ReLU. The encoder's stages have width x 1, 2, 4, 8, 8, ... channels (the
    published fifth has 16), with 2x2 max pooling between them. The decoder goes up by 2x2 transposed convolutions of
    stride 2. The encoder's features of the same size are concatenated to the result.

    Attributes:
      num_classes: classes, background included.
      residual: shortcuts around each encoder stage's convolutions, as in `SUMNet`.
      width: channels of the first stage.
      batch_norm: "encoder", "all" (decoder too) or "none" (as published in 2015).
      dtype: compute type; parameters and statistics are float32.
      axis_name: device axis over which batch norm's statistics are averaged, or None.
      conv: stands in for `lax.conv_general_dilated`, as in Flax's `nn.Conv`; None: `convolve`.
      norm: stands in for Flax's `nn.BatchNorm`.
      poolings: between the encoder's stages; there is one stage more. `poolings_for` gives the number for a size.
    """

    poolings: int = 4

    @property
    def divisor(self) -> int:
        """What divides the sides of a slice."""
        return 1 << self.poolings

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Images [B, H, W, M] (H and W divisible by 2**poolings) to float32 logits [B, H, W, num_classes]."""
        self._check(images)
        widths = [min(2**stage, 8) for stage in range(self.poolings + 1)]
        x = self._encoder_stage(images.astype(self.dtype), 1, (1, 1), train)
        skips = []
        for stage, channels in enumerate(widths[1:], start=2):
            skips.append(x)
            x = self._encoder_stage(max_pool(x)[0], stage, (channels, channels), train)
        for stage in range(self.poolings, 0, -1):
            channels = widths[stage - 1]
            # Its kernel's first numbers have the variance of a 2x2 convolution's, as those of `nn.ConvTranspose`.
            x = self._convolution(channels * self.width, 2, f"up{stage}", conv_general_dilated=upsample)(x)
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            for letter in "ab":
                x = self._decoder_layer(x, channels, f"{stage}{letter}", train)
        return self._logits(x)


def poolings_for(size: tuple[int, int]) -> int:
    """The number of poolings that suits a U-Net for slices of a size.

    It pools while the smaller side of the features is at least 8, so that no side is pooled below 4. nnU-Net plans so
    for square slices (Isensee et al. 2021). Here it pools at least once and at most five times.
    """
    poolings = 1
    while poolings < 5 and min(size) >= 8 * 2**poolings:
        poolings += 1
    return poolings


class Discriminator(nn.Module):
    """A critic of segmentation maps: how real do they look, as one logit for each slice.

    Five 3x3 convolutions (width x 1, 2, 2, 4, 4) with LeakyReLU 0.2, batch norm on all but the first, 2x2 max pooling
    between them, the mean over all places and one linear output without sigmoid. LeakyReLU and the first layer's bias
    come after the pooling: they preserve order, so the result is the same for a quarter of the work.

    Attributes:
      width: channels of the first layer.
      dtype: compute type; parameters and statistics are float32.
      axis_name: device axis over which batch norm's statistics are averaged, or None.
      conv: stands in for `lax.conv_general_dilated`, as in Flax's `nn.Conv`; None: `convolve`.
      norm: stands in for Flax's `nn.BatchNorm`.
    """

    width: int = 64
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    conv: Callable[..., Array] | None = None
    norm: Callable[..., nn.Module] = nn.BatchNorm

    @nn.compact
    def __call__(self, maps: Array, train: bool = False) -> Array:
        """Maps [B, H, W, K] (H and W at least 32) to float32 critic logits [B]."""
        if min(maps.shape[1:3]) < 32:
            raise ValueError(f"Discriminator takes sides of at least 32, got {maps.shape[1]} x {maps.shape[2]}")

        def pool(x: Array) -> Array:
            # An odd last row or column is dropped, as in PyTorch's pooling.
            return max_pool(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2])[0]

        def convolve_and_pool(*args: Any, **options: Any) -> Array:
            return pool((self.conv or convolve)(*args, **options))

        zeros = nn.initializers.zeros
        conv = partial(nn.Conv, kernel_size=(3, 3), dtype=self.dtype, kernel_init=he_normal, bias_init=zeros)
        norm = partial(self.norm, not train, momentum=MOMENTUM, dtype=self.dtype, axis_name=self.axis_name)
        x = maps.astype(self.dtype)
        widths = (1, 2, 2, 4, 4)
        for i, channels in enumerate(widths):
            function = (self.conv or convolve) if i else convolve_and_pool
            x = conv(channels * self.width, use_bias=i == 0, conv_general_dilated=function, name=f"conv{i + 1}")(x)
            if i:
                x = norm(name=f"norm{i + 1}")(x)
                x = pool(x) if i < len(widths) - 1 else x
            x = nn.leaky_relu(x, 0.2)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        return nn.Dense(1, kernel_init=he_normal, bias_init=zeros, name="output")(x)[:, 0]
