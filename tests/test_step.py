import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isles_jax import losses, parallel
from isles_jax.models import Discriminator, SUMNet
from isles_jax.state import (
    critic_channels,
    critic_optimizer,
    init_state,
    make_critic,
    make_segmenter,
    segmenter_optimizer,
)
from isles_jax.step import make_step

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


def run(config, indices, classes=CLASSES):
    """The compiled step on a fresh state; indices [K, B]."""
    step = parallel.parallelize(make_step(config, classes, STEPS, parallel.AXIS), config.train.parallel)
    state = parallel.replicate(init_state(config, classes, 3, STEPS, 0))
    return step(state, parallel.replicate(data(classes)), np.asarray(indices, np.int32)[None])


def trace(config):
    """The step's jaxpr as text, and how often each network was called in it."""
    calls = {SUMNet: 0, Discriminator: 0}

    def count(next_call, args, kwargs, context):
        calls[type(context.module)] = calls.get(type(context.module), 0) + (context.method_name == "__call__")
        return next_call(*args, **kwargs)

    state = init_state(config, CLASSES, 3, STEPS, 0)
    with nn.intercept_methods(count):
        step = make_step(config, CLASSES, STEPS, "data")
        jaxpr = jax.make_jaxpr(step, axis_env=[("data", 1)])(state, data(), jnp.zeros((1, 4), jnp.int32))
    return str(jaxpr), calls[SUMNet], calls[Discriminator]


def test_one_forward_pass_serves_both_updates(small_config):
    _, segmenter, critics = trace(small_config())
    # A critic's pass is traced once for one map and once for two, and used four times for each of three critics.
    assert (segmenter, critics) == (1, 4)


def test_what_has_no_weight_is_absent(small_config):
    full, _, _ = trace(small_config())
    plain, _, critics = trace(small_config(adversarial=False, overlap=False, **{"augment.enabled": False}))
    assert critics == 0
    assert plain.count("conv_general_dilated") < full.count("conv_general_dilated")
    assert " sort[" in full
    assert " sort[" not in plain
    for key in ("lovasz", "boundary", "cross_entropy", "adversarial"):
        without, _, critics = trace(small_config(**{f"loss.{key}": 0.0}))
        assert len(without) < len(full)
        assert (critics == 0) == (key == "adversarial")


def plain_step(config, state, images, labels):
    """The same step, written without sharing: every update runs the segmenter for itself."""
    where = labels >= 0
    segmenter, critic = make_segmenter(config, 2), make_critic(config)
    variables = state.segmenter.variables

    def logits_of(params):
        return segmenter.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])

    def maps(logits, view):
        real = jax.nn.one_hot(labels, 2) * where[..., None]
        return real[..., view], (jax.nn.softmax(logits) * where[..., None])[..., view]

    def judge(params, stats, maps):
        verdict, new = critic.apply({"params": params, "batch_stats": stats}, maps, train=True, mutable=["batch_stats"])
        return verdict, new["batch_stats"]

    views, updated = critic_channels(config, ONE), {}
    for name, view in views.items():
        network = state.critics[name]
        real, fake = maps(jax.lax.stop_gradient(logits_of(state.segmenter.params)[0]), view)

        def critic_loss(params, network=network, real=real, fake=fake):
            on_real, stats = judge(params, network.batch_stats, real)
            on_fake, stats = judge(params, stats, fake)
            return losses.relativistic_discriminator_loss(on_real, on_fake), stats

        gradients, stats = jax.grad(critic_loss, has_aux=True)(network.params)
        changes, _ = critic_optimizer(config).update(gradients, network.opt_state, network.params)
        updated[name] = optax.apply_updates(network.params, changes), stats

    def loss(params):
        logits, new = logits_of(params)
        total = losses.cross_entropy(logits, labels, where=where)
        total += losses.lovasz_softmax(logits, labels, where=where)
        total += losses.boundary_weighted_nll(logits, labels, where=where)
        for name, view in views.items():
            real, fake = maps(logits, view)
            on_real, on_fake = (judge(*updated[name], m)[0] for m in (real, fake))
            total += config.loss.adversarial * losses.relativistic_generator_loss(on_real, on_fake)
        return total, new["batch_stats"]

    (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(state.segmenter.params)
    optimizer = segmenter_optimizer(config, STEPS)
    changes, _ = optimizer.update(gradients, state.segmenter.opt_state, state.segmenter.params)
    return value, optax.apply_updates(state.segmenter.params, changes), stats, updated


def close(got, expected, tolerance):
    got, expected = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in (got, expected))
    assert jnp.linalg.norm(got - expected) <= tolerance * jnp.linalg.norm(expected)


