"""The numbers of a new case, and the files that hold them: summary.csv and CASE.json. docs/patient.md defines them."""

import csv
import hashlib
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from isles_jax.data.case import Case
from isles_jax.data.profile import lesions, right_side
from isles_jax.prediction import expected as expectations
from isles_jax.prediction.prediction import Prediction
from isles_jax.runtime import files
from isles_jax.scoring.scores import quoted

Value = float | int | str | None
# Tmax in seconds.
TMAX_SECONDS = (4, 6, 8, 10)
# A case is "both" sides if the smaller side holds at least this share of its lesions.
BOTH = 0.1
# DEFUSE 3 (Albers et al., N Engl J Med 2018): core below 70 ml, ratio of at least 1.8, mismatch of at least 15 ml.
DEFUSE3 = ("defuse3_core_below_70_ml", "defuse3_ratio_at_least_1.8", "defuse3_mismatch_at_least_15_ml")


def volumes_ml(labels: np.ndarray, case: Case, classes: Sequence[str]) -> dict[str, float]:
    """The volume of each class in ml, by name."""
    counts = np.bincount(labels.ravel(), minlength=len(classes) + 1)
    return {name: float(counts[value] * case.voxel_ml) for value, name in enumerate(classes, 1)}


def agreement(fold_masks: Sequence[np.ndarray]) -> float | None:
    """The mean Dice over the pairs of several folds' masks, where two empty masks agree; None for a single fold."""
    dice = []
    for one, other in itertools.combinations(fold_masks, 2):
        size = int(one.sum()) + int(other.sum())
        dice.append(2 * int((one & other).sum()) / size if size else 1.0)
    return sum(dice) / len(dice) if dice else None


def side(labels: np.ndarray, case: Case) -> str:
    """Where the lesions lie, by the affine: "left" or "right" of the patient, "both", or "" without lesion."""
    total, right = int((labels > 0).sum()), int((labels[right_side(case)] > 0).sum())
    if not total:
        return ""
    if min(right, total - right) >= BOTH * total:
        return "both"
    return "right" if right > total - right else "left"


def measure(
    case: Case, channels: Sequence[str], classes: Sequence[str], labels: np.ndarray, fold_labels: Sequence[np.ndarray]
) -> dict[str, Value]:
    """What the images and the prediction alone give, by column, beginning with the case's name.

    Args:
      case: that was predicted.
      channels: of its images.
      classes: names of the labels 1..
      labels: uint8 [X, Y, Z].
      fold_labels: of each fold's network alone.
    """
    volumes = volumes_ml(labels, case, classes)
    row: dict[str, Value] = {"case": case.name, "voxel_ml": case.voxel_ml}
    row["brain_ml"] = float(case.brain.sum() * case.voxel_ml)
    _add(row, {f"{name}_ml": volume for name, volume in volumes.items()})
    if {"core", "penumbra"} <= volumes.keys():
        core, hypoperfused = volumes["core"], volumes["core"] + volumes["penumbra"]
        ratio = hypoperfused / core if core else None
        _add(row, {"hypoperfused_ml": hypoperfused, "mismatch_ml": hypoperfused - core, "mismatch_ratio": ratio})
    numbered, count = lesions(labels)
    largest = float(np.bincount(numbered.ravel())[1:].max(initial=0) * case.voxel_ml)
    _add(row, {"lesions": count, "largest_lesion_ml": largest, "side": side(labels, case)})
    if "Tmax" in channels:
        tmax = case.images[..., list(channels).index("Tmax")][case.brain]
        above = {seconds: float((tmax > seconds).sum() * case.voxel_ml) for seconds in TMAX_SECONDS}
        _add(row, {f"tmax_above_{seconds}_s_ml": volume for seconds, volume in above.items()})
        _add(row, {"hypoperfusion_intensity_ratio": above[10] / above[6] if above[6] else None})
    for value, name in enumerate(classes, 1):
        of_folds = [volumes_ml(alone, case, classes)[name] for alone in fold_labels]
        _add(row, {f"{name}_least_ml": min(of_folds), f"{name}_most_ml": max(of_folds)})
        _add(row, {f"{name}_folds_dice": agreement([alone == value for alone in fold_labels])})
    _add(row, {"folds_dice": agreement([alone > 0 for alone in fold_labels])})
    return row


def complete(
    row: dict[str, Value],
    volumes: Mapping[str, float],
    expected: Mapping[str, Any],
    settings: Mapping[str, Any],
    warnings: Sequence[str],
    *,
    defuse3: bool,
) -> dict[str, Value]:
    """The whole row of summary.csv.

    Args:
      row: from `measure`.
      volumes: of each class in ml.
      expected: from `expected.read`.
      settings: config.predict with the flags of the command.
      warnings: about the case.
      defuse3: whether the thresholds of DEFUSE 3 are added; core and penumbra must be among the classes.
    """
    row, limits = dict(row), expectations.intervals(volumes, expected)
    for name in volumes:
        low, high = limits.get(name, (None, None))
        _add(row, {f"{name}_low_ml": low, f"{name}_high_ml": high})
        _add(row, {f"{name}_coverage": expected.get("coverage", {}).get(name) if name in limits else None})
        _add(row, {f"{name}_cross_validation_dice": expected.get("dice", {}).get(name)})
    if defuse3:
        core, mismatch = volumes["core"], volumes["penumbra"]
        # Without core the ratio has no bound.
        meets = (core < 70, core + mismatch >= 1.8 * core and mismatch > 0, mismatch >= 15)
        _add(row, {name: "yes" if met else "no" for name, met in zip(DEFUSE3, meets, strict=True)})
    _add(row, {"flips": "yes" if settings["flips"] else "no", "min_volume_ml": float(settings["min_volume_ml"])})
    _add(row, {"warnings": "; ".join(warnings)})
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}


def _add(row: dict[str, Value], values: Mapping[str, Value]) -> None:
    """Adds columns; a name that is taken, as by a class called "brain", gets underscores at its end."""
    for name, value in values.items():
        while name in row:
            name += "_"
        row[name] = value


def write_csv(path: epath.PathLike, rows: Sequence[Mapping[str, Value]]) -> None:
    """Writes the rows of all cases, atomically. Numbers have six decimals, and texts are safe in a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([quoted(name) for name in rows[0]])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    files.write_atomic(path, text.getvalue())


def _cell(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return "" if value is None else quoted(str(value))


def write_json(path: epath.PathLike, prediction: Prediction) -> None:
    """Writes CASE.json, atomically: the row, the intervals, the warnings, the origin and the inputs' checksums."""
    inputs = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in prediction.case.files}
    content = {
        "use": "research software, not for clinical use",
        "summary": dict(prediction.summary),
        "intervals": {name: list(limits) for name, limits in prediction.intervals.items()},
        "interval_level": expectations.LEVEL,
        "warnings": list(prediction.warnings),
        "not_checked": list(prediction.not_checked),
        "origin": dict(prediction.origin),
        "inputs_sha256": inputs,
    }
    files.write_json(path, content)
