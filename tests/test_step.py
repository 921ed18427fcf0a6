import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import segmentation_case, task_of

from isles_jax import losses
from isles_jax.config import SUPERVISED
from isles_jax.models import Discriminator, SUMNet
from isles_jax.training import parallel
from isles_jax.training.critics import _accuracy, _maps
from isles_jax.training.state import init_state
from isles_jax.training.step import _load, _supervised, make_step

pytestmark = pytest.mark.device

CLASSES = ("penumbra", "core")
# One class has one critic, which compiles in a third of the time.
ONE = ("lesion",)
STEPS = 10


def data(classes=CLASSES):
    rng = np.random.default_rng(0)
    labels = np.zeros((6, 32, 32), np.int8)
    labels[:, 8:20, 6:20], labels[:, 12:16, 10:15], labels[:, :3] = 1, 2, -1
    images = rng.normal(size=(6, 32, 32, 3)).astype(np.float32) + (labels > 0)[..., None]
    return jnp.asarray(images), jnp.asarray(np.minimum(labels, len(classes)))


def run(config, indices, classes=CLASSES, platform="cpu"):
    """The compiled step, in a platform's form, on a fresh state; indices [K, B]."""
    task = task_of(config, classes)
    step = parallel.parallelize(make_step(task, STEPS, parallel.AXIS, platform), config.train.parallel)
    state = parallel.replicate(init_state(task, STEPS, 0))
    return step(state, parallel.replicate(data(classes)), np.asarray(indices, np.int32)[None])


def trace(config, platform="cpu", classes=CLASSES):
    """The jaxpr of a platform's step as text, and how often each network was called in it."""
    calls = {SUMNet: 0, Discriminator: 0}

    def count(next_call, args, kwargs, context):
        calls[type(context.module)] = calls.get(type(context.module), 0) + (context.method_name == "__call__")
        return next_call(*args, **kwargs)

    task = task_of(config, classes)
    with nn.intercept_methods(count):
        step = make_step(task, STEPS, "data", platform)
        arguments = init_state(task, STEPS, 0), data(classes), jnp.zeros((1, 4), jnp.int32)
        jaxpr = jax.make_jaxpr(step, axis_env=[("data", 1)])(*arguments)
    return str(jaxpr), calls[SUMNet], calls[Discriminator]


@pytest.mark.parametrize(("platform", "passes"), [("cpu", 4), ("gpu", 6)])
def test_one_forward_pass_serves_both_updates(small_config, platform, passes):
    _, segmenter, critics = trace(small_config(), platform)
    # A critic's passes over real and fake maps are traced once for one class and once for two, and used four times for
    # each of three critics. A GPU has a third pass, over both kinds of maps at once.
    assert (segmenter, critics) == (1, passes)


@pytest.mark.slow
def test_what_has_no_weight_is_absent(small_config):
    full, _, _ = trace(small_config(), classes=ONE)
    small = small_config(adversarial=False, overlap=False, **{"augment.enabled": False})
    plain, _, critics = trace(small, classes=ONE)
    assert critics == 0
    assert plain.count("conv_general_dilated") < full.count("conv_general_dilated")
    assert " sort[" in full
    assert " sort[" not in plain
    for key in ("lovasz", "boundary", "cross_entropy", "adversarial"):
        without, _, critics = trace(small_config(**{f"loss.{key}": 0.0}), classes=ONE)
        assert len(without) < len(full)
        assert (critics == 0) == (key == "adversarial")


def test_every_supervised_loss_with_a_weight_is_in_the_step_and_has_its_own(small_config):
    settings = small_config().loss
    # Some of these numbers are no weights of supervised losses, which the step must not take for one.
    numbers = {name: 2.0**n for n, name in enumerate(settings) if type(settings[name]) is float}
    config = small_config(**{f"loss.{name}": number for name, number in numbers.items()})
    found = {}

    def supervised(logits, labels):
        found.update(_supervised(config, logits, labels, labels >= 0, "data"))

    logits, labels, _ = segmentation_case((4, 8, 8), 3)
    jax.make_jaxpr(supervised, axis_env=[("data", 1)])(logits, labels)
    assert {name: weight for name, (weight, _) in found.items()} == {name: numbers[name] for name in SUPERVISED}


