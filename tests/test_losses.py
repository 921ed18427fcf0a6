"""The losses against brute force, closed forms and invariances."""

import ast
import doctest
import functools
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import segmentation_case as case
from helpers import softmax
from jax.sharding import Mesh, PartitionSpec

from isles_jax import losses

pytestmark = pytest.mark.device

DOCS = pathlib.Path(__file__).parent.parent / "docs" / "losses.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


# Oracles: numpy, float64, by the definitions.


def jaccard_loss(foreground, wrong):
    """1 - IoU of a prediction that errs exactly on the set `wrong`, both bool [N]."""
    union = (foreground | wrong).sum()
    return 1 - (foreground & ~wrong).sum() / union if union else 0.0


def extension(errors, foreground):
    """Lovasz extension of the Jaccard loss, by its definition as a telescoping set function: value and gradient."""
    gradient, wrong, before = np.zeros(errors.size), np.zeros(errors.size, bool), 0.0
    for i in np.argsort(-errors, kind="stable"):
        wrong[i] = True
        after = jaccard_loss(foreground, wrong)
        gradient[i], before = after - before, after
    return errors @ gradient, gradient


def brute_force(logits, labels, classes="present", per_image=False, where=None, class_weights=None):
    where = np.ones(labels.shape, bool) if where is None else np.broadcast_to(where, labels.shape)
    images = range(len(labels)) if per_image else [...]
    means = []
    for image in images:
        x, y = logits[image][where[image]].astype(np.float64), labels[image][where[image]]
        if not y.size:
            continue
        p, terms, weights = softmax(x), [], []
        for c in range(x.shape[-1]) if isinstance(classes, str) else classes:
            if classes != "present" or (y == c).any():
                terms.append(extension(np.where(y == c, 1 - p[:, c], p[:, c]), y == c)[0])
                weights.append(1.0 if class_weights is None else class_weights[c])
        means.append(np.average(terms, weights=weights))
    return np.mean(means) if means else 0.0


# Lovasz-softmax.


@pytest.mark.parametrize(
    ("shape", "num_classes", "classes", "per_image", "masked", "weighted"),
    [
        ((40,), 2, "present", False, False, False),
        ((40,), 2, (1,), False, True, False),
        ((3, 12), 3, "present", True, True, False),
        ((3, 12), 3, "all", False, True, True),
        ((3, 12), 3, (2, 0, 1), False, True, True),
        ((3, 5, 6), 4, "present", False, True, True),
        ((3, 5, 6), 4, (3, 1), True, False, True),
        ((2, 3, 4, 5), 3, "all", True, False, False),
        ((3, 4, 5), 21, "present", False, True, False),
        ((3, 4, 5), 21, "all", True, True, False),
    ],
)
def test_lovasz_softmax_is_its_definition(shape, num_classes, classes, per_image, masked, weighted):
    logits, labels, where = case(shape, num_classes)
    options = {"classes": classes, "per_image": per_image, "where": where if masked else None}
    options["class_weights"] = np.linspace(0.5, 2.0, num_classes) if weighted else None
    value = losses.lovasz_softmax(logits, labels, **options)
    assert value.dtype == jnp.float32
    assert value.shape == ()
    np.testing.assert_allclose(value, brute_force(logits, labels, **options), atol=2e-5)


@pytest.mark.parametrize("num_classes", [2, 3, 21])
def test_lovasz_softmax_gradient_is_that_of_float64_differences(num_classes):
    logits, labels, where = case((3, 7), num_classes, seed=1)
    gradient = jax.grad(losses.lovasz_softmax)(logits, labels, where=where)
    expected = np.zeros(logits.shape)
    for index in itertools.product(*map(range, logits.shape)):
        step = np.zeros(logits.shape)
        step[index] = 1e-6
        ahead, behind = (brute_force(logits.astype(np.float64) + s, labels, where=where) for s in (step, -step))
        expected[index] = (ahead - behind) / 2e-6
    np.testing.assert_allclose(gradient, expected, atol=2e-6)
    assert (np.asarray(gradient)[~where] == 0).all()


