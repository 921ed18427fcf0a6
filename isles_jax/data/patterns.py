"""From patterns to a table: finds the files of each case in a folder with any names, and writes cases.csv.

A pattern is a path below the folder, such as `sub-{case}/ses-{session}/dwi/*_dwi.nii.gz`:

    {case}, {patient}, {session}, {site}   one or more characters without "/", as many as fit; the same text everywhere
    *, ?                                   any characters, or one character, without "/"
    **                                     any number of folders, also none

A case is named by {case}, or by {patient} if no pattern has {case}; with {session}, its name is CASE_SESSION or
PATIENT_SESSION. Letters with accents are the same in their composed and decomposed forms (NFC, NFD).
"""

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from isles_jax.data import table
from isles_jax.data.folder import list_folder, listed, note, stem, walk
from isles_jax.data.table import LABEL, ORIGIN, RESERVED
from isles_jax.runtime.command import InputError
from isles_jax.runtime.files import is_there, refuse_foreign, write_atomic

_PLACEHOLDERS = ("case", "patient", "session", "site")
_EXPECTED = ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
# What is no literal text in a pattern.
_SPECIAL = re.compile(r"(\*\*/|\*\*|[*?]|\{[^{}/]*\})")
# Each star is a group of its own, so that what it stands for in two files can be compared.
_STARS = {"**/": "((?:[^/]+/)*)", "**": "(.+)", "*": "([^/]*)", "?": "([^/])"}
# How Python shows the bytes of a name that is not in UTF-8.
_NOT_UTF8 = re.compile("[\ud800-\udfff]")


class Row(NamedTuple):
    """A case of the table.

    Attributes:
      case: its name.
      patient: whose scan it is; "" if no pattern says it.
      site: the centre; "" if no pattern says it.
      files: {column: path relative to the folder, with "/"}; `LABEL` is one of the columns. A missing file is left out.
    """

    case: str
    patient: str
    site: str
    files: dict[str, str]

    @property
    def cells(self) -> dict[str, str]:
        """{column: cell} of the table."""
        return {"case": self.case, "patient": self.patient, "site": self.site, **self.files}


class _Pattern(NamedTuple):
    """A pattern: the flag that gave it, for messages, its pieces, its regular expression, and its placeholders."""

    flag: str
    pieces: tuple[str, ...]
    regex: re.Pattern[str]
    names: frozenset[str]

    @property
    def kind(self) -> tuple[str, ...]:
        """The placeholders that make the name of a case."""
        first = "case" if "case" in self.names else "patient"
        return (first, "session") if "session" in self.names else (first,)


class _File(NamedTuple):
    """A file that a pattern matches, and the texts of its placeholders and stars."""

    path: str
    found: re.Match[str]
    pattern: _Pattern

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(self.found[name] for name in self.pattern.kind)


# {(CASE,) or (CASE, SESSION): {column: file}}
_Cells = dict[tuple[str, ...], dict[str, _File]]


def parse(texts: Sequence[str]) -> dict[str, str]:
    """The channels' patterns: `DWI={case}/dwi.nii.gz` becomes {"DWI": "{case}/dwi.nii.gz"}.

    Raises:
      InputError: a text without "="; an empty name or pattern; a name that the table gives to another column, or that
        occurs twice, whatever the case of its letters.
    """
    images: dict[str, str] = {}
    for text in texts:
        name, equals, pattern = text.partition("=")
        name = name.strip()
        if not (name and equals and pattern):
            raise InputError(f'--images "{text}": expected CHANNEL=PATTERN, such as "DWI={{case}}/dwi.nii.gz"')
        if name.lower() in RESERVED:
            raise InputError(f'--images "{text}": {name} is another column of the table; expected a channel\'s name')
        if name.lower() in map(str.lower, images):
            raise InputError(f'--images "{text}": the channel {name} is there twice; expected one pattern for each')
        images[name] = pattern
    return images


def match(root: Path, images: Mapping[str, str], label: str = "") -> tuple[list[Row], tuple[str, ...]]:
    """Finds the files of each case.

    Args:
      root: a folder. Links in it are followed; hidden files are passed over.
      images: {channel: pattern}.
      label: the pattern of the label volumes; "" for none. It may lack {session} if each labelled case has one.

    Returns:
      The rows, sorted by case, and notes: on files that a case lacks, and on what looks like an image and is in no row.

    Raises:
      InputError: the folder cannot be read; a pattern is wrong or matches no NIfTI file; two patterns match one file;
        a pattern matches two files of a case; two files name different patients or sites for a case.
    """
    list_folder(root)
    texts = {**images, LABEL: label} if label else dict(images)
    patterns = {column: _compile(column, text) for column, text in texts.items()}
    _check_kinds(patterns)
    every = [(path.relative_to(root).as_posix(), reason) for path, reason in walk(root)]
    cells: _Cells = {}
    unread: dict[str, list[str]] = {}
    for path, reason in every:
        hits = {} if reason else _hits(root, path, patterns)
        if not hits:
            unread.setdefault(reason or "matched by no pattern", []).append(path)
        for column, file in hits.items():
            other = cells.setdefault(file.key, {}).setdefault(column, file)
            if other != file:
                raise InputError(_two_files(other, file))
    for column, pattern in patterns.items():
        if not any(column in files for files in cells.values()):
            raise InputError(f"{pattern.flag}: matches no NIfTI file in {root}{_closest(pattern, every)}")
    _add_sessions(cells, patterns)
    lost = [files.pop(LABEL).path for files in cells.values() if files.keys() == {LABEL}]
    if lost:
        unread["a label whose case has no image"] = lost
    rows = sorted((_row(files, patterns) for files in cells.values() if files), key=lambda row: row.case)
    _check_names(rows)
    notes = [*_missing(rows, patterns), *(note(reason, paths) for reason, paths in unread.items())]
    return rows, tuple(notes)


