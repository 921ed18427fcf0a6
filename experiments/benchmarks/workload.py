"""What the benchmarks work on: configurations, initial states, batches and a phantom data set."""

import argparse
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from experiments.benchmarks.timing import ACCELERATOR
from isles_jax import config as configs
from isles_jax.data import layouts
from isles_jax.data.case import Dataset
from isles_jax.phantoms.phantom import write_phantom
from isles_jax.training.state import State, init_state
from isles_jax.training.task import Task

CLASSES = ("penumbra", "core")
CHANNELS = ("Tmax", "TTP", "DWI")
DTYPES = ("float32", "bfloat16") if ACCELERATOR else ("float32",)
# The length of the learning rate's schedule, for steps that are timed alone.
STEPS = 1000


def make_config(options: argparse.Namespace, system: str, **keys: object) -> ml_collections.ConfigDict:
    """A resolved configuration of the paper's network: `system` is "bl5" (cross-entropy) or "proposed"."""
    full = system == "proposed"
    config = configs.baseline(residual=True, adversarial=full, overlap=full)
    chosen = {
        "model.width": options.width,
        "discriminator.width": options.width,
        "model.conv": options.conv,
        "train.epochs": 50,
        "train.batch_size": options.batch,
        "train.steps_per_call": 1,
        "augment.enabled": False,
    }
    config.update_from_flattened_dict(chosen | keys)
    return configs.resolve(config)


def make_task(config: ml_collections.ConfigDict) -> Task:
    """What the networks of a configuration are for: SPES."""
    return Task(config, CHANNELS, CLASSES)


def fast_keys() -> dict[str, Any]:
    """The settings of a run that suit this device."""
    return {"dtype": "bfloat16", "train.steps_per_call": 10} if ACCELERATOR else {}


def initial_state(options: argparse.Namespace, system: str) -> tuple[State, list[slice]]:
    """The initial state of a system, and the class channels that each of its critics sees."""
    task = make_task(make_config(options, system))
    return init_state(task, STEPS, 0), list(task.views.values())


def make_batch(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """A batch of random slices, padded on one side, with a lesion: images [B, H, W, M] and labels [B, H, W]."""
    height, width = options.size
    rng = np.random.default_rng(options.seed)
    labels = np.zeros((options.batch, height, width), np.int8)
    labels[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    labels[:, height // 3 : height // 2, width // 3 : width // 2] = 2
    labels[:, :, : width // 16] = -1
    return rng.standard_normal((*labels.shape, len(CHANNELS)), np.float32) + (labels > 0)[..., None], labels


def make_dataset(options: argparse.Namespace, folder: str) -> Dataset:
    """A phantom data set with the cases and the shape of the command line, written to `folder` and read back."""
    root = Path(folder) / "phantom"
    write_phantom(root, cases=options.cases, shape=tuple(options.shape), difficulty=1.0, seed=options.seed)
    return layouts.load(root, penumbra=1, core=2)
