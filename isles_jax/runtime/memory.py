"""The memory of this machine, and how this process asks for it."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

# Programs may need twice the memory if what they free stays with them. A machine with less than this keeps nothing.
ENOUGH = 16 * 10**9
# The options of glibc's malloc.h, and their values.
_KEEP = {
    "M_TRIM_THRESHOLD": (-1, -1),  # no free memory at the end of the heap goes back to the system
    "M_MMAP_MAX": (-4, 0),  # no array is requested from the system alone
    "M_ARENA_MAX": (-8, 1),  # threads have no heaps of their own, which give large arrays back
}


def machine_memory(groups: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> int:
    """Bytes of memory for this process: the machine's, or less if a container or a batch system sets a limit.

    Args:
      groups: the file in which Linux lists the control groups of this process.
      root: the folder of all control groups.
    """
    memory = int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    return min([memory, *_limits(Path(groups), root)])


def _limits(groups: Path, root: str) -> Iterator[int]:
    """The limits of control groups of version 2 and 1, and of the groups around them."""
    text = ""
    with contextlib.suppress(OSError):
        text = groups.read_text(errors="surrogateescape")
    for line in text.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        folder, name = (f"{root}/memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        inside = Path(folder + group)
        for place in (inside, *inside.parents):
            # A group without a limit has the text "max", or has no such file.
            with contextlib.suppress(OSError, ValueError):
                yield int((place / name).read_text())


def keep_freed() -> None:
    """Keeps the memory that this process frees for its own next use, where the C library is glibc.

    On a CPU, XLA requests the memory of a program when it starts and frees it when it ends. If it goes back to the
    system, the system clears each page again for the next training step (experiments/speed.md).

    It is for the start of a process: a thread that has begun stays with its own heap. It does nothing where the memory
    is less than `ENOUGH`, or where the user has set an option of malloc, in GLIBC_TUNABLES or as MALLOC_ARENA_MAX.
    """
    own = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or own or machine_memory() < ENOUGH:
        return
    for option, value in _KEEP.values():
        mallopt(option, value)
