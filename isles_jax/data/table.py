"""A table of cases, cases.csv: a data set with any names and folders, or what is known of the cases of a folder.

    # classes: penumbra=1, core=2
    case,patient,site,DWI,ADC,label
    p01,p01,bern,p01/dwi.nii.gz,p01/adc.nii.gz,p01/mask.nii.gz

There is one row for each case, and one column for each channel. Paths are relative to the table, absolute, or in a
bucket. `patient`, `site` and `label` may be left out. So may the first line; then there is one class, "lesion", whose
integer is the only one in the label volumes. A column without any path of a NIfTI file is no channel.

In the folder of another layout, cases.csv names the patients and sites of its cases, and has no channels.
"""

import csv
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from isles_jax.data.case import Case, Dataset, check_complete, check_names, make_dataset
from isles_jax.data.folder import MISSING, SUFFIXES, of_other_format
from isles_jax.data.nifti import AS_USUAL, ReadOptions, read_all, read_images, with_labels
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError

NAME = "cases.csv"
LAYOUT = "table"
LABEL = "label"
# Whose scan a case is, and where it was made.
ORIGIN = ("patient", "site")
# Columns that are no channels.
RESERVED = ("case", *ORIGIN, LABEL)
# A column with one of these names holds labels, which belong into the column `label`.
LABEL_WORDS = ("labels", "mask", "msk", "seg", "segmentation", "lesion", "roi", "ot", "gt", "truth")
# How the line with the classes begins, and how people write it.
CLASSES = "# classes:"
_CLASSES = re.compile(r"#\s*classes\s*:", re.IGNORECASE)
# Spellings of the sequences that the package knows by name.
_KNOWN = {"tmax": "Tmax", "ttp": "TTP", "dwi": "DWI", "adc": "ADC"}
_EVERY = tuple(range(1, 256))


def spelled(channel: str) -> str:
    """The name of a channel in the spelling of this package."""
    return _KNOWN.get(channel.lower(), channel)


class Row(NamedTuple):
    """A case: the number of its line, and {column: cell}."""

    line: int
    cells: Mapping[str, str]

    @property
    def case(self) -> str:
        """The name of the case."""
        return self.cells["case"]


@dataclass(frozen=True)
class Table:
    """What a table says.

    Attributes:
      path: as the user gave it.
      rows: one for each case.
      columns: the names of all columns.
      channels: the columns with paths, besides the labels.
      ignored: the columns that are not read.
      classes: {name: integer}; empty if the table does not name them.
    """

    path: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    channels: tuple[str, ...]
    ignored: tuple[str, ...]
    classes: Mapping[str, int]

    def file(self, row: Row, column: str) -> Path | None:
        """The file that a cell names, fetched if it is in a bucket; None for an empty cell.

        Raises:
          InputError: there is no such file.
        """
        where = self.place(row, column)
        if not where:
            return None
        path = files.fetch(where)
        if not path.is_file():
            raise InputError(f"{self.path}, line {row.line}: the {column} of {row.case}, {where}, is no file")
        return path

    def place(self, row: Row, column: str) -> str:
        """Where the file of a cell is; "" for an empty cell, and without such a column."""
        cell = row.cells.get(column, "")
        if not cell or files.is_bucket(cell) or os.path.isabs(cell):
            return cell
        return os.path.join(os.path.dirname(self.path), os.path.normpath(cell))


def is_table(path: epath.PathLike) -> bool:
    """True for the name of a .csv file, and for a folder whose cases.csv names the files of channels."""
    inside = os.path.join(os.fspath(path), NAME)
    return os.fspath(path).lower().endswith(".csv") or (os.path.isfile(inside) and bool(parse(inside).channels))