@pytest.mark.slow
def test_dice_and_focal_have_weights_of_their_own(small_config):
    config = small_config(**{"loss.cross_entropy": 0.0, "loss.dice": 0.5, "loss.focal": 2.0}, overlap=False)
    logits, labels, _ = segmentation_case((4, 8, 8), 3)
    labels[:, :2] = -1

    def supervised(logits, labels):
        terms = _supervised(config, logits, labels, labels >= 0, "data")
        assert {name: weight for name, (weight, _) in terms.items()} == {"dice": 0.5, "focal": 2.0}
        return {name: value for name, (_, value) in terms.items()}

    # Two devices with two slices each.
    halves = [x.reshape(2, 2, *x.shape[1:]) for x in (logits, labels)]
    values = jax.vmap(supervised, axis_name="data")(*halves)
    dice = [losses.soft_dice(x, y, where=y >= 0) for x, y in zip(*halves, strict=True)]
    np.testing.assert_allclose(values["dice"], dice, rtol=1e-6)
    np.testing.assert_allclose(values["focal"].mean(), losses.focal(logits, labels, where=labels >= 0), rtol=1e-6)


@pytest.mark.slow
def test_a_tpu_traces_one_program_for_all_critics(small_config):
    # Both maps at once for the update, and one after the other for the segmenter, whatever the number of critics; and
    # once more each for the shapes of the results: those of the critics of one class, and of all.
    _, segmenter, critics = trace(small_config(), "tpu")
    assert segmenter == 1
    assert critics <= 9
    _, segmenter, critics = trace(small_config(adversarial=False), "tpu")
    assert (segmenter, critics) == (1, 0)


def close(got, expected, tolerance):
    got, expected = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in (got, expected))
    assert jnp.linalg.norm(got - expected) <= tolerance * jnp.linalg.norm(expected)


@pytest.mark.slow
def test_scanned_steps_are_the_same_steps(small_config):
    config = small_config(residual=False, adversarial=False, overlap=False)
    rows = np.arange(12).reshape(3, 4) % 6
    step = parallel.parallelize(make_step(task_of(config, CLASSES), STEPS, parallel.AXIS))
    state, values = parallel.replicate(init_state(task_of(config, CLASSES), STEPS, 0)), []
    for row in rows:
        state, metrics = step(state, parallel.replicate(data()), row[None, None].astype(np.int32))
        values.append(metrics["loss"][0])
    scanned, metrics = run(config, rows)
    np.testing.assert_allclose(metrics["loss"], values, rtol=1e-4)
    assert metrics["learning_rate"].shape == (3,)
    close(scanned.segmenter.params, state.segmenter.params, 1e-3)


@pytest.fixture(scope="module")
def of_cpu(small_config):
    """A configuration, and what a step in the form for CPUs makes of it."""
    config = small_config(**{"augment.enabled": False, "loss.adversarial": 1.0})
    return config, *run(config, [[0, 1, 2, 3]])


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_the_forms_for_accelerators_are_the_same_step(of_cpu, take_form, platform):
    config, expected, values = of_cpu
    take_form(platform)
    got, got_values = run(config, [[0, 1, 2, 3]], platform=platform)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, expected)
    assert got_values.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_allclose(got_values[name], value, rtol=1e-4, err_msg=name)
    networks = {"segmenter": (got.segmenter, expected.segmenter)}
    networks |= {name: (got.critics[name], expected.critics[name]) for name in expected.critics}
    for one, other in networks.values():
        close(one.batch_stats, other.batch_stats, 1e-4)
        # Adam's moments show the gradients; its first step hides their size.
        close(one.opt_state, other.opt_state, 1e-3)


@pytest.mark.slow
def test_training_fits_one_batch(small_config):
    config = small_config(adversarial=False, **{"augment.enabled": False, "optimizer.learning_rate": 1e-2})
    step = parallel.parallelize(make_step(task_of(config, CLASSES), 100, parallel.AXIS))
    state, placed = parallel.replicate(init_state(task_of(config, CLASSES), 100, 0)), parallel.replicate(data())
    values = []
    for _ in range(60):
        state, metrics = step(state, placed, np.arange(4, dtype=np.int32)[None, None])
        values.append(float(metrics["loss"][0]))
    assert values[-1] < 0.5 * values[0]
    assert np.all(np.isfinite(values))


