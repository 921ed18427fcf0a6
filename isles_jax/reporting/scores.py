"""Scores of label volumes: cases.csv, summary.json, and the means for the terminal."""

import csv
import dataclasses
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from isles_jax import metrics
from isles_jax.data import layouts
from isles_jax.data.case import Case
from isles_jax.data.nifti import is_nifti, list_folder, read_labels, read_volume, stem
from isles_jax.runtime import files, interrupt
from isles_jax.runtime.command import InputError

# Not "lesion": data sets with a single class often call it that.
WHOLE_LESION = "whole lesion"
METRICS = (
    "dice", "precision", "recall", "assd_mm", "hd_mm", "hd95_mm", "volume_true_ml", "volume_pred_ml", "lesion_f1",
    "lesion_f1_iou", "surface_dice", "volume_difference_ml",
)  # fmt: skip
COLUMNS = ("case", "fold", "class", *METRICS)

Row = dict[str, Any]


def score_case(
    name: str,
    fold: int,
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    classes: Sequence[str],
) -> list[Row]:
    """Scores one case.

    Args:
      name: of the case.
      fold: the fold that held it out.
      prediction: uint8 [X, Y, Z], 0 background, 1.. the classes.
      truth: as `prediction`.
      spacing_mm: the voxel's sides.
      classes: names of the values 1...

    Returns:
      One row for each class and, if there are several, one for the "whole lesion", any foreground. A row has
      the keys `COLUMNS`; `metrics.score` defines them.

    Raises:
      ValueError: shapes differ, or a value above the number of classes.
    """
    if max(prediction.max(initial=0), truth.max(initial=0)) > len(classes):
        raise ValueError(f"{name}: a label above {len(classes)}, the number of classes")
    masks = {word: (prediction == value, truth == value) for value, word in enumerate(classes, 1)}
    if len(classes) > 1:
        masks[WHOLE_LESION] = (prediction > 0, truth > 0)
    return [
        {"case": name, "fold": fold, "class": word, **metrics.score(*pair, spacing_mm)} for word, pair in masks.items()
    ]


def write_cases_csv(path: epath.PathLike, rows: Sequence[Row]) -> None:
    """Writes rows as CSV, atomically; numbers with six decimals, so the same scores are the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([row["case"], row["fold"], row["class"], *(f"{row[name]:.6f}" for name in METRICS)])
    files.write_atomic(path, text.getvalue())


def read_cases_csv(path: epath.PathLike) -> list[Row]:
    """Reads what `write_cases_csv` wrote.

    Raises:
      InputError: the file is missing, or not such a table.
    """
    path = epath.Path(path)
    try:
        reader = csv.DictReader(io.StringIO(path.read_text()))
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InputError(
                f"{path}: found the columns {','.join(reader.fieldnames or ())}, expected {','.join(COLUMNS)}"
            )
        return [
            {"case": row["case"], "fold": int(row["fold"]), "class": row["class"]}
            | {name: float(row[name]) for name in METRICS}
            for row in reader
        ]
    except OSError as error:
        raise InputError(f"{path}: found no readable file, expected the scores of a run") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: found a row that is no row of scores ({error}), expected the file as it was written"
        ) from error


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over the cases of a fold, then over the folds, for each class.

    Returns:
      {"cases", "folds", "classes": {class: {"cases", "empty_truths", "empty_predictions", and for each metric
      {"mean", "std", "folds": [mean of each fold]}}}}; std is over the cases (n - 1), None of one case.
    """
    classes = {}
    for word in dict.fromkeys(row["class"] for row in rows):
        mine = [row for row in rows if row["class"] == word]
        classes[word] = {
            "cases": len(mine),
            "empty_truths": sum(row["volume_true_ml"] == 0 for row in mine),
            "empty_predictions": sum(row["volume_pred_ml"] == 0 for row in mine),
            **{name: _mean_of_folds(mine, name) for name in METRICS},
        }
    return {
        "cases": len({row["case"] for row in rows}),
        "folds": len({row["fold"] for row in rows}),
        "classes": classes,
    }


def _mean_of_folds(rows: Sequence[Row], name: str) -> dict[str, Any]:
    values = np.array([row[name] for row in rows])
    folds = np.array([row["fold"] for row in rows])
    means = [float(values[folds == fold].mean()) for fold in np.unique(folds)]
    return {
        "mean": float(np.mean(means)),
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "folds": means,
    }


def write_summary(path: epath.PathLike, summary: dict[str, Any]) -> None:
    """Writes what `summarise` returned as JSON, atomically."""
    files.write_json(path, summary)


# --- folders of any tool ---------------------------------------------------------------------------------------------