@pytest.mark.parametrize("bins", [None, 64])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_lovasz_softmax_is_one_minus_mean_iou_on_hard_predictions(num_classes, bins):
    rng = np.random.default_rng(2)
    labels, predicted = rng.integers(0, num_classes, (2, 500))
    iou = [
        ((labels == c) & (predicted == c)).sum() / ((labels == c) | (predicted == c)).sum() for c in range(num_classes)
    ]
    value = losses.lovasz_softmax(200.0 * np.eye(num_classes, dtype=np.float32)[predicted], labels, bins=bins)
    np.testing.assert_allclose(value, 1 - np.mean(iou), atol=1e-6)


def test_absent_class_costs_its_largest_probability():
    logits, labels, _ = case((50,), 3)
    labels = np.minimum(labels, 1)
    for bins, tolerance in ((None, 1e-7), (1001, 5e-4)):
        value = losses.lovasz_softmax(logits, labels, classes=(2,), bins=bins)
        np.testing.assert_allclose(value, softmax(logits)[:, 2].max(), atol=tolerance)


PER_IMAGE = [
    jax.jit(jax.value_and_grad(functools.partial(losses.lovasz_softmax, per_image=on))) for on in (False, True)
]


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("shape", [(33,), (4, 9)])
def test_lovasz_softmax_properties(shape, per_image):
    function = PER_IMAGE[per_image]
    draws = itertools.product((0.0, 1e-3, 1.0, 30.0, 1e4), (0.0, 0.05, 0.5, 1.0), (False, True), (1, 2, 3))
    for seed, (scale, keep, ties, present) in enumerate(draws):
        rng = np.random.default_rng(seed)
        logits = (scale * rng.standard_normal((*shape, 3))).astype(np.float32)
        logits = np.round(logits) if ties else logits
        labels, where = rng.integers(0, present, shape), rng.random(shape) < keep
        value, gradient = function(logits, labels, where=where)
        np.testing.assert_allclose(value, brute_force(logits, labels, per_image=per_image, where=where), atol=2e-5)
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[~where] == 0).all()
        # A softmax does not see a shift of its logits.
        np.testing.assert_allclose(np.sum(gradient, axis=-1), 0.0, atol=1e-6)
        # Neither garbage under the mask nor the order of the pixels plays a part.
        garbage = np.where(where[..., None], logits, np.nan), np.where(where, labels, 255)
        again = function(*garbage, where=where)
        np.testing.assert_array_equal(again[0], value)
        np.testing.assert_array_equal(again[1], gradient)
        order = rng.permutation(shape[-1])
        moved = (x.take(order, axis=len(shape) - 1) for x in (logits, labels))
        moved = function(*moved, where=where.take(order, axis=-1))
        np.testing.assert_allclose(moved[0], value, atol=1e-6)


def test_masking_is_leaving_out():
    logits, labels, where = case((60,), 3)
    for bins in (None, 100):
        function = jax.jit(functools.partial(losses.lovasz_softmax, bins=bins))
        np.testing.assert_allclose(
            function(logits, labels, where=where), function(logits[where], labels[where]), atol=1e-7
        )


def test_an_image_without_pixels_does_not_count():
    logits, labels, where = case((3, 30), 3)
    where[1] = False
    some = [0, 2]
    for loss, x in ((losses.lovasz_softmax, logits), (losses.lovasz_hinge, logits[..., 0])):
        y = labels if loss is losses.lovasz_softmax else labels % 2
        function = jax.jit(functools.partial(loss, per_image=True))
        whole = function(x, y, where=where)
        np.testing.assert_allclose(whole, function(x[some], y[some], where=where[some]), atol=1e-7)


