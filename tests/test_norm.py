"""Batch norm for GPUs against Flax's, which differs from it by rounding alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isles_jax.norm import BatchNorm, _sum

SHAPES = [(2, 8, 6, 5), (8, 6, 4, 3), (3, 5, 7, 2), (16, 4), (1, 1, 1, 4)]


def inputs(shape):
    rng = np.random.default_rng(0)
    channels = shape[-1]
    variables = {
        "params": {"scale": rng.normal(size=channels), "bias": rng.normal(size=channels)},
        "batch_stats": {"mean": rng.normal(size=channels), "var": rng.random(channels) + 0.5},
    }
    x, weights = rng.normal(2.0, 3.0, size=(2, *shape))
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (variables, x, weights))


def results(module, shape, devices):
    """The output, the running statistics after it, and the gradients of parameters and input."""
    variables, x, weights = inputs(shape)

    def loss(params, x, weights):
        y, updates = module.apply(variables | {"params": params}, x, mutable=["batch_stats"])
        return (y * weights).sum(), (y, updates["batch_stats"])

    function = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    if devices == 1:
        (_, (y, statistics)), gradients = function(variables["params"], x, weights)
        return y, statistics, gradients
    halves = [array.reshape(devices, -1, *array.shape[1:]) for array in (x, weights)]
    (_, (y, statistics)), gradients = jax.vmap(function, (None, 0, 0), axis_name="data")(variables["params"], *halves)
    return y, statistics, gradients


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_statistics_and_gradients_are_those_of_flax(shape, devices):
    if shape[0] % devices:
        pytest.skip("the batch does not divide")
    options = {"use_running_average": False, "momentum": 0.9, "axis_name": "data" if devices > 1 else None}
    expected, got = (results(make(**options), shape, devices) for make in (nn.BatchNorm, BatchNorm))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-4)


def test_variables_and_inference_are_those_of_flax():
    variables, x, _ = inputs((2, 4, 4, 3))
    first = [make(False).init(jax.random.key(0), x) for make in (nn.BatchNorm, BatchNorm)]
    assert jax.tree.structure(first[0]) == jax.tree.structure(first[1])
    for one, other in zip(*map(jax.tree.leaves, first), strict=True):
        np.testing.assert_array_equal(one, other)
    expected, got = (make(True).apply(variables, x) for make in (nn.BatchNorm, BatchNorm))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_low_precision_comes_out_as_it_went_in_with_statistics_in_float32():
    variables, x, _ = inputs((2, 8, 8, 4))
    y, updates = BatchNorm(False, dtype=jnp.bfloat16).apply(variables, x.astype(jnp.bfloat16), mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("shape", [*SHAPES, (7, 3), (1, 2)])
def test_the_sum_in_two_stages_is_the_sum(shape):
    x = np.random.default_rng(1).integers(-9, 9, shape).astype(np.float32)
    np.testing.assert_array_equal(_sum(jnp.asarray(x)), x.reshape(-1, shape[-1]).sum(0))
