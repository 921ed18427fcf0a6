"""What the networks of a run are for: the configuration, and what goes in and comes out."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax import Array

from isles_jax import conv, norm
from isles_jax.config import complete, to_dict
from isles_jax.data.case import ALL_CLASSES
from isles_jax.data.grid import AS_STORED, Target
from isles_jax.data.slices import padded_size
from isles_jax.models import Discriminator
from isles_jax.training.networks import NETWORKS

# A layer that `isles_jax.conv` makes faster compiles for seconds longer. It makes up for that if its work (H W C K),
# times the number of runs, is at least this. experiments/speed.md says how it was measured.
WORTHWHILE = 2e9
# A network that predicts counts as one that runs this often. If the number of cases decided, a prediction would depend
# on how many others are made.
PREDICTION_CALLS = 50
# A discriminator pools four times, so a slice has at least these sides.
SHORTEST_SIDE = 32


@dataclasses.dataclass(frozen=True)
class Task:
    """What the networks of a run are for.

    Attributes:
      config: the whole configuration.
      channels: names of the input channels, the images' last axis.
      classes: names of the foreground classes.
      label_values: the integers that mark `classes` in label files.
      target: the grid that the networks work on.
      size: the largest sides of a training slice in pixels; None if an earlier version began the run.
    """

    config: ml_collections.ConfigDict
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    label_values: tuple[int, ...] = ()
    target: Target = AS_STORED
    size: tuple[int, int] | None = None

    @property
    def planes(self) -> int:
        """The number of input channels."""
        return len(self.channels)

    @property
    def outputs(self) -> int:
        """The number of classes, background included."""
        return len(self.classes) + 1

    def segmenter(self, axis_name: str | None = None, calls: int = 0, platform: str | None = None) -> nn.Module:
        """The segmentation network, not initialised.

        Args:
          axis_name: device axis over which batch norm's statistics are averaged, or None.
          calls: how often the network will run. With `model.conv="auto"` it decides which layers of it
            `isles_jax.conv` makes faster on a CPU.
          platform: "cpu", "gpu" or "tpu", which decides which batch norm is used; None: Flax's.
        """
        make = NETWORKS[self.config.model.network]
        size = self.size or (SHORTEST_SIDE, SHORTEST_SIDE)
        return make(self.config, size, num_classes=self.outputs, **self._options(axis_name, calls, platform))

    def predictor(self) -> nn.Module:
        """The segmentation network as all predictions use it."""
        return self.segmenter(calls=PREDICTION_CALLS)

    def critic(self, axis_name: str | None = None, calls: int = 0, platform: str | None = None) -> Discriminator:
        """The discriminator, which all critics use. The arguments are those of `segmenter`."""
        return Discriminator(width=self.config.discriminator.width, **self._options(axis_name, calls, platform))

    def _options(self, axis_name: str | None, calls: int, platform: str | None) -> dict[str, Any]:
        normalisation = norm.BatchNorm if platform == "gpu" else nn.BatchNorm
        return {
            "dtype": jnp.dtype(self.config.dtype),
            "axis_name": axis_name,
            "conv": _convolution(self.config.model.conv, calls),
            "norm": normalisation,
        }

    @property
    def views(self) -> dict[str, slice]:
        """The class channels that each critic sees, by the critic's name; empty if training is not adversarial.

        There is one critic for each foreground class and one for all of them together (section 2 of the paper).
        """
        if not (self.config.discriminator.enabled and self.config.loss.adversarial):
            return {}
        alone = {name: slice(number, number + 1) for number, name in enumerate(self.classes, start=1)}
        together = {ALL_CLASSES: slice(1, None)} if len(self.classes) > 1 else {}
        return alone | together

    @property
    def divisor(self) -> int:
        """What divides the sides of a slice that the segmenter takes."""
        divisor: int = self.segmenter().divisor
        return divisor

    def padded(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The sides to which slices of a shape are padded for the networks."""
        height, width = (max(side, SHORTEST_SIDE) for side in shape)
        return padded_size((height, width), self.divisor)

    @property
    def padded_size(self) -> tuple[int, int]:
        """The sides of the training slices, padded for the networks."""
        assert self.size is not None
        return self.padded(self.size)

    def mirror_axes(self, flips: bool) -> tuple[int, ...]:
        """The axes of a batch of slices along which predictions are mirrored: none without `flips`."""
        if not flips:
            return ()
        return (1, 2) if self.config.augment.flips == "both" else (1,)

    def record(self) -> dict[str, Any]:
        """The task as JSON holds it, for checkpoints and .safetensors files."""
        return {
            "config": to_dict(self.config),
            "classes": list(self.classes),
            "channels": list(self.channels),
            "label_values": [int(value) for value in self.label_values],
            "grid": self.target._asdict(),
            "size": self.size,
        }

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Task":
        """The task of a `record`, of this version or an earlier one."""
        size = record.get("size")
        return cls(
            complete(record["config"]),
            tuple(record["channels"]),
            tuple(record["classes"]),
            tuple(record["label_values"]),
            Target(**record.get("grid", {})),
            None if size is None else (int(size[0]), int(size[1])),
        )


def _convolution(name: str, calls: int) -> Callable[..., Array] | None:
    """The convolution that `model.conv` names, for a network that runs `calls` times; None: that of the networks."""
    if name == "winograd":
        return conv.conv_general_dilated
    if name == "lax" or jax.default_backend() != "cpu" or not calls:
        return None
    return _faster_from(max(conv.LEAST_WORK, WORTHWHILE / calls))


@functools.cache
def _faster_from(least: float) -> Callable[..., Array]:
    # One function for one value, because networks with the same attributes share what is compiled.
    return partial(conv.conv_general_dilated, least=least)
