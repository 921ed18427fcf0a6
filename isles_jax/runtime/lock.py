"""Locks that let only one run at a time work on each fold of a workdir.

They are the operating system's locks, on single bytes of the file `.lock`. The operating system releases them when the
process ends, however it ends. Other machines see them if the workdir's network file system supports locks, as NFS does.
Buckets have no locks, so nothing stops two runs in one bucket.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from etils import epath

from isles_jax.runtime import files, interrupt
from isles_jax.runtime.command import InputError

NAME = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
# What file systems without locks return.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# A byte that no fold uses; locking it shows whether the file system has locks.
_UNUSED = 1 << 30


@contextlib.contextmanager
def hold(workdir: epath.PathLike, folds: Sequence[int]) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Holds the locks of some folds of a workdir.

    Makes the workdir, and removes it at the end if it is still empty.

    Yields:
      A function that returns a context manager for work on files that all folds share. Only one run of the workdir is
      inside that context at a time.

    Raises:
      InputError: another run is at work on one of the folds; the workdir cannot be written.
    """
    path = epath.Path(workdir) / NAME
    file = None if files.is_bucket(path) else _open(path)
    if file is None:
        yield contextlib.nullcontext
        return
    try:
        # Byte 0 is the lock of the files that all folds share.
        taken = [fold for fold in folds if not _take(file, 1 + fold)]
        if taken:
            raise InputError(
                f"{workdir}: found another run at work on fold {taken[0]}, expected none; wait for it or choose "
                "another --workdir"
            )
        if not os.fstat(file).st_nlink:
            raise InputError(f"{path}: was removed by another run that ended; run the same command again")
        try:
            yield lambda: _exclusive(file)
        finally:
            _remove_empty(file, path)
    finally:
        os.close(file)


def _open(path: epath.Path) -> int | None:
    """Opens the lock file; None if the file system has no locks."""
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _UNUSED)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                print(f"note: {path}: no locks on this file system; nothing stops a second run", flush=True)
                os.close(file)
                return None
            if error.errno not in _TAKEN:
                raise
    return file


def _take(file: int, start: int, length: int = 1) -> bool:
    """Locks some bytes, which may lie beyond the file's end; False if another process holds one of them."""
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


def _remove_empty(file: int, path: epath.Path) -> None:
    """Removes a workdir in which nothing was written, unless another run holds a lock in it."""
    with contextlib.suppress(OSError):
        if [other.name for other in path.parent.iterdir()] == [NAME] and _take(file, 0, 0):
            path.unlink()
            path.parent.rmdir()