def write(
    root: Path, output: Path, images: Sequence[str], label: str = "", classes: str = "", *, overwrite: bool = False
) -> list[str]:
    """Writes the table of a folder with any names.

    Args:
      root: the folder.
      output: the table, a name that ends in .csv, inside of the folder or outside.
      images: CHANNEL=PATTERN for each channel.
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
    by_name = parse(images)
    named = _classes(classes)
    rows, notes = match(root, by_name, label)
    # A link is followed before "..", so that the way leads from the folder in which the table really lies.
    way = os.path.relpath(os.path.realpath(root), os.path.realpath(output.parent))
    cells = [row.cells | {name: Path(way, path).as_posix() for name, path in row.files.items()} for row in rows]
    content = table.text(cells, tuple(by_name), named)
    refuse_foreign(output, lambda there: _is_ours(output, there), "a table of cases")
    same = output.is_file() and output.read_bytes() == content.encode()
    if is_there(output) and not (same or overwrite):
        raise InputError(f"{output}: holds another table than these patterns give; --overwrite replaces it")
    if not same:
        write_atomic(output, content)
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


def _compile(column: str, text: str) -> _Pattern:
    """The pattern of a column; an InputError if it is none."""
    flag = f'--label "{text}"' if column == LABEL else f'--images "{column}={text}"'
    path = PurePosixPath(_composed(text))
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{flag}: expected a path below the folder, without .. and without / at its beginning")
    joined = next((part for part in path.parts if "**" in part and part != "**"), "")
    if joined:
        raise InputError(f"{flag}: found {joined}; expected ** alone between two /, or *")
    pieces = tuple(_SPECIAL.split(str(path)))
    names: list[str] = []
    expression = ""
    for piece in pieces:
        if not _SPECIAL.fullmatch(piece):
            expression += re.escape(piece)
        elif piece in _STARS:
            expression += _STARS[piece]
        else:
            name = piece[1:-1]
            if name not in _PLACEHOLDERS:
                raise InputError(f"{flag}: found {piece}; expected one of {_EXPECTED}")
            expression += f"(?P={name})" if name in names else f"(?P<{name}>[^/]+)"
            names.append(name)
    if not {"case", "patient"} & set(names):
        raise InputError(
            f"{flag}: found no {{case}}; expected {{case}} or {{patient}} in the place of what names a case"
        )
    return _Pattern(flag, pieces, re.compile(expression, re.DOTALL), frozenset(names))


def _check_kinds(patterns: Mapping[str, _Pattern]) -> None:
    """Raises an InputError unless all patterns name a case by the same placeholders."""
    images = [pattern for column, pattern in patterns.items() if column != LABEL]
    if not images:
        raise InputError("--images: found no pattern; expected CHANNEL=PATTERN for at least one channel")
    first = images[0]
    for column, pattern in patterns.items():
        allowed = (first.kind, first.kind[:1]) if column == LABEL else (first.kind,)
        if pattern.kind not in allowed:
            found, expected = (" and ".join(f"{{{name}}}" for name in kind) for kind in (pattern.kind, first.kind))
            raise InputError(f"{pattern.flag}: names a case by {found}; expected {expected}, as {first.flag}")


def _hits(root: Path, path: str, patterns: Mapping[str, _Pattern]) -> dict[str, _File]:
    """{column: the file} for the pattern that matches a file; an InputError if there are two."""
    hits = {
        column: _File(path, found, pattern)
        for column, pattern in patterns.items()
        if (found := pattern.regex.fullmatch(_composed(path)))
    }
    if len(hits) > 1:
        first, second = (file.pattern.flag for file in list(hits.values())[:2])
        raise InputError(f"{root / path}: matched by {first} and by {second}; expected one of them")
    if hits and _NOT_UTF8.search(path):
        raise InputError(f"{root}: holds {path!a}, whose name is not in UTF-8; expected a name that a table can hold")
    return hits


def _two_files(first: _File, second: _File) -> str:
    """The message on two files that one pattern matches for one case."""
    message = f"{first.pattern.flag}: two files for the case {'_'.join(first.key)}: {first.path}, {second.path}"
    differing = next((name for name in ORIGIN if _differ(name, first, second)), "")
    if differing:
        return f"{message}; expected cases whose names are different for each {differing}"
    better = "" if _stem(first) == _stem(second) else _with_session(first, second)
    if better:
        return f'{message}; expected one; if they are two sessions, "{better}" keeps them apart'
    return f"{message}; expected one"


def _stem(file: _File) -> str:
    path = PurePosixPath(file.path)
    return str(path.with_name(stem(Path(path))))


def _differ(name: str, first: _File, second: _File) -> bool:
    both = name in first.pattern.names & second.pattern.names
    return both and first.found[name] != second.found[name]


def _with_session(first: _File, second: _File) -> str:
    """The pattern with {session} in the place of a star, so that the two files are two cases; "" if there is none."""
    pieces = first.pattern.pieces
    if "session" in first.pattern.names:
        return ""
    for index, piece in enumerate(pieces):
        if piece in _STARS:
            placed = "{session}/" if piece == "**/" else "{session}"
            better = "".join([*pieces[:index], placed, *pieces[index + 1 :]])
            pattern = _compile(LABEL, better)
            found = [pattern.regex.fullmatch(file.found.string) for file in (first, second)]
            if len({one["session"] for one in found if one}) == 2:
                return better
    return ""


def _closest(pattern: _Pattern, every: Iterable[tuple[str, str]]) -> str:
    """The end of the message on a pattern without a file: the file that comes closest; "" in an empty folder."""
    literal = _words(" ".join(piece for piece in pattern.pieces if not _SPECIAL.fullmatch(piece)))
    hits = (f"; {path} is {reason}" for path, reason in every if reason and pattern.regex.fullmatch(_composed(path)))
    unread = next(hits, "")
    paths = [path for path, reason in every if not reason]
    if unread or not paths:
        return unread

    def shared(path: str) -> tuple[int, int]:
        return len(literal & _words(path)), len(literal & _words(PurePosixPath(path).name))

    return f"; the closest is {max(paths, key=shared)}"


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", _composed(text).lower()))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _add_sessions(cells: _Cells, patterns: Mapping[str, _Pattern]) -> None:
    """Brings labels whose pattern lacks {session} to the only session of their case; an InputError if it has more."""
    image = next(iter(patterns.values()))
    if LABEL not in patterns or patterns[LABEL].kind == image.kind:
        return
    sessions: dict[str, list[tuple[str, ...]]] = {}
    for key in cells:
        if len(key) == 2:
            sessions.setdefault(key[0], []).append(key)
    for key in [key for key in cells if len(key) == 1]:
        mine = sessions.get(key[0], [])
        if len(mine) > 1:
            names = ", ".join(session for _, session in mine)
            raise InputError(
                f"{patterns[LABEL].flag}: one label for the sessions {names} of {key[0]}; expected {{session}} in it"
            )
        if mine:
            cells[mine[0]] |= cells.pop(key)


def _row(files: Mapping[str, _File], patterns: Mapping[str, _Pattern]) -> Row:
    """The row of a case; an InputError if its files name two patients or two sites."""
    # A label may lack the session, and comes after the images.
    ordered = {column: files[column] for column in patterns if column in files}
    first = next(iter(ordered.values()))
    case = "_".join(first.key)
    known = {}
    for name in ORIGIN:
        said = [file for file in ordered.values() if name in file.pattern.names]
        other = next((file for file in said if _differ(name, said[0], file)), None)
        if other:
            raise InputError(f"case {case}: found {said[0].path} and {other.path}; expected files of one {name}")
        known[name] = said[0].found[name] if said else ""
    if first.pattern.kind == ("case", "session") and not any("patient" in p.names for p in patterns.values()):
        known["patient"] = first.found["case"]
    return Row(case, known["patient"], known["site"], {column: file.path for column, file in ordered.items()})


def _check_names(rows: Sequence[Row]) -> None:
    """Raises an InputError if two rows, which are sorted by case, have one name."""
    for one, other in itertools.pairwise(rows):
        if one.case == other.case:
            first, second = (next(iter(row.files.values())) for row in (one, other))
            raise InputError(f"{one.case}: the name of two cases, of {first} and of {second}; expected different names")


def _missing(rows: Sequence[Row], patterns: Mapping[str, _Pattern]) -> list[str]:
    """Notes on the files that cases lack, and on cases whose patient or site is not known."""
    notes = []
    for column, pattern in patterns.items():
        without = [row.case for row in rows if column not in row.files]
        if without:
            notes.append(f"{pattern.flag}: no file for {listed(without)}")
    for name in ORIGIN:
        unknown = [row.case for row in rows if not getattr(row, name)]
        if 0 < len(unknown) < len(rows):
            notes.append(f"the {name} is not known of {listed(unknown)}: no file there whose pattern has {{{name}}}")
    return notes
