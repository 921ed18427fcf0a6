"""Every setting of a run, and the eight systems of the paper as a 2 x 2 x 2 design.

A file in `configs/` is one call of `baseline`. Any key can be overridden on the command line:
`--config.optimizer.learning_rate=3e-4`.
"""

import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from isles_jax.runtime.command import InputError


def baseline(*, residual: bool, adversarial: bool, overlap: bool) -> ml_collections.ConfigDict:
    """One of the paper's eight systems (Rajan, Sathish and Sheet, section 2).

    Args:
      residual: Residual-SUMNet (True) or SUMNet (False).
      adversarial: train against the three relativistic discriminators.
      overlap: add the Lovasz-softmax and the boundary-weighted losses to cross-entropy.

    Returns:
      The whole configuration, locked: unknown keys and other types are refused.
    """
    number = 1 + 4 * residual + 2 * adversarial + overlap
    config = ml_collections.ConfigDict()

    # Names the run; the default workdir is runs/<name>. bl1 to bl7 in the paper's order, the eighth is "proposed".
    config.name = "proposed" if number == 8 else f"bl{number}"
    # Fixes the folds, the initial weights, every batch and every augmentation.
    config.seed = 0
    # Number of cross-validation folds, by patient.
    config.folds = 3
    # Train, predict and score this fold only (0, 1, ...); None: all of them.
    config.fold = config_dict.placeholder(int)
    # Compute type of the networks: "float32" or "bfloat16". Parameters, statistics and losses are always float32.
    config.dtype = "float32"

    config.data = data = ml_collections.ConfigDict()
    # Folder of the data set (SPES or nnU-Net raw layout); empty: the built-in perfusion phantom.
    data.root = ""
    data.labels = ml_collections.ConfigDict()
    # The integer that marks penumbra in a SPES label volume; checked against the images.
    data.labels.penumbra = 1
    # The integer that marks core in a SPES label volume; checked against the images.
    data.labels.core = 2
    data.phantom = ml_collections.ConfigDict()
    # Number of phantom patients.
    data.phantom.cases = 24
    # Voxels of a phantom volume (x, y, slices).
    data.phantom.shape = (64, 64, 16)
    # 0: clean images and clear lesions; 1: thresholds fail where they fail in life; above 1: harder.
    data.phantom.difficulty = 1.0

    config.model = model = ml_collections.ConfigDict()
    # Residual connections around the convolutions of each encoder stage.
    model.residual = residual
    # Channels of the first stage; every layer scales with it. None: 64, the paper's network, on a data set of your own,
    # and 32 on the phantom, so that two cores suffice.
    model.width = config_dict.placeholder(int)
    # Where batch norm stands: "encoder", "all" or "none".
    model.batch_norm = "encoder"
    # What convolves: "lax", "winograd" (isles_jax/conv.py: faster on CPU, longer to compile), or "auto": the second on
    # CPU where the run is long enough to repay its compilation.
    model.conv = "auto"

    config.discriminator = discriminator = ml_collections.ConfigDict()
    # Train with one discriminator for each foreground class and one for all of them together.
    discriminator.enabled = adversarial
    # Channels of a discriminator's first layer. None: 64 on a data set of your own and 8 on the phantom.
    discriminator.width = config_dict.placeholder(int)
    # False: relativistic on pairs of one slice (RSGAN); True: against the batch's average (RaSGAN).
    discriminator.average = False
    # Adam's rate for the discriminators (betas 0.5 and 0.999).
    discriminator.learning_rate = 1e-4

    config.loss = loss = ml_collections.ConfigDict()
    # Weight of cross-entropy; a weight of 0 leaves its term out of the compiled step (so for each of the four).
    loss.cross_entropy = 1.0
    # Weight of Lovasz-softmax.
    loss.lovasz = 1.0 if overlap else 0.0
    # Weight of the boundary-weighted negative log-likelihood.
    loss.boundary = 1.0 if overlap else 0.0
    # Weight of each discriminator's adversarial loss.
    loss.adversarial = 1e-3 if adversarial else 0.0
    # A boundary pixel counts this many times in the boundary-weighted loss.
    loss.boundary_weight = 10.0
    # Side of the structuring element whose dilation minus erosion is the boundary, in pixels, odd.
    loss.boundary_size = 3
    # Lovasz-softmax for each slice, averaged (True), or over the batch's pixels together (False).
    loss.lovasz_per_image = False

    config.optimizer = optimizer = ml_collections.ConfigDict()
    # Adam's peak rate; a short warm-up leads to it and a cosine from it to 0.
    optimizer.learning_rate = 1e-3
    # L2 decay added to the gradient, as in Adam with weight decay.
    optimizer.weight_decay = 1e-5
    # Share of the steps spent on the warm-up.
    optimizer.warmup = 0.05

    config.train = train = ml_collections.ConfigDict()
    # Passes over the training slices. None: 50 on a data set of your own and 6 on the phantom.
    train.epochs = config_dict.placeholder(int)
    # Slices in a step, over all devices together.
    train.batch_size = 8
    # Steps in one call of the compiled function: more than 1 saves launches on GPU and TPU and is slow on CPU.
    train.steps_per_call = 1
    # Steps between two lines of metrics.
    train.log_every_steps = 10
    # Steps between two checkpoints; the last step of a fold is always one.
    train.checkpoint_every_steps = 200
    # Also write event files for TensorBoard: losses, settings and, at each checkpoint, pictures of held-out slices.
    train.tensorboard = False
    # Steps to trace with JAX's profiler, after the first ten of each fold that a call trains; 0: none.
    train.profile = 0
    # How the step is spread over devices: "pmap" or "shard_map"; both give the same numbers.
    train.parallel = "pmap"

    config.augment = augment = ml_collections.ConfigDict()
    # Change training slices at random, inside the compiled step: left-right flip and the three below.
    augment.enabled = True
    # Rotation by up to this, either way.
    augment.rotation_degrees = 10.0
    # Scale by 1 plus or minus up to this.
    augment.scale = 0.1
    # Gain and offset (in standard deviations) of each channel, plus or minus up to this.
    augment.intensity = 0.1

    config.predict = predict = ml_collections.ConfigDict()
    # Average the prediction of each slice with that of its left-right mirror image; takes twice the time.
    predict.flips = False
    # A lesion (26-connected, of any foreground class) smaller than this many ml becomes background; 0: none does.
    predict.min_volume_ml = 0.0

    return config.lock()


