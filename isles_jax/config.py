"""Every setting of a run, and the eight systems of the paper as a 2 x 2 x 2 design.

Each file in `configs/` calls `baseline` once. Any key can be overridden on the command line:
`--config.optimizer.learning_rate=3e-4`. A key whose value is None is not set; its comment says what then applies.
"""

import ast
import inspect
import json
from collections.abc import Callable, Mapping
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
      The whole configuration. It is locked: setting an unknown key or a value of another type raises an error.
    """
    number = 1 + 4 * residual + 2 * adversarial + overlap
    config = ml_collections.ConfigDict()

    # The run's name; the default workdir is runs/<name>. bl1 to bl7 are in the paper's order; the eighth is "proposed".
    config.name = "proposed" if number == 8 else f"bl{number}"
    # Seed of the folds, the initial weights, the batches, the augmentation and the phantom.
    config.seed = 0
    # Number of cross-validation folds. Each patient is held out in one of them.
    config.folds = 3
    # What stays together in a fold: "patient" (all scans of one), "site" (all scans of a centre, as cases.csv in the
    # data's folder names them), or a file with folds of your own, such as a run's folds.json.
    config.folds_by = "patient"
    # Run this fold only (0, 1, ...); None: all folds. Scores are computed once all folds are finished.
    config.fold = config_dict.placeholder(int)
    # Compute type of the networks: "float32" or "bfloat16". Parameters, statistics and losses are always float32.
    config.dtype = "float32"

    config.data = data_section()

    config.model = model = ml_collections.ConfigDict()
    # The segmentation network: "sumnet" (the paper's), or "unet", a plain U-Net whose poolings suit the slices' size.
    model.network = "sumnet"
    # Whether residual connections bypass the convolutions of each encoder stage.
    model.residual = residual
    # Channels of the first stage; all other layers scale with it. None: 64 (the paper's network) on your own data, 32
    # on the phantom, which two CPU cores can train.
    model.width = config_dict.placeholder(int)
    # Part of the network that has batch norm: "encoder", "all" or "none".
    model.batch_norm = "encoder"
    # Implementation of the convolutions: "lax"; "winograd" (isles_jax/conv.py), which is faster on CPU for large
    # layers, but compiles longer; or "auto", which on CPU uses "winograd" in the layers that make up for their
    # compilation.
    model.conv = "auto"

    config.discriminator = discriminator = ml_collections.ConfigDict()
    # Train adversarially, with one discriminator for each foreground class and one for all of them together.
    discriminator.enabled = adversarial
    # Channels of a discriminator's first layer. None: 64 on your own data, 8 on the phantom.
    discriminator.width = config_dict.placeholder(int)
    # False: compare reference and prediction of the same slice (RSGAN); True: compare with the batch's mean (RaSGAN).
    discriminator.average = False
    # True: a discriminator sees the most probable class of each pixel, as zeros and ones like those of the reference.
    # False: it sees probabilities, and soon tells the two apart by them alone. The gradient is that of the
    # probabilities in both cases.
    discriminator.hard = True
    # Adam's learning rate for the discriminators (betas 0.5 and 0.999).
    discriminator.learning_rate = 1e-3

    config.loss = loss = ml_collections.ConfigDict()
    # Weight of cross-entropy. A loss with a weight of 0 is left out of the compiled step.
    loss.cross_entropy = 1.0
    # Weight of Lovasz-softmax.
    loss.lovasz = 1.0 if overlap else 0.0
    # Weight of the boundary-weighted negative log-likelihood.
    loss.boundary = 1.0 if overlap else 0.0
    # Weight of soft Dice over all pixels of the batch, mean over the classes that are present.
    loss.dice = 0.0
    # Weight of the focal loss, gamma 2.
    loss.focal = 0.0
    # Weight of each discriminator's adversarial loss.
    loss.adversarial = 1e-3 if adversarial else 0.0
    # Weight of a boundary pixel in the boundary-weighted loss; other pixels have weight 1.
    loss.boundary_weight = 10.0
    # Side, in pixels, of the structuring element; the boundary is dilation minus erosion. An odd number.
    loss.boundary_size = 3
    # True: the mean of each slice's Lovasz-softmax; False: Lovasz-softmax over all pixels of the batch.
    loss.lovasz_per_image = False

    config.optimizer = optimizer = ml_collections.ConfigDict()
    # The segmenter's optimiser: "adam", "adamw", or "sgd" (with Nesterov's momentum).
    optimizer.name = "adam"
    # Peak learning rate. The rate rises during a short warm-up and then falls to 0 along a cosine.
    optimizer.learning_rate = 1e-3
    # Weight decay. "adam" and "sgd" add this times the weights to the gradient. "adamw" shrinks the weights by this
    # times the learning rate.
    optimizer.weight_decay = 1e-5
    # Share of the last update that "sgd" keeps.
    optimizer.momentum = 0.9
    # Fraction of the steps that are warm-up.
    optimizer.warmup = 0.05

    config.train = train_section()

    config.augment = augment = ml_collections.ConfigDict()
    # Augment the training slices at random, inside the compiled step: flips and the three below.
    augment.enabled = True
    # Axes of a slice along which it is flipped, each at random: "left-right" or "both".
    augment.flips = "left-right"
    # Largest rotation in degrees, in either direction.
    augment.rotation_degrees = 10.0
    # Largest change of scale: 0.1 means factors from 0.9 to 1.1.
    augment.scale = 0.1
    # Largest change of each channel's gain, and largest offset in standard deviations.
    augment.intensity = 0.1

    config.predict = predict = ml_collections.ConfigDict()
    # Average the prediction of each slice with that of its left-right mirror image, or with those of its three mirror
    # images if augment.flips is "both". This takes twice or four times the time.
    predict.flips = False
    # Lesions smaller than this become background; a lesion is a 26-connected region of any foreground classes. 0: none.
    predict.min_volume_ml = 0.0

    return config.lock()


def data_section() -> ml_collections.ConfigDict:
    """The section `data` of a configuration."""
    data = ml_collections.ConfigDict()
    # Folder of the data set, in a layout of docs/data.md; an empty text: the built-in perfusion phantom.
    data.root = ""
    # Names of the channels to use, in this order; (): all those of the layout.
    data.channels = ()
    # Side of the network's voxels in mm: "median" of the cases, one number for all three sides, three numbers with
    # commas between them, from 0.1 to 30 mm; or "0": no case is resampled. Sides that differ by less than 5% are not
    # resampled.
    data.spacing_mm = "median"
    # Bring a sequence that lies on another grid than the first one, or such labels, to the grid of the first one, by
    # the headers alone. False: such a case is refused.
    data.resample = False
    # Type in which the normalised slices are kept in memory: "float32", or "float16" in half of it.
    data.dtype = "float32"
    # What to do with a case that lacks a channel: "refuse" it, or take "zero", the channel's mean, in its place. With
    # "zero", training leaves out channels at random, so that the network can do without one.
    data.missing = "refuse"
    data.labels = ml_collections.ConfigDict()
    # The integer that marks penumbra in a SPES label volume; the images must agree with it.
    data.labels.penumbra = 1
    # The integer that marks core in a SPES label volume; the images must agree with it.
    data.labels.core = 2
    data.phantom = ml_collections.ConfigDict()
    # What the phantom looks like: "spes" (Tmax, TTP, DWI; penumbra and core) or "isles2022" (DWI, ADC; lesion; mixed
    # spacings, and several scans of some patients).
    data.phantom.layout = "spes"
    # Number of phantom cases; in the layout "spes" each is a patient of its own.
    data.phantom.cases = 24
    # Voxels of a phantom volume (x, y, slices).
    data.phantom.shape = (64, 64, 16)
    # 0: clean images and clear lesions; 1: thresholds make the mistakes they make on patients; above 1: harder.
    data.phantom.difficulty = 1.0
    return data


def train_section() -> ml_collections.ConfigDict:
    """The section `train` of a configuration."""
    train = ml_collections.ConfigDict()
    # Start the segmenter from these weights: a run, or a .safetensors file; an empty text: from random ones. Its
    # channels may be others: those that both have are matched by name.
    train.init = ""
    # SHA-256 of these weights. The run writes it here, and checks a value that you give.
    train.init_sha256 = ""
    # Passes over the training slices. None: 50 on your own data, 10 on the phantom.
    train.epochs = config_dict.placeholder(int)
    # Slices in a step, summed over all devices.
    train.batch_size = 8
    # Steps in one call of the compiled function. None: up to 10 on GPU and TPU, where it saves launches, and 1 on CPU,
    # where more are slower. A number must divide the two intervals below.
    train.steps_per_call = config_dict.placeholder(int)
    # Steps between two lines of metrics.jsonl.
    train.log_every_steps = 10
    # Steps between two checkpoints. The last step of a fold always has one.
    train.checkpoint_every_steps = 200
    # A checkpoint is left out if the one before was finished less than so many seconds ago.
    train.checkpoint_every_seconds = 10.0
    # Moments of a fold's training, evenly spaced, at which the Dice of some held-out slices is measured for the report;
    # 0: none. It chooses nothing. A short training has fewer moments, so that they take little of its time.
    train.held_out_times = 10
    # Also write event files for TensorBoard: losses, settings and, at each checkpoint, pictures of held-out slices.
    train.tensorboard = False
    # Number of steps to trace with JAX's profiler, ten steps after a fold starts or resumes; 0: no trace.
    train.profile = 0
    # How a step is distributed over devices: "pmap" or "shard_map"; both give the same numbers.
    train.parallel = "pmap"
    return train


# What old runs without a key did, where that differs from today's default. The other keys that old runs lack change
# nothing at their defaults.
IMPLIED: dict[str, Any] = {
    # Version 0.1 took every case as stored, and its critics saw probabilities.
    "data.spacing_mm": "0",
    "discriminator.hard": False,
}

# The values that replace None: on the user's own data, and on the phantom, which two CPU cores can train.
BY_DATA = {"model.width": (64, 32), "discriminator.width": (64, 8), "train.epochs": (50, 10)}

# Sides of the network's voxels that make sense for a brain.
LEAST_SIDE_MM = 0.1
MOST_SIDE_MM = 30.0

# No number of a configuration is negative, and these are not 0 either.
_POSITIVE = (
    "data.phantom.cases",
    "model.width",
    "discriminator.width",
    "optimizer.learning_rate",
    "train.epochs",
    "train.steps_per_call",
    "train.log_every_steps",
    "train.checkpoint_every_steps",
)
# The losses that need no critic, each with a weight under `loss`. At least one weight is above 0.
SUPERVISED = ("cross_entropy", "lovasz", "boundary", "dice", "focal")
_CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "data.dtype": ("float32", "float16"),
    "data.missing": ("refuse", "zero"),
    "data.phantom.layout": ("spes", "isles2022"),
    "model.network": ("sumnet", "unet"),
    "model.batch_norm": ("encoder", "all", "none"),
    "model.conv": ("auto", "lax", "winograd"),
    "optimizer.name": ("adam", "adamw", "sgd"),
    "augment.flips": ("left-right", "both"),
    "train.parallel": ("pmap", "shard_map"),
}


def flatten(config: Mapping[str, Any] | ml_collections.ConfigDict) -> dict[str, Any]:
    """A configuration, or the content of config.json, as {"a.b.c": value}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (dict, ml_collections.ConfigDict)):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A checked copy of a configuration, with values for the keys of `BY_DATA` that are not set.

    Raises:
      InputError: a key is missing, or a value is not valid.
    """
    config = config.copy_and_resolve_references()
    flat = flatten(config)
    for key in flatten(baseline(residual=False, adversarial=False, overlap=False)):
        if key not in flat:
            raise InputError(f"--config.{key}: found no such key in the configuration, expected one")
    unset = [key for key in BY_DATA if flat[key] is None]
    config.update_from_flattened_dict({key: BY_DATA[key][not config.data.root] for key in unset})
    _check(config)
    return config


def _check(config: ml_collections.ConfigDict) -> None:
    flat = flatten(config)
    data = config.data

    def require(key: str, valid: bool, expected: str) -> None:
        if not valid:
            raise InputError(f"--config.{key}: found {flat[key]!r}, expected {expected}")

    for key, choices in _CHOICES.items():
        require(key, flat[key] in choices, " or ".join(choices))
    for key in _POSITIVE:
        require(key, flat[key] is None or flat[key] > 0, "a number above 0")
    require("folds", config.folds >= 2, "at least 2")
    require("fold", config.fold is None or 0 <= config.fold < config.folds, f"0 to {config.folds - 1}")
    require("name", bool(config.name), "a name")
    by = config.folds_by
    require("folds_by", by in ("patient", "site") or by.endswith(".json"), "patient, site or a .json file")
    named = all(isinstance(name, str) and name for name in data.channels)
    require("data.channels", named and len(set(data.channels)) == len(data.channels), "names, each once")
    usual = data.spacing_mm in ("median", "0")
    sides = f"a side from {LEAST_SIDE_MM:g} to {MOST_SIDE_MM:g} mm, three with commas between them, 'median' or '0'"
    require("data.spacing_mm", usual or _sides(data.spacing_mm) in (1, 3), sides)
    shape = data.phantom.shape
    whole = all(isinstance(side, int) and side > 0 for side in shape)
    require("data.phantom.shape", len(shape) == 3 and whole, "three whole numbers above 0")
    size = config.loss.boundary_size
    require("loss.boundary_size", size % 2 == 1 and size > 0, "an odd number")
    require("optimizer.warmup", config.optimizer.warmup < 1, "a fraction of the steps, below 1")
    require("optimizer.momentum", 0 <= config.optimizer.momentum < 1, "0 or more, below 1")
    train = config.train
    require("train.batch_size", train.batch_size >= 2, "at least 2")
    require("train.init_sha256", bool(train.init or not train.init_sha256), "train.init, whose weights it is of")
    for key in ("train.log_every_steps", "train.checkpoint_every_steps"):
        multiple = f"a multiple of train.steps_per_call={train.steps_per_call}"
        require(key, flat[key] % (train.steps_per_call or 1) == 0, multiple)
    for key, value in flat.items():
        require(key, type(value) not in (int, float) or value >= 0, "0 or more")
    weights = tuple(config.loss[name] for name in SUPERVISED)
    if not any(weights):
        names = ", ".join(SUPERVISED)
        raise InputError(f"--config.loss: found {weights}, expected a weight above 0 for one of {names}")


def _sides(text: str) -> int:
    """How many sides in mm a text holds; 0 if it holds anything else."""
    try:
        sides = [float(side) for side in text.split(",")]
    except ValueError:
        return 0
    return len(sides) if all(LEAST_SIDE_MM <= side <= MOST_SIDE_MM for side in sides) else 0


def complete(stored: Mapping[str, Any], where: object = "a configuration") -> ml_collections.ConfigDict:
    """The configuration of a run on disk, with a value for each key that its version did not have.

    Every reader of config.json, of a checkpoint or of a .safetensors file takes the configuration from here.

    Args:
      stored: what `to_dict` gave when the run began, in this version or an earlier one.
      where: the file that holds it, for a message.

    Returns:
      An unlocked configuration with lists in place of tuples, as JSON holds them. A key that this version does not
      know is kept.

    Raises:
      InputError: a section stands where this version has a value, or the other way round.
    """
    defaults = flatten(to_dict(baseline(residual=False, adversarial=False, overlap=False)))
    flat = flatten(stored)
    for key in flat:
        if any(key.startswith(f"{other}.") or other.startswith(f"{key}.") for other in defaults):
            raise InputError(f"{where}: found the key {key!r}, expected the settings of a run of isles_jax.main")
    nested: dict[str, Any] = {}
    for key, value in (defaults | IMPLIED | flat).items():
        *sections, name = key.split(".")
        section = nested
        for inner in sections:
            section = section.setdefault(inner, {})
        section[name] = value
    return ml_collections.ConfigDict(nested)


def begun(stored: Mapping[str, Any], where: object) -> ml_collections.ConfigDict:
    """The configuration with which a run on disk goes on.

    It is that of `complete`, with the types of this version. Only `fold` is not set, because it says which folds a call
    runs, and not what the run is.

    Raises:
      InputError: as `complete`; this version does not know a key, or its value has another type.
    """
    config = baseline(residual=True, adversarial=True, overlap=True)
    known = flatten(config)
    for key, value in flatten(complete(stored, where)).items():
        if key not in known:
            more = "which this version does not know; name --config to go on"
            raise InputError(f"{where}: found the setting {key!r}, {more}")
        try:
            if value is None and known[key] is not None:
                raise TypeError
            config.update_from_flattened_dict({key: tuple(value) if isinstance(value, list) else value})
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: found {value!r} for {key}, expected the file as it was written") from error
    config.fold = None
    return config


def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The configuration as config.json stores it, in values that JSON can hold."""
    values: dict[str, Any] = json.loads(config.to_json_best_effort())
    return values


def comments() -> dict[str, str]:
    """The comment above each key in this file, as {"a.b.c": text}: the keys of the run, then those of its sections."""
    texts = _comments_in(baseline)
    run = {key: text for key, text in texts.items() if "." not in key}
    return run | _comments_in(data_section) | _comments_in(train_section) | texts


def _comments_in(function: Callable[..., object]) -> dict[str, str]:
    source = inspect.getsource(function)
    lines = source.splitlines()
    texts = {}
    for node in ast.walk(ast.parse(source)):
        # A section is set as `config.section = section = ConfigDict()`: it has no comment of its own.
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        above = node.lineno - 2
        while lines[above].lstrip().startswith("#"):
            above -= 1
        text = " ".join(line.strip().removeprefix("# ") for line in lines[above + 1 : node.lineno - 1])
        if text:
            texts[ast.unparse(node.targets[0]).removeprefix("config.")] = text
    return texts
