"""Files in folders and buckets: written so that a reader finds either the old one or the new one, whole."""

import atexit
import contextlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from isles_jax.runtime.command import InputError


def is_bucket(path: epath.PathLike) -> bool:
    """True for gs://... and the like."""
    return "://" in os.fspath(path)


def check_folder(path: Path) -> None:
    """InputError unless `path` is a folder."""
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{path}: {found}; expected a folder of cases")


def check_run(path: epath.PathLike) -> None:
    """InputError if nothing is at `path`, where a run or a .safetensors file should be; buckets are not asked."""
    if not is_bucket(path) and not Path(path).exists():
        raise InputError(f"{path}: does not exist; expected a run of isles_jax.main or a .safetensors file")


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[None]:
    """Makes one line that names `path` of what the system refuses: a full disk, a quota, no permission.

    Raises:
      InputError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def part_of(path: epath.PathLike) -> epath.Path:
    """The name under which a file or folder is written before it gets its own, in the same folder."""
    path = epath.Path(path)
    return path.parent / f".{path.name}.part"


def write_atomic(path: epath.PathLike, content: bytes | str) -> None:
    """Writes a file under a temporary name beside `path` and renames it; local paths and buckets alike.

    Raises:
      InputError: it cannot be written; nothing of it is left.
    """
    path, temporary = epath.Path(path), part_of(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                if not is_bucket(path):
                    # Else a machine that loses power may keep the new name and not the bytes.
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def remove_parts(*folders: epath.PathLike) -> None:
    """Removes what processes that were killed left in these folders under temporary names."""
    for folder in map(epath.Path, folders):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name.startswith(".") and path.name.endswith(".part"):
                path.rmtree() if path.is_dir() else path.unlink()


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_json(path: epath.PathLike) -> Any:
    """Reads a JSON file."""
    return json.loads(epath.Path(path).read_text())


# --- buckets ----------------------------------------------------------------------------------------------------------


def location(path: epath.PathLike) -> epath.Path:
    """A folder or bucket that the user named, as a path.

    Raises:
      InputError: what reads buckets is not installed.
    """
    if os.fspath(path).startswith("gs://"):
        if not importlib.util.find_spec("gcsfs"):
            raise InputError(f"{path}: found no package gcsfs, expected the extra gcs: pip install -e '.[gcs]'")
        from fsspec.config import conf

        # Listings must not be remembered: other processes write to the same folders.
        conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(path)


def fetch(path: epath.PathLike) -> Path:
    """A file or folder to be read in place: itself, or of a bucket's a copy that is gone when the process ends.

    NIfTI is read through the operating system, which tells damaged and oversized files before they are read.
    """
    if not is_bucket(path):
        return Path(path)
    temporary = Path(tempfile.mkdtemp(prefix="isles_jax."))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    # Messages name the copy: it ends like the original.
    target = temporary / os.fspath(path).split("://", 1)[1]
    copy(location(path), epath.Path(target))
    return target


def copy(source: epath.Path, target: epath.Path) -> None:
    """Copies a file, or a folder with all that is in it; what does not exist is not copied."""
    if source.is_dir():
        for path in sorted(source.iterdir()):
            copy(path, target / path.name)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
