"""Scores of label volumes, their means, and the files that hold them: cases.csv and summary.json."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from isles_jax import metrics
from isles_jax.data.case import WHOLE_LESION
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError

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
    if max(prediction.max(initial=0), truth.max(initial=0)) > len(classes):
        raise ValueError(f"{name}: a label above {len(classes)}, the number of classes")
    masks = {class_name: (prediction == value, truth == value) for value, class_name in enumerate(classes, 1)}
    if len(classes) > 1:
        masks[WHOLE_LESION] = (prediction > 0, truth > 0)
    return [
        {"case": name, "fold": fold, "class": class_name, **metrics.score(*pair, spacing_mm, voxel_ml=voxel_ml)}
        for class_name, pair in masks.items()
    ]


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
    """Raises an InputError if `folder` is a run's, or holds a cases.csv or summary.json that no evaluation wrote."""
    files.refuse_run(folder)
    files.refuse_foreign(folder / "cases.csv", lambda content: content.startswith(b"case,fold,class,dice"), "a table")
    files.refuse_foreign(folder / "summary.json", _is_summary, "a summary")


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


def _number(text: str) -> float:
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
    path = epath.Path(path)
    try:
        reader = csv.DictReader(io.StringIO(files.read_text(path)))
        columns = list(reader.fieldnames or ())
        if not set(REQUIRED) <= set(columns) or len(set(columns)) < len(columns):
            found = repr(",".join(columns))[1:-1]  # a damaged name may hold a line break
            raise InputError(f"{path}: found the columns {found}, expected {','.join(COLUMNS)}")
        known = [name for name in NAMES if name in columns]
        return [
            {"case": _unquoted(row["case"]), "fold": int(row["fold"]), "class": _unquoted(row["class"])}
            | {name: _number(row[name]) for name in known}
            for row in reader
        ]
    except OSError as error:
        raise InputError(f"{path}: found no readable file, expected the scores of a run") from error
    except (TypeError, ValueError, AttributeError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: found a line that is no row of scores ({error}), expected the file as it was written"
        ) from error


def measures_of(rows: Sequence[Row]) -> tuple[metrics.Measure, ...]:
    """The measures that every row has."""
    return tuple(measure for measure in metrics.MEASURES if all(measure.name in row for row in rows))


def means(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over the cases of a fold, then over the folds, for each class.

    Returns:
      {"cases", "folds", "classes": {class: {"cases", "empty_truths", "empty_predictions", and for each measure
      {"mean", "std", "folds": [mean of each fold]}}}}. "std" is the standard deviation over all cases (n - 1), or None
      for a single case.
    """
    classes = {}
    for class_name in dict.fromkeys(row["class"] for row in rows):
        class_rows = [row for row in rows if row["class"] == class_name]
        classes[class_name] = {
            "cases": len(class_rows),
            "empty_truths": sum(row["volume_true_ml"] == 0 for row in class_rows),
            "empty_predictions": sum(row["volume_pred_ml"] == 0 for row in class_rows),
            **{measure.name: _mean_of_folds(class_rows, measure.name) for measure in measures_of(rows)},
        }
    return {
        "cases": len({row["case"] for row in rows}),
        "folds": len({row["fold"] for row in rows}),
        "classes": classes,
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
    width = max([len("class"), *map(len, found["classes"])])
    shown = [measure for measure in metrics.MEASURES if measure.in_means]
    lines = [f"{'class':{width}}" + "".join(f"  {measure.heading}" for measure in shown)]
    for class_name, of_class in found["classes"].items():
        cells = [f"  {of_class[measure.name]['mean']:{len(measure.heading)}.3f}" for measure in shown]
        lines.append(f"{class_name:{width}}" + "".join(cells))
        if of_class["empty_truths"] or of_class["empty_predictions"]:
            counts = f"{of_class['empty_truths']} empty references, {of_class['empty_predictions']} empty predictions"
            rule = "both empty: Dice 1, 0 mm; one empty: Dice 0, the image's diagonal"
            lines.append(f"{'':{width}}  with {counts} ({rule})")
    return "\n".join([f"means over {found['cases']} cases", *lines])
