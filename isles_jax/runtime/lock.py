"""Locks that let only one process at a time work on each part of a folder: a fold of a workdir, or a case.

They are the operating system's locks, on single bytes of the file `.lock`. The operating system releases them when the
process ends, however it ends. Other machines see them if the folder's network file system supports locks, as NFS does.
Buckets have no locks, so nothing stops two processes in one bucket.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

from etils import epath

from isles_jax.runtime import files, interrupt
from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import say

NAME = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
# What file systems without locks return.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# A byte that no part uses; locking it shows whether the file system has locks.
_UNUSED = 1 << 30


class Held:
    """The locks that a process holds; calling it gives a context for work on files that all parts share.

    Only one process is inside that context at a time.
    """

    def __init__(self, file: int | None) -> None:
        """The locks of an open file; None: the place has no locks."""
        self._file = file

    def __call__(self) -> AbstractContextManager[None]:
        """The context."""
        return contextlib.nullcontext() if self._file is None else _exclusive(self._file)

    def take_all(self) -> bool:
        """Locks every part of the folder; False if another process is at work on one. Call it inside the context."""
        return self._file is None or _take(self._file, 1, 0)


@contextlib.contextmanager
def hold(folder: epath.PathLike, parts: Mapping[int, str], flag: str = "--workdir") -> Iterator[Held]:
    """Holds the locks of some parts of a folder.

    Makes the folder and the file. At the end it removes what it made, if nothing was written in the folder.

    Args:
      folder: a folder or bucket.
      parts: {number from 0 to 2^30 - 2: what a message calls the part}.
      flag: names the folder on the command line.

    Raises:
      InputError: another process is at work on one of the parts; the folder cannot be written.
    """
    path = epath.Path(folder) / NAME
    if files.is_bucket(path):
        yield Held(None)
        return
    before = _names(path.parent)
    file = _open(path)
    if file is None:
        yield Held(None)
        return
    try:
        # Byte 0 is the lock of the files that all parts share.
        taken = [name for part, name in parts.items() if not _take(file, 1 + part)]
        if taken:
            raise InputError(
                f"{folder}: found another process at work on {taken[0]}, expected none; wait for it or choose another "
                f"{flag}"
            )
        if not os.fstat(file).st_nlink:
            raise InputError(f"{path}: was removed by another process that ended; run the same command again")
        try:
            yield Held(file)
        finally:
            _remove_unused(file, path, before)
    finally:
        os.close(file)


def _open(path: epath.Path) -> int | None:
    """Opens the lock file; None if the file system has no locks."""
    with files.writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with files.writing(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _UNUSED)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                say(f"note: {path}: no locks on this file system; nothing stops a second process")
                os.close(file)
                return None
            if error.errno not in _TAKEN:
                raise
    return file


def _take(file: int, start: int, length: int = 1) -> bool:
    """Locks some bytes, or all from `start` on if `length` is 0; False if another process holds one of them."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    return True


@contextlib.contextmanager
def _exclusive(file: int) -> Iterator[None]:
    while not _take(file, 0):
        interrupt.leave_if_requested()
        time.sleep(0.2)
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, 0)


def _names(folder: epath.Path) -> set[str] | None:
    """The names in a folder; None if there is no such folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return {path.name for path in folder.iterdir()}
    return None


def _remove_unused(file: int, path: epath.Path, before: set[str] | None) -> None:
    """Removes the lock file, and a folder made for it, if nothing else is new and no other process holds a lock."""
    with contextlib.suppress(OSError):
        if NAME not in (before or ()) and _names(path.parent) == {*(before or ()), NAME} and _take(file, 0, 0):
            path.unlink()
            if before is None:
                path.parent.rmdir()
