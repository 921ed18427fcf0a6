"""The trained networks of a run, read from its checkpoints or from one safetensors file.

The tensors in the file are named fold_K/params/LAYER/kernel and so on. They are float32 in Flax's layouts. The metadata
in the file's header hold one JSON object under the key `isles_jax`, with all that is needed to rebuild and use the
networks: `config`, `classes`, `channels`, `label_values`, `versions`, `grid` and `steps`. Its `expected` says what is
usual in a new case, by the run's own cases. Its `sha256` is a checksum of the rest of the object and of all tensors.
"""

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from isles_jax.data import grid
from isles_jax.data.case import check_names
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import say
from isles_jax.training import checkpoint, parallel
from isles_jax.training.state import variables_like
from isles_jax.training.task import Task

SUFFIX = ".safetensors"
KEY = "isles_jax"
_FORM = {"config": {}, "classes": [str], "channels": [str], "label_values": [int], "versions": {}, "steps": {}}


@dataclass(frozen=True)
class Trained:
    """Networks of one task.

    Attributes:
      task: what the networks are for.
      versions: of the packages that trained the networks.
      steps: the number of steps that each fold was trained, by the fold's number.
      folds: variables for Flax's `apply`, by the fold's number; on one device if read from a run, on every device of
        this process if read from a file.
      expected: of a new case, as `prediction.expected.read` gives it; empty if it is unknown or in the run's files.
    """

    task: Task
    versions: dict[str, str]
    steps: dict[int, int]
    folds: dict[int, Any]
    expected: Mapping[str, Any] = field(default_factory=dict)


def load(path: epath.PathLike, folds: Sequence[int] | None = None) -> Trained:
    """Reads the networks of a run.

    Args:
      path: the workdir of a run, or a .safetensors file that `save` wrote.
      folds: numbers of the folds to read, finished or not. None: all finished folds of a run, or all folds of a file.

    Raises:
      InputError: `path` is neither; a requested fold is missing; the file is damaged or from another program.
    """
    path = files.location(path)
    trained = _read_file(path, folds) if path.suffix == SUFFIX else _read_run(path, folds)
    check_names(path, (), trained.task.classes)
    wrong = _misfit(trained)
    if wrong:
        raise InputError(f"{path}: found {wrong}, expected it as it was written")
    return trained


def _misfit(trained: Trained) -> str:
    """What cannot be used of networks that were read; "" if all can."""
    task = trained.task
    values = task.label_values
    if len(values) != len(task.classes) or len(set(values)) < len(values) or not all(1 <= v <= 255 for v in values):
        return f"the label_values {list(values)} for the classes {', '.join(task.classes)}"
    if len(set(task.channels)) < len(task.channels):
        return f"the channels {', '.join(task.channels)}"
    settings = task.config.predict
    if type(settings.flips) is not bool:
        return f"the setting predict.flips {settings.flips!r}"
    smallest = settings.min_volume_ml
    if type(smallest) not in (int, float) or not 0 <= smallest < math.inf:
        return f"the setting predict.min_volume_ml {smallest!r}"
    for name, tensor in flat(trained).items():
        if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            return f"something else than finite numbers in float32 in {name}"
    return grid.misfit(task.target)


def _read_run(workdir: epath.Path, folds: Sequence[int] | None) -> Trained:
    entries = workdir.iterdir() if workdir.is_dir() else []
    named = {path.name.removeprefix("fold_"): path for path in entries if path.name.startswith("fold_")}
    folders = {int(k): path for k, path in named.items() if k.isdecimal() and (path / "checkpoints").exists()}
    if not folders:
        raise InputError(f"{workdir}: found no fold_*/checkpoints, expected a run of isles_jax.main")
    finished = [number for number in sorted(folders) if (folders[number] / "DONE").exists()]
    if folds is None and not finished:
        numbers = ",".join(map(str, sorted(folders)))
        raise InputError(f"{workdir}: found no finished fold, expected one; --folds={numbers} uses unfinished ones")
    chosen = _choose(workdir, folders, finished if folds is None else folds)
    loaded = {number: checkpoint.load_variables(folders[number] / "checkpoints") for number in chosen}
    _, task, meta = loaded[chosen[0]]
    steps = {number: int(fold_meta["step"]) for number, (_, _, fold_meta) in loaded.items()}
    return Trained(task, meta["versions"], steps, {number: variables for number, (variables, _, _) in loaded.items()})


def _choose(path: epath.Path, available: Mapping[int, Any], folds: Sequence[int]) -> list[int]:
    """The numbers of the requested folds in ascending order; InputError if one is not available."""
    missing = [number for number in folds if number not in available]
    if missing:
        numbers = ", ".join(map(str, sorted(available)))
        raise InputError(f"{path}: found no fold {missing[0]}, expected one of {numbers}")
    return sorted(set(folds))