# The value of a key that is not set (None): on a data set of the user's own, and on the phantom (for two CPU cores).
BY_DATA = {"model.width": (64, 32), "discriminator.width": (64, 8), "train.epochs": (50, 6)}

_POSITIVE = (
    "folds", "data.phantom.cases", "model.width", "discriminator.width", "optimizer.learning_rate", "train.epochs",
    "train.batch_size", "train.steps_per_call", "train.log_every_steps", "train.checkpoint_every_steps",
)  # fmt: skip
_NOT_NEGATIVE = (
    "data.phantom.difficulty", "loss.cross_entropy", "loss.lovasz", "loss.boundary", "loss.adversarial",
    "loss.boundary_weight", "optimizer.weight_decay", "optimizer.warmup", "train.profile", "augment.rotation_degrees",
    "augment.scale", "augment.intensity", "predict.min_volume_ml",
)  # fmt: skip
_WORDS = {
    "dtype": ("float32", "bfloat16"),
    "model.batch_norm": ("encoder", "all", "none"),
    "model.conv": ("auto", "lax", "winograd"),
    "train.parallel": ("pmap", "shard_map"),
}


def flatten(config: Mapping[str, Any] | ml_collections.ConfigDict) -> dict[str, Any]:
    """A configuration, or what config.json holds of it, as {"a.b.c": value}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (dict, ml_collections.ConfigDict)):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A checked copy of a configuration in which every key that is chosen by the data has its value.

    Raises:
      InputError: a value that makes no sense.
    """
    config = config.copy_and_resolve_references()
    for key, values in BY_DATA.items():
        if flatten(config)[key] is None:
            config.update_from_flattened_dict({key: values[not config.data.root]})
    flat = flatten(config)
    for key, words in _WORDS.items():
        _require(flat[key] in words, key, flat[key], " or ".join(words))
    for key in _POSITIVE:
        _require(flat[key] > 0, key, flat[key], "a number above 0")
    for key in _NOT_NEGATIVE:
        _require(flat[key] >= 0, key, flat[key], "0 or more")
    _require(config.folds >= 2, "folds", config.folds, "at least 2")
    _require(config.fold is None or 0 <= config.fold < config.folds, "fold", config.fold, f"0 to {config.folds - 1}")
    size, batch, warmup = config.loss.boundary_size, config.train.batch_size, config.optimizer.warmup
    _require(size % 2 == 1 and size > 0, "loss.boundary_size", size, "an odd number")
    _require(batch >= 2, "train.batch_size", batch, "at least 2")
    _require(warmup < 1, "optimizer.warmup", warmup, "a share of the steps, below 1")
    weights = (config.loss.cross_entropy, config.loss.lovasz, config.loss.boundary)
    _require(any(weights), "loss", weights, "a weight above 0 for cross_entropy, lovasz or boundary")
    shape = config.data.phantom.shape
    _require(len(shape) == 3 and min(shape) > 0, "data.phantom.shape", shape, "three sides")
    per_call = config.train.steps_per_call
    for key in ("train.log_every_steps", "train.checkpoint_every_steps"):
        _require(flat[key] % per_call == 0, key, flat[key], f"a multiple of train.steps_per_call={per_call}")
    return config


def _require(good: bool, key: str, found: Any, expected: str) -> None:
    if not good:
        raise InputError(f"--config.{key}: found {found!r}, expected {expected}")


def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The configuration as JSON-able values, as config.json holds it."""
    return json.loads(config.to_json_best_effort())
