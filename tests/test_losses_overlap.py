"""Dice, Tversky, focal and the distance-based boundary loss against brute force, closed forms and invariances."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import segmentation_case as case
from helpers import softmax

from isles_jax import losses

pytestmark = pytest.mark.device

# Oracles: numpy, float64, by the definitions.


def mean_of_classes(loss, logits, labels, classes, per_image, where, class_weights):
    """Mean over images, and in each over classes, of loss(probabilities [N], truth [N])."""
    where = np.ones(labels.shape, bool) if where is None else np.broadcast_to(where, labels.shape)
    means = []
    for image in range(len(labels)) if per_image else [...]:
        x, y = logits[image][where[image]].astype(np.float64), labels[image][where[image]]
        if not y.size:
            continue
        kept = range(x.shape[-1]) if isinstance(classes, str) else classes
        kept = [c for c in kept if classes != "present" or (y == c).any()]
        weights = [1.0 if class_weights is None else class_weights[c] for c in kept]
        total = sum(w * loss(softmax(x)[:, c], y == c) for w, c in zip(weights, kept, strict=True))
        # Where only classes of weight 0 are present, nothing is left.
        means.append(total / sum(weights) if any(weights) else 0.0)
    return np.mean(means) if means else 0.0


COMMON = {"classes": "present", "per_image": False, "where": None, "class_weights": None}


def soft_dice(logits, labels, *, squared=False, smooth=0.0, **options):
    def loss(p, t):
        return 1 - (2 * (p * t).sum() + smooth) / ((p**2 if squared else p).sum() + t.sum() + smooth)

    return mean_of_classes(loss, logits, labels, **(COMMON | options))


def tversky(logits, labels, *, alpha=0.5, beta=0.5, gamma=1.0, smooth=0.0, **options):
    def loss(p, t):
        true, extra, missed = (p * t).sum(), (p * ~t).sum(), ((1 - p) * t).sum()
        return (1 - (true + smooth) / (true + alpha * extra + beta * missed + smooth)) ** gamma

    return mean_of_classes(loss, logits, labels, **(COMMON | options))


def focal(logits, labels, *, gamma=2.0, where=None, class_weights=None):
    where = np.ones(labels.shape, bool) if where is None else np.broadcast_to(where, labels.shape)
    if not where.any():
        return 0.0
    p = np.take_along_axis(softmax(logits.astype(np.float64)), np.where(where, labels, 0)[..., None], -1)[..., 0]
    weights = np.ones(logits.shape[-1]) if class_weights is None else class_weights
    return np.average(((1 - p) ** gamma * -np.log(p))[where], weights=weights[labels[where]])


BY_HAND = {"soft_dice": soft_dice, "tversky": tversky, "focal": focal}
OPTIONS = [
    ("soft_dice", {}),
    ("soft_dice", {"squared": True, "smooth": 1.0}),
    ("soft_dice", {"classes": "all", "smooth": 0.5, "per_image": True, "class_weights": np.array([0.5, 1.0, 3.0])}),
    ("tversky", {"alpha": 0.3, "beta": 0.7, "gamma": 0.75}),
    ("tversky", {"alpha": 1.0, "beta": 0.2, "gamma": 2.0, "classes": (2, 1), "smooth": 1e-3}),
    ("tversky", {"alpha": 0.9, "per_image": True, "class_weights": np.array([0.0, 1.0, 3.0])}),
    ("focal", {}),
    ("focal", {"gamma": 0.5, "class_weights": np.array([0.2, 1.0, 3.0])}),
]
NAMES = [f"{name}-{'-'.join(options) or 'defaults'}" for name, options in OPTIONS]
each_option = pytest.mark.parametrize(("name", "options"), OPTIONS, ids=NAMES)


@pytest.mark.slow
@each_option
@pytest.mark.parametrize("shape", [(40,), (3, 12), (2, 5, 6), (2, 3, 4, 5)])
def test_losses_are_their_definitions(name, options, shape):
    logits, labels, where = case(shape, 3)
    for mask in (None, where, where[:1]):
        value = getattr(losses, name)(logits, labels, where=mask, **options)
        assert (value.dtype, value.shape) == (jnp.float32, ())
        np.testing.assert_allclose(value, BY_HAND[name](logits, labels, where=mask, **options), atol=1e-6)


@pytest.mark.slow
@each_option
def test_gradients_are_those_of_float64_differences(name, options):
    logits, labels, where = case((3, 5), 3, seed=1)
    gradient = jax.grad(getattr(losses, name))(logits, labels, where=where, **options)
    expected = np.zeros(logits.shape)
    for index in itertools.product(*map(range, logits.shape)):
        step = np.zeros(logits.shape)
        step[index] = 1e-6
        ahead, behind = (
            BY_HAND[name](logits.astype(np.float64) + s, labels, where=where, **options) for s in (step, -step)
        )
        expected[index] = (ahead - behind) / 2e-6
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert (np.asarray(gradient)[~where] == 0).all()


@pytest.mark.slow
@each_option
def test_properties(name, options):
    function = jax.jit(jax.value_and_grad(functools.partial(getattr(losses, name), **options)))
    draws = itertools.product([(3, 11), (2, 4, 9)], (0.0, 1e-3, 1.0, 10.0), (0.0, 0.05, 0.5, 1.0), (1, 2, 3))
    for seed, (shape, scale, keep, present) in enumerate(draws):
        rng = np.random.default_rng(seed)
        logits = (scale * rng.standard_normal((*shape, 3))).astype(np.float32)
        labels, where = rng.integers(0, present, shape), rng.random(shape) < keep
        value, gradient = function(logits, labels, where=where)
        np.testing.assert_allclose(value, BY_HAND[name](logits, labels, where=where, **options), atol=2e-5)
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[~where] == 0).all()
        # A softmax does not see a shift of its logits.
        np.testing.assert_allclose(np.sum(gradient, axis=-1), 0.0, atol=1e-6)
        # What lies under the mask plays no part.
        again = function(np.where(where[..., None], logits, np.nan), np.where(where, labels, 255), where=where)
        np.testing.assert_array_equal(again[0], value)
        np.testing.assert_array_equal(again[1], gradient)


def hard(predicted, num_classes):
    return 200.0 * np.eye(num_classes, dtype=np.float32)[predicted]


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 4, 12])
def test_hard_predictions_give_one_minus_the_score(num_classes):
    labels, predicted = np.random.default_rng(2).integers(0, num_classes, (2, 500))
    both = np.array([((labels == c) & (predicted == c)).sum() for c in range(num_classes)])
    extra = np.array([((labels != c) & (predicted == c)).sum() for c in range(num_classes)])
    missed = np.array([((labels == c) & (predicted != c)).sum() for c in range(num_classes)])
    logits = hard(predicted, num_classes)
    dice = 1 - np.mean(2 * both / (2 * both + extra + missed))
    for squared in (False, True):
        np.testing.assert_allclose(losses.soft_dice(logits, labels, squared=squared), dice, atol=1e-6)
    jaccard = 1 - np.mean(both / (both + extra + missed))
    np.testing.assert_allclose(losses.tversky(logits, labels, alpha=1.0, beta=1.0), jaccard, atol=1e-6)
    np.testing.assert_allclose(losses.lovasz_softmax(logits, labels), jaccard, atol=1e-6)
    recall = 1 - np.mean(both / (both + missed))
    np.testing.assert_allclose(losses.tversky(logits, labels, alpha=0.0, beta=1.0), recall, atol=1e-6)


@pytest.mark.parametrize("name", ["soft_dice", "squared", "tversky", "lovasz_softmax", "boundary_distance"])
@pytest.mark.parametrize("num_classes", [12, 40])
def test_classes_of_probability_zero_change_nothing(name, num_classes):
    logits, labels, where = case((2, 5, 9), 3)
    options = {"where": where, "reduction": "none"}
    target = labels
    if name == "boundary_distance":
        target = np.array(losses.signed_distances(labels, 3, (1.0, 1.0)))
    else:
        options |= {"classes": (2, 0, 1), "per_image": True, "class_weights": np.array([0.5, 1.0, 3.0])}
    function = getattr(losses, "soft_dice" if name == "squared" else name)
    if name == "squared":
        options |= {"squared": True, "smooth": 1.0}
    cotangent = np.array([1.0, -2.0], np.float32)

    def value_and_gradient(logits, target, **more):
        value, pullback = jax.vjp(lambda x: function(x, target, **(options | more)), logits)
        return value, pullback(cotangent)[0]

    expected = value_and_gradient(logits, target)
    more = [(0, 0)] * 3 + [(0, num_classes - 3)]
    wide = np.pad(logits, more, constant_values=-200.0)
    if name == "boundary_distance":
        value, gradient = value_and_gradient(wide, np.pad(target, more, constant_values=7.0))
    else:
        weights = np.pad(options["class_weights"], (0, num_classes - 3), constant_values=5.0)
        value, gradient = value_and_gradient(wide, target, class_weights=weights)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[..., :3], expected[1], atol=1e-7)
    assert (np.asarray(gradient)[..., 3:] == 0).all()
    assert (np.asarray(gradient)[~where] == 0).all()


@pytest.mark.parametrize("num_classes", [3, 12])
def test_images_without_pixels_cost_nothing(num_classes):
    logits, labels = np.zeros((2, 0, 5, num_classes)), np.zeros((2, 0, 5), int)
    for loss in (losses.soft_dice, losses.tversky, losses.lovasz_softmax):
        assert loss(logits, labels) == 0
    assert losses.boundary_distance(logits, logits) == 0


def test_special_cases_of_tversky_and_focal():
    logits, labels, where = case((3, 50), 3)
    value = losses.soft_dice(logits, labels, where=where, smooth=2.0)
    np.testing.assert_allclose(losses.tversky(logits, labels, where=where, smooth=1.0), value, rtol=1e-6)
    p, t = softmax(logits.astype(np.float64)), np.eye(3)[labels]
    both = (p * t).sum((0, 1))
    jaccard = 1 - np.mean(both / (p.sum((0, 1)) + t.sum((0, 1)) - both))
    np.testing.assert_allclose(losses.tversky(logits, labels, alpha=1.0, beta=1.0), jaccard, rtol=1e-6)
    options = {"where": where, "class_weights": np.array([0.2, 1.0, 3.0])}
    for x in (logits, 50 * logits):
        flat, plain = (
            jax.value_and_grad(f)(x, labels, **options)
            for f in (functools.partial(losses.focal, gamma=0.0), losses.cross_entropy)
        )
        np.testing.assert_array_equal(flat[0], plain[0])
        np.testing.assert_allclose(flat[1], plain[1], atol=1e-8)


def test_options_may_be_traced():
    logits, labels, _ = case((3, 20), 3)
    names = "alpha", "beta", "gamma", "smooth"
    function = jax.jit(lambda *values: losses.tversky(logits, labels, **dict(zip(names, values, strict=True))))
    expected = tversky(logits, labels, alpha=0.3, beta=0.7, gamma=0.75, smooth=1.0)
    np.testing.assert_allclose(function(0.3, 0.7, 0.75, 1.0), expected, atol=1e-6)
    np.testing.assert_allclose(
        jax.jit(lambda gamma: losses.focal(logits, labels, gamma=gamma))(2.0), focal(logits, labels), rtol=1e-6
    )


def test_a_perfect_prediction_costs_nothing_and_has_a_finite_gradient():
    labels = case((3, 20), 3)[1]
    for loss in (
        losses.soft_dice,
        functools.partial(losses.tversky, gamma=0.3),
        functools.partial(losses.tversky, gamma=3.0),
        functools.partial(losses.focal, gamma=0.3),
    ):
        value, gradient = jax.value_and_grad(loss)(hard(labels, 3), labels)
        assert value == 0
        assert np.isfinite(gradient).all()


def test_an_absent_class_costs_what_is_documented():
    logits, labels, _ = case((50,), 3)
    labels = np.minimum(labels, 1)
    total = softmax(logits.astype(np.float64))[:, 2].sum()
    for smooth in (0.0, 5.0):
        value, gradient = jax.value_and_grad(losses.soft_dice)(logits, labels, classes=(2,), smooth=smooth)
        np.testing.assert_allclose(value, total / (total + smooth), rtol=1e-6)
        assert np.any(np.abs(gradient) > 1e-6) == (smooth > 0)
    # Absent and predicted nowhere: right.
    assert losses.soft_dice(hard(labels, 3), labels, classes=(2,)) == 0


@pytest.mark.slow
def test_two_million_pixels_lose_no_digit():
    rng = np.random.default_rng(3)
    labels = (rng.random(2_000_000) < 0.01).astype(np.int32)
    logits = (2 * rng.standard_normal((labels.size, 2))).astype(np.float32)
    for name in BY_HAND:
        expected = BY_HAND[name](logits, labels)
        np.testing.assert_allclose(jax.jit(getattr(losses, name))(logits, labels), expected, rtol=2e-6)


# A value for each image.

REDUCED = {
    "cross_entropy": {"class_weights": np.array([0.2, 1.0, 3.0])},
    "focal": {},
    "soft_dice": {"per_image": True},
    "tversky": {"per_image": True, "gamma": 0.75},
    "lovasz_softmax": {"per_image": True},
    "boundary_weighted_nll": {},
    "lovasz_hinge": {},
    "boundary_distance": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCED)
def test_reduction_none_is_each_image_alone(name):
    logits, labels, where = case((4, 5, 6), 3)
    where[2] = False
    if name == "lovasz_hinge":
        logits, labels = logits[..., 0], np.where(labels == 2, 0, labels)
    if name == "boundary_distance":
        labels = losses.signed_distances(labels, 3, (1.0, 1.0))
    function = functools.partial(getattr(losses, name), **REDUCED[name])
    each = jax.jit(functools.partial(function, reduction="none"))
    value = each(logits, labels, where=where)
    assert (value.dtype, value.shape) == (jnp.float32, (4,))
    alone = [function(logits[i : i + 1], labels[i : i + 1], where=where[i : i + 1]) for i in range(4)]
    np.testing.assert_allclose(value, alone, rtol=2e-6)
    assert value[2] == 0
    # The images are independent, and one without pixels has no gradient.
    jacobian = jax.jacrev(lambda x: each(x, labels, where=where))(logits)
    for i, j in itertools.product(range(4), range(4)):
        assert np.any(np.asarray(jacobian)[i, j] != 0) == (i == j != 2)
    if "per_image" in REDUCED[name]:
        mean = function(logits, labels, where=where)
        np.testing.assert_allclose(mean, value.sum() / 3, rtol=1e-6)
        with pytest.raises(ValueError, match="per_image=True"):
            getattr(losses, name)(logits, labels, reduction="none")
    with pytest.raises(ValueError, match="'sum'"):
        function(logits, labels, reduction="sum")


@pytest.mark.parametrize("name", [name for name in REDUCED if name != "boundary_distance"])
def test_a_wrong_label_shows_in_its_image_only(name):
    logits, labels, _ = case((3, 4, 5), 2)
    logits = logits[..., 0] if name == "lovasz_hinge" else logits
    labels[1, 0, 0] = 7
    options = {key: value for key, value in REDUCED[name].items() if key != "class_weights"}
    value = getattr(losses, name)(logits, labels, reduction="none", **options)
    assert np.isnan(value).tolist() == [False, True, False]


# The distance-based boundary loss.


def signed_distances(labels, num_classes, spacing):
    """Of one image: from each pixel to every pixel on the other side."""
    places = np.argwhere(np.ones(labels.shape)) * np.array(spacing)
    far = np.linalg.norm(places[:, None] - places, axis=-1)
    result = np.zeros((labels.size, num_classes))
    flat = labels.ravel()
    for c, i in itertools.product(range(num_classes), range(labels.size)):
        known = (flat >= 0) & (flat < num_classes)
        inside = flat == c
        if known[i] and inside.any() and (known & ~inside).any():
            result[i, c] = -far[i, known & ~inside].min() if inside[i] else far[i, inside].min()
    return result.reshape(*labels.shape, num_classes)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((17,), (2.5,)), ((7, 9), (1.0, 1.0)), ((7, 9), (2.0, 0.7)), ((4, 5, 6), (0.9, 1.1, 6.0))]
)
def test_signed_distances_are_exact(shape, spacing):
    rng = np.random.default_rng(4)
    labels = rng.choice([0, 0, 0, 0, 0, 1, 2, 255], (3, *shape))
    labels[1] = np.where(labels[1] == 1, 0, labels[1])
    labels[2] = 1
    result = jax.jit(losses.signed_distances, static_argnums=1)(labels, 3, spacing)
    assert (result.dtype, result.shape) == (jnp.float32, (3, *shape, 3))
    expected = [signed_distances(image, 3, spacing) for image in labels]
    np.testing.assert_allclose(result, expected, rtol=3e-7)
    assert (np.asarray(result)[1, ..., 1] == 0).all()
    assert (np.asarray(result)[2] == 0).all()


def test_signed_distances_are_those_of_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    labels = (ndimage.gaussian_filter(np.random.default_rng(5).standard_normal((60, 70)), 4) > 0.02).astype(np.int32)
    spacing = 1.5, 0.8
    expected = ndimage.distance_transform_edt(labels == 0, spacing) - ndimage.distance_transform_edt(labels, spacing)
    np.testing.assert_allclose(losses.signed_distances(labels, 2, spacing)[..., 1], expected, rtol=3e-7)


def test_boundary_distance_is_its_definition():
    logits, labels, where = case((2, 6, 7), 3)
    distances = losses.signed_distances(labels, 3, (1.0, 2.0))
    p, far = softmax(logits.astype(np.float64)), np.asarray(distances, np.float64)
    for mask in (np.ones_like(where), where):
        value, gradient = jax.value_and_grad(losses.boundary_distance)(logits, distances, where=mask)
        np.testing.assert_allclose(value, (p * far).sum(-1)[mask].mean(), rtol=1e-5)
        expected = p * (far - (p * far).sum(-1, keepdims=True)) * mask[..., None] / mask.sum()
        np.testing.assert_allclose(gradient, expected, atol=1e-7)
        assert (np.asarray(gradient)[~mask] == 0).all()


def test_boundary_distance_is_lowest_at_the_truth_and_ignores_what_is_masked():
    _, labels, where = case((2, 6, 7), 3)
    distances = np.array(losses.signed_distances(labels, 3, (1.0, 1.0)))
    best = losses.boundary_distance(hard(labels, 3), distances)
    np.testing.assert_allclose(best, distances.min(-1).mean(), rtol=1e-6)
    for predicted in np.random.default_rng(6).integers(0, 3, (20, *labels.shape)):
        assert losses.boundary_distance(hard(predicted, 3), distances) > best
    logits = np.where(where[..., None], hard(labels, 3), np.nan)
    value = losses.boundary_distance(logits, np.where(where[..., None], distances, np.nan), where=where)
    np.testing.assert_allclose(value, distances.min(-1)[where].mean(), rtol=1e-6)
    assert losses.boundary_distance(logits, distances, where=np.zeros_like(where)) == 0