def test_lovasz_steps_are_exact_in_float32():
    """To some ulps on 100k pixels, ties included, where differencing the index in float32 is wrong by 1e-3."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, (1, 100_000))
    # Errors are multiples of 2^-16, so that float32 holds them exactly.
    errors = rng.integers(1, 2**17, labels.shape) / 2**16
    logits = np.where(labels == 1, 1 - errors, errors - 1).astype(np.float32)
    value, gradient = jax.value_and_grad(losses.lovasz_hinge)(logits, labels)
    order = np.lexsort((1 - labels[0], -errors[0]))
    foreground = labels[0, order]
    missed, total = foreground.sum() - np.cumsum(foreground), foreground.sum()
    union = total + np.cumsum(1 - foreground)
    steps = np.where(foreground == 1, 1 / union, missed / (union * np.maximum(union - 1.0, 1.0)))
    expected = np.empty(labels.size)
    expected[order] = steps
    np.testing.assert_allclose(np.abs(gradient[0]), expected, rtol=3e-7)
    np.testing.assert_allclose(value, errors[0] @ expected, rtol=1e-6)


@pytest.mark.parametrize("bins", [2, 33, 1025])
def test_bins_keep_their_bound(bins):
    logits, labels, where = case((400,), 3, seed=4)
    exact = losses.lovasz_softmax(logits, labels, where=where)
    assert abs(losses.lovasz_softmax(logits, labels, where=where, bins=bins) - exact) <= 0.5 / (bins - 1) + 1e-6


def test_bins_are_the_exact_loss_of_rounded_errors():
    """A pixel's step is the mean over its level's two orders: what all levels add is the whole loss."""
    rng = np.random.default_rng(5)
    errors, foreground = rng.integers(0, 9, 64) / 8, rng.random(64) < 0.4
    value, gradient = losses._extension(errors[None], foreground[None], np.ones((1, 64), bool), 9, True)
    first = extension(errors - 1e-9 * foreground, foreground)[1]
    last = extension(errors + 1e-9 * foreground, foreground)[1]
    np.testing.assert_allclose(value[0], errors @ (first + last) / 2, atol=1e-6)
    # Within a level all pixels of a kind share the kind's mean step.
    for level, kind in itertools.product(np.unique(errors), (True, False)):
        group = (errors == level) & (foreground == kind)
        expected = (first[group] + last[group]).sum() / 2
        np.testing.assert_allclose(np.asarray(gradient)[0, group].sum(), expected, atol=1e-6)
        assert len(np.unique(np.asarray(gradient)[0, group])) <= 1


def test_bins_gradient_is_close_to_the_exact_one():
    logits, labels, _ = case((20_000,), 3, seed=6)
    exact = np.asarray(jax.grad(losses.lovasz_softmax)(logits, labels))
    bucketed = np.asarray(jax.grad(losses.lovasz_softmax)(logits, labels, bins=16384))
    assert np.linalg.norm(bucketed - exact) < 2e-3 * np.linalg.norm(exact)


def step_losses(x, y, w):
    """What a training step takes, on one device's share."""
    total = losses.lovasz_softmax(x, y, where=w) + losses.cross_entropy(x, y, where=w)
    return total + losses.boundary_weighted_nll(x, y, where=w)


STEP = jax.jit(step_losses)


# Precision and extremes.


PIXEL_LOSSES = {
    "cross_entropy": losses.cross_entropy,
    "focal": losses.focal,
    "soft_dice": losses.soft_dice,
    "soft_dice squared per image": lambda *a, **k: losses.soft_dice(*a, squared=True, per_image=True, **k),
    "tversky": lambda *a, **k: losses.tversky(*a, alpha=0.3, beta=0.7, gamma=0.75, **k),
    "boundary_weighted_nll": losses.boundary_weighted_nll,
    "lovasz_softmax": losses.lovasz_softmax,
    "lovasz_softmax per image": lambda *a, **k: losses.lovasz_softmax(*a, per_image=True, **k),
    "lovasz_softmax bins": lambda *a, **k: losses.lovasz_softmax(*a, bins=64, **k),
    "lovasz_hinge": lambda x, y, **k: losses.lovasz_hinge(x[..., 0], (y == 1).astype(y.dtype) + 99 * (y > 2), **k),
}
each_pixel_loss = pytest.mark.parametrize("loss", PIXEL_LOSSES.values(), ids=PIXEL_LOSSES)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["lovasz_softmax", "soft_dice", "tversky", "focal", "cross_entropy"])
def test_half_precision_keeps_the_gradient(name, dtype):
    logits, labels, _ = case((100_000,), 3, seed=7)
    function = jax.jit(jax.grad(PIXEL_LOSSES[name]))
    exact = np.asarray(function(logits, labels), np.float64).ravel()
    half = function(jnp.asarray(logits, dtype), labels)
    assert half.dtype == dtype
    half = np.asarray(half, np.float64).ravel()
    assert np.isfinite(half).all()
    assert half @ exact / np.linalg.norm(half) / np.linalg.norm(exact) > 0.99


