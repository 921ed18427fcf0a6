"""Networks made from a configuration."""

from isles_jax.training import networks
from isles_jax.training.networks import make_segmenter


def test_the_same_network_is_compiled_once_for_all(untrained_run, forward):
    assert networks.make_forward(make_segmenter(untrained_run[1], 3)) is forward
    assert networks.make_forward(make_segmenter(untrained_run[1], 2)) is not forward