def test_step_is_the_plain_step(small_config):
    # A large adversarial weight and no warm-up, so that every term and the first update count.
    config = small_config(**{"augment.enabled": False, "loss.adversarial": 0.5, "optimizer.warmup": 0.0})
    rows = np.array([0, 2, 3, 5])
    images, labels = (array[rows] for array in data(ONE))
    before = init_state(config, ONE, 3, STEPS, 0)
    value, params, stats, critics = jax.jit(lambda s: plain_step(config, s, images, labels.astype(jnp.int32)))(before)
    state, metrics = run(config, [rows], ONE)
    np.testing.assert_allclose(metrics["loss"][0], value, rtol=1e-5)
    # Adam's first update is the gradient's sign times the rate: compare the change, where rounding may flip few signs.
    moved = jax.tree.map(jnp.subtract, state.segmenter.params, before.segmenter.params)
    expected = jax.tree.map(jnp.subtract, params, before.segmenter.params)
    close(moved, expected, 0.05)
    close(state.segmenter.batch_stats, stats, 1e-5)
    for name, (critic_params, critic_stats) in critics.items():
        close(state.critics[name].params, critic_params, 1e-3)
        close(state.critics[name].batch_stats, critic_stats, 1e-5)
    assert int(state.step) == 1


def test_scanned_steps_are_the_same_steps(small_config):
    config = small_config(residual=False, adversarial=False, overlap=False)
    rows = np.arange(12).reshape(3, 4) % 6
    step = parallel.parallelize(make_step(config, CLASSES, STEPS, parallel.AXIS))
    state, values = parallel.replicate(init_state(config, CLASSES, 3, STEPS, 0)), []
    for row in rows:
        state, metrics = step(state, parallel.replicate(data()), row[None, None].astype(np.int32))
        values.append(metrics["loss"][0])
    scanned, metrics = run(config, rows)
    np.testing.assert_allclose(metrics["loss"], values, rtol=1e-4)
    assert metrics["learning_rate"].shape == (3,)
    close(scanned.segmenter.params, state.segmenter.params, 1e-3)


def test_training_fits_one_batch(small_config):
    config = small_config(adversarial=False, **{"augment.enabled": False, "optimizer.learning_rate": 1e-2})
    step = parallel.parallelize(make_step(config, CLASSES, 100, parallel.AXIS))
    state, placed = parallel.replicate(init_state(config, CLASSES, 3, 100, 0)), parallel.replicate(data())
    values = []
    for _ in range(60):
        state, metrics = step(state, placed, np.arange(4, dtype=np.int32)[None, None])
        values.append(float(metrics["loss"][0]))
    assert values[-1] < 0.5 * values[0]
    assert np.all(np.isfinite(values))


def test_low_precision_keeps_the_state_in_float32(small_config):
    state, metrics = run(small_config(dtype="bfloat16"), [[0, 1, 2, 3]], ONE)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((state.segmenter, state.critics)) if leaf.dtype.kind == "f"}
    assert kinds == {jnp.dtype(jnp.float32)}
    assert all(np.isfinite(value[0]) for value in metrics.values())


def test_initial_state_is_a_function_of_seed_and_fold(small_config):
    def kernel(seed, fold):
        return init_state(small_config(seed=seed), CLASSES, 3, STEPS, fold).segmenter.params["conv3a"]["kernel"]

    np.testing.assert_array_equal(kernel(0, 0), kernel(0, 0))
    assert not np.array_equal(kernel(0, 0), kernel(0, 1))
    assert not np.array_equal(kernel(0, 0), kernel(1, 0))
    # He's deviation, sqrt(2 / (9 * 8)) = 0.167, over 1152 numbers.
    assert abs(float(kernel(0, 0).std()) - (2 / 72) ** 0.5) < 0.015


@pytest.mark.parametrize(("classes", "names"), [(("core",), ["core"]), (CLASSES, ["penumbra", "core", "all classes"])])
def test_one_critic_a_class_and_one_for_all(small_config, classes, names):
    state = init_state(small_config(), classes, 2, STEPS, 0)
    assert list(state.critics) == names
    widths = [network.params["conv1"]["kernel"].shape[2] for network in state.critics.values()]
    assert widths == [1] * len(classes) + [2] * (len(classes) > 1)
    assert state.segmenter.params["output"]["kernel"].shape[-1] == len(classes) + 1
    assert init_state(small_config(adversarial=False), classes, 2, STEPS, 0).critics == {}


def test_unknown_parallel_kind_is_refused():
    with pytest.raises(ValueError, match="pmap"):
        parallel.parallelize(lambda *_: None, "vmap")