@each_pixel_loss
def test_extreme_logits_and_masks(loss):
    logits, labels, where = case((2, 4, 5), 3)
    function = jax.jit(jax.value_and_grad(loss))
    for x in (1e4 * np.sign(logits), 1e4 * np.ones_like(logits)):
        for y in (labels, np.zeros_like(labels)):
            value, gradient = function(x, y, where=where)
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()
    value, gradient = function(np.full_like(logits, np.nan), labels + 99, where=np.zeros_like(where))
    assert value == 0
    assert (np.asarray(gradient) == 0).all()
    value, gradient = function(logits[:, :0], labels[:, :0], where=where[:, :0])
    assert value == 0
    assert gradient.shape == (2, 0, 5, 3)


@each_pixel_loss
def test_what_is_wrong_and_not_masked_shows_as_nan(loss):
    logits, labels, where = case((2, 4, 5), 3)
    where[0, 0, 0] = True
    wrong = labels.copy()
    wrong[0, 0, 0] = 7
    function = jax.jit(loss)
    assert np.isnan(function(logits, wrong, where=where))
    logits[0, 0, 0] = np.nan
    assert np.isnan(function(logits, labels, where=where))


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.uint16, jnp.uint32])
def test_any_integer_labels_will_do(dtype):
    logits, labels, where = case((2, 4, 5), 3)
    typed = jnp.asarray(np.where(where, labels, jnp.iinfo(dtype).max), dtype)
    np.testing.assert_array_equal(STEP(logits, typed, where), STEP(logits, labels, where))


# Transformations.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "on"),
    [(name, False) for name in PIXEL_LOSSES] + [("lovasz_softmax", True), ("lovasz_softmax bins", True)],
)
def test_vmap_scan_and_remat_agree_with_one_by_one(name, on):
    logits, labels, where = case((3, 2, 4, 5), 3)

    def loss(x, y, w):
        return PIXEL_LOSSES[name](x, y, where=w)

    with jax.enable_x64(on):
        # Typed here, so that x64 changes what the losses do and not what they get.
        arguments = jnp.asarray(logits), jnp.asarray(labels, jnp.int8), jnp.asarray(where)
        function = jax.jit(jax.value_and_grad(loss))
        expected = [function(*(x[i] for x in arguments)) for i in range(3)]
        # Tracing first and batching afterwards is the hard order for what needs x64 inside.
        batched = jax.vmap(function)(*arguments)
        remat = jax.value_and_grad(jax.checkpoint(loss))
        scanned = jax.jit(lambda *a: jax.lax.map(lambda each: remat(*each), a))(*arguments)
    for values, gradients in (batched, scanned):
        assert (values.dtype, gradients.dtype) == (jnp.float32, jnp.float32)
        for i, (value, gradient) in enumerate(expected):
            np.testing.assert_allclose(values[i], value, rtol=2e-6)
            np.testing.assert_allclose(gradients[i], gradient, atol=1e-7)


def test_float64_comes_back_as_float32():
    logits, labels, _ = case((2, 4, 5), 3)
    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(step_losses))(logits.astype(np.float64), labels, labels >= 0)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.float64)
    np.testing.assert_allclose(value, STEP(logits, labels, labels >= 0), rtol=2e-6)


def test_gradient_compiles_once():
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if name.endswith("backend_compile_duration") else None
    )
    function = jax.jit(jax.value_and_grad(losses.lovasz_softmax))
    arguments = [[jnp.asarray(a) for a in case((3, 11), 3, seed)[:2]] for seed in range(3)]
    compilations.clear()
    for each in arguments:
        jax.block_until_ready(function(*each))
    assert len(compilations) == 1