def parse(path: epath.PathLike) -> Table:
    """Reads a table, or the table in a folder.

    Raises:
      InputError: it is none; the message names the line.
    """
    name = os.fspath(path)
    if not name.lower().endswith(".csv"):
        name = os.path.join(name, NAME)
    try:
        # A line may end in any way.
        lines = files.read_text(name).splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: not readable as a table in UTF-8 ({error})") from error
    comments = next((number for number, line in enumerate(lines) if not line.lstrip('"').startswith("#")), len(lines))
    classes = _classes(name, lines[:comments])
    columns, rows = _rows(name, lines[comments:], comments)
    paths = [column for column in columns if any(_is_path(row.cells[column]) for row in rows)]
    channels = tuple(column for column in paths if column not in RESERVED)
    ignored = tuple(column for column in columns if column not in (*channels, *RESERVED))
    for row in rows:
        for column in (*channels, LABEL):
            cell = row.cells.get(column, "")
            if cell and not _is_path(cell):
                reason = of_other_format(cell)
                found = f"the {column} of {row.case} is {cell!r}{', ' * bool(reason)}{reason}"
                raise InputError(f"{name}, line {row.line}: {found}; expected a path that ends in .nii or .nii.gz")
    check_names(name, [row.case for row in rows], tuple(classes))
    return Table(name, rows, columns, channels, ignored, classes)


def _is_path(cell: str) -> bool:
    return cell.lower().endswith(SUFFIXES)


def _classes(path: str, comments: Sequence[str]) -> dict[str, int]:
    """The classes that a line of the comments names, in the order of their integers; empty without such a line."""
    # A spreadsheet may add quotes and empty cells.
    stripped = (line.strip('", \t') for line in comments)
    line = next(filter(_CLASSES.match, stripped), None)
    if line is None:
        return {}
    named = integers(_CLASSES.sub("", line, count=1))
    if named is None:
        raise InputError(
            f"{path}: found the line {line!r}; expected names with different integers from 1 to 255, such as "
            f"'{CLASSES} penumbra=1, core=2'"
        )
    return named


def integers(text: str) -> dict[str, int] | None:
    """The classes of `NAME=INTEGER, ...` in the order of their integers; None unless all are different, 1 to 255."""
    pairs = [part.partition("=") for part in text.split(",")]
    named = {name.strip(): value.strip() for name, _, value in pairs}
    valid = all(value.isdecimal() and 1 <= int(value) <= 255 for value in named.values())
    if not valid or len(named) < len(pairs) or len(set(named.values())) < len(named):
        return None
    return {name: int(value) for name, value in sorted(named.items(), key=lambda item: int(item[1]))}


