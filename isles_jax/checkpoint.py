"""Checkpoints of a fold: saved whole, verified before they are used; the only module that knows Orbax.

`<directory>/<step>/` holds three items: `params` (all that inference needs), `train` (the rest of the state) and `meta`
(configuration, classes, versions), and `manifest.json` with the size and SHA-256 of every file.
"""

import hashlib
import importlib.metadata
import warnings
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from isles_jax import files, parallel
from isles_jax.config import InputError
from isles_jax.state import Network, State

KEEP = 2
MANIFEST = "manifest.json"
_handlers = {"params": ocp.StandardCheckpointHandler, "train": ocp.StandardCheckpointHandler,
             "meta": ocp.JsonCheckpointHandler}  # fmt: skip


def _manager(directory: epath.PathLike) -> ocp.CheckpointManager:
    logging.set_verbosity(logging.WARNING)
    # Saving is synchronous: when `save` returns, the step is on the disk and its manifest can be made.
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEEP), enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(
        epath.Path(directory).resolve(), options=options, item_handlers={k: make() for k, make in _handlers.items()}
    )


def _items(state: State) -> tuple[Any, Any]:
    """The state as (params, train): what inference needs, and the rest."""
    train = {"step": state.step, "key": state.key, "opt_state": state.segmenter.opt_state, "critics": state.critics}
    return state.segmenter.variables, train


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")}


def save(directory: epath.PathLike, state: State, meta: dict[str, Any]) -> None:
    """Saves the state under its own step, then its manifest; the two newest steps are kept.

    Args:
      directory: the fold's `checkpoints` folder.
      state: any placement on devices.
      meta: JSON-able; `load_variables` needs its `config`, `classes` and `channels`.
    """
    params, train = _items(state)
    step = int(state.step)
    with _manager(directory) as manager:
        manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params), train=ocp.args.StandardSave(train),
                meta=ocp.args.JsonSave(meta | {"versions": versions()}),
            ),
        )  # fmt: skip
    folder = epath.Path(directory) / str(step)
    files.write_json(folder / MANIFEST, _sums(folder))


def _files(folder: epath.Path) -> list[epath.Path]:
    # Buckets have no recursive pattern.
    return [file for path in sorted(folder.iterdir()) for file in (_files(path) if path.is_dir() else [path])]


def _sums(folder: epath.Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in _files(folder)
        if path.name != MANIFEST and not path.name.startswith(".")
    }


def _damage(folder: epath.Path) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None."""
    try:
        expected = files.read_json(folder / MANIFEST)
    except FileNotFoundError:
        return "it has no manifest, so its save did not finish"
    except (ValueError, OSError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    try:
        found = _sums(folder)
    except OSError as error:
        return str(error)
    for name, checksum in expected.items():
        if found.get(name) != checksum:
            return f"{name} is {'missing' if name not in found else 'not as it was written'}"
    return None


def steps(directory: epath.PathLike) -> list[int]:
    """The steps saved in a fold's `checkpoints` folder, oldest first."""
    directory = epath.Path(directory)
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit()) if directory.exists() else []


def newest(directory: epath.PathLike) -> int | None:
    """The newest step whose files are as they were written; None where nothing was ever saved whole.

    Warns of each newer step that it passes over.

    Raises:
      InputError: checkpoints exist, and none is sound.
    """
    found = steps(directory)
    damage = {}
    for step in reversed(found):
        damage[step] = _damage(epath.Path(directory) / str(step))
        if damage[step] is None:
            return step
        warnings.warn(f"{directory}/{step} is passed over: {damage[step]}", stacklevel=2)
    if not found or (len(found) == 1 and "did not finish" in str(damage[found[0]])):
        return None
    raise InputError(f"{directory}: no readable checkpoint ({damage[found[-1]]}); move the folder away to start again")


def restore(directory: epath.PathLike, like: State) -> State | None:
    """The newest sound state, on all devices, or None; newer steps that are damaged are removed.

    Args:
      directory: the fold's `checkpoints` folder.
      like: a state with the shapes and types that are expected.

    Raises:
      InputError: checkpoints exist, and none is sound.
    """
    step = newest(directory)
    for other in steps(directory):
        if step is None or other > step:
            (epath.Path(directory) / str(other)).rmtree()
    if step is None:
        return None
    params, train = (ocp.args.StandardRestore(parallel.abstract(item)) for item in _items(like))
    with _manager(directory) as manager:
        read = manager.restore(step, args=ocp.args.Composite(params=params, train=train))
    rest = read.train
    segmenter = Network(read.params["params"], read.params["batch_stats"], rest["opt_state"])
    return State(rest["step"], rest["key"], segmenter, rest["critics"])


def read_meta(directory: epath.PathLike) -> dict[str, Any]:
    """What `save` was given as meta, of the newest sound step, and that step as `step`.

    Raises:
      InputError: there is no sound checkpoint.
    """
    step = newest(directory)
    if step is None:
        raise InputError(f"{directory}: found no checkpoint, expected one of a trained fold")
    with _manager(directory) as manager:
        return dict(manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta) | {"step": step}


def load_variables(directory: epath.PathLike) -> tuple[dict[str, Any], ml_collections.ConfigDict, dict[str, Any]]:
    """The segmenter's variables from a checkpoint alone.

    Returns:
      What Flax's `apply` takes, the configuration that rebuilds the network (`state.make_segmenter`), and the meta.

    Raises:
      InputError: there is no sound checkpoint.
    """
    from isles_jax.state import init_state

    meta = read_meta(directory)
    config = ml_collections.ConfigDict(meta["config"])
    shapes = jax.eval_shape(lambda: init_state(config, tuple(meta["classes"]), len(meta["channels"]), 1, 0))
    restore = ocp.args.StandardRestore(parallel.abstract(shapes.segmenter.variables))
    with _manager(directory) as manager:
        return manager.restore(meta["step"], args=ocp.args.Composite(params=restore)).params, config, meta
