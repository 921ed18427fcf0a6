"""The U-Net against the same network written in NumPy and SciPy, and against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import shapes
from scipy.signal import correlate2d

from isles_jax.models import UNet, poolings_for, upsample

pytestmark = pytest.mark.device


def draw(module, *image_shape):
    """Random variables, none of them 0 or 1, that keep the size of features; statistics as those of a running mean."""
    rng = np.random.default_rng(0)

    def leaf(path, x):
        if path[-1].key == "kernel":
            return (rng.normal(size=x.shape) * (2 / np.prod(x.shape[:-1])) ** 0.5).astype(np.float32)
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        return rng.normal(0, 0.3, x.shape).astype(np.float32)

    return jax.tree.map_with_path(leaf, shapes(module, *image_shape))


def pictures(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def distance(got, expected):
    """The error's norm as a share of the expected values' norm, after a check that these say something."""
    expected = np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    assert expected.std() > 0.01
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("size", "poolings"),
    [((96, 110), 4), ((56, 48), 3), ((64, 64), 4), ((32, 32), 3), ((9, 8), 1), ((5, 300), 1), ((512, 640), 5)],
)
def test_poolings_suit_the_size(size, poolings):
    assert poolings_for(size) == poolings
    assert poolings_for(size[::-1]) == poolings


def test_no_side_is_pooled_below_four():
    for side in range(8, 600):
        poolings = poolings_for((side, 600))
        assert side / 2**poolings >= 4
        # One pooling more would be too many, or was not asked for.
        assert side / 2 ** (poolings + 1) < 4 or poolings == 5


@pytest.mark.parametrize("poolings", [1, 3, 5])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_as_large_as_the_images(poolings, dtype):
    module = UNet(width=2, num_classes=4, poolings=poolings, dtype=dtype)
    side = 2**poolings
    shape = (2, 2 * side, 3 * side, 5)
    variables = shapes(module, *shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    logits = jax.eval_shape(module.apply, variables, jnp.zeros(shape))
    assert logits.shape == (*shape[:3], 4)
    assert logits.dtype == jnp.float32


def test_sides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="UNet takes sides divisible by 8, got 24 x 20"):
        shapes(UNet(width=2, poolings=3), 1, 24, 20, 3)
    shapes(UNet(width=2, poolings=2), 1, 24, 20, 3)
    with pytest.raises(ValueError, match="batch_norm"):
        shapes(UNet(width=2, batch_norm="decoder"), 1, 32, 32, 3)


def test_number_of_parameters():
    """Without batch norm, counted by hand: kernels and biases of four poolings' 23 layers at width 1."""
    # Of 3 channels and 2 classes: stages 1, 2, 4, 8, 8 down, transposed convolutions, stages 8, 4, 2, 1 up, the output.
    down = (28 + 10) + (20 + 38) + (76 + 148) + (296 + 584) + (584 + 584)
    transposed = (4 * 8 * 8 + 8) + (4 * 8 * 4 + 4) + (4 * 4 * 2 + 2) + (4 * 2 * 1 + 1)
    up = (9 * 16 * 8 + 8 + 584) + (9 * 8 * 4 + 4 + 148) + (9 * 4 * 2 + 2 + 38) + (9 * 2 * 1 + 1 + 10)
    module = UNet(width=1, num_classes=2, batch_norm="none")
    params = shapes(module, 1, 16, 16, 3)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == down + transposed + up + (1 * 2 + 2)
    assert len(params) == 10 + 4 + 8 + 1


ENCODER = {f"{stage}{letter}" for stage in (1, 2, 3) for letter in "ab"}
SHORTCUTS = {"1_shortcut", "2_shortcut", "3_shortcut"}
DECODER = {f"_up{stage}{letter}" for stage in (1, 2) for letter in "ab"}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("batch_norm", "normed"), [("none", set()), ("encoder", ENCODER), ("all", ENCODER | DECODER)])
def test_batch_norm_is_where_it_is_asked_for(batch_norm, normed, residual):
    variables = shapes(UNet(width=2, poolings=2, batch_norm=batch_norm, residual=residual), 1, 8, 8, 3)
    params = variables["params"]
    layers = ENCODER | DECODER | (SHORTCUTS if residual else set())
    normed = normed | (SHORTCUTS if residual and normed else set())
    assert params.keys() == {
        *(f"conv{name}" for name in layers), *(f"norm{name}" for name in normed), "up1", "up2", "output"
    }  # fmt: skip
    assert variables.get("batch_stats", {}).keys() == {f"norm{name}" for name in normed}
    # No bias before a batch norm, and one everywhere else.
    assert {name for name in layers if "bias" not in params[f"conv{name}"]} == normed
    assert all("bias" in params[name] for name in ("up1", "up2", "output"))


