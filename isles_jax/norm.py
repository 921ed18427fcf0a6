"""Batch norm for GPUs, in place of Flax's `nn.BatchNorm`: the same function, with fewer passes over memory.

XLA gives a sum over all pixels of a small picture to few of a GPU's multiprocessors, and Flax's gradient keeps float32
copies of the layer's input. Here each sum has two stages, the first of which has enough parts for the whole device, and
the gradient is written out (Ioffe and Szegedy 2015, arXiv 1502.03167, section 3).
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

Residuals = tuple[Array, Array, Array, Array]


class BatchNorm(nn.BatchNorm):
    """Flax's batch norm over the last axis, with scale and bias. Variables, their names and the options are Flax's.

    Running statistics have no gradient.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:  # type: ignore[override]  # Flax's takes options at the call, too
        """Normalises [..., C] with the statistics of this batch, or with the running ones."""
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", self.bias_init, shape)
        if self.use_running_average:
            return _apply(x, mean.value, lax.rsqrt(var.value + self.epsilon) * scale, bias)
        axis_name = None if self.is_initializing() else self.axis_name
        y, batch_mean, batch_var = _normalise(axis_name, self.epsilon, x, scale, bias)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y


def _apply(x: Array, mean: Array, factor: Array, bias: Array) -> Array:
    return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalise(
    axis_name: str | None, epsilon: float, x: Array, scale: Array, bias: Array
) -> tuple[Array, Array, Array]:
    """The normalised x, and the mean and the variance that it was normalised with."""
    return _forward(axis_name, epsilon, x, scale, bias)[0]


def _forward(
    axis_name: str | None, epsilon: float, x: Array, scale: Array, bias: Array
) -> tuple[tuple[Array, Array, Array], Residuals]:
    wide = x.astype(jnp.float32)
    mean, square = _means(axis_name, x, _sum(wide), _sum(wide * wide))
    var = jnp.maximum(square - mean * mean, 0.0)
    inverse = lax.rsqrt(var + epsilon)
    return (_apply(x, mean, inverse * scale, bias), mean, var), (x, mean, inverse, scale)


def _backward(
    axis_name: str | None, epsilon: float, saved: Residuals, gradients: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = saved
    gradient = gradients[0].astype(jnp.float32)
    normalised = (x.astype(jnp.float32) - mean) * inverse
    of_bias = _sum(gradient)
    of_scale = _sum(gradient * normalised)
    mean_gradient, mean_product = _means(axis_name, x, of_bias, of_scale)
    of_x = (gradient - mean_gradient - normalised * mean_product) * (inverse * scale)
    return of_x.astype(x.dtype), of_scale, of_bias


_normalise.defvjp(_forward, _backward)


def _means(axis_name: str | None, x: Array, *sums: Array) -> list[Array]:
    """Means from sums over all pixels of x, and over the devices of the axis."""
    means = [total / (x.size // x.shape[-1]) for total in sums]
    return lax.pmean(means, axis_name) if axis_name else means


def _sum(x: Array) -> Array:
    """The sum over all axes but the last, in two stages of about as many terms each."""
    count = x.size // x.shape[-1]
    rows = 1
    while 4 * rows * rows <= count and count % (2 * rows) == 0:
        rows *= 2
    # The barrier keeps XLA from making one sum of the two.
    partial_sums = lax.optimization_barrier(x.reshape(count // rows, rows, -1).sum(1))
    total: Array = partial_sums.sum(0)
    return total
