"""The checkpoints of a fold. Only this module uses Orbax. Each checkpoint is verified before it is used.

`<directory>/<step>/` holds three Orbax items: `params` (the segmenter's variables, enough for inference), `train` (the
rest of the training state) and `meta` (configuration, classes, versions). Beside them, `manifest.json` maps every file
of the step to its SHA-256 checksum. The manifest is written last: a step without one was never complete.
"""

import importlib.metadata
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from isles_jax.runtime import files, processes
from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import say
from isles_jax.training import failed_save, parallel
from isles_jax.training.state import Network, State, variables_like
from isles_jax.training.task import Task

KEEP = 2
MANIFEST = "manifest.json"
# Orbax writes a JSON item to a file of this name.
META = "metadata"
# This file holds the number of the step that is being saved. It lies beside the steps' folders.
SAVING = ".saving"
# While Orbax writes a folder, the folder's name contains this.
_UNFINISHED = ".orbax-checkpoint-tmp"
# A step takes fewer bytes than this beside its arrays.
_OVERHEAD = 1 << 20


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        # Orbax's own calls of JAX's preemption sync point would disturb those of `processes.leaving`.
        return False


def _manager(directory: epath.PathLike) -> _Manager:
    # Orbax saves synchronously, so that the manifest can be made as soon as it returns. `Saver` brings the thread.
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEEP), enable_async_checkpointing=False
    )
    handlers = {
        "params": ocp.StandardCheckpointHandler(),
        "train": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(META),
    }
    path = epath.Path(directory)
    return _Manager(path if files.is_bucket(path) else path.resolve(), options=options, item_handlers=handlers)


def _items(state: State) -> tuple[Any, Any]:
    """The state as (params, train): what inference needs, and the rest."""
    train = {"step": state.step, "key": state.key, "opt_state": state.segmenter.opt_state, "critics": state.critics}
    return state.segmenter.variables, train


def versions() -> dict[str, str]:
    """The versions of the packages that a result depends on."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")}


class Saver:
    """Saves the states of a fold's training, in a thread of its own while training goes on.

    What is saved is a copy on the device, so that the next step may overwrite the state. One state is saved at a time:
    `save` waits for the one before. Several processes save together, without a thread, because all of them must agree
    on the order of their messages.
    """

    def __init__(self, directory: epath.PathLike) -> None:
        self._directory = epath.Path(directory)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._ended = time.monotonic()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Waits for the save that is running. Its error is raised unless the block ends with another one."""
        self._join()
        if kind is None:
            self.check()

    def idle_seconds(self) -> float:
        """The time since the last save ended, or since the start; 0 while one is running."""
        return 0.0 if self._thread and self._thread.is_alive() else time.monotonic() - self._ended

    def save(self, state: State, meta: dict[str, Any]) -> None:
        """Begins to save a state. The arguments are those that the function `save` takes after the folder.

        Raises:
          InputError: the state before could not be written; with several processes, this one either.
        """
        self.wait()
        if processes.count() > 1:
            self._write(state, meta)
            self.check()
        else:
            copied = _copy(parallel.one_each(state))
            self._thread = threading.Thread(target=self._write, args=(copied, meta), name="checkpoint")
            self._thread.start()

    def wait(self) -> None:
        """Waits until the state is saved.

        Raises:
          InputError: it could not be written.
        """
        self._join()
        self.check()

    def check(self) -> None:
        """Raises the error of a save that ended, if there was one."""
        error = self._error
        self._error = None
        if error:
            raise error

    def _write(self, state: State, meta: dict[str, Any]) -> None:
        try:
            save(self._directory, state, meta)
        except Exception as error:  # the thread that trains raises it
            self._error = error
        self._ended = time.monotonic()

    def _join(self) -> None:
        if self._thread:
            self._thread.join()
            self._thread = None


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def save(directory: epath.PathLike, state: State, meta: dict[str, Any]) -> None:
    """Saves the replicated state under its step number, then writes the manifest. The two newest steps are kept.

    Every process calls this function. `meta` is a `Task.record` and more, in values that JSON can hold.

    Raises:
      InputError: the step cannot be written, for example because the disk is full; earlier steps are unchanged.
    """
    params, train = _items(parallel.one_each(state))
    step = int(state.step)
    folder = epath.Path(directory) / str(step)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((params, train)))
    processes.on_first(lambda: _begin(folder, size))
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        train=ocp.args.StandardSave(train),
        meta=ocp.args.JsonSave(meta | {"versions": versions()}),
    )
    _write(folder, items)
    processes.on_first(lambda: _finish(folder))


def _begin(folder: epath.Path, size: int) -> None:
    _reserve(folder, size)
    files.write_atomic(folder.parent / SAVING, folder.name)


def _finish(folder: epath.Path) -> None:
    files.write_json(folder / MANIFEST, _checksums(folder))
    (folder.parent / SAVING).unlink()


def _reserve(folder: epath.Path, size: int) -> None:
    """Raises an InputError unless disk and quota have room for `size` bytes of arrays and what Orbax adds."""
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


def _write(folder: epath.Path, items: ocp.args.Composite) -> None:
    """Lets Orbax write one step. Where Orbax would print pages about a full disk, it raises an InputError."""
    before = set(threading.enumerate())
    with failed_save.quiet() as output:
        reason = _try_to_write(folder, items)
        if reason is None:
            return
        failed_save.wait(before)
        output.truncate(0)
    failed_save.silence()
    raise InputError(f"{folder}: cannot be written ({reason}); the checkpoints before are kept")