def check_devices():
    """pmap and shard_map on all devices against one by one; run below on four."""
    devices = jax.devices()
    logits, labels, where = case((len(devices), 2, 4, 5), 3)
    arguments = jnp.asarray(logits), jnp.asarray(labels, jnp.int8), jnp.asarray(where)
    function = jax.jit(jax.value_and_grad(lambda x, y, w: losses.lovasz_softmax(x, y, where=w)))
    expected = [function(*each) for each in zip(*arguments, strict=True)]
    results = [jax.pmap(function)(*arguments)]
    mesh = Mesh(np.array(devices), ("data",))
    for check_vma in (True, False):
        mapped = jax.shard_map(
            lambda *a: jax.tree.map(lambda x: x[None], function(*(x[0] for x in a))),
            mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"), check_vma=check_vma,
        )  # fmt: skip
        results.append(jax.jit(mapped)(*arguments))
    for values, gradients in results:
        for i, (value, gradient) in enumerate(expected):
            np.testing.assert_allclose(values[i], value, rtol=2e-6)
            np.testing.assert_allclose(gradients[i], gradient, atol=1e-6)
    print("devices:", len(devices))


@pytest.mark.slow
def test_pmap_and_shard_map():
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    code = f"import sys; sys.path[:0] = {[str(pathlib.Path(__file__).parent), str(DOCS.parent.parent)]}\n"
    code += "import test_losses; test_losses.check_devices()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.stdout == "devices: 4\n", done.stderr


# The other losses.


def test_cross_entropy_closed_forms():
    logits, labels, where = case((4, 30), 3)
    nll = -np.log(np.take_along_axis(softmax(logits.astype(np.float64)), labels[..., None], -1)[..., 0])
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), nll.mean(), rtol=1e-6)
    weights = np.array([0.2, 1.0, 3.0])
    expected = np.average(nll, weights=where * weights[labels])
    np.testing.assert_allclose(
        losses.cross_entropy(logits, labels, where=where, class_weights=weights), expected, rtol=1e-6
    )
    gradient = jax.grad(losses.cross_entropy)(logits, labels)
    np.testing.assert_allclose(gradient, (softmax(logits) - np.eye(3)[labels]) / labels.size, atol=1e-7)


@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_hinge_is_its_definition(per_image):
    logits, labels, where = case((3, 20), 2, seed=8)
    logits = logits[..., 0]
    terms = []
    for image in range(3) if per_image else [...]:
        x, y = logits[image][where[image]].astype(np.float64), labels[image][where[image]] == 1
        terms.append(extension(np.maximum(0, 1 - np.where(y, x, -x)), y)[0])
    for typed in (labels, labels == 1):
        value = losses.lovasz_hinge(logits, typed, per_image=per_image, where=where)
        np.testing.assert_allclose(value, np.mean(terms), atol=2e-5)


def test_lovasz_hinge_of_one_pixel_is_the_hinge():
    for x, y in itertools.product((-2.0, 0.3, 2.0), (0, 1)):
        value, gradient = jax.value_and_grad(losses.lovasz_hinge)(jnp.full((1, 1), x), jnp.full((1, 1), y))
        sign = 2 * y - 1
        np.testing.assert_allclose(value, max(0, 1 - sign * x), rtol=1e-6)
        assert gradient[0, 0] == (-sign if sign * x < 1 else 0)


@pytest.mark.parametrize(("shape", "size"), [((40,), 3), ((9, 11), 3), ((9, 11), 5), ((5, 6, 7), 3)])
def test_boundary_mask_is_dilation_minus_erosion(shape, size):
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(9)
    labels = (ndimage.gaussian_filter(rng.standard_normal((2, *shape)), (0, *[1.5] * len(shape))) * 4).round() % 4
    labels = labels.astype(np.int32)
    element = np.ones((size,) * len(shape), bool)
    expected = np.zeros(labels.shape, bool)
    for image, c in itertools.product(range(2), range(4)):
        dilated = ndimage.binary_dilation(labels[image] == c, element)
        # Outside the image counts for erosion as inside the class: its border is no boundary.
        expected[image] |= dilated & ~ndimage.binary_erosion(labels[image] == c, element, border_value=1)
    assert 0 < expected.sum() < expected.size
    result = losses.boundary_mask(labels, 4, size=size, spatial_ndim=len(shape))
    assert result.dtype == bool
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(losses.boundary_mask(labels, 200, size=size, spatial_ndim=len(shape)), expected)


