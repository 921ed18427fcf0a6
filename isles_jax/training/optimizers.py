"""The optimisers by name, and their schedule."""

import functools
import json
from collections.abc import Callable

import optax
from ml_collections import ConfigDict

from isles_jax.config import to_dict


def _adam(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(config.optimizer.weight_decay), optax.adam(rate))


def _adamw(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=config.optimizer.weight_decay)


def _sgd(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    momentum = optax.sgd(rate, momentum=config.optimizer.momentum, nesterov=True)
    return optax.chain(optax.add_decayed_weights(config.optimizer.weight_decay), momentum)


# What makes the optimiser that `optimizer.name` names: (configuration, learning rate) -> optimiser.
OPTIMIZERS: dict[str, Callable[[ConfigDict, optax.Schedule], optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
}


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
    """The segmenter's learning rate: a linear warm-up to the peak, then a cosine down to 0 at the last step."""
    warmup = round(config.optimizer.warmup * steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.optimizer.learning_rate, warmup, max(steps, warmup + 1))


def of_segmenter(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimiser of the segmenter in a training of so many steps."""
    return _of_segmenter(json.dumps(to_dict(config.optimizer)), steps)


# Equal settings give the same object, so that what was compiled for it is found again.
@functools.lru_cache(maxsize=16)
def _of_segmenter(settings: str, steps: int) -> optax.GradientTransformation:
    config = ConfigDict({"optimizer": json.loads(settings)})
    return OPTIMIZERS[config.optimizer.name](config, learning_rate(config, steps))


@functools.lru_cache(maxsize=16)
def of_critic(rate: float) -> optax.GradientTransformation:
    """The optimiser of a critic: Adam with the betas that are usual in adversarial training, 0.5 and 0.999."""
    return optax.adam(rate, b1=0.5, b2=0.999)
