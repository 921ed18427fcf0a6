"""Finished runs as read from their workdirs, and the comparison of several of them."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

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
    """

    workdir: epath.Path
    name: str
    config: dict[str, Any]
    data: dict[str, Any]
    folds: list[list[str]]
    rows: list[Row]
    rule: list[Row]
    curves: list[list[dict[str, float]]]

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
    config, data, folds = (_read_json(workdir / name) for name in ("config.json", "data.json", "folds.json"))
    rule = workdir / "clinical_rule.csv"
    return Run(
        workdir=workdir,
        name=str(config["name"]),
        config=config,
        data=data,
        folds=folds,
        rows=scores.read_cases_csv(workdir / "cases.csv"),
        rule=scores.read_cases_csv(rule) if rule.exists() else [],
        curves=[_read_lines(workdir / f"fold_{fold}" / "metrics.jsonl") for fold in range(len(folds))],
    )


def _read_json(path: epath.Path) -> Any:
    try:
        return files.read_json(path)
    except OSError as error:
        raise InputError(f"{path}: found no readable file, expected a finished run in this folder") from error
    except ValueError as error:
        raise InputError(f"{path}: found no JSON, expected the file as it was written") from error


def _read_lines(path: epath.Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise InputError(f"{path}: found a line that is not JSON, expected the file as it was written") from error


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


def limitations(study: Study) -> list[str]:
    """What so few cases cannot show, one sentence each."""
    cases, comparisons = len(study.case_names), study.comparisons
    smallest = min(1.0, max(comparisons, 1) * statistics.smallest_wilcoxon_p(cases))
    sentences = [
        "Intervals and tests resample cases, not trainings: they do not count the spread between seeds, and the folds' "
        "networks share training cases.",
        # Simulated with this package's own intervals: Dice from a skewed distribution, or 0 for one case in twenty.
        "Where about one lesion in twenty is missed altogether, a 95% interval from 9 to 30 cases covers the true mean "
        "in only 88 to 90% of studies.",
    ]
    if comparisons:
        sentences.append(
            "A difference that is not significant may still be real: a difference smaller than 1.4 times the "
            "half-width of its interval is missed in more than one study of five, even before Holm's correction."
        )
    if comparisons and smallest > 0.05:
        sentences.append(
            f"With {cases} cases and {comparisons} comparisons the Wilcoxon test cannot give p below {smallest:.2g}: "
            "it can find no difference significant, however large."
        )
    if cases < 10:
        sentences.append(f"{cases} cases are too few for more than a rough estimate of the spread.")
    return sentences


def notes(study: Study) -> list[str]:
    """What a reader of the table must know, `limitations` included; one or two sentences each."""
    first = study.first
    texts = [
        "± standard deviation over cases; [95% bootstrap interval of the mean]. If both masks are empty, Dice is 1 and "
        "distances are 0; if one is empty, Dice is 0 and distances are the image's diagonal."
    ]
    empty = sum(row["volume_true_ml"] == 0 for row in first.rows)
    missed = {
        label: sum(row["volume_pred_ml"] == 0 < row["volume_true_ml"] for row in run.rows)
        for label, run in study.runs.items()
    }
    if empty or any(missed.values()):
        counts = ", ".join(f"{count} by {label}" for label, count in missed.items())
        texts.append(f"Empty references: {empty} over all cases and classes; lesions missed altogether: {counts}.")
    if any(paper_dice(label, name) for label in study.rows for name in study.classes):
        other = " The data here are another set: compare systems, not numbers." if first.data["phantom"] else ""
        texts.append(f"* Table 1 of the paper: 30 cases of ISLES-2015 SPES in the paper's own three folds.{other}")
    return [*texts, *limitations(study)]
