"""The calls of a run: what was run, when, on which machine, and how long each part took. Each call has its own file."""

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import os
import platform
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from isles_jax import __version__
from isles_jax.runtime import files, interrupt, processes
from isles_jax.runtime.command import InputError

FOLDER = "calls"
# The parts of a call in their order. What is compiled during another part does not count for that part.
PARTS = ("preparing", "compiling", "training", "prediction", "scoring", "report")
_FORM = {
    "command": str,
    "date": str,
    "isles_jax": str,
    "jax": str,
    "processor": str,
    "cores": int,
    "device": str,
    "devices": int,
    "processes": int,
    "seconds": dict.fromkeys(PARTS, float),
}
# The packages, beside JAX, whose versions may change the numbers of a run.
_PACKAGES = ("jaxlib", "flax", "optax", "numpy", "scipy", "nibabel")
# The package's own folder.
_SOURCE = Path(__file__).parents[1]
# JAX reports the seconds of each compilation under this name.
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Call:
    """The record of a call. It is written again after each part, so that a call that is killed has one, too."""

    def __init__(self, workdir: epath.Path, began: float) -> None:
        """Begins the record of a call that has prepared its run.

        Args:
          workdir: of the run.
          began: when the preparation began, on the clock `time.monotonic`.
        """
        now = datetime.datetime.now(datetime.UTC)
        self._path = workdir / FOLDER / f"{now:%Y-%m-%dT%H-%M-%S}-{secrets.token_hex(3)}.json"
        self._seconds = dict.fromkeys(PARTS, 0.0) | {"preparing": time.monotonic() - began}
        self._record = {
            "command": _command(sys.orig_argv),
            "date": f"{now:%Y-%m-%d %H:%M} UTC",
            "isles_jax": __version__,
            "jax": jax.__version__,
            "commit": commit(_SOURCE.parent),
            "source_sha256": source_digest(_SOURCE),
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "processor": processor(),
            "cores": os.cpu_count() or 1,
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "processes": processes.count(),
            "seconds": self._seconds,
        }
        self._write()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of the block to one of `PARTS`, and writes the record.

        Raises:
          InputError: the record cannot be written.
        """
        compiled: list[float] = []

        def listen(event: str, duration_secs: float, **_: Any) -> None:
            if event == _COMPILED:
                compiled.append(duration_secs)

        jax.monitoring.register_event_duration_secs_listener(listen)
        start = time.monotonic()
        try:
            yield
        except BaseException:
            # What ended the block is said, and not that a full disk has no room for the record either. After a signal,
            # the process must not leave before it has said what was saved.
            with interrupt.postponed():
                with contextlib.suppress(InputError):
                    self._add(name, start, sum(compiled))
                raise
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
        self._add(name, start, sum(compiled))

    def _add(self, name: str, start: float, compiled: float) -> None:
        self._seconds["compiling"] += compiled
        self._seconds[name] += max(time.monotonic() - start - compiled, 0.0)
        self._write()

    def _write(self) -> None:
        if processes.first():
            seconds = {name: round(value, 2) for name, value in self._seconds.items()}
            files.write_json(self._path, self._record | {"seconds": seconds})


def read(workdir: epath.Path) -> list[dict[str, Any]]:
    """The records of a run's calls in the order in which they began; none for runs of earlier versions.

    Raises:
      InputError: one of the files is damaged.
    """
    folder = workdir / FOLDER
    found = sorted(path for path in folder.iterdir() if path.suffix == ".json") if folder.is_dir() else []
    return [files.read_json_like(path, _FORM) for path in found]


def commit(checkout: Path) -> str:
    """The commit that is checked out in a folder; "" if it is no repository of git, or keeps the commit elsewhere."""
    git = checkout / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        ref = head.removeprefix("ref: ")
        if (git / ref).is_file():
            return (git / ref).read_text().strip()
        packed = (line.split() for line in (git / "packed-refs").read_text().splitlines())
        return next((words[0] for words in packed if words[1:] == [ref]), "")
    except (OSError, ValueError):
        return ""


@functools.cache
def source_digest(package: Path) -> str:
    """SHA-256 of the names and contents of all .py files below a folder.

    It tells whether two calls ran the same program: a commit alone does not show what was changed since.
    """
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(f"{path.relative_to(package).as_posix()} {files.sha256(path)}\n".encode())
    return total.hexdigest()


def _command(words: Sequence[str]) -> str:
    """A command line as it is typed: the program by its name, and without Python where the program is a script."""
    program, *arguments = words
    if arguments and Path(arguments[0]).name == "isles-jax":
        program, *arguments = arguments
    return shlex.join([Path(program).name, *arguments])


def processor() -> str:
    """The name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
