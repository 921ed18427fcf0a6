"""Files in folders and buckets, written so that a reader always finds a whole file: the old one or the new one."""

import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from isles_jax.runtime import interrupt
from isles_jax.runtime.command import InputError

# How the names of temporary files and folders end. No other program uses it, so that what has it may be removed.
PART = ".isles_jax-part"


def is_bucket(path: epath.PathLike) -> bool:
    """True for gs://... and other paths with a scheme."""
    return "://" in os.fspath(path)


def check_folder(path: Path) -> None:
    """Raises an InputError unless `path` is a folder."""
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{path}: {problem}; expected a folder of cases or a table (.csv), with NIfTI files")


def check_data(path: epath.PathLike) -> None:
    """Raises an InputError unless there is a folder or a table at `path`; a bucket is not looked into."""
    location(path)
    if not is_bucket(path) and not (os.fspath(path).lower().endswith(".csv") and Path(path).is_file()):
        check_folder(Path(path))


def check_run(path: epath.PathLike) -> None:
    """Raises an InputError if there is neither a run nor a .safetensors file at `path`; buckets are not checked."""
    if not is_bucket(path) and not (os.fspath(path) and Path(path).exists()):
        raise InputError(f"{path}: does not exist; expected a run of isles_jax.main or a .safetensors file")


def refuse_inside(output: epath.PathLike, folder: epath.PathLike) -> None:
    """Raises an InputError if `output` lies in the folder that is read, because the next call would read it too."""
    if is_bucket(output) or is_bucket(folder):
        return
    # Path.resolve raises an error of its own for links that lead to themselves.
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(folder)):
        raise InputError(f"{output}: lies inside {folder}, which is read; expected an output outside of it")


def refuse_run(output: epath.PathLike) -> None:
    """Raises an InputError if `output` is the folder of a run, or lies in its phantom or in the folder of a fold."""
    path = epath.Path(output if is_bucket(output) else os.path.realpath(output))
    parts = [part for part in (path, *path.parents) if part.name == "phantom" or part.name.startswith("fold_")]
    for folder in (path, *(part.parent for part in parts)):
        if _is_run(folder):
            raise InputError(f"{output}: found config.json of a run in {folder}; expected another --output")


