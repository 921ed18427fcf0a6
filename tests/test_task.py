"""What the networks of a run are for."""

import json

import jax
import jax.numpy as jnp
import pytest
from helpers import task_of

from isles_jax import conv
from isles_jax.config import flatten, to_dict
from isles_jax.data.grid import Target
from isles_jax.training import networks
from isles_jax.training.state import variables_like
from isles_jax.training.task import Task


def test_the_same_network_is_compiled_once_for_all(small_config):
    forward = networks.make_forward(task_of(small_config()).predictor())
    assert networks.make_forward(task_of(small_config()).predictor()) is forward
    assert networks.make_forward(task_of(small_config(), ("lesion",)).predictor()) is not forward


def test_layers_are_made_faster_where_it_pays_in_the_run(small_config):
    def convolution(name, **options):
        return task_of(small_config(**{"model.conv": name})).segmenter(**options).conv

    # WORTHWHILE is 2e9: a layer that runs 100 times needs 20 million multiplications.
    assert convolution("auto", calls=100).keywords == {"least": 2e7}
    assert convolution("auto", calls=10**6).keywords == {"least": conv.LEAST_WORK}
    assert convolution("auto", calls=100) is convolution("auto", calls=100)
    assert convolution("winograd") is conv.conv_general_dilated
    assert convolution("auto") is convolution("lax", calls=10**6) is None
    assert task_of(small_config()).critic(calls=100).conv is convolution("auto", calls=100)
    assert task_of(small_config()).predictor().conv.keywords == {"least": 4e7}


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_each_network_keeps_what_the_table_promises(name, small_config):
    task = task_of(small_config(**{"model.network": name}), size=(40, 50))
    height, width = task.padded_size
    images = jnp.zeros((2, height, width, task.planes))
    segmenter = task.segmenter()
    made = jax.eval_shape(segmenter.init, jax.random.key(0), images)
    assert made.keys() <= {"params", "batch_stats"}
    logits, updates = jax.eval_shape(
        lambda variables: segmenter.apply(variables, images, train=True, mutable=["batch_stats"]), variables_like(task)
    )
    assert (logits.shape, logits.dtype) == ((2, height, width, task.outputs), jnp.float32)
    assert jax.tree.structure(updates.get("batch_stats", {})) == jax.tree.structure(made.get("batch_stats", {}))


def test_a_task_is_what_its_record_says(small_config):
    task = task_of(small_config(), ("a", "b"), ("x", "y"), label_values=(3, 7), target=Target((1, 2, 3)), size=(40, 50))
    read = Task.read(json.loads(json.dumps(task.record())))
    assert (read.channels, read.classes, read.label_values) == (task.channels, task.classes, task.label_values)
    assert (read.size, list(read.target.spacing_mm), read.target.crop) == ((40, 50), [1, 2, 3], False)
    assert flatten(to_dict(read.config)) == flatten(to_dict(task.config))
    assert (read.planes, read.outputs) == (2, 3)
    old = {key: value for key, value in task.record().items() if key not in ("grid", "size")}
    assert (Task.read(old).target, Task.read(old).size) == (Target(), None)


@pytest.mark.parametrize(
    ("shape", "padded"), [((1, 1), (32, 32)), ((32, 33), (32, 64)), ((96, 110), (96, 128)), ((64, 64), (64, 64))]
)
def test_sides_are_padded_to_what_the_network_takes(small_config, shape, padded):
    assert task_of(small_config()).padded(shape) == padded


@pytest.mark.parametrize(
    ("size", "divisor", "padded"), [((96, 110), 16, (96, 112)), ((40, 50), 8, (40, 56)), ((20, 9), 2, (32, 32))]
)
def test_the_u_net_pools_as_often_as_the_slices_allow(small_config, size, divisor, padded):
    task = task_of(small_config(**{"model.network": "unet"}), size=size)
    assert task.divisor == divisor
    assert task.padded(size) == padded