def test_kernels_start_as_he_normal_and_biases_at_zero():
    module = UNet(width=8, poolings=1, batch_norm="none")
    params = jax.jit(lambda: module.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3))))()["params"]
    assert not any(np.any(layer["bias"]) for layer in params.values())
    for name in ("conv2b", "conv_up1a", "up1"):
        kernel = params[name]["kernel"]
        expected = (2 / np.prod(kernel.shape[:-1])) ** 0.5
        assert abs(float(kernel.std()) / expected - 1) < 0.15, name


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_transposed_convolution_gives_each_pixel_four(take_form, platform):
    take_form(platform)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    kernel = rng.normal(size=(2, 2, 4, 3)).astype(np.float32)
    weights = rng.normal(size=(2, 6, 10, 3)).astype(np.float32)
    got, pullback = jax.vjp(upsample, x, kernel)
    assert distance(got, raised(x, kernel)) < 1e-6
    # What is linear in x and in the kernel has the gradients by which both products with the weights agree.
    of_x, of_kernel = pullback(weights)
    direction = rng.normal(size=x.shape)
    np.testing.assert_allclose((of_x * direction).sum(), (weights * raised(direction, kernel)).sum(), rtol=1e-4)
    direction = rng.normal(size=kernel.shape)
    np.testing.assert_allclose((of_kernel * direction).sum(), (weights * raised(x, direction)).sum(), rtol=1e-4)


def raised(x, kernel):
    """A transposed convolution by loops."""
    batch, height, width, _ = x.shape
    out = np.zeros((batch, 2 * height, 2 * width, kernel.shape[-1]))
    for i, j in np.ndindex(height, width):
        for u, v in np.ndindex(2, 2):
            out[:, 2 * i + u, 2 * j + v] = x[:, i, j].astype(np.float64) @ kernel[u, v].astype(np.float64)
    return out


def convolved(x, layer):
    """A padded convolution, plane by plane."""
    kernel = np.asarray(layer["kernel"], np.float64)
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for n, before, after in np.ndindex(len(x), *kernel.shape[2:]):
        out[n, :, :, after] += correlate2d(x[n, :, :, before], kernel[:, :, before, after], "same")
    return out + layer.get("bias", 0)


