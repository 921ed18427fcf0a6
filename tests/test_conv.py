from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from isles_jax import conv

NUMBERS = ("NHWC", "HWIO", "NHWC")


def plain(x, kernel, **options):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS, **options)


def draw(*shape, dtype=np.float64):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(dtype)


def faster(x, kernel, **options):
    return conv.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS, **options)


# Winograd; Winograd in the kernel's gradient alone, for many pixels and for few channels; odd sides; a matrix product.
CASES = [(6, 8, 64, 72, 3), (64, 64, 64, 65, 3), (6, 6, 32, 48, 3), (5, 6, 64, 64, 3), (5, 4, 3, 2, 1)]


@pytest.mark.parametrize(("h", "w", "c", "k", "size"), CASES)
def test_values_and_gradients_are_those_of_the_convolution(h, w, c, k, size):
    with jax.enable_x64(True):
        x, kernel, weights = draw(2, h, w, c), draw(size, size, c, k), draw(2, h, w, k)

        def both(function):
            output, pullback = jax.vjp(function, x, kernel)
            return output, *pullback(jnp.asarray(weights))

        ours = jax.jit(lambda: both(partial(faster, least=0)))()
        for got, expected in zip(ours, jax.jit(lambda: both(plain))(), strict=True):
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def products(h, w, c, k, side=3, **options):
    """How many matrix products a layer has, and how many it has with its gradients."""
    x, kernel = jnp.zeros((1, h, w, c)), jnp.zeros((side, side, c, k))
    convolve = partial(faster, **options)
    with_gradients = jax.grad(lambda *arguments: convolve(*arguments).sum(), (0, 1))
    return [str(jax.make_jaxpr(f)(x, kernel)).count("dot_general") for f in (convolve, with_gradients)]


def test_products_are_used_where_they_are_faster_and_nowhere_else():
    # 32 x 32 x 64 x 64 is 4.2 million, and 32 x 30 x 64 x 64 less than 4 million.
    assert products(32, 32, 64, 64) == [16, 48]
    assert products(32, 30, 64, 64) == [0, 0]
    assert products(32, 30, 64, 64, least=3_900_000) == [16, 48]
    assert products(96, 128, 128, 32) == products(48, 64, 32, 128) == [0, 16]
    assert products(33, 32, 64, 64) == products(64, 64, 31, 64) == [0, 0]
    assert products(33, 32, 64, 64, side=1) == [1, 3]
    assert products(31, 31, 64, 64, side=1) == [0, 0]


def test_rounding_is_that_of_a_direct_convolution():
    x, kernel = draw(2, 12, 16, 64, dtype=np.float32), draw(3, 3, 64, 64, dtype=np.float32)
    with jax.enable_x64(True):
        exact = np.asarray(plain(x.astype(np.float64), kernel.astype(np.float64)))
    errors = [np.linalg.norm(np.asarray(f(x, kernel)) - exact) for f in (conv.conv, plain)]
    assert 0 < errors[0] < 10 * errors[1]
    assert errors[0] < 2e-6 * np.linalg.norm(exact)


OPTIONS = [
    {},
    {"strides": 2},
    {"padding": "VALID"},
    {"kernel_dilation": 2},
    {"feature_group_count": 2},
    {"kernel_size": (5, 5)},
    {"dtype": jnp.bfloat16},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_flax_convolutions_agree_for_every_option(options):
    words = {"features": 64, "kernel_size": (3, 3)} | options
    x = draw(2, 8, 8, 64, dtype=np.float32)
    variables = jax.jit(nn.Conv(**words).init)(jax.random.key(0), x)
    expected = jax.jit(nn.Conv(**words).apply)(variables, x)
    ours = partial(conv.conv_general_dilated, least=0)
    got = jax.jit(nn.Conv(**words, conv_general_dilated=ours).apply)(variables, x)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, atol=1e-5)