def _rows(path: str, lines: Sequence[str], before: int) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """The columns, and the rows after so many lines of comments; an InputError if a row is damaged or none is there."""
    reader = csv.reader(io.StringIO("\n".join(lines)), strict=True)
    table = []
    try:
        for cells in reader:
            table.append((reader.line_num + before, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num + before}: not readable as CSV ({error})") from error
    table = [(number, cells) for number, cells in table if any(cells)]
    if not table:
        raise InputError(f"{path}: is empty; expected a header with the column 'case', and a row for each case")
    columns = table[0][1]
    while columns and not columns[-1]:
        columns.pop()
    if "case" not in columns:
        other = next((mark for mark in (";", "\t") if mark in lines[0]), "")
        hint = f"; its columns are separated by {other!r}, expected commas" if other else ""
        raise InputError(f"{path}: has the columns {', '.join(columns)}; expected one that is called 'case'{hint}")
    twice = [column for column in columns if columns.count(column) > 1 or not column]
    if twice:
        raise InputError(f"{path}: has the column {twice[0]!r} twice or without a name; expected each name once")
    rows = []
    for number, cells in table[1:]:
        if len(cells) < len(columns) or any(cells[len(columns) :]):
            raise InputError(
                f"{path}, line {number}: found {len(cells)} cells; expected {len(columns)}, as in the header"
            )
        row = Row(number, dict(zip(columns, cells, strict=False)))
        if not row.case or "/" in row.case or row.case.startswith("."):
            raise InputError(f"{path}, line {number}: the case is called {row.case!r}; expected a name for files")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: has a header and no row; expected one for each case")
    return tuple(columns), tuple(rows)


# --- a table as a data set --------------------------------------------------------------------------------------------


def read(path: epath.PathLike, channels: tuple[str, ...] = (), how: ReadOptions = AS_USUAL) -> Dataset:
    """Reads the cases of a table.

    Args:
      path: a .csv file, or a folder with such a file.
      channels: to be read, in this order; none for all.
      how: the images are read.

    Raises:
      InputError: the table is bad, or some cases are, one line for each.
    """
    table = parse(path)
    columns = _columns(table, channels)
    channels = tuple(map(spelled, columns))
    clash = sorted(set(channels) & (table.classes.keys() or {"lesion"}))
    if clash:
        raise InputError(f"{table.path}: {clash[0]!r} is a channel and a class; expected different names")
    values = tuple(table.classes.values()) or _EVERY

    def with_reference(case: Case, row: Row) -> Case:
        file = table.file(row, LABEL)
        return case if file is None else with_labels(case, file, values, how)

    cases = _read(table, columns, channels, how, with_reference)
    if not table.classes:
        cases, values = _one_class(table, cases)
    classes = tuple(table.classes) or ("lesion",)
    return make_dataset(Path(table.path), cases, channels, classes, values, _notes(table, channels), LAYOUT)


def read_image_table(path: epath.PathLike, channels: tuple[str, ...], how: ReadOptions = AS_USUAL) -> Dataset:
    """Reads the cases of a table without their labels, for prediction. Errors are those of `read`."""
    table = parse(path)
    columns = _columns(table, channels, lenient=how.missing)
    cases = _read(table, columns, channels, how, lambda case, row: case)
    return make_dataset(Path(table.path), cases, channels, notes=_notes(table, channels), layout=LAYOUT)


def references(path: epath.PathLike) -> tuple[dict[str, Path], Mapping[str, int]]:
    """The label volumes of a table by case, and the integers of its classes, as far as it names them.

    Raises:
      InputError: the table is bad; a file is missing; there is none.
    """
    table = parse(path)
    found = {row.case: table.file(row, LABEL) for row in table.rows}
    labelled = {case: file for case, file in found.items() if file}
    if not labelled:
        raise InputError(f"{table.path}: found no case with labels, expected paths in the column '{LABEL}'")
    return labelled, table.classes


def _columns(table: Table, channels: tuple[str, ...], *, lenient: bool = False) -> tuple[str, ...]:
    """The columns of these channels, of all without channels; with `lenient`, "" for one that the table lacks."""
    by_name: dict[str, str] = {}
    for column in table.channels:
        other = by_name.setdefault(spelled(column), column)
        if other != column:
            raise InputError(f"{table.path}: has the columns {other} and {column}; expected each channel once")
    wanted = channels or tuple(by_name)
    lost = [channel for channel in wanted if channel not in by_name]
    if not by_name or (lost and not lenient) or len(lost) == len(wanted):
        found = f"the columns {', '.join(by_name)}" if by_name else "no column of .nii or .nii.gz files"
        raise InputError(f"{table.path}: has {found}; expected {', '.join(wanted) or 'one for each channel'}")
    masks = [column for column in map(by_name.get, wanted) if column and column.lower() in LABEL_WORDS]
    if masks:
        raise InputError(f"{table.path}: has the column {masks[0]!r}; expected labels in a column called '{LABEL}'")
    return tuple(by_name.get(channel, "") for channel in wanted)


def _read(
    table: Table,
    columns: tuple[str, ...],
    channels: tuple[str, ...],
    how: ReadOptions,
    with_reference: Callable[[Case, Row], Case],
) -> tuple[Case, ...]:
    """Reads the cases in the order of their names."""
    _refuse_twice(table, columns)

    def read_case(row: Row) -> Case:
        found = [table.file(row, column) for column in columns]
        lost = [channel for channel, file in zip(channels, found, strict=True) if file is None]
        if len(lost) == len(channels) or (lost and not how.missing):
            remedy = f"; {MISSING}" * (len(lost) < len(channels))
            raise InputError(f"{table.path}, line {row.line}: {row.case} has no {lost[0]}; expected a path{remedy}")
        case = read_images(row.case, found, channels, how)
        _refuse_labels(table, row, case, channels)
        case = replace(case, patient=row.cells.get("patient", ""), site=row.cells.get("site", ""))
        return with_reference(case, row)

    return read_all(sorted(table.rows, key=lambda row: row.case), read_case)


def _refuse_twice(table: Table, columns: Sequence[str]) -> None:
    """Raises an InputError if two cells name one file."""
    seen: dict[str, str] = {}
    for row in table.rows:
        for column in (*columns, LABEL):
            place = table.place(row, column)
            cell = f"the {column} of {row.case} (line {row.line})"
            # One file may be given by a relative and by an absolute path.
            place = place if files.is_bucket(place) or not place else os.path.abspath(place)
            if place and place in seen:
                raise InputError(f"{table.path}: {seen[place]} and {cell} are both {place}; expected each file once")
            seen[place] = cell


def _refuse_labels(table: Table, row: Row, case: Case, channels: Sequence[str]) -> None:
    """Raises an InputError if a channel holds only 0 and one other value, as labels do."""
    for index, channel in enumerate(channels):
        values = case.images[..., index][case.images[..., index] != 0]
        if len(values) and values.min() == values.max():
            raise InputError(
                f"{table.path}, line {row.line}: the {channel} of {row.case} holds only 0 and {values.min():g}; "
                f"expected an image (labels stand in the column '{LABEL}')"
            )


def _one_class(table: Table, cases: tuple[Case, ...]) -> tuple[tuple[Case, ...], tuple[int, ...]]:
    """The cases with binary labels, and the integer that marks the lesion in the files."""
    counts = np.zeros(256, np.int64)
    for case in cases:
        if case.labels is not None:
            counts += np.bincount(case.labels.ravel(), minlength=256)
    found = [int(value) for value in np.flatnonzero(counts) if value]
    if len(found) > 1:
        example = ", ".join(f"NAME={value}" for value in found[:3])
        raise InputError(
            f"{table.path}: its labels hold {', '.join(map(str, found))}; expected a first line that names the "
            f"classes, such as '{CLASSES} {example}'"
        )
    binary = (
        case if case.labels is None else replace(case, labels=(case.labels > 0).astype(np.uint8)) for case in cases
    )
    return tuple(binary), tuple(found or [1])


def _notes(table: Table, channels: Sequence[str]) -> tuple[str, ...]:
    unread = [*table.ignored, *(column for column in table.channels if spelled(column) not in channels)]
    return (f"{os.path.basename(table.path)}: columns that are not read: {', '.join(unread)}",) if unread else ()


# --- what is known of the cases of a folder ---------------------------------------------------------------------------


def apply(dataset: Dataset) -> Dataset:
    """The data set of a folder with the patients and sites of its cases.csv; without the file, as it is.

    Raises:
      InputError: the file is not such a table, or its cases are not those of the data set.
    """
    path = dataset.root / NAME
    if not path.is_file():
        return dataset
    table = parse(path)
    known = [column for column in table.columns if column in ORIGIN]
    if not known:
        found = ", ".join(table.columns)
        raise InputError(f"{path}: has the columns {found}; expected case, and patient or site or both")
    if any(not row.cells[column] for row in table.rows for column in known):
        raise InputError(f"{path}: a row has an empty field; expected {', '.join(known)} in each")
    names = [case.name for case in dataset.cases]
    check_complete(path, [row.case for row in table.rows], names, "one row for each case")
    by_name = {row.case: row.cells for row in table.rows}

    def with_facts(case: Case) -> Case:
        cells = by_name[case.name]
        return replace(case, patient=cells.get("patient", case.patient), site=cells.get("site", case.site))

    notes = dataset.notes + _notes(table, table.channels)
    return replace(dataset, cases=tuple(map(with_facts, dataset.cases)), notes=notes)


# --- a table as text --------------------------------------------------------------------------------------------------


def text(rows: Sequence[Mapping[str, str]], channels: Sequence[str] = (), classes: Mapping[str, int] = {}) -> str:
    """The content of cases.csv.

    Args:
      rows: {column: cell} of each case. Cells may be left out, except `case`. The columns `patient`, `site` and `label`
        are written if a row has such a cell.
      channels: the columns of the images, in this order.
      classes: {name: integer in the label volumes}; without them, the table does not name classes.
    """
    names = ("case", *ORIGIN, *channels, LABEL)
    columns = [name for name in names if name in channels or any(row.get(name) for row in rows)]
    output = io.StringIO()
    if classes:
        output.write(f"{CLASSES} {', '.join(f'{name}={value}' for name, value in classes.items())}\n")
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row.get(column, "") for column in columns] for row in rows)
    return output.getvalue()


def text_of_patients(cases: Sequence[Case]) -> str:
    """The file with the patients and sites of these cases; "" if nothing is known of any."""
    known = [key for key in ORIGIN if any(getattr(case, key) for case in cases)]
    # A case whose patient is not known is a patient of its own.
    rows = [{"case": case.name} | {key: getattr(case, key) or case.name for key in known} for case in cases]
    return text(rows) if known else ""
