"""The training state: everything that a step changes, as one pytree."""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from isles_jax.models import he_normal, pass_through
from isles_jax.training import optimizers
from isles_jax.training.task import Task

# The initialisers that take a NumPy generator in place of a key. JAX's own compile a program for each shape.
_OF_NUMPY = (he_normal, pass_through)
# The first running statistics of batch norm. Flax has no initialisers for them.
_STATISTICS = {"mean": 0.0, "var": 1.0}


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

    @jax.named_scope("optimiser")
    def updated(self, optimizer: optax.GradientTransformation, gradients: Any, batch_stats: Any) -> "Network":
        """The network after one step of its optimiser, with other running statistics."""
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        return Network(optax.apply_updates(self.params, updates), batch_stats, opt_state)


@flax.struct.dataclass
class State:
    """Everything that a step changes: the step number, the random key, the segmenter, and the critics by name.

    There are no critics if training is not adversarial.
    """

    step: Array
    key: Array
    segmenter: Network
    critics: dict[str, Network]


def init_state(task: Task, steps: int, fold: int) -> State:
    """The state before the first of `steps` steps. Its random numbers depend on (config.seed, fold) alone."""
    generator = np.random.default_rng((task.config.seed, fold))

    def network(module: nn.Module, planes: int, optimizer: optax.GradientTransformation) -> Network:
        variables = _first_variables(module, planes, task.padded((1, 1)), generator)
        params = variables["params"]
        return Network(params, variables.get("batch_stats", {}), jax.jit(optimizer.init)(params))

    segmenter = network(task.segmenter(), task.planes, optimizers.of_segmenter(task.config, steps))
    of_critic = optimizers.of_critic(task.config.discriminator.learning_rate)
    planes = {name: len(range(task.outputs)[view]) for name, view in task.views.items()}
    critics = {name: network(task.critic(), count, of_critic) for name, count in planes.items()}
    return State(jnp.zeros((), jnp.int32), jax.random.PRNGKey(generator.integers(2**31)), segmenter, critics)


def variables_like(task: Task) -> dict[str, Any]:
    """The shapes and types of the segmenter's variables."""
    shapes, _ = _blueprint(task.segmenter(), task.planes, task.padded((1, 1)))
    return {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}


def _first_variables(
    module: nn.Module, planes: int, sides: tuple[int, int], generator: np.random.Generator
) -> dict[str, Any]:
    """Draws the variables of a network with the layers' own initialisers.

    Raises:
      ValueError: the first value of a variable is not known.
    """
    shapes, initialisers = _blueprint(module, planes, sides)
    # Keys come from here, so that NumPy's numbers do not depend on the number of keys.
    spare = generator.spawn(1)[0]

    def first(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        collection, *place = (key.key for key in path)
        initialise = initialisers.get(tuple(place)) if collection == "params" else _STATISTICS.get(place[-1])
        if initialise is None:
            layer = f"{type(module).__name__}/{'/'.join(place[:-1])}"
            raise ValueError(f"{layer}: the first value of {place[-1]} is not known, expected {place[-1]}_init there")
        if isinstance(initialise, int | float):
            return np.full(leaf.shape, initialise, leaf.dtype)
        source = generator if initialise in _OF_NUMPY else jax.random.key(spare.integers(2**31))
        return np.asarray(initialise(source, leaf.shape, leaf.dtype))

    variables: dict[str, Any] = jax.tree.map_with_path(first, shapes)
    return variables


# Cached, because tracing a network takes longer than drawing its numbers.
@functools.cache
def _blueprint(module: nn.Module, planes: int, sides: tuple[int, int]) -> tuple[Any, dict[tuple[str, ...], Any]]:
    """The shapes of a network's variables, and the initialiser of each parameter by its path.

    Flax's layers hold the initialiser of a parameter NAME in an attribute NAME_init.
    """
    initialisers = {}

    def note(call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        for name in type(layer).__dataclass_fields__:
            if name.endswith("_init"):
                initialisers[(*layer.path, name.removesuffix("_init"))] = getattr(layer, name)
        return call(*arguments, **options)

    images = jnp.zeros((1, *sides, planes))
    with nn.intercept_methods(note):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images))
    return shapes, initialisers
