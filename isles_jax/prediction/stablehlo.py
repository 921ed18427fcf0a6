"""The inference function of trained networks as StableHLO, for programs without this package."""

import jax
import jax.numpy as jnp

from isles_jax.prediction.inference import average
from isles_jax.runtime.command import InputError
from isles_jax.training import weights
from isles_jax.training.networks import forward_in
from isles_jax.training.weights import Trained

# The platforms on which an exported inference function runs.
PLATFORMS = ("cpu", "cuda", "tpu")


def is_ours(content: bytes) -> bool:
    """Whether `serialise` made this content, which holds the name of the function."""
    return b"isles_jax_inference" in content


def serialise(trained: Trained) -> bytes:
    """The inference function as a serialised `jax.export.Exported`, for CPU, CUDA and TPU.

    Its first argument is a dict with the tensors of the .safetensors file of the same folds, by their names. Its second
    argument is a batch of slices, float32 [B, H, W, M], normalised as by `data.slices.normalise` and 0 outside the
    brain. B is any number; H and W are any multiples of the network's divisor, 32 for SUMNet. It returns class
    probabilities, float32 [B, H, W, C], averaged over the folds and, if the run's predict.flips is set, over the mirror
    images.

    Raises:
      InputError: flatbuffers is not installed.
    """
    task = trained.task
    # One program serves every platform and size, so no layer has the form for CPUs, whatever `model.conv` is.
    forward = forward_in(task.segmenter().clone(conv=None))
    mirror = task.mirror_axes(task.config.predict.flips)

    def isles_jax_inference(tensors: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        return average(forward, list(weights.nested(tensors).values()), images, mirror)

    like = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in weights.flat(trained).items()}
    shape = jax.export.symbolic_shape(f"b, {task.divisor}*h, {task.divisor}*w, {task.planes}")
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    exported = jax.export.export(jax.jit(isles_jax_inference), platforms=PLATFORMS)(like, images)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        remedy = "pip install flatbuffers, or uv run --extra export"
        raise InputError(f"flatbuffers is not installed, expected it for .stablehlo files: {remedy}") from error
