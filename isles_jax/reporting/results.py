"""Finished runs as read from their workdirs, and the comparison of several of them."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from isles_jax.data.case import WHOLE_LESION
from isles_jax.reporting import scores, statistics
from isles_jax.reporting.scores import Row
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError

# Table 1 of Rajan, Sathish and Sheet: Dice of each system on ISLES-2015 SPES, mean of three folds.
PAPER = {
    "bl1": {"penumbra": 0.835, "core": 0.792},
    "bl2": {"penumbra": 0.838, "core": 0.802},
    "bl3": {"penumbra": 0.803, "core": 0.730},
    "bl4": {"penumbra": 0.841, "core": 0.813},
    "bl5": {"penumbra": 0.845, "core": 0.867},
    "bl6": {"penumbra": 0.844, "core": 0.874},
    "bl7": {"penumbra": 0.852, "core": 0.865},
    "proposed": {"penumbra": 0.881, "core": 0.877},
}
RULE = "clinical rule"
# The files of a finished run whose checksums are in its DONE.
SEALED = (
    "config.json", "folds.json", "data.json", "cases.csv", "summary.json", "clinical_rule.csv",
    "calibration.json",
)  # fmt: skip
# What a report reads of the JSON files of a run.
_FORMS: dict[str, Any] = {
    "config.json": {
        "name": str,
        "data": {"root": str, "labels": {"penumbra": int, "core": int}},
        "model": {"residual": bool},
        "discriminator": {"enabled": bool},
        "loss": {"lovasz": (int, float), "boundary": (int, float)},
    },
    "data.json": {"phantom": bool, "classes": [str], "channels": [str], "cases": {}},
    "folds.json": [[str]],
}
_SHARES = [(int, float, type(None))]
_CURVE: dict[str, Any] = {"voxels": [int], "probability": _SHARES, "frequency": _SHARES, "error": float}

MEASURES = {
    "precision": "precision",
    "recall": "recall",
    "assd_mm": "ASSD mm",
    "hd95_mm": "HD95 mm",
    "surface_dice": "surface Dice",
    "lesion_f1": "lesion F1",
    "volume_difference_ml": "volume diff. ml",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished workdir.

    Attributes:
      workdir: the folder or bucket of the run.
      name: the config's name.
      config: config.json.
      data: data.json, with "phantom", "classes", "channels", "label_values" and "cases" (facts of each case by name).
      folds: names of the held-out cases of each fold.
      rows: scores, as `scores.read_cases_csv` gives them, sorted by case.
      rule: scores of the clinical rule on the same cases, sorted by case; empty where the rule does not apply.
      curves: for each fold, the lines of its metrics.jsonl.
      notes: what a reader must know about the folds' predictions, one sentence each.
      calibration: calibration.json, see `calibration.summarise`; None for runs of earlier versions.
    """

    workdir: epath.Path
    name: str
    config: dict[str, Any]
    data: dict[str, Any]
    folds: list[list[str]]
    rows: list[Row]
    rule: list[Row]
    curves: list[list[dict[str, float]]]
    notes: list[str] = dataclasses.field(default_factory=list)
    calibration: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", sorted(self.rows, key=_case_name))
        object.__setattr__(self, "rule", sorted(self.rule, key=_case_name))


def _case_name(row: Row) -> str:
    return row["case"]


def read_run(workdir: epath.PathLike) -> Run:
    """Reads a finished run.

    Raises:
      InputError: the folder holds no run, or one of its files is missing or damaged.
    """
    workdir = files.location(workdir)
    check_seal(workdir)
    config, data, folds = (files.read_json_like(workdir / name, form) for name, form in _FORMS.items())
    rule = workdir / "clinical_rule.csv"
    return Run(
        workdir=workdir,
        name=str(config["name"]),
        config=config,
        data=data,
        folds=folds,
        rows=_read_rows(workdir / "cases.csv", folds, data["classes"]),
        rule=_read_rows(rule, folds, data["classes"]) if rule.exists() else [],
        curves=[_read_lines(workdir / f"fold_{fold}" / "metrics.jsonl") for fold in range(len(folds))],
        notes=[line for fold in range(len(folds)) for line in _read_notes(workdir / f"fold_{fold}" / "notes.txt")],
        calibration=_read_calibration(workdir / "calibration.json", data["classes"]),
    )


