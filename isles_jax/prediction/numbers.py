"""The numbers of a new case, and the files that hold them: summary.csv and CASE.json. docs/patient.md defines them."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from isles_jax import metrics
from isles_jax.data.case import Case
from isles_jax.data.profile import right_side
from isles_jax.prediction import expected as expectations
from isles_jax.runtime import files
from isles_jax.scoring import scores
from isles_jax.scoring.agreement import defuse3 as meets_defuse3
from isles_jax.training.task import Task

Value = float | int | str | None
# Tmax in seconds.
TMAX_LIMITS_S = (4, 6, 8, 10)
# A case is "both" sides if the smaller side holds at least this share of its lesions.
BOTH = 0.1
DEFUSE3 = "DEFUSE 3"
PHANTOM = "a digital phantom, not patients"


class Number(NamedTuple):
    """One number of a case, or one word.

    Attributes:
      column: its column in summary.csv.
      title: what the page calls it.
      value: None where it is not known.
      unit: of the value.
      of: the class that it is about; "" for a number of the whole case.
    """

    column: str
    title: str
    value: Value
    unit: str = ""
    of: str = ""


@dataclasses.dataclass(frozen=True)
class ClassNumbers:
    """What is known of one class of a case.

    Attributes:
      name: of the class.
      ml: the predicted volume.
      least_ml: the smallest volume that a fold's network alone predicts.
      most_ml: the largest one.
      agreement: mean Dice between the folds' networks; None for a single fold.
      interval: of the volume in ml; None where the run has too few scored cases.
      coverage: the share of held-out cases whose interval holds the true volume; None without an interval.
      dice: the mean over the held-out cases of the run; None where the run is not scored.
    """

    name: str
    ml: float
    least_ml: float
    most_ml: float
    agreement: float | None
    interval: tuple[float, float] | None
    coverage: float | None
    dice: float | None


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction of one new case, and what its reader needs to judge it.

    Attributes:
      case: its images and affine; its labels are not used.
      task: of the networks; names the channels and the classes.
      labels: uint8 [X, Y, Z], 0 background and 1.. the classes.
      fold_labels: for each fold, what its network predicts alone, uint8 [X, Y, Z].
      classes: the numbers of each class.
      numbers: the case's row of summary.csv.
      warnings: one sentence each: what was seen, and what was expected.
      not_checked: the checks that were left out because the run or the case lacks what they need, one sentence each.
      origin: the run's name, the folds and their steps, the hash of the weights, and versions.
      on_phantom: whether the networks were trained on a phantom, and not on patients.
      seen: a sentence on a case that is among the training data; "" for a new one.
      date: of the prediction, such as "2026-11-27"; "" if it is not known. Only the page says it, so that equal
        predictions have equal files.
    """

    case: Case
    task: Task
    labels: np.ndarray
    fold_labels: tuple[np.ndarray, ...]
    classes: tuple[ClassNumbers, ...]
    numbers: tuple[Number, ...]
    warnings: tuple[str, ...]
    not_checked: tuple[str, ...]
    origin: Mapping[str, str]
    on_phantom: bool = False
    seen: str = ""
    date: str = ""


def volumes_ml(labels: np.ndarray, case: Case, classes: Sequence[str]) -> dict[str, float]:
    """The volume of each class in ml, by name."""
    counts = np.bincount(labels.ravel(), minlength=len(classes) + 1)
    return {name: float(counts[value] * case.voxel_ml) for value, name in enumerate(classes, 1)}


def agreement(fold_masks: Sequence[np.ndarray]) -> float | None:
    """The mean Dice over all pairs of the folds' masks, bool [X, Y, Z]; None for a single fold."""
    dice = [metrics.overlap(one, other)["dice"] for one, other in itertools.combinations(fold_masks, 2)]
    return sum(dice) / len(dice) if dice else None


