"""The networks by name, and the compiled function that applies a segmenter."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import ml_collections
from clu import parameter_overview
from jax import Array

from isles_jax.models import SUMNet, UNet, poolings_for
from isles_jax.training import parallel

# Slices in one call of the network during inference.
BATCH = 8


def _sumnet(config: ml_collections.ConfigDict, size: tuple[int, int], **options: Any) -> nn.Module:
    model = config.model
    return SUMNet(residual=model.residual, width=model.width, batch_norm=model.batch_norm, **options)


def _unet(config: ml_collections.ConfigDict, size: tuple[int, int], **options: Any) -> nn.Module:
    model = config.model
    poolings = poolings_for(size)
    return UNet(residual=model.residual, width=model.width, batch_norm=model.batch_norm, poolings=poolings, **options)


# What makes the network that `model.network` names: (configuration, sides of the training slices, num_classes, dtype,
# axis_name, conv, norm) -> a module. The last five are as `SUMNet` has them. The module takes (images [B, H, W, M],
# train) to float32 logits [B, H, W, num_classes], where H and W are multiples of its attribute `divisor`. It has no
# variables but parameters and the running statistics of batch norm, and draws no random numbers.
NETWORKS: dict[str, Callable[..., nn.Module]] = {"sumnet": _sumnet, "unet": _unet}


@functools.cache
def make_forward(segmenter: nn.Module) -> Callable[[Any, Array], Array]:
    """The compiled function (variables, images [B, H, W, M]) -> class probabilities, float32 [B, H, W, C].

    It compiles once for each image size. Callers with the same network share the function and its compilations. It
    cannot be a part of another compiled function, because it has options of the compiler (`forward_in` can).
    """
    return jax.jit(_probabilities(segmenter), compiler_options=parallel.repeatable_options())


def forward_in(segmenter: nn.Module) -> Callable[[Any, Array], Array]:
    """The function of `make_forward` as a part of another compiled function, which traces it once."""
    return jax.jit(_probabilities(segmenter))


def _probabilities(segmenter: nn.Module) -> Callable[[Any, Array], Array]:
    # `apply` is annotated to return a pair, too, which it does only with `mutable`.
    return lambda variables, images: jax.nn.softmax(segmenter.apply(variables, images))  # type: ignore[arg-type]


def count_parameters(params: Any) -> int:
    """The number of parameters in a tree of them."""
    return int(parameter_overview.count_parameters(params))