def seal(workdir: epath.Path) -> None:
    """Marks a run as finished: writes the checksums of its files to DONE."""
    files.write_json(workdir / "DONE", {name: checksum for name in SEALED if (checksum := _checksum(workdir / name))})


def check_seal(workdir: epath.Path) -> None:
    """Raises an InputError if a file differs from its checksum in DONE, which is empty in runs of earlier versions."""
    path = workdir / "DONE"
    if not path.exists() or not path.read_bytes():
        return
    expected = files.read_json_like(path, {})
    for name in SEALED:
        if expected.get(name) != _checksum(workdir / name):
            raise InputError(f"{workdir / name}: found other content than when the run ended, expected it unchanged")


def _checksum(path: epath.Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _read_rows(path: epath.Path, folds: Sequence[Sequence[str]], classes: Sequence[str]) -> list[Row]:
    """The rows of a cases.csv; an InputError unless it has one for each case of the folds and each class, in order."""
    rows = scores.read_cases_csv(path)
    names = [*classes, WHOLE_LESION] if len(classes) > 1 else classes
    expected = [(case, fold, name) for fold, cases in enumerate(folds) for case in cases for name in names]
    if [(row["case"], row["fold"], row["class"]) for row in rows] != expected:
        raise InputError(
            f"{path}: found {len(rows)} rows, expected those of the cases in folds.json and the classes in data.json, "
            f"{len(expected)} rows in their order"
        )
    return rows


def _read_calibration(path: epath.Path, classes: Sequence[str]) -> dict[str, Any] | None:
    form = {"cases": int, "confidence": _CURVE, "classes": dict.fromkeys(classes, _CURVE)}
    return files.read_json_like(path, form) if path.exists() else None


def _read_notes(path: epath.Path) -> list[str]:
    return path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []


def _read_lines(path: epath.Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: found a line that is not JSON, expected the file as it was written") from error
    for line in lines:
        values = dict.fromkeys(line if isinstance(line, dict) else (), (int, float, type(None)))
        wrong = files.misfit(line, values | {"step": int})
        if wrong:
            raise InputError(
                f"{path}: found {' '.join(wrong.split())}, expected numbers"
            )  # a name may hold a line break
    return lines


# --- several runs side by side ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs on the same data, and the systems compared: the runs and, where it applies, the clinical rule.

    Attributes:
      runs: by label; a label is the run's name, with its workdir where two runs have one name.
      rows: scores of each system by label, the clinical rule first, all on the same cases in the same order.
      classes: names of the classes scored, with the whole lesion last if there are several.
      reference: label of the system that the others are compared with.
    """

    runs: dict[str, Run]
    rows: dict[str, list[Row]]
    classes: list[str]
    reference: str

    @property
    def first(self) -> Run:
        """The first run, for what all runs share: cases, folds and data."""
        return next(iter(self.runs.values()))

    @property
    def case_names(self) -> list[str]:
        """Names of the cases, sorted."""
        return list(dict.fromkeys(row["case"] for row in self.first.rows))

    @property
    def comparisons(self) -> int:
        """The number of systems compared with the reference."""
        return len(self.rows) - 1


def name_of(path: str) -> str:
    """The last part of a path; the page may be passed on, and a whole path reveals how the machine is organised."""
    return epath.Path(path).name if path else ""


def design(run: Run) -> str:
    """How the cases of a run are divided into folds, in one sentence."""
    cases = run.data["cases"]
    names = [name for fold in run.folds for name in fold]
    patients = len({cases.get(name, {}).get("patient", name) for name in names})
    of_patients = f" of {patients} patients" * (patients < len(names))
    by = run.config.get("folds_by", "patient")
    by = f"with the folds of {name_of(by)}" if by.endswith(".json") else f"by {by}"
    return f"{len(names)} cases{of_patients}, {len(run.folds)}-fold cross-validation {by}."


def origins(run: Run) -> list[str]:
    """What the networks of a run worked on and started from, where that is not the usual: one sentence each."""
    sentences, grid, train = [], run.data.get("grid", {}), run.config.get("train", {})
    if grid.get("crop"):
        sides = " x ".join(f"{side:.3g}" for side in grid["spacing_mm"])
        sentences.append(
            f"{run.name} worked on voxels of {sides} mm, in the plane only where slices are thick; its predictions and "
            "scores are on each case's own grid."
        )
    if train.get("init"):
        sentences.append(f"{run.name} started from {name_of(train['init'])} (SHA-256 {train['init_sha256']}).")
    return sentences


def make_study(runs: Sequence[Run], reference: str | None = None) -> Study:
    """Puts runs side by side.

    Args:
      runs: one or more, on the same data.
      reference: label of the system that the others are compared with. None: with a single run the clinical rule if it
        applies; with several "proposed", or else the first run.

    Raises:
      InputError: there is no run; the runs are not on the same data; no system has the label `reference`.
    """
    if not runs:
        raise InputError("found no run, expected at least one")
    first = runs[0]
    for run in runs[1:]:
        if run.data["cases"] != first.data["cases"] or _keys(run.rows) != _keys(first.rows):
            raise InputError(
                f"{run.workdir}: found other cases than in {first.workdir}, expected runs on the same data"
            )
    places = [str(run.workdir) for run in runs]
    twice = [place for place in places if places.count(place) > 1]
    if twice:
        raise InputError(f"{twice[0]}: found the run twice, expected each run once")
    labels = [run.name for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{run.name} ({run.workdir})" for run in runs]
    by_label = dict(zip(labels, runs, strict=True))
    rule = {RULE: first.rule} if _keys(first.rule) == _keys(first.rows) else {}
    rows = rule | {label: run.rows for label, run in by_label.items()}
    if reference is None:
        reference = next(iter(rows)) if len(runs) == 1 else "proposed" if "proposed" in rows else labels[0]
    if reference not in rows:
        raise InputError(f"found no row called {reference!r} to compare with, expected one of {', '.join(rows)}")
    return Study(by_label, rows, list(dict.fromkeys(row["class"] for row in first.rows)), reference)


def _keys(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(row["case"], row["class"]) for row in rows]


def dice_of(rows: Sequence[Row], class_name: str) -> list[float]:
    """Dice of each case for one class, in the order of the rows."""
    return [row["dice"] for row in rows if row["class"] == class_name]


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over the cases of a fold, then over folds; the standard deviation and the 95% interval over cases."""

    mean: float
    std: float
    low: float
    high: float


def dice_means(rows: Mapping[str, Sequence[Row]], class_name: str) -> dict[str, Mean]:
    """Dice of one class for each system; `std` is nan if there is a single case."""
    means = {}
    for label, system_rows in rows.items():
        class_rows = [row for row in system_rows if row["class"] == class_name]
        summary = scores.summarise(class_rows)["classes"][class_name]["dice"]
        std = math.nan if summary["std"] is None else summary["std"]
        interval = statistics.interval(dice_of(class_rows, class_name), (0.0, 1.0))
        means[label] = Mean(summary["mean"], std, *interval)
    return means


def factors_of(run: Run) -> tuple[bool, bool, bool]:
    """The run's cell of the 2 x 2 x 2 design, in the order of `statistics.FACTORS`."""
    config = run.config
    overlap = config["loss"]["lovasz"] > 0 and config["loss"]["boundary"] > 0
    return bool(config["model"]["residual"]), bool(config["discriminator"]["enabled"]), bool(overlap)


def design_effects(study: Study) -> dict[str, dict[str, tuple[float, float, float]]]:
    """`statistics.main_effects` on the Dice of each class; empty unless the runs are the eight cells of the design."""
    cells = {factors_of(run): run.rows for run in study.runs.values()}
    if not len(cells) == len(study.runs) == 8:
        return {}
    return {
        name: statistics.main_effects({cell: dice_of(rows, name) for cell, rows in cells.items()})
        for name in study.classes
    }


def compare(study: Study, class_name: str) -> dict[str, statistics.Comparison]:
    """Each other system minus the reference, on one class's Dice, with Holm's correction over the systems."""
    dice = {label: dice_of(rows, class_name) for label, rows in study.rows.items()}
    reference = dice.pop(study.reference)
    return statistics.compare(dice, reference) if dice else {}


def paper_dice(label: str, class_name: str) -> float | None:
    """The Dice in the paper's Table 1, or None where the table has no such system or class."""
    return PAPER.get(label.split(" (")[0], {}).get(class_name)


def format_p(p: float) -> str:
    """A p value as it is printed."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