def pooled(x):
    out = np.zeros((len(x), x.shape[1] // 2, x.shape[2] // 2, x.shape[3]))
    for i, j in np.ndindex(out.shape[1:3]):
        out[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2))
    return out


def plain_unet(variables, x, poolings, residual):
    """The U-Net in inference, in float64."""
    params, statistics = variables["params"], variables.get("batch_stats", {})

    def layer(x, name):
        x = convolved(x, params[f"conv{name}"])
        if f"norm{name}" not in params:
            return x
        norm, running = params[f"norm{name}"], statistics[f"norm{name}"]
        return (x - running["mean"]) / np.sqrt(running["var"] + 1e-5) * norm["scale"] + norm["bias"]

    def relu(x):
        return np.maximum(x, 0)

    skips = []
    for stage in range(1, poolings + 2):
        y = layer(relu(layer(x, f"{stage}a")), f"{stage}b")
        if residual:
            y = y + (layer(x, f"{stage}_shortcut") if x.shape[-1] != y.shape[-1] else x)
        skips.append(relu(y))
        x = pooled(skips[-1])
    x = skips.pop()
    for stage in range(poolings, 0, -1):
        up = raised(x, params[f"up{stage}"]["kernel"]) + params[f"up{stage}"]["bias"]
        x = np.concatenate([up, skips.pop()], axis=-1)
        x = relu(layer(relu(layer(x, f"_up{stage}a")), f"_up{stage}b"))
    return convolved(x, params["output"])


@pytest.mark.parametrize(("residual", "batch_norm"), [(False, "none"), (False, "all"), (True, "encoder")])
def test_layers_are_those_of_a_plain_network(residual, batch_norm):
    module = UNet(width=2, poolings=2, residual=residual, batch_norm=batch_norm)
    images = pictures(2, 8, 12, 3)
    variables = draw(module, *images.shape)
    got = jax.jit(module.apply)(variables, images)
    assert distance(got, plain_unet(variables, images, 2, residual)) < 1e-5


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("batch_norm", ["none", "encoder", "all"])
def test_pytorch_gives_the_same_logits(residual, batch_norm):
    torch = pytest.importorskip("torch")
    from experiments.benchmarks import torch_networks

    options = {"width": 4, "poolings": 3, "residual": residual, "batch_norm": batch_norm}
    module, other = UNet(**options), torch_networks.UNet(**options)
    images = pictures(3, 24, 32, 3)
    variables = draw(module, *images.shape)
    torch_networks.load(other, variables)

    weights = np.random.default_rng(2).normal(size=images.shape).astype(np.float32)

    def theirs():
        logits = other(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).moveaxis(1, -1)
        (logits * torch.from_numpy(weights)).sum().backward()
        return logits.detach().numpy()

    def ours(params):
        logits, updates = module.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return (logits * weights).sum(), (logits, updates)

    other.eval()
    assert distance(jax.jit(module.apply)(variables, images), theirs()) < 1e-5
    other.train()
    other.zero_grad()
    gradient, (logits, updates) = jax.jit(jax.grad(ours, has_aux=True))(variables["params"])
    assert distance(logits, theirs()) < 1e-5
    for name, running in updates.get("batch_stats", {}).items():
        assert distance(running["mean"], other.get_submodule(name).running_mean.numpy()) < 1e-5
    # The gradient in PyTorch's layout.
    holder = torch_networks.UNet(**options)
    torch_networks.load(holder, {**variables, "params": gradient})
    expected = torch.cat([weight.grad.ravel() for weight in other.parameters()]).numpy()
    got = torch.cat([weight.detach().ravel() for weight in holder.parameters()]).numpy()
    assert distance(got, expected) < 1e-4


def test_zeroed_convolutions_leave_the_shortcut():
    module = UNet(width=1, poolings=4, residual=True, batch_norm="none")
    images = pictures(2, 16, 32, 3)
    variables = draw(module, *images.shape)
    params = variables["params"]
    for stage in range(1, 6):
        for letter in "ab":
            params[f"conv{stage}{letter}"] = jax.tree.map(np.zeros_like, params[f"conv{stage}{letter}"])
    watch = jax.jit(lambda v: module.apply(v, images, capture_intermediates=lambda _, name: name == "_encoder_stage"))
    stages = watch(variables)[1]["intermediates"]["_encoder_stage"]
    assert len(stages) == 5
    # The shortcut has a convolution where the channels differ, which they do not between the last two stages.
    assert "conv5_shortcut" not in params
    x = images
    for stage, got in enumerate(stages, start=1):
        if stage < 5:
            shortcut = params[f"conv{stage}_shortcut"]
            x = x @ shortcut["kernel"][0, 0] + shortcut["bias"]
        x = np.maximum(x, 0)
        np.testing.assert_allclose(got, x, atol=1e-5)
        x = pooled(x)
    assert got.std() > 0


def test_the_gradient_is_the_slope():
    """Along the gradient, the value grows by its norm."""
    module = UNet(width=2, poolings=2, residual=True)
    images = pictures(2, 8, 12, 3)
    variables = draw(module, *images.shape)
    weights = np.random.default_rng(2).normal(size=(2, 8, 12, 3)).astype(np.float32)

    def value(params):
        logits, _ = module.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return (logits * weights).mean()

    compiled = jax.jit(jax.value_and_grad(value))
    params = variables["params"]
    gradient = jax.tree.map(np.asarray, compiled(params)[1])
    leaves = jax.tree.leaves(gradient)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in leaves)
    norm = sum(float((leaf.astype(np.float64) ** 2).sum()) for leaf in leaves) ** 0.5

    def moved(length):
        return float(compiled(jax.tree.map(lambda p, g: p + length / norm * g, params, gradient))[0])

    np.testing.assert_allclose((moved(1e-3) - moved(-1e-3)) / 2e-3, norm, rtol=0.01)
