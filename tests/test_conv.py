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


# By Winograd; too many pixels for it but in the kernel's gradient; odd sides; few channels; a matrix product.
CASES = [(6, 8, 16, 24, 3), (64, 64, 16, 17, 3), (5, 6, 16, 16, 3), (6, 6, 2, 20, 3), (5, 4, 3, 2, 1)]


@pytest.mark.parametrize(("h", "w", "c", "k", "size"), CASES)
def test_values_and_gradients_are_those_of_the_convolution(h, w, c, k, size):
    with jax.enable_x64(True):
        x, kernel, weights = draw(2, h, w, c), draw(size, size, c, k), draw(2, h, w, k)

        def both(function):
            output, pullback = jax.vjp(function, x, kernel)
            return output, *pullback(jnp.asarray(weights))

        for got, expected in zip(jax.jit(lambda: both(conv.conv))(), jax.jit(lambda: both(plain))(), strict=True):
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_winograd_is_used_where_it_is_faster_and_nowhere_else():
    def products(h, w, c, k):
        return str(jax.make_jaxpr(conv.conv)(jnp.zeros((1, h, w, c)), jnp.zeros((3, 3, c, k)))).count("dot_general")

    assert products(8, 8, 16, 16) == 16
    assert products(9, 8, 16, 16) == products(8, 8, 15, 16) == products(96, 128, 16, 16) == 0


def test_rounding_is_that_of_a_direct_convolution():
    x, kernel = draw(2, 12, 16, 64, dtype=np.float32), draw(3, 3, 64, 32, dtype=np.float32)
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
    words = {"features": 16, "kernel_size": (3, 3)} | options
    x = draw(2, 8, 8, 16, dtype=np.float32)
    variables = jax.jit(nn.Conv(**words).init)(jax.random.key(0), x)
    expected = jax.jit(nn.Conv(**words).apply)(variables, x)
    got = jax.jit(nn.Conv(**words, conv_general_dilated=conv.conv_general_dilated).apply)(variables, x)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, atol=1e-5)