def test_boundary_band_is_two_pixels_on_a_straight_edge():
    labels = np.zeros((6, 8), int)
    labels[:, 4:] = 1
    assert losses.boundary_mask(labels, 2).sum(axis=1).tolist() == [2] * 6
    assert losses.boundary_mask(labels, 2, size=5).sum(axis=1).tolist() == [4] * 6
    assert not losses.boundary_mask(np.ones((6, 8), int), 2).any()
    assert not losses.boundary_mask(labels + 2, 2).any()


def test_boundary_weighted_nll():
    logits, labels, where = case((2, 6, 7), 3)
    labels = np.where(np.arange(7) < 4, 0, 2) + 0 * labels
    nll = -np.log(np.take_along_axis(softmax(logits.astype(np.float64)), labels[..., None], -1)[..., 0])
    weights = np.where((np.arange(7) == 3) | (np.arange(7) == 4), 5.0, 1.0) * np.ones(labels.shape)
    value = losses.boundary_weighted_nll(logits, labels, weight=5.0)
    np.testing.assert_allclose(value, (weights * nll).mean(), rtol=1e-6)
    # Weight 1 is plain cross-entropy; a class that exists only under the mask makes no boundary.
    np.testing.assert_allclose(
        losses.boundary_weighted_nll(logits, labels, weight=1.0, where=where),
        losses.cross_entropy(logits, labels, where=where),
        rtol=1e-6,
    )
    left = np.broadcast_to(np.arange(7) < 4, labels.shape)
    np.testing.assert_allclose(
        losses.boundary_weighted_nll(logits, labels, where=left),
        losses.cross_entropy(logits, labels, where=left),
        rtol=1e-6,
    )


def test_relativistic_losses():
    rng = np.random.default_rng(10)
    real, fake = rng.standard_normal((2, 6)).astype(np.float32)

    def entropy(logits, target):
        p = 1 / (1 + np.exp(-logits.astype(np.float64)))
        return -np.mean(np.log(p) if target else np.log(1 - p))

    for loss, a, b in (
        (losses.relativistic_discriminator_loss, real, fake),
        (losses.relativistic_generator_loss, fake, real),
    ):
        np.testing.assert_allclose(loss(real, fake), entropy(a - b, 1), rtol=1e-6)
        expected = (entropy(a - b.mean(), 1) + entropy(b - a.mean(), 0)) / 2
        np.testing.assert_allclose(loss(real, fake, average=True), expected, rtol=1e-6)
        for average in (False, True):
            gradients = jax.grad(loss, argnums=(0, 1))(1e4 * real, 1e4 * fake, average=average)
            assert all(np.isfinite(g).all() for g in gradients)


# Forward mode.

