import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isles_jax.models import Discriminator, SUMNet
from isles_jax.networks import make_segmenter
from isles_jax.training import parallel
from isles_jax.training.state import init_state
from isles_jax.training.step import make_step

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


def run(config, indices, classes=CLASSES, platform=None):
    """The compiled step on a fresh state; indices [K, B]."""
    step = parallel.parallelize(make_step(config, classes, STEPS, parallel.AXIS, platform), config.train.parallel)
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


def close(got, expected, tolerance):
    got, expected = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in (got, expected))
    assert jnp.linalg.norm(got - expected) <= tolerance * jnp.linalg.norm(expected)


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


def test_the_form_for_accelerators_is_the_same_step(small_config, take_form):
    config = small_config(**{"augment.enabled": False, "loss.adversarial": 1.0})
    expected, values = run(config, [[0, 1, 2, 3]])
    take_form("tpu")
    got, got_values = run(config, [[0, 1, 2, 3]], platform="tpu")
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


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_the_preconvolution_begins_by_passing_every_channel_on(small_config, channels):
    config = small_config(adversarial=False)
    ours = init_state(config, CLASSES, channels, STEPS, 0).segmenter.params["preconv"]
    flax = make_segmenter(config, 3).init(jax.random.key(0), jnp.zeros((1, 32, 32, channels)))["params"]["preconv"]
    for leaves in (ours, flax):
        kernel = np.asarray(leaves["kernel"])[0, 0]
        assert set(kernel.flat) <= {0, 1}
        assert kernel.sum(0).min() == max(1, channels // 3), "no output begins dead"
        assert kernel.sum(1).min() == max(1, 3 // channels), "no input is left out"
        assert not np.any(leaves["bias"])
    if channels == 3:
        np.testing.assert_array_equal(kernel, np.eye(3))


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