def side(labels: np.ndarray, case: Case) -> str:
    """Where the lesions lie, by the affine: "left" or "right" of the patient, or "both".

    It is "" without a lesion, and where the header does not say where left is.
    """
    total = int((labels > 0).sum())
    right = int((labels[right_side(case)] > 0).sum())
    left = total - right
    if not total or not case.oriented:
        return ""
    if min(right, left) >= BOTH * total:
        return "both"
    return "right" if right > left else "left"


def of_classes(
    case: Case,
    classes: Sequence[str],
    labels: np.ndarray,
    fold_labels: Sequence[np.ndarray],
    expected: Mapping[str, Any],
) -> tuple[ClassNumbers, ...]:
    """The numbers of each class.

    Args:
      case: that was predicted.
      classes: names of the labels 1..
      labels: uint8 [X, Y, Z].
      fold_labels: of each fold's network alone.
      expected: from `expected.read`.
    """
    volumes = volumes_ml(labels, case, classes)
    alone = [volumes_ml(one, case, classes) for one in fold_labels]
    brain_ml = float(case.brain.sum() * case.voxel_ml)
    found = []
    for value, name in enumerate(classes, 1):
        of_folds = [volume[name] for volume in alone]
        interval = expectations.interval(volumes[name], expected.get("errors", {}).get(name, ()), brain_ml)
        found.append(
            ClassNumbers(
                name=name,
                ml=volumes[name],
                least_ml=min(of_folds),
                most_ml=max(of_folds),
                agreement=agreement([one == value for one in fold_labels]),
                interval=interval,
                coverage=expected.get("coverage", {}).get(name) if interval else None,
                dice=expected.get("dice", {}).get(name),
            )
        )
    return tuple(found)


def of_case(
    case: Case,
    channels: Sequence[str],
    labels: np.ndarray,
    classes: Sequence[ClassNumbers],
    folds_dice: float | None,
    *,
    defuse3: bool,
) -> list[Number]:
    """The numbers of a case in the order of summary.csv, beginning with the case's name.

    Args:
      case: that was predicted.
      channels: of its images.
      labels: uint8 [X, Y, Z].
      classes: from `of_classes`.
      folds_dice: how far the folds' networks agree on the whole lesion; None for a single fold.
      defuse3: add the thresholds of DEFUSE 3; core and penumbra must be among the classes.
    """
    volumes = {one.name: one.ml for one in classes}
    found = [
        Number("case", "case", case.name),
        Number("voxel_ml", "voxel", case.voxel_ml, "ml"),
        Number("brain_ml", "brain", float(case.brain.sum() * case.voxel_ml), "ml"),
        *(Number(f"{one.name}_ml", "volume", one.ml, "ml", one.name) for one in classes),
    ]
    if {"core", "penumbra"} <= volumes.keys():
        found += _mismatch(volumes["core"], volumes["penumbra"])
    numbered, count = metrics.lesions(labels > 0)
    largest = float(np.bincount(numbered.ravel())[1:].max(initial=0) * case.voxel_ml)
    found += [
        Number("lesions", "lesions", count),
        Number("largest_lesion_ml", "largest lesion", largest, "ml"),
        Number("side", "side", side(labels, case)),
    ]
    if case.absent:
        found.append(Number("absent", "absent sequences", ", ".join(case.absent)))
    if "Tmax" in channels and "Tmax" not in case.absent:
        found += _hypoperfusion(case, list(channels).index("Tmax"))
    for one in classes:
        found += [
            Number(f"{one.name}_least_ml", "least of the networks alone", one.least_ml, "ml", one.name),
            Number(f"{one.name}_most_ml", "most of the networks alone", one.most_ml, "ml", one.name),
            Number(f"{one.name}_folds_dice", "Dice between networks", one.agreement, "", one.name),
        ]
    found.append(Number("folds_dice", "Dice between networks, all classes", folds_dice))
    for one in classes:
        low, high = one.interval or (None, None)
        found += [
            Number(f"{one.name}_low_ml", "lower end of the interval", low, "ml", one.name),
            Number(f"{one.name}_high_ml", "upper end of the interval", high, "ml", one.name),
            Number(f"{one.name}_coverage", "coverage of such intervals", one.coverage, "", one.name),
            Number(f"{one.name}_cross_validation_dice", "Dice in cross-validation", one.dice, "", one.name),
        ]
    return found + (_defuse3(volumes["core"], volumes["penumbra"]) if defuse3 else [])


