"""The training state: everything that a step changes, as one pytree."""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from isles_jax.models import MULTIPLE, first_bias, kernel_init
from isles_jax.training.networks import critic_channels, make_critic, make_segmenter


@flax.struct.dataclass
class Network:
    """A network in training: its parameters, the running statistics of batch norm, and the state of its optimiser."""

    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for Flax's `apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}


@flax.struct.dataclass
class State:
    """Everything that a step changes: the step number, the random key, the segmenter, and the critics by name.

    There are no critics if training is not adversarial.
    """

    step: Array
    key: Array
    segmenter: Network
    critics: dict[str, Network]


def learning_rate(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """The segmenter's learning rate: a linear warm-up to the peak, then a cosine that reaches 0 at the last step."""
    warmup = round(config.optimizer.warmup * steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.optimizer.learning_rate, warmup, max(steps, warmup + 1))


def segmenter_optimizer(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """Adam. L2 decay is added to the gradient."""
    decay = optax.add_decayed_weights(config.optimizer.weight_decay)
    return optax.chain(decay, optax.adam(learning_rate(config, steps)))


def critic_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam with the betas that are usual in adversarial training, 0.5 and 0.999."""
    return optax.adam(config.discriminator.learning_rate, b1=0.5, b2=0.999)


def init_state(
    config: ml_collections.ConfigDict, classes: tuple[str, ...], channels: int, steps: int, fold: int
) -> State:
    """The state before the first step. Its random numbers depend on (config.seed, fold) alone.

    Args:
      config: the whole configuration.
      classes: names of the foreground classes.
      channels: input channels of an image.
      steps: number of steps of the whole training, for the learning rate.
      fold: number of the fold.
    """
    generator = np.random.default_rng((config.seed, fold))

    def network(module: nn.Module, planes: int, optimizer: optax.GradientTransformation) -> Network:
        variables = _init_variables(module, planes, generator)
        # Adam and the schedule start from zeros, so NumPy can make their state and JAX need not compile anything.
        opt_state = jax.tree.map(
            lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(optimizer.init, variables["params"])
        )
        return Network(variables["params"], variables.get("batch_stats", {}), opt_state)

    trained = network(make_segmenter(config, len(classes) + 1), channels, segmenter_optimizer(config, steps))
    planes = {name: len(range(len(classes) + 1)[view]) for name, view in critic_channels(config, classes).items()}
    critics = {name: network(make_critic(config), count, critic_optimizer(config)) for name, count in planes.items()}
    return State(jnp.zeros((), jnp.int32), jax.random.PRNGKey(generator.integers(2**31)), trained, critics)


def _init_variables(module: nn.Module, planes: int, generator: np.random.Generator) -> Any:
    """Draws the variables that `module.init` would draw.

    The numbers come from NumPy, because JAX would compile a random generator for every shape.
    """

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            return kernel_init(path[-2].key)(generator, leaf.shape, leaf.dtype)
        if name == "bias":
            return np.full(leaf.shape, first_bias(path[-2].key), leaf.dtype)
        return np.full(leaf.shape, name in ("scale", "var"), leaf.dtype)

    return jax.tree.map_with_path(fill, _shapes(module, planes))


@functools.cache
def _shapes(module: nn.Module, planes: int) -> Any:
    """The shapes of a network's variables, cached because tracing the network takes longer than drawing the numbers."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, MULTIPLE, MULTIPLE, planes))))
