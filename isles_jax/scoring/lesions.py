"""Scores lesion by lesion: lesions.csv, and how many lesions of a size are found."""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from isles_jax import metrics
from isles_jax.scoring import scores
from isles_jax.scoring.scores import Row

COLUMNS = ("case", "fold", "class", *metrics.Lesion._fields)
# The ends of the size classes in ml.
SIZES_ML = (0.0, 0.1, 1.0, 10.0, 100.0, np.inf)
_KINDS = (metrics.REFERENCE, metrics.PREDICTED)


class Detection(NamedTuple):
    """What became of the lesions of one size class.

    Attributes:
      title: the size class.
      reference: how many lesions of the references are of this size.
      found: how many of them a prediction touches.
      predicted: how many predicted lesions are of this size.
      false: how many of them touch no reference.
    """

    title: str
    reference: int
    found: int
    predicted: int
    false: int


def of_case(
    name: str, fold: int, prediction: np.ndarray, truth: np.ndarray, classes: Sequence[str], voxel_ml: float
) -> list[Row]:
    """The lesions of a case: a row with the keys `COLUMNS` for each lesion of each class.

    Arguments, classes and errors are those of `scores.score_case`; `metrics.each_lesion` defines the columns.
    """
    masks = scores.masks_of(name, prediction, truth, classes)
    return [
        {"case": name, "fold": fold, "class": class_name, **lesion._asdict(), "found": int(lesion.found)}
        for class_name, pair in masks.items()
        for lesion in metrics.each_lesion(*pair, voxel_ml)
    ]


def write(path: epath.PathLike, rows: Sequence[Row]) -> None:
    """Writes the rows of `of_case`, see `scores.write_csv`; "found" is 1 or 0."""
    scores.write_csv(path, COLUMNS, rows)


def read(path: epath.PathLike) -> list[Row]:
    """Reads what `write` wrote.

    Raises:
      InputError: the file is missing or is not a table of lesions.
    """
    return scores.read_table(path, COLUMNS, "lesions", lambda row, _: _row(row))


def _row(row: dict[str, str]) -> dict[str, Any]:
    if row["kind"] not in _KINDS or not re.fullmatch("[01]", row["found"]):
        raise ValueError(f"{row['kind']!r} and {row['found']!r} are no kind and no 0 or 1")
    return {
        "lesion": int(row["lesion"]),
        "kind": row["kind"],
        "ml": scores.number(row["ml"]),
        "found": int(row["found"]),
        "overlap": scores.number(row["overlap"]),
    }


def _title(low: float, high: float) -> str:
    if low == 0:
        return f"< {high:g}"
    return f"{low:g}–{high:g}" if np.isfinite(high) else f"≥ {low:g}"


def by_size(rows: Sequence[Row]) -> list[Detection]:
    """How many lesions of each size class are found, and how many predicted ones are false; also of empty classes."""
    found = []
    for low, high in itertools.pairwise(SIZES_ML):
        of_size = [row for row in rows if low <= row["ml"] < high]
        reference, predicted = ([row["found"] for row in of_size if row["kind"] == kind] for kind in _KINDS)
        false = len(predicted) - sum(predicted)
        found.append(Detection(_title(low, high), len(reference), sum(reference), len(predicted), false))
    return found
