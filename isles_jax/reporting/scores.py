"""Scores of label volumes, their means, and the files that hold them: cases.csv and summary.json."""

import csv
import dataclasses
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from isles_jax import metrics
from isles_jax.data import layouts
from isles_jax.data.case import WHOLE_LESION, Case, check_names
from isles_jax.data.nifti import is_nifti, list_folder, read_labels, read_volume, volumes_by_name
from isles_jax.runtime import files, interrupt
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


# --- folders of any tool ---------------------------------------------------------------------------------------------


def score_folders(
    predictions: Path,
    labels: Path,
    classes: Sequence[str] | None = None,
    values: Sequence[int] | None = None,
    *,
    subset: bool = False,
) -> list[Row]:
    """Scores every labelled case of a folder against its prediction, CASE.nii or CASE.nii.gz.

    Args:
      predictions: a folder of label volumes.
      labels: a folder of label volumes, or a data set in any layout that training reads.
      classes: names of the classes in a folder of label volumes; None: penumbra, core. A data set names its own.
      values: the integers that the files hold for the classes; None: 1, 2, ..., or those in nnU-Net's dataset.json.
      subset: leave out the cases without a prediction, with a note; otherwise, such a case is an error.

    Raises:
      InputError: a prediction is missing, or with `subset` all are; one lies on another grid or holds an unknown
        value; a folder holds no label volumes.
    """
    cases, classes, values = _labelled_cases(labels, classes, values)
    paths = _volumes(predictions)
    check_names(labels, list(cases), classes)
    missing = [name for name in cases if name not in paths]
    counts = f"{len(missing)} of {len(cases)} cases"
    if missing and not (subset and len(missing) < len(cases)):
        found = f"found no {missing[0]}.nii or .nii.gz, expected a prediction for every case; {counts} have none"
        raise InputError(f"{predictions}: {found}" + ("" if subset else "; --subset leaves out the cases without one"))
    if missing:
        print(f"note: {counts} have no prediction and are not scored", file=sys.stderr)
    extra = sorted(paths.keys() - cases.keys())
    if extra:
        print(f"note: these predictions have no label and are not scored: {', '.join(extra)}", file=sys.stderr)
    rows = []
    for name, case in cases.items():
        if name in missing:
            continue
        interrupt.leave_if_requested()
        case = _flat_case(case, values) if isinstance(case, Path) else case
        assert case.labels is not None
        predicted = read_labels(paths[name], case, values)
        rows += score_case(name, 0, predicted, case.labels, case.spacing_mm, classes, case.voxel_ml)
    return rows


def _labelled_cases(
    labels: Path, classes: Sequence[str] | None, values: Sequence[int] | None
) -> tuple[Mapping[str, Case | Path], Sequence[str], Sequence[int]]:
    """The labelled cases by name, the names of the classes and their integers.

    Of a folder of label volumes only the paths are returned, so that one volume is in memory at a time.
    """
    if any(is_nifti(path) for path in list_folder(labels)):
        classes = classes or ("penumbra", "core")
        check_names(f"--classes={','.join(classes)}", (), classes)
        values = values or tuple(range(1, len(classes) + 1))
        if len(set(values)) != len(classes) or not all(1 <= value <= 255 for value in values):
            expected = f"{len(classes)} different integers from 1 to 255, for {', '.join(classes)}"
            raise InputError(f"--values={','.join(map(str, values))}: expected {expected}")
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
    """The NIfTI files of a folder by their names without suffix.

    Raises:
      InputError: there is none, or two have the same name.
    """
    paths = volumes_by_name(folder)
    if not paths:
        raise InputError(f"{folder}: found no .nii or .nii.gz file, expected label volumes")
    return paths


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
    for class_name, scores in summary["classes"].items():
        lines.append(f"{class_name:{width}}" + "".join(f"  {scores[name]['mean']:{len(name)}.3f}" for name in shown))
        if scores["empty_truths"] or scores["empty_predictions"]:
            counts = f"{scores['empty_truths']} empty references, {scores['empty_predictions']} empty predictions"
            rule = "both empty: Dice 1, 0 mm; one empty: Dice 0, the image's diagonal"
            lines.append(f"{'':{width}}  with {counts} ({rule})")
    return "\n".join([f"means over {summary['cases']} cases", *lines])
