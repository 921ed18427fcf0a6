"""Scores of label volumes, their means, and the files that hold them: cases.csv and summary.json."""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from isles_jax import metrics
from isles_jax.data.case import WHOLE_LESION
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError

METRICS = (
    "dice", "precision", "recall", "assd_mm", "hd_mm", "hd95_mm", "volume_true_ml", "volume_pred_ml", "lesion_f1",
    "lesion_f1_iou", "surface_dice", "volume_difference_ml",
)  # fmt: skip
COLUMNS = ("case", "fold", "class", *METRICS)
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
    """Writes rows as CSV, atomically. Numbers have six decimals, so that equal scores give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(
            [quoted(row["case"]), row["fold"], quoted(row["class"]), *(f"{row[name]:.6f}" for name in METRICS)]
        )
    files.write_atomic(path, text.getvalue())


def quoted(name: str) -> str:
    """The name, with an apostrophe before it if a spreadsheet would take it for a formula."""
    return f"'{name}" if name.startswith(_FORMULA) else name


def _unquoted(text: str) -> str:
    return text.removeprefix("'")


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is no number with six decimals")
    return float(text)


def read_cases_csv(path: epath.PathLike) -> list[Row]:
    """Reads what `write_cases_csv` wrote.

    Raises:
      InputError: the file is missing or is not a table of scores.
    """
    path = epath.Path(path)
    try:
        reader = csv.DictReader(io.StringIO(path.read_text()))
        if tuple(reader.fieldnames or ()) != COLUMNS:
            columns = repr(",".join(reader.fieldnames or ()))[1:-1]  # a damaged name may hold a line break
            raise InputError(f"{path}: found the columns {columns}, expected {','.join(COLUMNS)}")
        return [
            {"case": _unquoted(row["case"]), "fold": int(row["fold"]), "class": _unquoted(row["class"])}
            | {name: _number(row[name]) for name in METRICS}
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


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over the cases of a fold, then over the folds, for each class.

    Returns:
      {"cases", "folds", "classes": {class: {"cases", "empty_truths", "empty_predictions", and for each metric
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
            **{metric: _mean_of_folds(class_rows, metric) for metric in METRICS},
        }
    return {
        "cases": len({row["case"] for row in rows}),
        "folds": len({row["fold"] for row in rows}),
        "classes": classes,
    }


def _mean_of_folds(rows: Sequence[Row], metric: str) -> dict[str, Any]:
    values = np.array([row[metric] for row in rows])
    folds = np.array([row["fold"] for row in rows])
    means = [float(values[folds == fold].mean()) for fold in np.unique(folds)]
    return {
        "mean": float(np.mean(means)),
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "folds": means,
    }


def write_summary(path: epath.PathLike, summary: dict[str, Any]) -> None:
    """Writes the result of `summarise` as JSON, atomically."""
    files.write_json(path, summary)


def text_summary(summary: dict[str, Any]) -> str:
    """The means as a small table for the terminal."""
    shown = ("dice", "precision", "recall", "assd_mm", "hd95_mm", "lesion_f1", "surface_dice", "volume_difference_ml")
    width = max([len("class"), *map(len, summary["classes"])])
    lines = [f"{'class':{width}}" + "".join(f"  {name}" for name in shown)]
    for class_name, scores in summary["classes"].items():
        lines.append(f"{class_name:{width}}" + "".join(f"  {scores[name]['mean']:{len(name)}.3f}" for name in shown))
        if scores["empty_truths"] or scores["empty_predictions"]:
            counts = f"{scores['empty_truths']} empty references, {scores['empty_predictions']} empty predictions"
            rule = "both empty: Dice 1, 0 mm; one empty: Dice 0, the image's diagonal"
            lines.append(f"{'':{width}}  with {counts} ({rule})")
    return "\n".join([f"means over {summary['cases']} cases", *lines])