# Up to eight classes, some gradients are written by hand.
CLASSES = 8, 9
FORWARD = dict.fromkeys(("cross_entropy", "focal", "boundary_weighted_nll", "relativistic"), CLASSES)
FORWARD |= dict.fromkeys(("soft_dice", "tversky", "boundary_distance"), CLASSES[1:])
FORWARD |= dict.fromkeys(("lovasz_softmax", "lovasz_softmax bins", "lovasz_hinge"), ())
DIFFERENTIATED = {name: PIXEL_LOSSES[name] for name in FORWARD if name in PIXEL_LOSSES} | {
    "boundary_distance": lambda x, y: losses.boundary_distance(x, losses.signed_distances(y, x.shape[-1], (1.0, 2.0))),
    "relativistic": lambda x, y: (
        losses.relativistic_discriminator_loss(x[..., 0], x[..., 1])
        + losses.relativistic_generator_loss(x[..., 2], x[..., 3], average=True)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", CLASSES)
@pytest.mark.parametrize("name", FORWARD)
def test_forward_mode_is_refused_for_the_losses_that_the_page_names_and_all_have_hessians(name, num_classes):
    logits, labels, _ = case((2, 2, 3), num_classes)
    labels = np.minimum(labels, 2)
    direction = np.random.default_rng(11).standard_normal(logits.shape).astype(np.float32)

    def loss(x):
        return DIFFERENTIATED[name](x, labels)

    gradient = jax.jit(jax.grad(loss))
    if num_classes in FORWARD[name]:
        slope = jax.jvp(loss, (logits,), (direction,))[1]
        np.testing.assert_allclose(slope, np.vdot(gradient(logits), direction), rtol=1e-5, atol=1e-6)
    else:
        with pytest.raises(TypeError, match="custom_vjp"):
            jax.jvp(loss, (logits,), (direction,))
        with pytest.raises(TypeError, match="custom_vjp"):
            jax.jacfwd(loss)(logits)
    # A gradient is smooth between changes of the order of the errors, and this step changes no order.
    step = 1e-3 * direction
    differences = (np.asarray(gradient(logits + step)) - np.asarray(gradient(logits - step))) / 2e-3

    @jax.jit
    def products(x):
        """The Hessian times the direction, in three ways."""
        forward = jax.jvp(gradient, (x,), (direction,))[1]
        reverse = jax.grad(lambda x: jnp.vdot(gradient(x), direction))(x)
        return jnp.tensordot(jax.hessian(loss)(x), direction, x.ndim), forward, reverse

    for product in products(logits):
        np.testing.assert_allclose(product, differences, rtol=1e-3, atol=2e-4)


# Bad arguments.

GOOD = np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), np.int32)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ValueError, "(2, 3, 4)", lambda x, y: losses.lovasz_softmax(x, y[:1])),
        (ValueError, "(2, 3, 4)", lambda x, y: losses.cross_entropy(x, y[..., None])),
        (ValueError, r"\(\)", lambda x, y: losses.cross_entropy(x[0, 0, 0], y)),
        (TypeError, "float32", lambda x, y: losses.lovasz_softmax(x, y.astype(np.float32))),
        (TypeError, "float32", lambda x, y: losses.boundary_mask(y.astype(np.float32), 3)),
        (TypeError, "int32", lambda x, y: losses.lovasz_softmax(x.astype(np.int32), y)),
        (TypeError, "int32", lambda x, y: losses.lovasz_softmax(x, y, where=y)),
        (ValueError, "(5,)", lambda x, y: losses.lovasz_softmax(x, y, where=np.ones(5, bool))),
        (ValueError, "(0, 4)", lambda x, y: losses.lovasz_softmax(x, y, classes=(0, 4))),
        (ValueError, "(1, 1)", lambda x, y: losses.lovasz_softmax(x, y, classes=(1, 1))),
        (ValueError, "'some'", lambda x, y: losses.lovasz_softmax(x, y, classes="some")),
        (TypeError, "1", lambda x, y: losses.lovasz_softmax(x, y, classes=1)),
        (ValueError, "1", lambda x, y: losses.lovasz_softmax(x, y, bins=1)),
        (ValueError, "(3,)", lambda x, y: losses.lovasz_softmax(x, y, class_weights=np.ones(3))),
        (ValueError, "(3,)", lambda x, y: losses.cross_entropy(x, y, class_weights=np.ones(3))),
        (ValueError, "(3,)", lambda x, y: losses.tversky(x, y, class_weights=np.ones(3))),
        (ValueError, "'sum'", lambda x, y: losses.focal(x, y, reduction="sum")),
        (ValueError, "per_image=True", lambda x, y: losses.soft_dice(x, y, reduction="none")),
        (ValueError, "soft_dice: classes", lambda x, y: losses.soft_dice(x, y, classes="some")),
        (ValueError, r"\(\)", lambda x, y: losses.focal(x[0, 0], y[0, 0], reduction="none")),
        (ValueError, "(2, 3, 3)", lambda x, y: losses.boundary_distance(x, x[..., 1:])),
        (TypeError, "int32", lambda x, y: losses.boundary_distance(x, y)),
        (ValueError, "(1.0, 1.0, 1.0)", lambda x, y: losses.signed_distances(y, 2, (1.0, 1.0, 1.0))),
        (ValueError, "0", lambda x, y: losses.signed_distances(y, 0, (1.0,))),
        (ValueError, r"\(\)", lambda x, y: losses.lovasz_softmax(x[0, 0], y[0, 0], per_image=True)),
        (ValueError, "(2, 3, 4)", lambda x, y: losses.lovasz_hinge(x, y)),
        (ValueError, "4", lambda x, y: losses.boundary_mask(y, 2, size=4)),
        (TypeError, "3.0", lambda x, y: losses.boundary_mask(y, 2, size=3.0)),
        (ValueError, "0", lambda x, y: losses.boundary_mask(y, 0)),
        (ValueError, "3", lambda x, y: losses.boundary_mask(y, 2, spatial_ndim=3)),
        (ValueError, "2", lambda x, y: losses.boundary_weighted_nll(x, y, size=2)),
        (ValueError, "(2,)", lambda x, y: losses.relativistic_generator_loss(x[0, 0], x[0, 0, :2])),
        (ValueError, "(0,)", lambda x, y: losses.relativistic_discriminator_loss(x[0, 0, :0], x[0, 0, :0])),
    ],
)
def test_bad_arguments_are_refused_while_tracing(error, words, call):
    words = words if words.startswith("\\") else re.escape(words)
    with pytest.raises(error, match=words):
        jax.eval_shape(call, *GOOD)


