"""The first state of a training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import task_of

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
