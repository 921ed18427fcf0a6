import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import shapes
from jax import lax

from isles_jax.models import Discriminator, SUMNet, convolve, max_pool, max_unpool

pytestmark = pytest.mark.device


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def draw(module, *image_shape):
    """Variables of a network with kernels of He's deviation: its own initialisation takes seconds to compile."""
    rng = np.random.default_rng(0)

    def leaf(path, x):
        if path[-1].key == "kernel":
            return jnp.asarray(rng.normal(size=x.shape) * (2 / np.prod(x.shape[:-1])) ** 0.5, x.dtype)
        return jnp.full(x.shape, path[-1].key in ("scale", "var"), x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes(module, *image_shape))


def brute_pool(x):
    """Max pooling by loops: the maximum of each window and the first place where it stands."""
    b, h, w, c = x.shape
    pooled, index = np.zeros((b, h // 2, w // 2, c), x.dtype), np.zeros((b, h // 2, w // 2, c), np.int8)
    for n, i, j, k in itertools.product(range(b), range(h // 2), range(w // 2), range(c)):
        window = x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, k].ravel()
        pooled[n, i, j, k], index[n, i, j, k] = window.max(), window.argmax()
    return pooled, index


def brute_place(values, index):
    b, h, w, c = values.shape
    placed = np.zeros((b, 2 * h, 2 * w, c), values.dtype)
    for n, i, j, k in np.ndindex(*values.shape):
        row, column = divmod(int(index[n, i, j, k]), 2)
        placed[n, 2 * i + row, 2 * j + column, k] = values[n, i, j, k]
    return placed


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def form(request, take_form):
    """Each platform's form of what has several, on this CPU."""
    take_form(request.param)


@pytest.fixture
def tied():
    """Small integers: most windows hold their maximum more than once."""
    return np.random.default_rng(0).integers(0, 3, (2, 6, 4, 3)).astype(np.float32)


@pytest.mark.usefixtures("form")
def test_pooling_takes_the_first_maximum(tied):
    expected, places = brute_pool(tied)
    pooled, index = max_pool(tied)
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_array_equal(index, places)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("also", [False, True], ids=["index", "index and pooled"])
def test_unpooling_places_and_gathers_its_gradient(tied, also):
    pooled, index = brute_pool(tied)
    x = tied if also else None
    # The values that are placed need not be the maxima.
    values = np.random.default_rng(3).normal(size=pooled.shape).astype(np.float32)
    np.testing.assert_array_equal(max_unpool(values, index, x), brute_place(values, index))
    weights = np.random.default_rng(2).normal(size=tied.shape).astype(np.float32)
    gradient = jax.grad(lambda v: (max_unpool(v, index, x) * weights).sum())(pooled)
    expected = brute_pool(np.where(brute_place(np.ones_like(pooled), index) > 0, weights, -np.inf))[0]
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.usefixtures("form")
def test_gradients_go_to_the_first_maximum_alone(tied):
    weights = np.random.default_rng(1).normal(size=(2, 3, 2, 3)).astype(np.float32)
    gradient = jax.grad(lambda x: (max_pool(x)[0] * weights).sum())(tied)
    np.testing.assert_array_equal(gradient, brute_place(weights, brute_pool(tied)[1]))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("inputs", "outputs", "side"), [(2, 16, 3), (3, 3, 1), (32, 3, 1), (9, 8, 3)])
def test_layers_of_few_channels_are_the_same_convolution(inputs, outputs, side):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel, weights = (
            jnp.asarray(rng.normal(size=s))
            for s in ((2, 6, 4, inputs), (side, side, inputs, outputs), (2, 6, 4, outputs))
        )
        numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        expected, pullback = jax.vjp(lambda *a: lax.conv_general_dilated(*a, (1, 1), "SAME", **numbers), x, kernel)
        got, got_pullback = jax.vjp(lambda *a: convolve(*a, (1, 1), "SAME", **numbers), x, kernel)
        for one, other in zip((got, *got_pullback(weights)), (expected, *pullback(weights)), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize(("batch_norm", "expected"), [("none", 23_857_871), ("encoder", 23_857_871 + 5_504 - 2_752)])
def test_published_number_of_parameters(batch_norm, expected):
    # Batch norm adds a scale and an offset a channel (5,504) and makes the encoder's biases needless (2,752).
    assert count(shapes(SUMNet(batch_norm=batch_norm), 1, 32, 32, 3)["params"]) == expected


@pytest.mark.parametrize("batch_norm", ["encoder", "all"])
def test_no_bias_before_a_batch_norm(batch_norm):
    variables = shapes(SUMNet(residual=True, width=4, batch_norm=batch_norm), 1, 32, 32, 3)
    normed = {name.removeprefix("norm") for name in variables["batch_stats"]}
    assert normed
    for name, leaves in variables["params"].items():
        if name.startswith("conv"):
            assert ("bias" in leaves) == (name.removeprefix("conv") not in normed), name


def conv(x, p):
    y = lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + p.get("bias", 0)


def norm(x, p, s):
    return (x - s["mean"]) / jnp.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]


@pytest.mark.slow
@pytest.mark.parametrize("residual", [False, True])
def test_layers_are_those_of_the_table(residual):
    """The network written out once more, layer by layer."""
    module = SUMNet(residual=residual, width=4, num_classes=3)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 64, 32, 3)).astype(np.float32)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.1, 0.5, x.shape) * rng.choice([1, 1, -1], x.shape), jnp.float32),
        shapes(module, *images.shape),
    )
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    p, s = variables["params"], variables["batch_stats"]

    def cn(x, name):
        return norm(conv(x, p[f"conv{name}"]), p[f"norm{name}"], s[f"norm{name}"])

    relu = jax.nn.relu

    def stage(x, names, shortcut):
        y = x
        for name in names[:-1]:
            y = relu(cn(y, name))
        y = cn(y, names[-1])
        if residual:
            y = y + (cn(x, shortcut) if shortcut else x)
        return relu(y)

    with jax.default_matmul_precision("highest"):
        x = relu(conv(images, p["preconv"]))
        e1 = stage(x, ["1"], "1_shortcut")
        x, i1 = brute_pool(np.asarray(e1))
        e2 = stage(x, ["2"], "2_shortcut")
        x, i2 = brute_pool(np.asarray(e2))
        e3 = stage(x, ["3a", "3b"], "3_shortcut")
        x, i3 = brute_pool(np.asarray(e3))
        e4 = stage(x, ["4a", "4b"], "4_shortcut")
        x, i4 = brute_pool(np.asarray(e4))
        e5 = stage(x, ["5a", "5b"], None)
        x, i5 = brute_pool(np.asarray(e5))
        for names, skip, index in [
            (["5b", "5a"], e5, i5), (["4b", "4a"], e4, i4), (["3b", "3a"], e3, i3), (["2"], e2, i2), (["1"], e1, i1),
        ]:  # fmt: skip
            x = jnp.concatenate([brute_place(np.asarray(x), index), skip], axis=-1)
            for name in names:
                x = relu(conv(x, p[f"conv_up{name}"]))
        expected = conv(x, p["output"])
    got = jax.jit(module.apply)(variables, images)
    assert jnp.linalg.norm(got - expected) < 1e-5 * jnp.linalg.norm(expected)
    assert jnp.std(expected) > 0


