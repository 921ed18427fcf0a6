"""Starts the segmenter from the weights of another run (`train.init`)."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.training import weights
from isles_jax.training.state import Network
from isles_jax.training.weights import Trained

# The layer with one channel for each class.
OUTPUT = "params/output/"


def digest(path: epath.PathLike) -> str:
    """SHA-256 of a .safetensors file, or of the names and bytes of the tensors of a run's finished folds.

    Raises:
      InputError: as `weights.load`.
    """
    trained = weights.load(path)
    if files.location(path).suffix == weights.SUFFIX:
        return files.sha256(path)
    total = hashlib.sha256()
    for name, value in sorted(weights.flat(trained).items()):
        total.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return total.hexdigest()


def start(network: Network, path: epath.PathLike, sha256: str, fold: int, classes: tuple[str, ...]) -> Network:
    """The network with the weights of a run in place of its own. It prints which ones.

    The weights are those of the run's fold of the same number: if the folds are the same, these have not seen the cases
    that this fold holds out. Without such a fold they are the mean over the run's folds. The output layer keeps its own
    weights if the classes differ.

    `path` is a run or a .safetensors file, `sha256` its `digest`, and `classes` are the foreground classes of this run.

    Raises:
      InputError: as `weights.load`; the weights are others than before; a layer does not fit.
    """
    if digest(path) != sha256:
        raise InputError(f"--config.train.init={path}: the weights are not those of SHA-256 {sha256}")
    trained = weights.load(path)
    source, origin = _choose(trained, fold)
    here = {name: np.asarray(value) for name, value in flatten_dict(network.variables, sep="/").items()}
    note = f"fold {fold}: starts from {origin} of {path}"
    if trained.task.classes != classes:
        source |= {name: value for name, value in here.items() if name.startswith(OUTPUT)}
        note += f"; its classes are {', '.join(trained.task.classes)}, so the output layer starts anew"
    _require_fit(path, source, here)
    print(note, flush=True)
    variables = unflatten_dict(source, sep="/")
    return dataclasses.replace(
        network, params=variables["params"], batch_stats=variables.get("batch_stats", network.batch_stats)
    )


def _choose(trained: Trained, fold: int) -> tuple[dict[str, Any], str]:
    """The tensors to start from by name, and where they are from."""
    chosen = [fold] if fold in trained.folds else list(trained.folds)
    names = ", ".join(map(str, chosen))
    origin = f"fold {names}" if len(chosen) == 1 else f"the mean of the weights of folds {names}"
    networks = [trained.folds[number] for number in chosen]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64).astype(np.float32), *networks)
    return flatten_dict(mean, sep="/"), origin


def _require_fit(path: epath.PathLike, source: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    there, ours = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (source, here))
    misfits = files.differing(there, ours)
    if misfits:
        name = misfits[0]
        raise InputError(
            f"--config.train.init={path}: {name} has the shape {there.get(name)} there and {ours.get(name)} in this "
            "run; expected a network of the same width, channels and batch norm"
        )