def score_folders(
    predictions: Path, labels: Path, classes: Sequence[str] | None = None, values: Sequence[int] | None = None
) -> list[Row]:
    """Scores every labelled case of a folder; a prediction is the file with the case's name, .nii or .nii.gz.

    Args:
      predictions: a folder of label volumes.
      labels: a folder of label volumes, or a data set in the SPES or nnU-Net layout.
      classes: names of the classes in a folder of label volumes; None: penumbra, core. A data set has its own.
      values: the integers that the files hold for the classes; None: 1, 2, ..., or what nnU-Net's dataset.json says.

    Raises:
      InputError: a prediction is missing, lies on another grid or holds an unknown value; a folder is no such folder.
    """
    cases, classes, values = _labelled_cases(labels, classes, values)
    found = _volumes(predictions)
    missing = [name for name in cases if name not in found]
    if missing:
        others = f" ({len(missing)} of {len(cases)} cases have none)"
        raise InputError(f"{predictions}: found no {missing[0]}.nii or .nii.gz, expected a prediction for it{others}")
    extra = sorted(found.keys() - cases.keys())
    if extra:
        print(f"note: without a label and not scored: {', '.join(extra)}", file=sys.stderr)
    rows = []
    for name, case in cases.items():
        interrupt.leave_if_requested()
        case = _flat_case(case, values) if isinstance(case, Path) else case
        assert case.labels is not None
        rows += score_case(name, 0, read_labels(found[name], case, values), case.labels, case.spacing_mm, classes)
    return rows


def _labelled_cases(
    labels: Path, classes: Sequence[str] | None, values: Sequence[int] | None
) -> tuple[Mapping[str, Case | Path], Sequence[str], Sequence[int]]:
    """The reference cases by name (of a flat folder only their files), the names of the classes and their integers."""
    if any(is_nifti(path) for path in list_folder(labels)):
        classes = classes or ("penumbra", "core")
        values = values or tuple(range(1, len(classes) + 1))
        if len(set(values)) != len(classes) or not all(1 <= value <= 255 for value in values):
            wanted = f"{len(classes)} different integers from 1 to 255, for {', '.join(classes)}"
            raise InputError(f"--values={','.join(map(str, values))}: expected {wanted}")
        return _volumes(labels), classes, values
    if values and len(values) != 2:
        raise InputError(f"--values={','.join(map(str, values))}: expected two integers, of penumbra and of core")
    penumbra, core = values or (1, 2)
    dataset = layouts.load(labels, penumbra=penumbra, core=core)
    if classes and tuple(classes) != tuple(dataset.classes):
        raise InputError(f"--classes={','.join(classes)}: {labels} has the classes {','.join(dataset.classes)}")
    if values and tuple(values) != tuple(dataset.label_values):
        raise InputError(f"--values={penumbra},{core}: {labels} has {','.join(map(str, dataset.label_values))}")
    cases = {case.name: case for case in dataset.cases if case.labels is not None}
    if not cases:
        raise InputError(f"{labels}: found no case with labels, expected a reference")
    return cases, dataset.classes, dataset.label_values


def _volumes(folder: Path) -> dict[str, Path]:
    """The NIfTI files of a folder by name without suffix; InputError if there is none, or two of one name."""
    found: dict[str, Path] = {}
    for path in filter(is_nifti, list_folder(folder)):
        if stem(path) in found:
            raise InputError(f"{path}: found beside {found[stem(path)].name}, expected one file for a case")
        found[stem(path)] = path
    if not found:
        raise InputError(f"{folder}: found no .nii or .nii.gz file, expected label volumes")
    return found


def _flat_case(path: Path, values: Sequence[int]) -> Case:
    """A label volume as a case whose only image is that volume."""
    volume, affine, header = read_volume(path)
    case = Case(path.name, volume[..., None], None, affine, header, (path,))
    return dataclasses.replace(case, labels=read_labels(path, case, values))


def text_summary(summary: dict[str, Any]) -> str:
    """The means as a small table for the terminal."""
    shown = ("dice", "precision", "recall", "assd_mm", "hd95_mm", "lesion_f1", "surface_dice", "volume_difference_ml")
    width = max([len("class"), *map(len, summary["classes"])])
    lines = [f"{'class':{width}}" + "".join(f"  {name}" for name in shown)]
    for word, scores in summary["classes"].items():
        lines.append(f"{word:{width}}" + "".join(f"  {scores[name]['mean']:{len(name)}.3f}" for name in shown))
        if scores["empty_truths"] or scores["empty_predictions"]:
            empty = f"{scores['empty_truths']} empty references, {scores['empty_predictions']} empty predictions"
            lines.append(f"{'':{width}}  with {empty} (both: Dice 1, 0 mm; one: Dice 0, the image's diagonal)")
    return "\n".join([f"means over {summary['cases']} cases", *lines])
