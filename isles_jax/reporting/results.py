"""Finished runs as read from their workdirs, and what is compared in a table of them."""

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
EMPTY_RULE = "both masks empty: Dice 1, distances 0; one empty: Dice 0, distances the image's diagonal"

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
      workdir: where it lies.
      name: the config's name.
      config: config.json.
      data: data.json, with "phantom", "classes", "channels", "label_values" and "cases" (facts of each case by name).
      folds: names of the held-out cases of each fold.
      rows: scores, as `scores.read_cases_csv` gives them.
      rule: scores of the clinical rule on the same cases; empty where it does not apply.
      curves: for each fold, its lines of metrics.jsonl.
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
        object.__setattr__(self, "rows", sorted(self.rows, key=_order))
        object.__setattr__(self, "rule", sorted(self.rule, key=_order))


def _order(row: Row) -> str:
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
        raise InputError(f"{path}: found a line that is no JSON, expected the file as it was written") from error


# --- the systems of a table ------------------------------------------------------------------------------------------


def systems(runs: Sequence[Run]) -> dict[str, list[Row]]:
    """The rows of each system by its unique label, the clinical rule first, all on the same cases.

    Raises:
      InputError: no run; the runs are not on the same data.
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
    with_rule = {RULE: first.rule} if _keys(first.rule) == _keys(first.rows) else {}
    return with_rule | {label: run.rows for label, run in zip(labels, runs, strict=True)}


def _keys(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(row["case"], row["class"]) for row in rows]


def dice_of(rows: Sequence[Row], word: str) -> list[float]:
    """Dice of each case for one class, by case name."""
    return [row["dice"] for row in rows if row["class"] == word]


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over the cases of a fold, then over folds; the standard deviation and the 95% interval over cases."""

    mean: float
    std: float
    low: float
    high: float


def dice_means(rows: Mapping[str, Sequence[Row]], word: str) -> dict[str, Mean]:
    """Dice of one class for each system; `std` is nan of a single case."""
    means = {}
    for label, mine in rows.items():
        mine = [row for row in mine if row["class"] == word]
        summary = scores.summarise(mine)["classes"][word]["dice"]
        std = math.nan if summary["std"] is None else summary["std"]
        means[label] = Mean(summary["mean"], std, *statistics.interval(dice_of(mine, word), (0.0, 1.0)))
    return means


def factors_of(run: Run) -> tuple[bool, bool, bool]:
    """The run's cell of the 2 x 2 x 2 design, in the order of `statistics.FACTORS`."""
    config = run.config
    overlap = config["loss"]["lovasz"] > 0 and config["loss"]["boundary"] > 0
    return bool(config["model"]["residual"]), bool(config["discriminator"]["enabled"]), bool(overlap)


def design_effects(runs: Sequence[Run], word: str) -> dict[str, tuple[float, float, float]] | None:
    """`statistics.main_effects` on a class's Dice if the runs are the eight cells of the design, else None."""
    cells = {factors_of(run): dice_of(run.rows, word) for run in runs}
    return statistics.main_effects(cells) if len(cells) == len(runs) == 8 else None


def reference_of(runs: Sequence[Run], reference: str | None) -> str:
    """The row that the others are compared with: `reference`; else the clinical rule for one run; else "proposed".

    Raises:
      InputError: no row is called `reference`.
    """
    labels = list(systems(runs))
    if reference is not None and reference not in labels:
        raise InputError(f"found no row called {reference!r} to compare with, expected one of {', '.join(labels)}")
    if reference is not None or len(runs) == 1:
        return reference or labels[0]
    return "proposed" if "proposed" in labels else labels[-len(runs)]


def compare(runs: Sequence[Run], word: str, reference: str) -> dict[str, statistics.Comparison]:
    """Each other row minus the row `reference`, on one class's Dice, with Holm's correction over the rows."""
    dice = {label: dice_of(rows, word) for label, rows in systems(runs).items()}
    base = dice.pop(reference)
    return statistics.compare(dice, base) if dice else {}


def paper_dice(label: str, word: str) -> float | None:
    """The paper's Table 1 for a system and class, if it is in there."""
    return PAPER.get(label.split(" (")[0], {}).get(word)


def data_words(run: Run) -> str:
    """What the run's data are, for a reader who compares them with the paper's."""
    return "the built-in phantom, not patients" if run.data["phantom"] else f"{run.config['data']['root']}"


def caveats(runs: Sequence[Run], compared: int) -> list[str]:
    """What so few cases cannot show, one sentence each.

    Args:
      runs: of the table.
      compared: the number of rows compared with the reference.
    """
    cases = len({row["case"] for row in runs[0].rows})
    smallest = min(1.0, max(compared, 1) * statistics.smallest_wilcoxon_p(cases))
    said = [
        "Intervals and tests resample cases, not trainings: another seed is another source of spread, not counted, and "
        "the folds' networks share training cases.",
        # Simulated with this package's own intervals: Dice from a skewed distribution, or 0 for one case in twenty.
        "Where about one lesion in twenty is missed altogether, a 95% interval from 9 to 30 cases covers the true mean "
        "in 88 to 90% of such studies only.",
    ]
    if compared:
        said.append(
            "A difference that is not significant may still be there: one smaller than 1.4 times the half-width of its "
            "interval is overlooked in more than one study of five, before Holm's correction."
        )
    if compared and smallest > 0.05:
        said.append(
            f"With {cases} cases and {compared} comparisons the Wilcoxon test cannot give p below {smallest:.2g}: "
            "no difference, however large, can be significant by it."
        )
    if cases < 10:
        said.append(f"{cases} cases are too few for more than a rough guess at spread.")
    return said


def p_words(p: float) -> str:
    """A p value as it is printed."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def notes(runs: Sequence[Run], compared: int) -> list[str]:
    """What a reader of the table must know, `caveats` included; a sentence or two each."""
    said = [f"± standard deviation over cases; [95% bootstrap interval of the mean]; {EMPTY_RULE}."]
    empty = sum(row["volume_true_ml"] == 0 for row in runs[0].rows)
    missed = {run.name: sum(row["volume_pred_ml"] == 0 < row["volume_true_ml"] for row in run.rows) for run in runs}
    if empty or any(missed.values()):
        told = ", ".join(f"{count} by {name}" for name, count in missed.items())
        said.append(f"Empty references: {empty} (of all cases and classes); lesions missed altogether: {told}.")
    if any(run.name in PAPER for run in runs):
        where = " This run's data are another set: compare systems, not numbers." if runs[0].data["phantom"] else ""
        said.append(f"* Table 1 of the paper: 30 cases of ISLES-2015 SPES, three folds of its own.{where}")
    return [*said, *caveats(runs, compared)]
