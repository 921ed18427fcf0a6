"""Scores of label volumes, their means, and the files that hold them: cases.csv and summary.json."""

import csv
import functools
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from isles_jax import metrics
from isles_jax.data.case import WHOLE_LESION
from isles_jax.runtime import columns, files
from isles_jax.runtime.command import InputError
from isles_jax.scoring import agreement

NAMES = tuple(measure.name for measure in metrics.MEASURES)
COLUMNS = ("case", "fold", "class", *NAMES)
# The columns without which a table says nothing. The others may be missing in a run of another version.
REQUIRED = ("case", "fold", "class", "dice", "volume_true_ml", "volume_pred_ml")
_FORMULA = ("=", "+", "-", "@", "'")
_NUMBER = re.compile(r"-?[0-9]+\.[0-9]{6}")

Row = dict[str, Any]


def score_case(
    name: str,
    fold: int,
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    classes: Sequence[str],
    voxel_ml: float | None = None,
) -> list[Row]:
    """Scores one case.

    Args:
      name: the case's name.
      fold: the fold that held the case out.
      prediction: uint8 [X, Y, Z]; 0 is background, 1, 2, ... are the classes.
      truth: the reference, as `prediction`.
      spacing_mm: the voxel's sides.
      classes: names of the classes 1, 2, ...
      voxel_ml: the volume of a voxel in ml; None: the product of its sides.

    Returns:
      One row for each class and, if there are several classes, one for the "whole lesion", which is any foreground. A
      row has the keys `COLUMNS`; `metrics.score` defines the measures.

    Raises:
      ValueError: the shapes differ, or a label is above the number of classes.
    """
    masks = masks_of(name, prediction, truth, classes)
    return [
        {"case": name, "fold": fold, "class": class_name, **metrics.score(*pair, spacing_mm, voxel_ml=voxel_ml)}
        for class_name, pair in masks.items()
    ]


