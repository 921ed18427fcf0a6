"""The gradients of the whole compiled step against a plain version of it, by definition and in float64.

ALL_SYSTEMS=1 pytest tests/test_gradients.py: all eight systems, not the simplest and the proposed one alone.
"""

import itertools
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import task_of
from jax import lax

from isles_jax import conv
from isles_jax.models import DECODER, ENCODER
from isles_jax.training import parallel
from isles_jax.training.state import init_state
from isles_jax.training.step import make_step

pytestmark = pytest.mark.device

# One class has one critic; three would take three times as long to compile.
CLASSES = ("lesion",)
# All eight systems take minutes to compile: by default the simplest, and the one that has every part.
ALL = list(itertools.product((False, True), repeat=3))
SYSTEMS = ALL if "ALL_SYSTEMS" in os.environ else [ALL[0], ALL[-1]]
# What each loss weighs, where it is present.
WEIGHTS = {"cross_entropy": 1.0, "lovasz": 1.0, "boundary": 1.0, "adversarial": 0.5}


def batch():
    rng = np.random.default_rng(0)
    labels = np.zeros((2, 32, 32), np.int8)
    labels[:, 8:20, 6:20], labels[:, :3] = 1, -1
    return rng.normal(size=(2, 32, 32, 3)).astype(np.float32) + (labels > 0)[..., None], labels


def convolve(x, layer):
    x = lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return x + layer.get("bias", 0)


def normalised(x, layer):
    mean = x.mean((0, 1, 2))
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean((0, 1, 2)) + 1e-5) * layer["scale"] + layer["bias"]


def windows(x):
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4, c)


def pool(x):
    places = windows(x).argmax(3, keepdims=True)
    return jnp.take_along_axis(windows(x), places, 3)[:, :, :, 0], places


def unpool(x, places):
    b, h, w, c = x.shape
    four = jnp.where(jnp.arange(4)[:, None] == places, x[:, :, :, None], 0)
    return four.reshape(b, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c)


def segment(p, x, residual):
    relu, skips = jax.nn.relu, []
    x = relu(convolve(x, p["preconv"]))
    for stage, widths in enumerate(ENCODER, start=1):
        names, y = [f"{stage}a", f"{stage}b"] if len(widths) > 1 else [f"{stage}"], x
        for name in names:
            y = normalised(convolve(relu(y) if name != names[0] else y, p[f"conv{name}"]), p[f"norm{name}"])
        if residual:
            side = f"{stage}_shortcut"
            y += normalised(convolve(x, p[f"conv{side}"]), p[f"norm{side}"]) if f"conv{side}" in p else x
        x, places = pool(relu(y))
        skips.append((relu(y), places))
    for stage, widths in zip(range(5, 0, -1), DECODER, strict=True):
        skip, places = skips.pop()
        x = jnp.concatenate([unpool(x, places), skip], -1)
        for letter in "ba" if len(widths) > 1 else ("",):
            x = relu(convolve(x, p[f"conv_up{stage}{letter}"]))
    return convolve(x, p["output"])


def judge(p, x):
    for i in range(1, 6):
        x = convolve(x if i == 1 else pool(x)[0], p[f"conv{i}"])
        x = x if i == 1 else normalised(x, p[f"norm{i}"])
        x = jnp.where(x >= 0, x, 0.2 * x)
    return (x.mean((1, 2)) @ p["output"]["kernel"] + p["output"]["bias"])[:, 0]


def lovasz(probabilities, labels):
    """The Lovasz extension of each class's Jaccard loss, pixels in the order of their errors."""
    terms = []
    for c in np.unique(labels):
        truth = jnp.asarray(labels == c, float)
        errors = jnp.abs(truth - probabilities[:, c])
        order = jnp.argsort(-errors)
        jaccard = 1 - (truth.sum() - truth[order].cumsum()) / (truth.sum() + (1 - truth[order]).cumsum())
        terms.append((errors[order] * jnp.diff(jaccard, prepend=0.0)).sum())
    return sum(terms) / len(terms)


