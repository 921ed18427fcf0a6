"""Checkpoints of a fold: saved whole, verified before they are used; the only module that knows Orbax.

`<directory>/<step>/` holds three items: `params` (all that inference needs), `train` (the rest of the state) and `meta`
(configuration, classes, versions), and `manifest.json` with the size and SHA-256 of every file.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from isles_jax.runtime import files, processes
from isles_jax.runtime.command import InputError
from isles_jax.training import parallel
from isles_jax.training.state import Network, State, init_state

KEEP = 2
MANIFEST = "manifest.json"
# The file of a JSON item.
META = "metadata"
# Names the step that is being saved; beside the steps.
SAVING = ".saving"
# Part of the names under which Orbax writes.
_UNFINISHED = ".orbax-checkpoint-tmp"
# Bytes of a step's metadata: far more than was ever seen.
_OVERHEAD = 1 << 20
_handlers = {"params": ocp.StandardCheckpointHandler, "train": ocp.StandardCheckpointHandler,
             "meta": lambda: ocp.JsonCheckpointHandler(META)}  # fmt: skip


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        # Orbax would ask JAX with numbers of its own, between those of `processes.leaving`, and spoil the agreement.
        return False


def _manager(directory: epath.PathLike) -> _Manager:
    absl_logging.set_verbosity(absl_logging.WARNING)
    # Saving is synchronous: when `save` returns, the step is on the disk and its manifest can be made.
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEEP), enable_async_checkpointing=False
    )
    path = epath.Path(directory)
    return _Manager(
        path if files.is_bucket(path) else path.resolve(),
        options=options,
        item_handlers={k: make() for k, make in _handlers.items()},
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
      state: replicated; every process gives it.
      meta: JSON-able; `load_variables` needs its `config`, `classes` and `channels`.

    Raises:
      InputError: it cannot be written, for one because the disk is full; the steps before are as they were.
    """
    params, train = _items(parallel.one_each(state))
    step = int(state.step)
    folder = epath.Path(directory) / str(step)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((params, train)))
    processes.on_first(lambda: _begin(folder, size))
    with _shown_as_one_line(folder), _manager(directory) as manager:
        saved = manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params), train=ocp.args.StandardSave(train),
                meta=ocp.args.JsonSave(meta | {"versions": versions()}),
            ),
        )  # fmt: skip
    if not saved:
        raise FileExistsError(f"{folder}: Orbax did not save this step")
    processes.on_first(lambda: _finish(folder))


def _begin(folder: epath.Path, size: int) -> None:
    _reserve(folder, size)
    files.write_atomic(folder.parent / SAVING, folder.name)


def _finish(folder: epath.Path) -> None:
    files.write_json(folder / MANIFEST, _sums(folder))
    (folder.parent / SAVING).unlink()


def _reserve(folder: epath.Path, size: int) -> None:
    """Sees whether disk and quota have room for some bytes and the little files around them, before Orbax begins."""
    if files.is_bucket(folder) or not hasattr(os, "posix_fallocate"):
        return
    part = files.part_of(folder)
    with files.writing(folder):
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size + _OVERHEAD)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def _shown_as_one_line(folder: epath.Path) -> Iterator[None]:
    """Makes one line of what the system refuses Orbax, whose threads and tasks would fill pages with it."""
    said, disabled, refused = io.StringIO(), logging.root.manager.disable, False
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(said):
            yield
    except Exception as error:
        reason = _refused(error)
        if reason is None:
            raise
        refused = True
        # Those that have not heard yet go on to complain: to a loop that is closed, of tasks that no one asked for.
        hook = sys.unraisablehook
        sys.unraisablehook = lambda what: None if str(what.exc_value) == "Event loop is closed" else hook(what)
        for name in ("asyncio", "absl"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        raise InputError(f"{folder}: cannot be written ({reason}); the checkpoints before are kept") from error
    finally:
        logging.disable(disabled)
        if not refused:
            sys.stderr.write(said.getvalue())


def _refused(error: BaseException | None) -> str | None:
    """The operating system's words in an error of Orbax or TensorStore, if it is one of the system's."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code:
            return os.strerror(int(code[1]))
        error = error.__cause__ or error.__context__
    return None


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
        return "it has no manifest, so its save did not finish or the file was removed"
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
    # The very first save may have been cut off; any other step without a manifest was whole once.
    saving = epath.Path(directory) / SAVING
    if not found or (saving.exists() and [saving.read_text()] == list(map(str, found))):
        return None
    raise InputError(f"{directory}: no readable checkpoint ({damage[found[-1]]}); move the folder away to start again")


def restore(directory: epath.PathLike, like: State) -> State | None:
    """The newest sound state, on all devices of all processes, or None; newer saves that are damaged or broke off go.

    Args:
      directory: the fold's `checkpoints` folder.
      like: a state with the shapes and types that are expected.

    Raises:
      InputError: checkpoints exist, and none is sound.
    """
    step = processes.on_first(lambda: _newest_alone(directory))
    if step is None:
        return None
    params, train = (ocp.args.StandardRestore(parallel.abstract(item)) for item in _items(like))
    with _manager(directory) as manager:
        read = manager.restore(step, args=ocp.args.Composite(params=params, train=train))
    rest = read.train
    segmenter = Network(read.params["params"], read.params["batch_stats"], rest["opt_state"])
    return State(rest["step"], rest["key"], segmenter, rest["critics"])


def _newest_alone(directory: epath.PathLike) -> int | None:
    """The newest sound step, after all newer ones and what was never finished have been removed."""
    step = newest(directory)
    for other in steps(directory):
        if step is None or other > step:
            (epath.Path(directory) / str(other)).rmtree()
    for path in epath.Path(directory).glob(f"*{_UNFINISHED}*"):
        path.rmtree()
    (epath.Path(directory) / SAVING).unlink(missing_ok=True)
    return step


def read_meta(directory: epath.PathLike) -> dict[str, Any]:
    """What `save` was given as meta, of the newest sound step, and that step as `step`.

    Raises:
      InputError: there is no sound checkpoint.
    """
    step = newest(directory)
    if step is None:
        raise InputError(f"{directory}: found no checkpoint, expected one of a trained fold")
    # Without Orbax, so that one process can ask for it alone.
    return files.read_json(epath.Path(directory) / str(step) / "meta" / META) | {"step": step}


def load_variables(directory: epath.PathLike) -> tuple[dict[str, Any], ml_collections.ConfigDict, dict[str, Any]]:
    """The segmenter's variables from a checkpoint alone.

    Returns:
      What Flax's `apply` takes, on one device of this process, the configuration that rebuilds the network
      (`state.make_segmenter`), and the meta.

    Raises:
      InputError: there is no sound checkpoint.
    """
    meta = processes.on_first(lambda: read_meta(directory))
    config = ml_collections.ConfigDict(meta["config"])
    shapes = jax.eval_shape(lambda: init_state(config, tuple(meta["classes"]), len(meta["channels"]), 1, 0))
    restore = ocp.args.StandardRestore(parallel.abstract(shapes.segmenter.variables))
    with _manager(directory) as manager:
        variables = manager.restore(meta["step"], args=ocp.args.Composite(params=restore)).params
    return parallel.one_copy(variables), config, meta
