"""Writes the table of a folder with any names, by patterns."""

import os
from collections.abc import Sequence
from pathlib import Path

from isles_jax.data import patterns, table
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError


def write(
    root: Path, output: Path, images: Sequence[str], label: str = "", classes: str = "", *, overwrite: bool = False
) -> list[str]:
    """Writes the table of a folder.

    Args:
      root: the folder.
      output: the table, a name that ends in .csv, inside of the folder or outside.
      images: CHANNEL=PATTERN for each channel; see `patterns`.
      label: the pattern of the label volumes; "" for none.
      classes: NAME=INTEGER with commas between them; "" for one class.
      overwrite: replace a table that this function has written, and that differs.

    Returns:
      Lines for the user: what was written, and notes.

    Raises:
      InputError: a pattern is wrong, or files do not fit the patterns; `output` is another file, or another table.
    """
    if output.suffix.lower() != ".csv":
        raise InputError(f"{output}: expected a name for the table that ends in .csv")
    by_name = patterns.parse(images)
    named = _classes(classes)
    rows, notes = patterns.match(root, by_name, label)
    # A link is followed before "..", so that the way leads from the folder in which the table really lies.
    way = os.path.relpath(os.path.realpath(root), os.path.realpath(output.parent))
    cells = [row.cells | {name: Path(way, path).as_posix() for name, path in row.files.items()} for row in rows]
    content = table.text(cells, tuple(by_name), named)
    files.refuse_foreign(output, lambda there: _is_ours(output, there), "a table of cases")
    same = output.is_file() and output.read_bytes() == content.encode()
    if files.is_there(output) and not (same or overwrite):
        raise InputError(f"{output}: holds another table than these patterns give; --overwrite replaces it")
    if not same:
        files.write_atomic(output, content)
    done = "holds this table already" if same else "written"
    return [f"{output}: {done}, {len(rows)} cases", *(f"note: {note}" for note in notes)]


def _classes(text: str) -> dict[str, int]:
    """The classes of --classes; an InputError if they are none."""
    named = table.integers(text) if text else {}
    if named is None or "" in named:
        raise InputError(
            f"--classes={text}: expected names with different integers from 1 to 255, such as penumbra=1,core=2"
        )
    return named


def _is_ours(path: Path, content: bytes) -> bool:
    """Whether a table is, byte by byte, as `write` writes it: nobody has added a column or a comment to it."""
    try:
        there = table.parse(path)
    except InputError:
        return False
    written = table.text([row.cells for row in there.rows], there.channels, there.classes)
    return bool(there.channels) and written.encode() == content