def _try_to_write(folder: epath.Path, items: ocp.args.Composite) -> str | None:
    """Lets Orbax write one step; returns the operating system's message if it refused.

    The manager and the exception refer to the coroutines of a failed save. This function lets go of both.
    """
    try:
        with _manager(folder.parent) as manager:
            saved = manager.save(int(folder.name), args=items)
    except Exception as error:
        reason = failed_save.system_error(error)
        if reason is None:
            raise
        return reason
    if not saved:
        raise FileExistsError(f"{folder}: Orbax did not save this step")
    return None


def _files(folder: epath.Path) -> list[epath.Path]:
    # `epath` has no recursive glob for buckets.
    return [file for path in sorted(folder.iterdir()) for file in (_files(path) if path.is_dir() else [path])]


def _checksums(folder: epath.Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): files.sha256(path)
        for path in _files(folder)
        if path.name != MANIFEST and not path.name.startswith(".")
    }


def _damage(folder: epath.Path) -> str | None:
    """Describes what is wrong with a checkpoint; None if it is as it was written."""
    try:
        expected = files.read_json(folder / MANIFEST)
    except FileNotFoundError:
        return "it has no manifest, so its save did not finish or the file was removed"
    except (ValueError, OSError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    try:
        actual = _checksums(folder)
    except OSError as error:
        return str(error)
    if not isinstance(expected, dict):
        return f"{MANIFEST} holds a {type(expected).__name__}"
    misfits = files.differing(expected, actual)
    if not misfits:
        return None
    return f"{misfits[0]!r} is {'not as it was written' if misfits[0] in actual else 'missing'}"


def steps(directory: epath.PathLike) -> list[int]:
    """The steps saved in a fold's `checkpoints` folder, oldest first."""
    entries = epath.Path(directory).iterdir() if epath.Path(directory).exists() else ()
    return sorted(int(path.name) for path in entries if path.name.isdecimal())


def newest(directory: epath.PathLike) -> int | None:
    """The newest step that is as it was written; None if no save was ever completed.

    It prints a line for each damaged step that is newer.

    Raises:
      InputError: checkpoints exist, and all are damaged.
    """
    return _newest(directory)[0]


def _newest(directory: epath.PathLike) -> tuple[int | None, list[str]]:
    """The result of `newest`, and the lines that it prints."""
    saved = steps(directory)
    damages: list[str] = []
    notes: list[str] = []
    for step in reversed(saved):
        damage = _damage(epath.Path(directory) / str(step))
        if damage is None:
            return step, notes
        damages.append(damage)
        notes.append(f"{directory}/{step} is skipped: {damage}")
        say(f"note: {notes[-1]}", sys.stderr)
    # The very first save may have been interrupted. Any other step without a manifest was complete once.
    saving = epath.Path(directory) / SAVING
    if not saved or (saving.exists() and [saving.read_text()] == list(map(str, saved))):
        return None, notes
    raise InputError(f"{directory}: no readable checkpoint ({damages[0]}); move the folder away to start again")


def restore(directory: epath.PathLike, like: State) -> tuple[State, dict[str, Any]] | None:
    """Reads the newest undamaged state onto all devices of all processes, and removes newer, damaged checkpoints.

    Returns:
      The state, with the shapes and types of `like`, and the meta; None if no save was ever completed.

    Raises:
      InputError: checkpoints exist, and all are damaged.
    """
    step = processes.on_first(lambda: _keep_newest(directory))
    if step is None:
        return None
    meta = processes.on_first(lambda: _meta_of(directory, step))
    params, train = (ocp.args.StandardRestore(parallel.abstract(item)) for item in _items(like))
    with _manager(directory) as manager:
        read = manager.restore(step, args=ocp.args.Composite(params=params, train=train))
    segmenter = Network(read.params["params"], read.params["batch_stats"], read.train["opt_state"])
    return State(read.train["step"], read.train["key"], segmenter, read.train["critics"]), meta


def _keep_newest(directory: epath.PathLike) -> int | None:
    """Returns the newest undamaged step, and removes all newer ones and everything that was never finished."""
    directory = epath.Path(directory)
    step = newest(directory)
    for other in steps(directory):
        if step is None or other > step:
            (directory / str(other)).rmtree()
    for path in directory.glob(f"*{_UNFINISHED}*"):
        path.rmtree()
    (directory / SAVING).unlink(missing_ok=True)
    return step


def read_meta(directory: epath.PathLike) -> dict[str, Any]:
    """The meta that `save` stored in the newest undamaged step.

    The step's number is under `step`, and the lines about newer, damaged steps are under `skipped`.

    Raises:
      InputError: there is no undamaged checkpoint.
    """
    step, notes = _newest(directory)
    if step is None:
        raise InputError(f"{directory}: found no checkpoint, expected one of a trained fold")
    return _meta_of(directory, step) | {"step": step, "skipped": notes}


def _meta_of(directory: epath.PathLike, step: int) -> dict[str, Any]:
    # Orbax needs all processes for a read; a plain read works on one process alone.
    meta: dict[str, Any] = files.read_json(epath.Path(directory) / str(step) / "meta" / META)
    return meta


def load_variables(directory: epath.PathLike) -> tuple[dict[str, Any], Task, dict[str, Any]]:
    """Reads the segmenter from the newest undamaged checkpoint, and what it is for.

    Returns:
      The variables for Flax's `apply` on one device of this process, the task, and the meta of `read_meta`.

    Raises:
      InputError: there is no undamaged checkpoint.
    """
    meta = processes.on_first(lambda: read_meta(directory))
    task = Task.read(meta)
    restore = ocp.args.StandardRestore(parallel.abstract(variables_like(task)))
    with _manager(directory) as manager:
        variables = manager.restore(meta["step"], args=ocp.args.Composite(params=restore)).params
    return parallel.one_copy(variables), task, meta
