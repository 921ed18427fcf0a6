"""Faster convolutions for CPUs, behind the hook that Flax's `nn.Conv` has for them (`conv_general_dilated=`).

XLA's CPU convolution is slow for many channels, most of all in the gradient of the kernel. Here 1x1 kernels are matrix
products, and 3x3 kernels use Winograd's F(2x2, 3x3) (Lavin and Gray 2016, arXiv 1509.09308): 4 multiplications in place
of 9 for an output and an input channel. A tile of 4x4 inputs and the kernel are transformed by additions and halvings,
multiplied place by place, which over all tiles is 16 matrix products, and transformed back to 2x2 outputs. Small layers
are left to `lax`. On GPU and TPU `lax` is right. experiments/speed.md has the measurements.
"""

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

# Y = A' [(G g G') * (B' d B)] A, equation 8 there; d the 4x4 tile of inputs, g the kernel, Y the 2x2 outputs.
_INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))
_TURNED = (3, 1, 2, 0)
# The work of a layer is H W C K: the multiplications in one image for one place of its kernel. With less work, `lax` is
# as fast.
LEAST_WORK = 4_000_000
# With fewer channels on either side, the transforms cost more than the products they save: in the gradient of the
# kernel, and in the convolution itself and the gradient of its input.
_CHANNELS_OF_KERNEL = 32
_CHANNELS = 64
# In larger slices memory bounds the transforms of a forward pass, and the plain convolution is faster.
_PIXELS = 4000

Planes = list[list[Array]]
Matrix = tuple[tuple[float, ...], ...]


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Any,
    padding: Any,
    *,
    dimension_numbers: Any,
    least: float = LEAST_WORK,
    **options: Any,
) -> Array:
    """`lax.conv_general_dilated` for Flax's channels-last `nn.Conv`, faster where it can be.

    That is for layers with H W C K of `least` or more, in stride 1 with "SAME" padding, in float32 or float64. Their
    kernels are 1x1, or 3x3 with even sides of the image and 32 channels or more. Each such layer compiles for seconds
    longer. Sums are rounded in another order, with an error like that of a direct convolution.
    """
    simple = padding == "SAME" and tuple(window_strides) == (1, 1) and options.get("feature_group_count", 1) == 1
    simple = simple and all(tuple(options.get(key, (1, 1))) == (1, 1) for key in ("lhs_dilation", "rhs_dilation"))
    if simple and jnp.finfo(lhs.dtype).bits >= 32 and _is_faster(lhs, rhs, least):
        return conv(lhs, rhs)
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, dimension_numbers=dimension_numbers, **options)


def _is_faster(x: Array, kernel: Array, least: float) -> bool:
    if x.ndim != 4 or math.prod(x.shape[1:3] + kernel.shape[2:]) < least:
        return False
    even = x.shape[1] % 2 == x.shape[2] % 2 == 0
    tiled = kernel.shape[:2] == (3, 3) and even and min(kernel.shape[2:]) >= _CHANNELS_OF_KERNEL
    return tiled or kernel.shape[:2] == (1, 1)


@jax.custom_vjp
def conv(x: Array, kernel: Array) -> Array:
    """Convolution in stride 1 with a margin of zeros.

    Args:
      x: [B, H, W, C]; H and W even for a kernel of 3x3.
      kernel: [1, 1, C, K] or [3, 3, C, K].

    Returns:
      [B, H, W, K].
    """
    return _convolve(x, kernel, transposed=False)


def _convolve(x: Array, kernel: Array, transposed: bool) -> Array:
    """Convolution with a kernel, or with the transposed one: turned by 180 degrees, with its channels swapped.

    The gradient of x needs the transposed kernel. Products need no copy for it: they read either order of the factor.
    """
    b, h, w, c = x.shape
    if len(kernel) == 1:
        return _product(x.reshape(-1, c), kernel[0, 0], transposed).reshape(b, h, w, -1)
    if min(kernel.shape[2:]) >= _CHANNELS and h * w <= _PIXELS:
        return _winograd(x, kernel, transposed)
    order = "HWIO"
    if transposed:
        kernel = jnp.flip(kernel, (0, 1))
        order = "HWOI"
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", order, "NHWC"))


def _product(x: Array, weights: Array, transposed: bool) -> Array:
    return lax.dot_general(x, weights, (((1,), (int(transposed),)), ((), ())))


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    of_x = _convolve(gradient, kernel, transposed=True)
    if len(kernel) == 1:
        rows = gradient.reshape(-1, gradient.shape[-1])
        return of_x, (x.reshape(-1, x.shape[-1]).T @ rows)[None, None]
    return of_x, _winograd_of_kernel(x, gradient)


conv.defvjp(lambda x, kernel: (conv(x, kernel), (x, kernel)), _backward)


def _winograd(x: Array, kernel: Array, transposed: bool) -> Array:
    weights = _both(_KERNEL, [[kernel[i, j] for j in range(3)] for i in range(3)])
    if transposed:
        # Turning the kernel exchanges the first row of _KERNEL and the last, so the forward pass's weights serve again.
        weights = [[weights[i][j] for j in _TURNED] for i in _TURNED]
    b, h, w, _ = x.shape
    # Sixteen products: one batched product is slower on CPU.
    products = [
        [_product(t, u, transposed) for t, u in zip(*rows, strict=True)]
        for rows in zip(_tiles(x), weights, strict=True)
    ]
    rows = [jnp.stack([y.reshape(b, h // 2, w // 2, -1) for y in row], axis=3) for row in _both(_OUTPUT, products)]
    return jnp.stack(rows, axis=2).reshape(b, h, w, -1)


def _winograd_of_kernel(x: Array, gradient: Array) -> Array:
    """The kernel's gradient, from those of the products and of the transformed kernel."""
    b, h, w, k = gradient.shape
    windows = gradient.reshape(b, h // 2, 2, w // 2, 2, k)
    of_products = _both(_transpose(_OUTPUT), [[windows[:, :, i, :, j].reshape(-1, k) for j in (0, 1)] for i in (0, 1)])
    of_weights = [[t.T @ g for t, g in zip(*rows, strict=True)] for rows in zip(_tiles(x), of_products, strict=True)]
    return jnp.stack([jnp.stack(row) for row in _both(_transpose(_KERNEL), of_weights)])


def _tiles(x: Array) -> Planes:
    """The transformed 4x4 tiles: for each of 4x4 places [tiles, C]."""
    b, h, w, c = x.shape
    # The barrier keeps XLA from making the margin again for each of its readers.
    margin: Array = lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))

    def plane(i: int, j: int) -> Array:
        return lax.slice(margin, (0, i, j, 0), (b, i + h - 1, j + w - 1, c), (1, 2, 2, 1))

    planes = [[plane(i, j) for j in range(4)] for i in range(4)]
    return [[tile.reshape(-1, c) for tile in row] for row in _both(_INPUT, planes)]


def _both(matrix: Matrix, planes: Planes) -> Planes:
    """matrix @ planes @ matrix', where planes is a matrix of arrays."""
    columns = [_apply(matrix, column) for column in zip(*planes, strict=True)]
    return [_apply(matrix, row) for row in zip(*columns, strict=True)]


def _apply(matrix: Matrix, planes: tuple[Array, ...]) -> list[Array]:
    # No row is all zeros, so no sum is the int that it begins with.
    return [
        cast(Array, sum(factor * plane for factor, plane in zip(row, planes, strict=True) if factor)) for row in matrix
    ]


def _transpose(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))