def test_residual_adds_shortcuts_only_where_channels_differ():
    plain, residual = (shapes(SUMNet(residual=r, width=4), 1, 32, 32, 3)["params"] for r in (False, True))
    assert residual.keys() - plain.keys() == {f"{kind}{i}_shortcut" for kind in ("conv", "norm") for i in (1, 2, 3, 4)}


def train(module):
    return jax.jit(lambda variables, images: module.apply(variables, images, train=True, mutable=["batch_stats"]))


@pytest.mark.parametrize("module", [SUMNet(width=4, residual=True), Discriminator(width=4)])
def test_low_precision_keeps_parameters_and_outputs_in_float32(module):
    low = module.clone(dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(0), (2, 32, 64, 3))
    variables = draw(low, *images.shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    output, updates = train(low)(variables, images)
    assert output.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
    exact = train(module)(variables, images)[0]
    assert 0 < jnp.linalg.norm(output - exact) < 0.1 * jnp.linalg.norm(exact)


@pytest.mark.parametrize("shape", [(2, 32, 32, 1), (3, 47, 101, 2), (1, 96, 112, 1)])
def test_discriminator_gives_one_logit_a_slice(shape):
    module = Discriminator(width=4)
    maps = jax.random.uniform(jax.random.key(0), shape)
    variables = draw(module, *shape)
    logits = jax.jit(module.apply)(variables, maps)
    assert logits.shape == shape[:1]
    assert logits.dtype == jnp.float32
    # Without batch statistics one slice's verdict does not depend on the others.
    np.testing.assert_allclose(jax.jit(module.apply)(variables, maps[:1])[0], logits[0], rtol=1e-5)


def test_sides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="divisible by 32, got 48 x 32"):
        shapes(SUMNet(width=4), 1, 48, 32, 3)
    with pytest.raises(ValueError, match="at least 32, got 31 x 40"):
        shapes(Discriminator(width=4), 1, 31, 40, 1)
    with pytest.raises(ValueError, match="batch_norm"):
        shapes(SUMNet(width=4, batch_norm="decoder"), 1, 32, 32, 3)


@pytest.mark.parametrize("size", [(32, 32), (35, 40)])
def test_a_critic_may_pool_before_its_first_bias_and_its_activations(size):
    """The critic written out with each activation before the pooling, as it is defined."""
    module = Discriminator(width=4)
    rng = np.random.default_rng(0)
    maps = rng.uniform(size=(2, *size, 2)).astype(np.float32)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.3, 0.5, x.shape), jnp.float32), shapes(module, *maps.shape)
    )
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    p, s = variables["params"], variables["batch_stats"]
    x = maps
    for i in range(1, 6):
        x = conv(x, p[f"conv{i}"])
        x = norm(x, p[f"norm{i}"], s[f"norm{i}"]) if i > 1 else x
        x = jnp.where(x >= 0, x, 0.2 * x)
        if i < 5:
            x = brute_pool(np.asarray(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]))[0]
    expected = x.mean((1, 2)) @ p["output"]["kernel"][:, 0] + p["output"]["bias"]
    np.testing.assert_allclose(jax.jit(module.apply)(variables, maps), expected, rtol=1e-4)
