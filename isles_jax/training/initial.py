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
from isles_jax.runtime.progress import say
from isles_jax.training import weights
from isles_jax.training.state import Network, variables_like
from isles_jax.training.task import Task
from isles_jax.training.weights import Trained


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


def start(network: Network, path: epath.PathLike, sha256: str, fold: int, task: Task) -> Network:
    """The network with the weights of a run in place of its own. It prints which ones.

    The weights are those of the run's fold of the same number: if the folds are the same, these have not seen the cases
    that this fold holds out. Without such a fold they are the mean over the run's folds. The output layer keeps its own
    weights if the classes differ. If the channels or their order differ, the first convolution takes the weights of
    each channel by its name, and keeps its own for a channel that the run does not have. Without a common channel, the
    whole layer keeps its own.

    `path` is a run or a .safetensors file, `sha256` its `digest`, and `task` is what the network is for.

    Raises:
      InputError: as `weights.load`; the weights are others than before; a layer does not fit.
    """
    if digest(path) != sha256:
        raise InputError(f"--config.train.init={path}: the weights are not those of SHA-256 {sha256}")
    trained = weights.load(path)
    source, origin = _choose(trained, fold)
    here = {name: np.asarray(value) for name, value in flatten_dict(network.variables, sep="/").items()}
    note = f"fold {fold}: starts from {origin} of {path}"
    there = trained.task
    if there.classes != task.classes:
        outputs = _growing(task, dataclasses.replace(task, classes=(*task.classes, "one more")))
        source |= {name: here[name] for name in outputs}
        note += f"; its classes are {', '.join(there.classes)}, so the output layer starts anew"
    if there.channels != task.channels:
        source |= _first_layer(source, here, there.channels, task)
        note += f"; its channels are {', '.join(there.channels)}, so {_taken(there.channels, task.channels)}"
    _require_fit(path, source, here)
    say(note)
    variables = unflatten_dict(source, sep="/")
    return dataclasses.replace(
        network, params=variables["params"], batch_stats=variables.get("batch_stats", network.batch_stats)
    )


def _first_layer(
    source: Mapping[str, Any], here: Mapping[str, Any], channels: tuple[str, ...], task: Task
) -> dict[str, Any]:
    """The tensors of `here` that depend on the channels, with what `source` has for channels of the same name.

    They are the kernels [..., channels, outputs] that have another shape in a network of one channel more. Without a
    common channel, they are all tensors of these layers. A kernel that does not fit is left out.
    """
    shared = [name for name in task.channels if name in channels]
    # The U-Net's shortcut has a kernel with an input for each channel, too.
    wider = dataclasses.replace(task, channels=(*task.channels, "one more"))
    kernels = [name for name in _growing(task, wider) if name.endswith("/kernel")]
    if not shared:
        layers = tuple(name.removesuffix("kernel") for name in kernels)
        return {name: value for name, value in here.items() if name.startswith(layers)}
    made = {}
    for name in set(kernels) & source.keys():
        given, kernel = source[name], here[name].copy()
        if given.shape[:-2] + given.shape[-1:] == kernel.shape[:-2] + kernel.shape[-1:]:
            for channel in shared:
                kernel[..., task.channels.index(channel), :] = given[..., channels.index(channel), :]
            made[name] = kernel
    return made


def _growing(task: Task, wider: Task) -> list[str]:
    """The names of the network's tensors that have another shape for a task with one channel or one class more."""
    ours, theirs = (
        {name: leaf.shape for name, leaf in flatten_dict(variables_like(one), sep="/").items()} for one in (task, wider)
    )
    return [name for name in files.differing(ours, theirs) if name in ours]


def _taken(there: tuple[str, ...], here: tuple[str, ...]) -> str:
    """What the first convolution takes of the channels of a run, in words."""
    shared = [name for name in here if name in there]
    anew = [name for name in here if name not in there]
    if not shared:
        return "the first convolution starts anew"
    taken = f"the first convolution takes {_listed(shared)}"
    return f"{taken}, {_listed(anew)} {'starts' if len(anew) == 1 else 'start'} anew" if anew else taken


def _listed(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


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
            "run; expected a network with the same settings --config.model"
        )