def band(labels):
    """Where a pixel's 3x3 neighbourhood, of those that are pixels, holds two labels."""
    found = np.zeros(labels.shape, bool)
    for n, i, j in zip(*np.nonzero(labels >= 0), strict=True):
        around = labels[n, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        found[n, i, j] = len(set(around[around >= 0])) > 1
    return found


def softplus(x):
    return jnp.log1p(jnp.exp(x))


def plain_gradients(state, views, images, labels, residual):
    """(weights) -> the segmenter's gradient and the critics', written without any of the package's losses or layers."""
    inside = labels >= 0
    chosen, truth = np.nonzero(inside.ravel())[0], labels[inside].astype(int)
    weight_map = 1 + 9 * band(labels)[inside]
    states = {name: network.params for name, network in state.critics.items()}

    def maps(logits, view):
        real, fake = np.eye(len(CLASSES) + 1)[np.maximum(labels, 0)], jax.nn.softmax(logits)
        # The values of the most probable class, with the gradient of the probabilities.
        fake += lax.stop_gradient(jnp.eye(len(CLASSES) + 1)[logits.argmax(-1)] - fake)
        return [(x * inside[..., None])[..., view] for x in (real, fake)]

    def critic_loss(p, logits, view):
        real, fake = (judge(p, x) for x in maps(logits, view))
        return softplus(fake - real).mean()

    def gradients(weights, adversarial):
        params, critics = jax.tree.map(jnp.asarray, (state.segmenter.params, states))
        logits = segment(params, images, residual)
        judging = views.items() if adversarial else ()
        of_critics = {n: jax.grad(critic_loss)(critics[n], logits, view) for n, view in judging}
        # Adam's first step: the rate times the gradient over its size.
        updated = {
            name: jax.tree.map(lambda p, g: p - 1e-3 * g / (jnp.abs(g) + 1e-8), critics[name], gradient)
            for name, gradient in of_critics.items()
        }

        def loss(params):
            logits = segment(params, images, residual)
            pixels = logits.reshape(-1, len(CLASSES) + 1)[chosen]
            nll = -jax.nn.log_softmax(pixels)[np.arange(len(truth)), truth]
            total = weights["cross_entropy"] * nll.mean() + weights["boundary"] * (weight_map * nll).mean()
            total += weights["lovasz"] * lovasz(jax.nn.softmax(pixels), truth)
            for name, view in judging:
                real, fake = (judge(updated[name], x) for x in maps(logits, view))
                total += weights["adversarial"] * softplus(real - fake).mean()
            return total

        return jax.grad(loss)(params), of_critics

    return gradients


@pytest.fixture(scope="module")
def plain(small_config):
    """For each network, the plain gradients by weights, compiled once."""
    images, labels = batch()
    made = {}
    for residual in (False, True):
        config = small_config(residual=residual)
        state = jax.tree.map(lambda x: np.asarray(x, np.float64), init_state(task_of(config, CLASSES), 10, 0))
        views = task_of(config, CLASSES).views
        plain_step = plain_gradients(state, views, images.astype(np.float64), labels, residual)
        made[residual] = jax.jit(plain_step, static_argnums=1)
    return made


def running_statistics(config, state, images, labels):
    """The segmenter's after its one pass; a critic's after the real maps and then the prediction's."""
    task = task_of(config, CLASSES)
    segmenter = task.segmenter()
    critic = task.critic()
    inside = (labels >= 0)[..., None]

    def passed(network, variables, x):
        found, updates = network.apply(variables, x, train=True, mutable=["batch_stats"])
        return found, updates["batch_stats"]

    logits, stats = passed(segmenter, state.segmenter.variables, images)
    maps, found = [jax.nn.one_hot(x, len(CLASSES) + 1) * inside for x in (labels, logits.argmax(-1))], [stats]
    for name, view in task_of(config, CLASSES).views.items():
        stats = state.critics[name].batch_stats
        for x in maps:
            _, stats = passed(critic, {"params": state.critics[name].params, "batch_stats": stats}, x[..., view])
        found.append(stats)
    return found


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


# Every system in its form for CPUs and, where ALL_SYSTEMS is set, for TPUs; else of the latter the last.
FORMS = [(*system, "cpu") for system in SYSTEMS]
FORMS += [(*system, "tpu") for system in (SYSTEMS if SYSTEMS == ALL else ALL[-1:])]


@pytest.mark.slow
@pytest.mark.parametrize(("residual", "adversarial", "overlap", "platform"), FORMS)
def test_gradients_are_those_of_the_plain_step(
    small_config, plain, take_form, monkeypatch, residual, adversarial, overlap, platform
):
    # So that layers of few channels and little work take the faster convolution, too.
    monkeypatch.setattr(conv, "conv_general_dilated", partial(conv.conv_general_dilated, least=0))
    monkeypatch.setattr(conv, "_CHANNELS_OF_KERNEL", 16)
    monkeypatch.setattr(conv, "_CHANNELS", 16)
    if platform != "cpu":
        take_form(platform)
    present = {"cross_entropy"} | ({"adversarial"} if adversarial else set())
    present |= {"lovasz", "boundary"} if overlap else set()
    weights = {name: weight * (name in present) for name, weight in WEIGHTS.items()}
    keys = {f"loss.{name}": weight for name, weight in weights.items()}
    # Without critics by Winograd, which takes long to compile.
    name = "lax" if adversarial else "winograd"
    fixed = {"augment.enabled": False, "optimizer.weight_decay": 0.0, "model.conv": name}
    config = small_config(residual, adversarial, overlap, **keys, **fixed)
    step = parallel.parallelize(make_step(task_of(config, CLASSES), 10, parallel.AXIS, platform))
    state = parallel.replicate(init_state(task_of(config, CLASSES), 10, 0))
    state, _ = step(state, parallel.replicate(batch()), np.array([[[0, 1]]], np.int32))
    # Adam's first moments are the gradient times 1 - beta.
    got = {"segmenter": flat(state.segmenter.opt_state[1][0].mu) / 0.1}
    got |= {name: flat(network.opt_state[0].mu) / 0.5 for name, network in state.critics.items()}
    with jax.enable_x64(True):
        of_segmenter, of_critics = plain[residual](weights, adversarial)
    expected = {"segmenter": flat(of_segmenter)} | {n: flat(g) for n, g in of_critics.items()}
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        error = np.linalg.norm(gradient - expected[name]) / np.linalg.norm(expected[name])
        assert error < 1e-3, (name, error)
    statistics = jax.jit(lambda before: running_statistics(config, before, *batch()))
    expected = flat(statistics(init_state(task_of(config, CLASSES), 10, 0)))
    got = flat([state.segmenter.batch_stats, *(network.batch_stats for network in state.critics.values())])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert int(state.step) == 1
