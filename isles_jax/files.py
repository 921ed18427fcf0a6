"""Writing files so that a reader finds either the old one or the new one, whole."""

import json
from typing import Any

from etils import epath


def write_atomic(path: epath.PathLike, content: bytes | str) -> None:
    """Writes a file under a temporary name beside `path` and renames it; local paths and buckets alike."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.part"
    if isinstance(content, str):
        temporary.write_text(content)
    else:
        temporary.write_bytes(content)
    temporary.replace(path)


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_json(path: epath.PathLike) -> Any:
    """Reads a JSON file."""
    return json.loads(epath.Path(path).read_text())