@pytest.mark.slow
def test_low_precision_keeps_the_state_in_float32(small_config):
    state, metrics = run(small_config(dtype="bfloat16"), [[0, 1, 2, 3]], ONE)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((state.segmenter, state.critics)) if leaf.dtype.kind == "f"}
    assert kinds == {jnp.dtype(jnp.float32)}
    assert all(np.isfinite(value[0]) for value in metrics.values())


def test_the_critics_accuracy_counts_pairs_or_sides_of_the_other_mean():
    real, fake = jnp.array([3.0, 1.0, 0.0, -1.0]), jnp.array([2.0, 1.0, -2.0, -1.0])
    # Pairs: 3 > 2 and 0 > -2; a tie is no success.
    assert _accuracy(real, fake, average=False) == 0.5
    # The means are 0.75 and 0: real 3 and 1 lie above 0, fake -2 and -1 below 0.75.
    assert _accuracy(real, fake, average=True) == 0.5
    assert _accuracy(real + 10, fake, average=True) == 1.0
    assert _accuracy(real - 10, fake, average=False) == 0.0


@pytest.mark.slow
def test_the_critics_share_of_the_gradient_grows_with_their_weight(small_config):
    shares = {}
    for weight in (0.5, 1.0):
        keys = {"loss.adversarial": weight, "augment.enabled": False}
        config = small_config(residual=False, overlap=False, **keys)
        _, metrics = run(config, [[0, 1, 2, 3]], ONE)
        shares[weight] = float(metrics["critic_gradient"][0])
    assert 0 < shares[0.5] < np.inf
    assert shares[1.0] == pytest.approx(2 * shares[0.5], rel=1e-4)


@pytest.mark.slow
def test_where_no_loss_has_a_gradient_all_metrics_are_finite(small_config):
    """The critics' share of the gradient then divides 0 by 0."""
    images, labels = data(ONE)
    step = parallel.parallelize(
        make_step(task_of(config := small_config(), ONE), STEPS, parallel.AXIS), config.train.parallel
    )
    state = parallel.replicate(init_state(task_of(config, ONE), STEPS, 0))
    nothing = parallel.replicate((images, jnp.full_like(labels, -1)))
    _, metrics = step(state, nothing, np.arange(4, dtype=np.int32)[None, None])
    assert {name: value for name, value in metrics.items() if not np.isfinite(value).all()} == {}
    assert metrics["critic_gradient"] == 0


@pytest.mark.parametrize("hard", [False, True])
def test_critics_see_classes_or_probabilities_with_the_gradient_of_probabilities(hard):
    logits, labels, _ = segmentation_case((2, 8, 8), 3)
    labels[:, :2] = -1
    inside = (labels >= 0)[..., None]
    soft = jax.nn.softmax(logits) * inside
    real, fake = _maps(logits, labels, labels >= 0, hard)
    np.testing.assert_array_equal(real, np.eye(3)[np.maximum(labels, 0)] * inside)
    np.testing.assert_array_equal(fake, np.eye(3)[np.argmax(logits, -1)] * inside if hard else soft)
    push = np.random.default_rng(0).normal(size=fake.shape).astype(np.float32)
    found = jax.grad(lambda x: (push * _maps(x, labels, labels >= 0, hard)[1]).sum())(logits)
    expected = jax.grad(lambda x: (push * inside * jax.nn.softmax(x)).sum())(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("augmented", [False, True])
def test_zeros_for_missing_channels_leave_out_others_and_stay_zeros(augmented, small_config):
    config = small_config(adversarial=False)
    config.augment.enabled = augmented
    images, labels = data()
    images = images.at[1, ..., 2].set(0.0)
    state = init_state(task_of(config), STEPS, 0)
    indices = np.tile(np.arange(6, dtype=np.int32), 40)

    def load(missing):
        config.data.missing = missing
        return jax.vmap(lambda rows: _load(config, state, (images, labels), rows, "d"), axis_name="d")(indices[None])

    whole, where = (np.asarray(x[0]) for x in load("refuse"))
    given, same = (np.asarray(x[0]) for x in load("zero"))
    np.testing.assert_array_equal(same, where)
    lost = (given == 0).all(axis=(1, 2))
    np.testing.assert_array_equal(given, np.where(lost[:, None, None], 0, whole))
    absent = indices == 1
    assert (whole[absent][..., 2] != 0).any() == augmented, "augmentation adds an offset to zeros"
    assert lost[absent, 2].all()
    assert not lost.all(axis=-1).any()
    assert 0.05 < lost[~absent].mean() < 0.15
