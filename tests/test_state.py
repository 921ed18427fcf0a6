"""The first state of a training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from helpers import task_of

from isles_jax.training import optimizers
from isles_jax.training.networks import NETWORKS
from isles_jax.training.optimizers import OPTIMIZERS
from isles_jax.training.state import init_state

CLASSES = ("penumbra", "core")
STEPS = 10


def test_initial_state_is_a_function_of_seed_and_fold(small_config):
    def kernel(seed, fold):
        return init_state(task_of(small_config(seed=seed), CLASSES), STEPS, fold).segmenter.params["conv3a"]["kernel"]

    np.testing.assert_array_equal(kernel(0, 0), kernel(0, 0))
    assert not np.array_equal(kernel(0, 0), kernel(0, 1))
    assert not np.array_equal(kernel(0, 0), kernel(1, 0))
    params = init_state(task_of(small_config(), CLASSES), STEPS, 0).segmenter.params
    biases = [layer["bias"] for name, layer in params.items() if "bias" in layer and name != "preconv"]
    assert len(biases) > 5
    assert not any(bias.any() for bias in biases)
    # He's deviation, sqrt(2 / (9 * 8)) = 0.167, over 1152 numbers.
    assert abs(float(kernel(0, 0).std()) - (2 / 72) ** 0.5) < 0.015


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_the_preconvolution_starts_by_passing_every_channel_on(small_config, channels):
    config = small_config(adversarial=False)
    ours = init_state(task_of(config, CLASSES, channels), STEPS, 0).segmenter.params["preconv"]
    network, images = task_of(config, CLASSES).segmenter(), jnp.zeros((1, 32, 32, channels))
    # Compiled, so that the other layers are left out.
    flax = jax.jit(lambda: network.init(jax.random.key(0), images)["params"]["preconv"])()
    for leaves in (ours, flax):
        kernel = np.asarray(leaves["kernel"])[0, 0]
        assert set(kernel.flat) <= {0, 1}
        assert kernel.sum(0).min() == max(1, channels // 3), "no output starts dead"
        assert kernel.sum(1).min() == max(1, 3 // channels), "no input is left out"
        np.testing.assert_array_equal(leaves["bias"], 1)
    if channels == 3:
        np.testing.assert_array_equal(kernel, np.eye(3))


@pytest.mark.parametrize(("classes", "names"), [(("core",), ["core"]), (CLASSES, ["penumbra", "core", "all classes"])])
def test_one_critic_a_class_and_one_for_all(small_config, classes, names):
    state = init_state(task_of(small_config(), classes, 2), STEPS, 0)
    assert list(state.critics) == names
    widths = [network.params["conv1"]["kernel"].shape[2] for network in state.critics.values()]
    assert widths == [1] * len(classes) + [2] * (len(classes) > 1)
    assert state.segmenter.params["output"]["kernel"].shape[-1] == len(classes) + 1
    assert init_state(task_of(small_config(adversarial=False), classes, 2), STEPS, 0).critics == {}


# --- optimisers of other kinds, and layers with initialisers of their own ---------------------------------------------

OTHERS = {
    "adagrad": lambda config, rate: optax.adagrad(rate),
    "schedule-free": lambda config, rate: optax.contrib.schedule_free_adamw(1e-3),
    "prodigy": lambda config, rate: optax.contrib.prodigy(),
    "muon": lambda config, rate: optax.contrib.muon(rate),
    "injected": lambda config, rate: optax.inject_hyperparams(optax.adam)(rate),
}


@pytest.mark.parametrize("name", [*OPTIMIZERS, *OTHERS])
def test_the_optimisers_state_is_what_its_own_init_returns(name, small_config, monkeypatch):
    for other, make in OTHERS.items():
        monkeypatch.setitem(OPTIMIZERS, other, make)
    config = small_config(adversarial=False)
    config.optimizer.name = name
    network = init_state(task_of(config), STEPS, 0).segmenter
    expected = optimizers.of_segmenter(config, STEPS).init(network.params)
    assert jax.tree.structure(network.opt_state) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(network.opt_state), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-6)


class Own(nn.Module):
    """A network whose layers all have initialisers of their own."""

    num_classes: int = 3
    divisor = 8

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(4, (3, 3), kernel_init=nn.initializers.constant(0.5), bias_init=nn.initializers.ones)(images)
        x = nn.PReLU(negative_slope_init=0.3)(x)
        x = nn.BatchNorm(not train, scale_init=nn.initializers.zeros, bias_init=nn.initializers.ones)(x)
        x = x + nn.Embed(2, 4, embedding_init=nn.initializers.ones)(jnp.zeros((), int))
        return nn.Dense(self.num_classes)(x)


def test_every_layer_starts_as_its_own_initialiser_says(small_config, monkeypatch):
    monkeypatch.setitem(NETWORKS, "own", lambda config, size, num_classes, **_: Own(num_classes))
    config = small_config(adversarial=False)
    config.model.network = "own"
    variables = init_state(task_of(config), STEPS, 0).segmenter.variables
    flax = Own().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    for name in ("Conv_0", "PReLU_0", "BatchNorm_0", "Embed_0"):
        jax.tree.map(np.testing.assert_array_equal, variables["params"][name], flax["params"][name])
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], flax["batch_stats"])
    # Drawn by Flax's default for a dense layer: a deviation of 1 / sqrt(inputs).
    kernels = [
        init_state(task_of(config, ("a",) * 50), STEPS, fold).segmenter.params["Dense_0"]["kernel"] for fold in range(9)
    ]
    assert np.std(kernels) == pytest.approx(0.5, rel=0.1)
    assert not np.array_equal(kernels[0], kernels[1])


def test_a_parameter_without_an_initialiser_is_an_error(small_config, monkeypatch):
    class Nameless(nn.Module):
        divisor = 32

        @nn.compact
        def __call__(self, images, train=False):
            return images * self.param("gain", nn.initializers.ones, (1,))

    monkeypatch.setitem(NETWORKS, "nameless", lambda config, size, **_: Nameless())
    config = small_config(adversarial=False)
    config.model.network = "nameless"
    with pytest.raises(ValueError, match="the first value of gain is not known, expected gain_init there"):
        init_state(task_of(config), STEPS, 0)