def _mismatch(core: float, penumbra: float) -> list[Number]:
    hypoperfused = core + penumbra
    return [
        Number("hypoperfused_ml", "hypoperfused", hypoperfused, "ml"),
        Number("mismatch_ml", "mismatch", hypoperfused - core, "ml"),
        Number("mismatch_ratio", "mismatch ratio", hypoperfused / core if core else None),
    ]


def _hypoperfusion(case: Case, channel: int) -> list[Number]:
    tmax = case.images[..., channel][case.brain]
    above = {seconds: float((tmax > seconds).sum() * case.voxel_ml) for seconds in TMAX_LIMITS_S}
    found = [Number(f"tmax_above_{s}_s_ml", f"Tmax above {s} s", volume, "ml") for s, volume in above.items()]
    ratio = above[10] / above[6] if above[6] else None
    return [*found, Number("hypoperfusion_intensity_ratio", "hypoperfusion intensity ratio", ratio)]


def _defuse3(core: float, mismatch: float) -> list[Number]:
    """Whether a case meets the thresholds of DEFUSE 3 (Albers et al., N Engl J Med 2018)."""
    texts = ("core below 70 ml", "ratio at least 1.8", "mismatch at least 15 ml")
    return [
        Number(f"defuse3_{text.replace(' ', '_')}", f"{DEFUSE3}: {text}", "yes" if met else "no")
        for text, met in zip(texts, meets_defuse3(core, mismatch), strict=True)
    ]


def of_command(settings: Mapping[str, Any], warnings: Sequence[str], *, on_phantom: bool) -> list[Number]:
    """The end of a row of summary.csv: what predicted, its settings (config.predict and flags), and the warnings."""
    return [
        Number("trained_on", "trained on", "phantom" if on_phantom else "patients"),
        Number("flips", "averaged with mirror images", "yes" if settings["flips"] else "no"),
        Number("min_volume_ml", "smallest lesion kept", float(settings["min_volume_ml"]), "ml"),
        Number("warnings", "warnings", "; ".join(warnings)),
    ]


def row_of(numbers: Sequence[Number]) -> dict[str, Value]:
    """A row of summary.csv. If two columns have one name, as by a class called "brain", the second gets underscores."""
    row: dict[str, Value] = {}
    for number in numbers:
        column = number.column
        while column in row:
            column += "_"
        row[column] = round(number.value, 6) if isinstance(number.value, float) else number.value
    return row


def write_csv(path: epath.PathLike, rows: Sequence[Mapping[str, Value]]) -> None:
    """Writes the rows of all cases, see `scores.write_csv`. A cell is empty where a row lacks a column of another."""
    columns = list(dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row))
    scores.write_csv(path, columns, [dict.fromkeys(columns) | dict(row) for row in rows])


def write_json(path: epath.PathLike, prediction: Prediction) -> None:
    """Writes CASE.json, atomically: the row, the intervals, the warnings, the origin and the inputs' checksums."""
    content = {
        "use": "research software, not for clinical use",
        "trained_on": PHANTOM if prediction.on_phantom else "patients",
        **({"seen_in_training": prediction.seen} if prediction.seen else {}),
        "summary": row_of(prediction.numbers),
        "intervals": {one.name: list(one.interval) for one in prediction.classes if one.interval},
        "interval_level": expectations.LEVEL,
        "warnings": list(prediction.warnings),
        "not_checked": list(prediction.not_checked),
        "origin": dict(prediction.origin),
        "inputs_sha256": {file.name: files.sha256(file) for file in prediction.case.files},
    }
    files.write_json(path, content)