def masks_of(
    name: str, prediction: np.ndarray, truth: np.ndarray, classes: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The masks of a case that are scored, predicted and true, by class; for arguments and errors see `score_case`."""
    if max(prediction.max(initial=0), truth.max(initial=0)) > len(classes):
        raise ValueError(f"{name}: a label above {len(classes)}, the number of classes")
    masks = {class_name: (prediction == value, truth == value) for value, class_name in enumerate(classes, 1)}
    if len(classes) > 1:
        masks[WHOLE_LESION] = (prediction > 0, truth > 0)
    return masks


def write_cases_csv(path: epath.PathLike, rows: Sequence[Row]) -> None:
    """Writes the rows of `score_case`, see `write_csv`."""
    write_csv(path, COLUMNS, rows)


def write_csv(path: epath.PathLike, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table as CSV, atomically.

    Args:
      path: where the file is written.
      columns: keys of the rows, in the order of the columns.
      rows: texts and numbers; None leaves a cell empty. Fractions have six decimals, so that equal numbers give equal
        bytes. A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(name) for name in columns])
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    files.write_atomic(path, text.getvalue())


def refuse_output(folder: epath.Path) -> None:
    """Raises an InputError if `folder` is a run's, or holds a file of a name that an evaluation writes, but did not."""
    files.refuse_run(folder)
    for name, column in (("cases.csv", "dice"), ("lesions.csv", "lesion")):
        starts_so = functools.partial(_starts_with, f"case,fold,class,{column}".encode())
        files.refuse_foreign(folder / name, starts_so, "a table")
    files.refuse_foreign(folder / "summary.json", _is_summary, "a summary")


def _starts_with(start: bytes, content: bytes) -> bool:
    return content.startswith(start)


def _is_summary(content: bytes) -> bool:
    try:
        return not files.misfit(json.loads(content), {"cases": int, "folds": int, "classes": {}})
    except ValueError:
        return False


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _unquoted(text: str) -> str:
    return text.removeprefix("'")


def number(text: str) -> float:
    """The number in a cell that `write_csv` wrote; a ValueError if it holds none."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is no number with six decimals")
    return float(text)


def read_cases_csv(path: epath.PathLike) -> list[Row]:
    """Reads what `write_cases_csv` wrote, in this version or another one.

    Returns:
      The rows with the measures that the file has; columns that this version does not know are left out.

    Raises:
      InputError: the file is missing or is not a table of scores.
    """

    def row_of(row: dict[str, str], columns: Sequence[str]) -> Row:
        return {name: number(row[name]) for name in NAMES if name in columns}

    return read_table(path, REQUIRED, "scores", row_of, COLUMNS)


def read_table(
    path: epath.PathLike,
    required: Sequence[str],
    what: str,
    row_of: Callable[[dict[str, str], Sequence[str]], dict[str, Any]],
    columns: Sequence[str] = (),
) -> list[Row]:
    """Reads a table that `write_csv` wrote, with the columns case, fold and class.

    Args:
      path: of the file.
      required: the columns without which it is no such table.
      what: what a run's file holds, for the error message.
      row_of: takes a row and the file's columns, and gives the values of the other columns, or raises a ValueError.
      columns: those to name in an error message; the required ones if there are none.

    Raises:
      InputError: the file is missing or is no such table.
    """
    path = epath.Path(path)
    try:
        reader = csv.DictReader(io.StringIO(files.read_text(path)))
        there = list(reader.fieldnames or ())
        if not set(required) <= set(there) or len(set(there)) < len(there):
            found = repr(",".join(there))[1:-1]  # a damaged name may hold a line break
            raise InputError(f"{path}: found the columns {found}, expected {','.join(columns or required)}")
        return [
            {"case": _unquoted(row["case"]), "fold": int(row["fold"]), "class": _unquoted(row["class"])}
            | row_of(row, there)
            for row in reader
        ]
    except OSError as error:
        raise InputError(f"{path}: found no readable file, expected the {what} of a run") from error
    except (TypeError, ValueError, AttributeError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: found a line that is no row of {what} ({error}), expected the file as it was written"
        ) from error


def measures_of(rows: Sequence[Row]) -> tuple[metrics.Measure, ...]:
    """The measures that every row has."""
    return tuple(measure for measure in metrics.MEASURES if all(measure.name in row for row in rows))


def means(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over the cases of a fold, then over the folds, for each class.

    Returns:
      {"cases", "folds", "classes": {class: {"cases", "empty_truths", "empty_predictions", "volume_agreement" (see
      `volume_agreement`), and for each measure {"mean", "std", "folds": [mean of each fold]}}}}. "std" is the standard
      deviation over all cases (n - 1), or None for a single case. With core and penumbra, "mismatch" is added (see
      `mismatch`).
    """
    classes = {}
    for class_name in dict.fromkeys(row["class"] for row in rows):
        class_rows = [row for row in rows if row["class"] == class_name]
        classes[class_name] = {
            "cases": len(class_rows),
            "empty_truths": sum(row["volume_true_ml"] == 0 for row in class_rows),
            "empty_predictions": sum(row["volume_pred_ml"] == 0 for row in class_rows),
            **{measure.name: _mean_of_folds(class_rows, measure.name) for measure in measures_of(rows)},
            "volume_agreement": volume_agreement(class_rows),
        }
    decision = mismatch(rows)
    return {
        "cases": len({row["case"] for row in rows}),
        "folds": len({row["fold"] for row in rows}),
        "classes": classes,
        **({"mismatch": decision} if decision else {}),
    }


def volume_agreement(rows: Sequence[Row]) -> dict[str, Any]:
    """How the predicted volumes of one class agree with the references.

    Returns:
      "difference_ml", the mean of predicted minus reference; "limits_ml", see `agreement.limits`; "ccc", see
      `agreement.ccc`; "icc", see `agreement.icc`. The last three are None for too few cases.
    """
    predicted, true = (np.array([row[name] for row in rows]) for name in ("volume_pred_ml", "volume_true_ml"))
    return {
        "difference_ml": float((predicted - true).mean()),
        "limits_ml": agreement.limits(predicted - true),
        "ccc": agreement.ccc(predicted, true),
        "icc": agreement.icc(np.stack([predicted, true], axis=1)),
    }


def mismatch(rows: Sequence[Row]) -> dict[str, Any] | None:
    """How the mismatch decision of DEFUSE 3 by predicted volumes agrees with that by the references.

    Returns:
      The numbers of cases with a mismatch in "both", in the "reference_only", in the "predicted_only", in "neither",
      and "kappa", see `agreement.kappa`. None unless core and penumbra are among the classes.
    """
    if not {"core", "penumbra"} <= {row["class"] for row in rows}:
        return None
    found = {
        (row["case"], row["class"], name): row[name] for row in rows for name in ("volume_pred_ml", "volume_true_ml")
    }
    cases = list(dict.fromkeys(row["case"] for row in rows))
    predicted, true = (
        [all(agreement.defuse3(found[case, "core", name], found[case, "penumbra", name])) for case in cases]
        for name in ("volume_pred_ml", "volume_true_ml")
    )
    pairs = list(zip(true, predicted, strict=True))
    return {
        "both": pairs.count((True, True)),
        "reference_only": pairs.count((True, False)),
        "predicted_only": pairs.count((False, True)),
        "neither": pairs.count((False, False)),
        "kappa": agreement.kappa(true, predicted),
    }


def _mean_of_folds(rows: Sequence[Row], name: str) -> dict[str, Any]:
    values = np.array([row[name] for row in rows])
    folds = np.array([row["fold"] for row in rows])
    of_folds = [float(values[folds == fold].mean()) for fold in np.unique(folds)]
    return {
        "mean": float(np.mean(of_folds)),
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "folds": of_folds,
    }


def means_text(found: dict[str, Any]) -> str:
    """The result of `means` as a small table for the terminal."""
    shown = [measure for measure in metrics.MEASURES if measure.in_means]
    rows = []
    empty = []
    for name, of_class in found["classes"].items():
        rows.append([name, *(f"{of_class[measure.name]['mean']:.3f}" for measure in shown)])
        if of_class["empty_truths"] or of_class["empty_predictions"]:
            counts = f"{of_class['empty_truths']} empty references, {of_class['empty_predictions']} empty predictions"
            empty.append(f"{name}: {counts}")
    rule = ["both empty: Dice 1, 0 mm; one empty: Dice 0, the image's diagonal"] if empty else []
    lines = columns.lines(["class", *(measure.heading for measure in shown)], rows, names=1)
    return "\n".join([f"means over {found['cases']} cases", *lines, *empty, *rule])