# --- the safetensors file -------------------------------------------------------------------------------------------


def flat(trained: Trained) -> dict[str, np.ndarray]:
    """The tensors of the networks by their names in the file."""
    by_name = {f"fold_{number}": variables for number, variables in trained.folds.items()}
    # Flattening drops empty branches, such as the statistics of a network without batch norm.
    return {name: np.asarray(value) for name, value in flatten_dict(by_name, sep="/").items()}


def nested(tensors: Mapping[str, Any]) -> dict[int, Any]:
    """The inverse of `flat`: variables for Flax's `apply`, by the fold's number."""
    return {int(name[5:]): variables for name, variables in unflatten_dict(dict(tensors), sep="/").items()}


def save(path: epath.PathLike, trained: Trained) -> None:
    """Writes one .safetensors file, atomically.

    Raises:
      InputError: safetensors is not installed.
    """
    tensors = flat(trained)
    known = {"versions": trained.versions, "steps": trained.steps, "expected": trained.expected}
    header = trained.task.record() | known
    header["sha256"] = _digest(tensors, header)
    # There is one key only, because the library writes several keys in an order that changes from call to call.
    files.write_atomic(path, _safetensors().save(tensors, {KEY: json.dumps(header)}))


def is_ours(content: bytes) -> bool:
    """Whether `save` made this content: a .safetensors file whose header has the package's key."""
    try:
        return KEY in json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    except (ValueError, KeyError, TypeError):
        return False


def fingerprint(trained: Trained) -> str:
    """SHA-256 of the networks' tensors; the same for a run and for the file that `save` wrote of it."""
    return _digest(flat(trained), {})


def _digest(tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> str:
    """SHA-256 of the header, without its own `sha256`, and of the tensors with their names, types and shapes."""
    rest = {key: value for key, value in header.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(rest).encode())
    for name in sorted(tensors):
        digest.update(f"\n{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _read_file(path: epath.Path, folds: Sequence[int] | None) -> Trained:
    if not path.is_file():
        raise InputError(f"{path}: found no such file, expected weights written by isles_jax.export")
    reader = _safetensors()
    try:
        return _parse(path, path.read_bytes(), reader, folds)
    except InputError:
        raise
    except Exception as error:  # the library, NumPy, JSON and Flax each raise exceptions of their own
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable safetensors file ({reason})") from error


def _parse(path: epath.Path, content: bytes, reader: Any, folds: Sequence[int] | None) -> Trained:
    tensors = reader.load(content)
    # The library reads metadata from local files only. A file starts with the length of its header, in 8 bytes.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    if KEY not in header:
        raise InputError(f"{path}: found no {KEY!r} in its header, expected weights written by isles_jax.export")
    values = json.loads(header[KEY])
    wrong = files.misfit(values, _FORM) or files.misfit(values["versions"], dict.fromkeys(values["versions"], str))
    if wrong:
        raise InputError(f"{path}: found {wrong} in its header, expected weights written by isles_jax.export")
    if "sha256" not in values:
        say(f"note: {path}: an earlier version wrote it, without a checksum", sys.stderr)
    elif values["sha256"] != _digest(tensors, values):
        raise InputError(f"{path}: found another content than its checksum says, expected the file as it was written")
    task = Task.read(values)
    networks = nested(tensors)
    _check_shapes(path, networks, task)
    chosen = _choose(path, networks, sorted(networks) if folds is None else folds)
    steps = {number: values["steps"][str(number)] for number in chosen}
    placed = {number: parallel.replicate(networks[number]) for number in chosen}
    return Trained(task, values["versions"], steps, placed, values.get("expected", {}))


def _check_shapes(path: epath.Path, networks: Mapping[int, Any], task: Task) -> None:
    """InputError unless every fold has the tensors of the network that the file's own configuration describes."""
    expected = {name: leaf.shape for name, leaf in flatten_dict(variables_like(task), sep="/").items()}
    for number, variables in networks.items():
        actual = {name: leaf.shape for name, leaf in flatten_dict(variables, sep="/").items()}
        misfits = files.differing(actual, expected)
        if misfits:
            name = misfits[0]
            shapes = f"found fold_{number}/{name} of shape {actual.get(name)}, expected {expected.get(name)}"
            raise InputError(f"{path}: {shapes} for the configuration in its header")


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        remedy = "pip install safetensors, or uv run --extra export"
        raise InputError(f"safetensors is not installed, expected it for {SUFFIX} files: {remedy}") from error
    return safetensors.numpy