NEEDS_CLASSES = {name: loss for name, loss in PIXEL_LOSSES.items() if name != "lovasz_hinge"}
NEEDS_CLASSES["boundary_distance"] = lambda x, y: losses.boundary_distance(x, x)


@pytest.mark.parametrize("name", NEEDS_CLASSES)
def test_one_logit_for_each_pixel_is_refused_with_what_takes_it(name):
    one, labels = np.zeros((2, 3, 1), np.float32), GOOD[1]
    words = f"{name.split()[0]}: use two logits for each pixel, or lovasz_hinge with one, got logits (2, 3, 1)"
    with pytest.raises(ValueError, match=re.escape(words)):
        jax.eval_shape(NEEDS_CLASSES[name], one, labels)


def test_a_zero_beside_the_one_logit_makes_the_two_of_a_sigmoid():
    x, labels, _ = case((2, 30), 2)
    x = x[..., 0]
    nll = np.log1p(np.exp(np.where(labels == 1, -x, x).astype(np.float64)))
    value = losses.cross_entropy(jnp.stack([jnp.zeros_like(x), x], axis=-1), labels)
    np.testing.assert_allclose(value, nll.mean(), rtol=1e-6)


# The file, its docstrings and its page.


@pytest.mark.slow
def test_file_stands_alone(tmp_path):
    source = pathlib.Path(losses.__file__)
    roots = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
            roots |= {name.split(".")[0] for name in names}
    assert roots - set(sys.stdlib_module_names) == {"jax"}
    shutil.copy(source, tmp_path / "copied.py")
    code = (
        "import jax, sys; before = set(sys.modules), dict(jax.config.values); import copied; "
        "print(sorted(set(sys.modules) - before[0])); print(jax.config.values == before[1]); "
        "print(copied.lovasz_softmax([[1., 0.]], [0]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    loaded, unchanged, value = done.stdout.splitlines()
    unwanted = {"flax", "orbax", "absl", "optax", "isles_jax", "matplotlib", "nibabel", "scipy"}
    assert not {name.split(".")[0] for name in ast.literal_eval(loaded)} & unwanted
    assert "copied" in loaded
    assert unchanged == "True"
    np.testing.assert_allclose(float(value), 1 / (1 + np.e), rtol=1e-5)


@pytest.mark.slow
def test_docstring_examples():
    failed, attempted = doctest.testmod(losses)
    assert failed == 0
    assert attempted >= len(losses.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0].lstrip("# ") for block in BLOCKS])
def test_docs_code_runs(block):
    if "import equinox" in block:
        pytest.importorskip("equinox")
    exec(block, {"__name__": "docs"})
