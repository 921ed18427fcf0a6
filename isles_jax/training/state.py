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

from isles_jax.models import MULTIPLE, kernel_init
from isles_jax.networks import critic_channels, make_critic, make_segmenter


@flax.struct.dataclass
class Network:
    """A network that is trained: its parameters, batch norm's running statistics and its optimiser's state."""

    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What Flax's `apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


@flax.struct.dataclass
class State:
    """The segmenter, its critics by name (none when training is not adversarial), the random key and the step."""

    step: Array
    key: Array
    segmenter: Network
    critics: dict[str, Network]


def learning_rate(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """The segmenter's rate: linear warm-up to the peak, then a cosine to 0 at the last step."""
    warmup = round(config.optimizer.warmup * steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.optimizer.learning_rate, warmup, max(steps, warmup + 1))


def segmenter_optimizer(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """Adam with L2 decay in the gradient."""
    decay = optax.add_decayed_weights(config.optimizer.weight_decay)
    return optax.chain(decay, optax.adam(learning_rate(config, steps)))


def critic_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam with the betas usual for adversarial training."""
    return optax.adam(config.discriminator.learning_rate, b1=0.5, b2=0.999)


def init_state(
    config: ml_collections.ConfigDict, classes: tuple[str, ...], channels: int, steps: int, fold: int
) -> State:
    """The state before the first step, a function of (config.seed, fold) alone.

    Args:
      config: the whole configuration.
      classes: names of the foreground classes.
      channels: input channels of an image.
      steps: steps of the whole training, for the schedule.
      fold: number of the fold.
    """
    generator = np.random.default_rng((config.seed, fold))

    def network(module: nn.Module, planes: int, optimizer: optax.GradientTransformation) -> Network:
        variables = _init_variables(module, planes, generator)
        # Adam and its schedule begin with zeros: nothing to compile.
        opt_state = jax.tree.map(
            lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(optimizer.init, variables["params"])
        )
        return Network(variables["params"], variables.get("batch_stats", {}), opt_state)

    trained = network(make_segmenter(config, len(classes) + 1), channels, segmenter_optimizer(config, steps))
    planes = {name: len(range(len(classes) + 1)[view]) for name, view in critic_channels(config, classes).items()}
    critics = {name: network(make_critic(config), count, critic_optimizer(config)) for name, count in planes.items()}
    return State(jnp.zeros((), jnp.int32), jax.random.PRNGKey(generator.integers(2**31)), trained, critics)


def _init_variables(module: nn.Module, planes: int, generator: np.random.Generator) -> Any:
    """What `module.init` gives, with numbers drawn by NumPy: JAX would compile a random generator for every shape."""

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            return kernel_init(path[-2].key)(generator, leaf.shape, leaf.dtype)
        return np.full(leaf.shape, name in ("scale", "var"), leaf.dtype)

    return jax.tree.map_with_path(fill, _shapes(module, planes))


@functools.cache
def _shapes(module: nn.Module, planes: int) -> Any:
    """The shapes of a network's variables; tracing it takes longer than filling them."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, MULTIPLE, MULTIPLE, planes))))
