"""The trained networks of a run: from its checkpoints, or from one safetensors file that holds them and their settings.

A file's tensors are called fold_K/params/LAYER/kernel and so on, float32 in Flax's layouts. Its header's metadata hold
under `isles_jax`, as JSON, everything that is needed to rebuild and use the networks: `config`, `classes`, `channels`,
`label_values`, `versions` and `steps` (how long each fold was trained).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from isles_jax.config import to_dict
from isles_jax.models import MULTIPLE
from isles_jax.networks import make_segmenter
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.training import checkpoint, parallel

SUFFIX = ".safetensors"
KEY = "isles_jax"
_HEADER = ("config", "classes", "channels", "label_values", "versions", "steps")


@dataclass(frozen=True)
class Trained:
    """Networks of one configuration.

    Attributes:
      config: rebuilds a network (`state.make_segmenter`).
      classes: names of the foreground classes.
      channels: names of the images' last axis.
      label_values: the integers that label files hold for `classes`.
      versions: of the packages that trained them.
      steps: the steps that each fold was trained, by its number.
      folds: what Flax's `apply` takes, on all devices, by the fold's number.
    """

    config: ml_collections.ConfigDict
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    label_values: tuple[int, ...]
    versions: dict[str, str]
    steps: dict[int, int]
    folds: dict[int, Any]


def load(path: epath.PathLike, folds: Sequence[int] | None = None) -> Trained:
    """Reads the networks of a run.

    Args:
      path: the workdir of a run, or a .safetensors file that `save` wrote.
      folds: their numbers; of a run these may be unfinished. None: all folds of a file, all finished ones of a run.

    Raises:
      InputError: nothing of the kind is there; a fold that is asked for is missing; a damaged or foreign file.
    """
    path = files.location(path)
    return _read_file(path, folds) if path.suffix == SUFFIX else _read_run(path, folds)


def _read_run(workdir: epath.Path, folds: Sequence[int] | None) -> Trained:
    entries = [path for path in workdir.iterdir() if path.name.startswith("fold_")] if workdir.is_dir() else []
    found = {
        int(path.name[5:]): path for path in entries if (path / "checkpoints").exists() and path.name[5:].isdigit()
    }
    if not found:
        raise InputError(f"{workdir}: found no fold_*/checkpoints, expected a run of isles_jax.main")
    finished = [number for number in sorted(found) if (found[number] / "DONE").exists()]
    if folds is None and not finished:
        numbers = ", ".join(map(str, sorted(found)))
        raise InputError(f"{workdir}: found no fold that is finished, expected one; --folds={numbers} takes them as is")
    chosen = _chosen(workdir, found, finished if folds is None else folds)
    loaded = {number: checkpoint.load_variables(found[number] / "checkpoints") for number in chosen}
    _, config, meta = loaded[chosen[0]]
    return Trained(
        config, tuple(meta["classes"]), tuple(meta["channels"]), tuple(meta["label_values"]), meta["versions"],
        {number: int(one["step"]) for number, (_, _, one) in loaded.items()},
        {number: variables for number, (variables, _, _) in loaded.items()},
    )  # fmt: skip


def _chosen(path: epath.Path, found: Mapping[int, Any], folds: Sequence[int]) -> list[int]:
    missing = [number for number in folds if number not in found]
    if missing:
        raise InputError(f"{path}: found no fold {missing[0]}, expected one of {', '.join(map(str, sorted(found)))}")
    return sorted(set(folds))


# --- the file --------------------------------------------------------------------------------------------------------


def flat(trained: Trained) -> dict[str, np.ndarray]:
    """Every number of the networks under the name that it has in a file."""
    named = {f"fold_{number}": variables for number, variables in trained.folds.items()}
    # Without empty branches: a network without batch norm has no statistics.
    return {name: np.asarray(value) for name, value in flatten_dict(named, sep="/").items()}


def nested(tensors: Mapping[str, Any]) -> dict[int, Any]:
    """The inverse of `flat`: what Flax's `apply` takes, by the fold's number."""
    return {int(name[5:]): variables for name, variables in unflatten_dict(dict(tensors), sep="/").items()}


def save(path: epath.PathLike, trained: Trained) -> None:
    """Writes one .safetensors file, atomically.

    Raises:
      InputError: safetensors is not installed.
    """
    header = {name: getattr(trained, name) for name in _HEADER} | {"config": to_dict(trained.config)}
    # Under one key: the library writes several in an order that changes from call to call.
    files.write_atomic(path, _safetensors().save(flat(trained), {KEY: json.dumps(header)}))


def _read_file(path: epath.Path, folds: Sequence[int] | None) -> Trained:
    if not path.is_file():
        raise InputError(f"{path}: found no such file, expected weights written by isles_jax.export")
    content, reader = path.read_bytes(), _safetensors()
    try:
        tensors = reader.load(content)
        # The library reads metadata from local files only: 8 bytes of length, then the header as JSON.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    except Exception as error:  # the library has an exception of its own, and numpy its share
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    if KEY not in header:
        raise InputError(f"{path}: found no {KEY!r} in its header, expected weights written by isles_jax.export")
    values = json.loads(header[KEY])
    config = ml_collections.ConfigDict(values["config"])
    classes, channels = tuple(values["classes"]), tuple(values["channels"])
    found, steps = nested(tensors), {int(number): step for number, step in values["steps"].items()}
    _check_shapes(path, found, config, len(classes) + 1, len(channels))
    chosen = _chosen(path, found, sorted(found) if folds is None else folds)
    return Trained(
        config, classes, channels, tuple(values["label_values"]), values["versions"],
        {number: steps[number] for number in chosen}, {number: parallel.replicate(found[number]) for number in chosen},
    )  # fmt: skip


def _check_shapes(
    path: epath.Path, found: Mapping[int, Any], config: ml_collections.ConfigDict, classes: int, channels: int
) -> None:
    """InputError unless every fold has the tensors of the network that the file's own settings make."""
    image = jnp.zeros((1, MULTIPLE, MULTIPLE, channels))
    like = jax.eval_shape(lambda: make_segmenter(config, classes).init(jax.random.key(0), image))
    wanted = {name: leaf.shape for name, leaf in flatten_dict(like, sep="/").items()}
    for number, variables in found.items():
        have = {name: leaf.shape for name, leaf in flatten_dict(variables, sep="/").items()}
        for name in sorted(have.keys() | wanted.keys()):
            if have.get(name) != wanted.get(name):
                told = f"fold_{number}/{name} of shape {have.get(name)}, expected {wanted.get(name)}"
                raise InputError(f"{path}: found {told}, as the settings in its header make it")


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        wanted = "pip install safetensors, or uv run --extra export"
        raise InputError(f"safetensors is not installed, expected it for {SUFFIX} files: {wanted}") from error
    return safetensors.numpy
