"""cases.csv, an optional file in the folder of a data set: whose scan each case is, and which centre scanned it.

Its columns are `case` and one or both of `patient` and `site`, with a row for each case.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace

from isles_jax.data.case import Case, Dataset, check_complete
from isles_jax.runtime.command import InputError

NAME = "cases.csv"


def apply(dataset: Dataset) -> Dataset:
    """The data set with the patients and sites of its cases.csv; without the file, as it is.

    Raises:
      InputError: the file is not such a table, or its cases are not those of the data set.
    """
    path = dataset.root / NAME
    if not path.is_file():
        return dataset
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
        columns = tuple(reader.fieldnames or ())
        rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not readable as CSV ({error})") from error
    if len(columns) < 2 or not {"case"} < set(columns) <= {"case", "patient", "site"}:
        raise InputError(f"{path}: has the columns {', '.join(columns)}; expected case, and patient or site or both")
    if any(None in row or not all(row.values()) for row in rows):
        raise InputError(f"{path}: a row has an empty field or too many; expected {', '.join(columns)} in each")
    cases = [case.name for case in dataset.cases]
    check_complete(path, [row["case"] for row in rows], cases, "one row for each case")
    by_name = {row["case"]: row for row in rows}

    def known(case: Case) -> Case:
        row = by_name[case.name]
        return replace(case, patient=row.get("patient", case.patient), site=row.get("site", case.site))

    return replace(dataset, cases=tuple(map(known, dataset.cases)))


def text(cases: Sequence[Case]) -> str:
    """The file for these cases; "" if nothing is known of any patient or site."""
    columns = [key for key in ("patient", "site") if any(getattr(case, key) for case in cases)]
    if not columns:
        return ""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(["case", *columns])
    # A case whose patient is not known is a patient of its own.
    writer.writerows([case.name, *(getattr(case, key) or case.name for key in columns)] for case in cases)
    return output.getvalue()