def _is_run(folder: epath.Path) -> bool:
    """Whether config.json is that of a run, and not such as the numbers of a case named config."""
    path = folder / "config.json"
    try:
        return path.exists() and not misfit(read_json(path), {"seed": int, "data": {}, "model": {}})
    except ValueError:
        return False


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[None]:
    """Turns an OSError inside the block (full disk, quota, no permission) into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def is_there(path: epath.PathLike) -> bool:
    """Whether anything has this name, a link to nowhere included."""
    return bool(epath.Path(path).exists()) or (not is_bucket(path) and os.path.lexists(path))


def refuse_foreign(path: epath.PathLike, ours: Callable[[bytes], bool], what: str) -> None:
    """Raises an InputError if a file is there that would be replaced and does not show itself to be ours.

    Args:
      path: of the file that will be written.
      ours: whether a file with this content was written by the same command.
      what: the command writes, such as "a report".
    """
    path = epath.Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a name for {what}")
    # A device or a pipe, which epath takes for a file, may never end.
    readable = path.exists() if is_bucket(path) else Path(path).is_file()
    if is_there(path) and not (readable and ours(path.read_bytes())):
        raise InputError(f"{path}: found a file that is not {what} of this program; choose another name or remove it")


def part_of(path: epath.PathLike) -> epath.Path:
    """A new temporary name beside `path`, under which a file or folder is written before it is renamed."""
    # Two processes may write one file. A name may be as long as the file system allows, so it is not a part of this.
    return epath.Path(path).parent / f".{secrets.token_hex(6)}{PART}"


def write_atomic(path: epath.PathLike, content: bytes | str) -> None:
    """Writes a file under a temporary name beside `path` and then renames it, in folders and in buckets.

    Raises:
      InputError: the file cannot be written; no part of it is left.
    """
    path = epath.Path(path)
    temporary = part_of(path)
    with interrupt.postponed(), writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                if not is_bucket(path):
                    # Without this, a machine that loses power may keep the new name without the content.
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """A temporary folder beside `root`. It becomes `root` at the end of the block; after an error it is removed."""
    temporary = Path(part_of(root))
    interrupt.remove_at_exit(temporary)
    try:
        with writing(root):
            temporary.mkdir(parents=True)
            yield temporary
            temporary.replace(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_parts(*folders: epath.PathLike) -> None:
    """Removes the temporary files and folders that killed processes left in these folders."""
    for folder in map(epath.Path, folders):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name.startswith(".") and path.name.endswith(PART):
                path.rmtree() if path.is_dir() else path.unlink()


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_text(path: epath.PathLike) -> str:
    """A text file in UTF-8, with or without a byte order mark, whatever the locale is."""
    text: str = epath.Path(path).read_bytes().decode("utf-8-sig")
    return text


def read_json(path: epath.PathLike) -> Any:
    """Reads a JSON file. A file that is not JSON raises a ValueError."""
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json_like(path: epath.PathLike, like: Any) -> Any:
    """Reads a JSON file of the form `like`.

    A form is a type, a tuple of types, a list of one form, or a dict of keys that the file must have and their forms.

    Raises:
      InputError: the file cannot be read or has another form.
    """
    try:
        value = read_json(path)
    except OSError as error:
        raise InputError(f"{path}: found no readable file, expected the file as it was written") from error
    except ValueError as error:
        raise InputError(f"{path}: found no JSON, expected the file as it was written") from error
    wrong = misfit(value, like)
    if wrong:
        raise InputError(f"{path}: found {wrong}, expected the file as it was written")
    return value


def misfit(value: Any, like: Any, name: str = "its content") -> str:
    """Describes where a value differs from the form `like`; "" if it does not."""
    if isinstance(like, dict) and isinstance(value, dict):
        missing = [key for key in like if key not in value]
        if missing:
            return f"no {missing[0]!r} in {name}"
        return next(filter(None, (misfit(value[key], kind, key) for key, kind in like.items())), "")
    if isinstance(like, list) and isinstance(value, list):
        return next(filter(None, (misfit(item, like[0], name) for item in value)), "")
    if isinstance(like, dict | list):
        like = type(like)
    kinds = like if isinstance(like, tuple) else (like,)
    # Not isinstance, for which True is an int. In JSON, true is no number.
    return "" if type(value) in kinds else f"a {type(value).__name__} in {name}"


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys, in order, at which two mappings have different values."""
    return [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]


# --- buckets ----------------------------------------------------------------------------------------------------------


def location(path: epath.PathLike) -> epath.Path:
    """The path of a folder or bucket that the user named.

    Raises:
      InputError: the path is empty, or of another kind than gs://; the package that reads buckets is not installed.
    """
    text = os.fspath(path)
    google = text.startswith("gs://")
    if not text or (is_bucket(path) and not google):
        raise InputError(f"{text!r}: found no path of a kind that can be used, expected a folder or gs://...")
    if google:
        if not importlib.util.find_spec("gcsfs"):
            raise InputError(f"{path}: found no package gcsfs, expected the extra gcs: pip install -e '.[gcs]'")
        from fsspec.config import conf

        # Listings must not be cached, because other processes write to the same folders.
        conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(path)


def fetch(path: epath.PathLike) -> Path:
    """A local path of a file or folder: itself, or a copy from a bucket, which is removed when the process ends.

    NIfTI files must be local: their size on disk is checked before they are read.

    Raises:
      InputError: as `location`.
    """
    source = location(path)
    if not is_bucket(path):
        return Path(path)
    temporary = Path(tempfile.mkdtemp(prefix="isles_jax."))
    interrupt.remove_at_exit(temporary)
    # Messages name the copy, so its path ends like the original's.
    target: Path = temporary / os.fspath(path).split("://", 1)[1]
    copy(source, epath.Path(target))
    return target


def copy(source: epath.Path, target: epath.Path) -> None:
    """Copies a file, or a folder with everything in it; does nothing if `source` does not exist."""
    if source.is_dir():
        for path in sorted(source.iterdir()):
            copy(path, target / path.name)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())


def sha256(path: epath.PathLike) -> str:
    """The SHA-256 checksum of a file, in hexadecimal digits."""
    return hashlib.sha256(epath.Path(path).read_bytes()).hexdigest()
