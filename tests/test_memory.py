"""The memory of a process, and what a command does with memory that it frees."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isles_jax.runtime.memory import ENOUGH, machine_memory

ROOT = Path(__file__).parents[1]
# Prints how many pages the system clears when a thread requests 100 MB, frees them and requests them again.
# Each page has 4 KB, also where the system would take pages of 2 MB (PR_SET_THP_DISABLE, 41).
PAGES = """
import ctypes
import resource
import threading
from isles_jax.runtime.command import run_command

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use_twice():
    b"x" * 100_000_000
    before = pages()
    b"x" * 100_000_000
    print(pages() - before)

def moved_end():
    library = ctypes.CDLL(None)
    library.malloc.restype = library.sbrk.restype = ctypes.c_void_p
    library.malloc.argtypes, library.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    place = library.malloc(3 * 2**30)
    end = library.sbrk(0)
    library.free(place)
    return end - library.sbrk(0)

def main():
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)
    thread = threading.Thread(target=use_twice)
    thread.start()
    thread.join()

{run}
"""


def _pages(run: str, **variables: str) -> int:
    command = [sys.executable, "-c", PAGES.replace("{run}", run)]
    own = {name for name in os.environ if name.startswith("MALLOC_")} | {"GLIBC_TUNABLES"}
    environment = {name: value for name, value in os.environ.items() if name not in own} | variables
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
@pytest.mark.skipif(machine_memory() < ENOUGH, reason="the machine has too little memory to keep any")
def test_a_command_keeps_the_memory_that_it_frees() -> None:
    assert _pages("main()") > 20_000
    assert _pages("run_command(main)") < 1_000
    for name, value in (("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072"), ("MALLOC_MMAP_THRESHOLD_", "131072")):
        assert _pages("run_command(main)", **{name: value}) > 20_000, name
    # A heap whose end was free for 3 GB ends where it did: glibc gives nothing back, however much it is.
    assert _pages("run_command(lambda: print(moved_end()))") == 0


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "1000"}, 1000),
        ("0::/job/step\n", {"job/memory.max": "2000", "job/step/memory.max": "max"}, 2000),
        # In a container, the group's path may be that of the machine outside.
        ("0::/docker/3f\n", {"memory.max": "3000"}, 3000),
        ("4:memory:/job\n3:cpu:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "4000"}, 4000),
        ("4:cpu:/job\n", {"memory/job/memory.limit_in_bytes": "5000"}, None),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {"memory.max": str(2**63)}, None),
    ],
)
def test_a_limit_of_a_container_is_the_memory(
    tmp_path: Path, groups: str, files: dict[str, str], limit: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text + "\n")
    (tmp_path / "groups").write_text(groups)
    whole = machine_memory(str(tmp_path / "none"))
    found = machine_memory(str(tmp_path / "groups"), str(tmp_path / "root"))
    assert found == (whole if limit is None else limit)
