"""Several runs side by side: their labels, their mean Dice, their differences, and the paper's numbers."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from isles_jax.config import SUPERVISED, baseline
from isles_jax.data import profile
from isles_jax.data.isles import CHANNELS
from isles_jax.metrics import Measure
from isles_jax.runtime.command import InputError
from isles_jax.scoring import scores, statistics
from isles_jax.scoring.run_files import Run
from isles_jax.scoring.scores import Row

# Table 1 of Rajan, Sathish and Sheet: Dice of each system on ISLES-2015 SPES, mean of three folds. The systems are in
# the order of the design's cells, (residual, adversarial, overlap) from (False, False, False) on.
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
CELLS = dict(zip(PAPER, itertools.product((False, True), repeat=3), strict=True))
# The paper's data, the training cases of ISLES-2015 SPES, and the width of its networks.
PAPER_CASES = 30
PAPER_WIDTH = 64
RULE = "clinical rule"


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
    def measures(self) -> tuple[Measure, ...]:
        """The measures that are known of every system."""
        return scores.measures_of([row for rows in self.rows.values() for row in rows])

    def paper(self, label: str, class_name: str) -> float | None:
        """The Dice of a system in the paper's Table 1; None beside other data or another network than the paper's."""
        run = self.runs.get(label)
        if run is None or run.data["phantom"] or run.config.model.width != PAPER_WIDTH:
            return None
        if tuple(run.data["channels"]) != CHANNELS or len(self.case_names) != PAPER_CASES:
            return None
        return paper_dice(run, class_name)


def paper_dice(run: Run, class_name: str) -> float | None:
    """The Dice of the system with a run's name in the paper's Table 1; None unless the run has its parts and losses."""
    cell = CELLS.get(run.name)
    if cell is None or run.config.model.network != "sumnet" or factors_of(run) != cell:
        return None
    residual, adversarial, overlap = cell
    weights = baseline(residual=residual, adversarial=adversarial, overlap=overlap).loss
    if any(bool(run.config.loss[name]) != bool(weights[name]) for name in SUPERVISED):
        return None
    return PAPER[run.name].get(class_name)


def make_study(runs: Sequence[Run], reference: str | None = None) -> Study:
    """Puts one or more runs on the same data side by side.

    Args:
      runs: from `run_files.read_run`.
      reference: label of the system that the others are compared with. None: the clinical rule for a single run, if the
        rule applies; "proposed" for several runs, if it is among them; otherwise the first run.

    Raises:
      InputError: there is no run; the runs are not on the same data; no system has the label `reference`.
    """
    if not runs:
        raise InputError("found no run, expected at least one")
    first = runs[0]
    for run in runs[1:]:
        other = "cases" if profile.differing(run.data["cases"], first.data["cases"]) else "scored cases or classes"
        if other == "cases" or _keys(run.rows) != _keys(first.rows):
            raise InputError(
                f"{run.workdir}: found other {other} than in {first.workdir}, expected runs on the same data"
            )
    places = [str(run.workdir) for run in runs]
    real = [str(run.workdir.resolve()) for run in runs]
    twice = [place for place, target in zip(places, real, strict=True) if real.count(target) > 1]
    if twice:
        raise InputError(f"{twice[-1]}: found the run twice, expected each run once")
    labels = [run.name for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{run.name} ({place})" for run, place in zip(runs, places, strict=True)]
    by_label = dict(zip(labels, runs, strict=True))
    rule = {RULE: first.rule} if _keys(first.rule) == _keys(first.rows) else {}
    rows = rule | {label: run.rows for label, run in by_label.items()}
    if reference is None and len(runs) == 1:
        reference = next(iter(rows))
    elif reference is None:
        reference = "proposed" if "proposed" in rows else labels[0]
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
    """The mean over the folds of each fold's mean, with the standard deviation and the 95% interval over cases."""

    mean: float
    std: float
    interval: statistics.Interval


def dice_means(rows: Mapping[str, Sequence[Row]], class_name: str) -> dict[str, Mean]:
    """Dice of one class for each system; `std` is nan if there is a single case."""
    means = {}
    for label, system_rows in rows.items():
        dice = scores.means(system_rows)["classes"][class_name]["dice"]
        std = math.nan if dice["std"] is None else dice["std"]
        folds = [row["fold"] for row in system_rows if row["class"] == class_name]
        weights = [1 / (len(set(folds)) * folds.count(fold)) for fold in folds]
        interval = statistics.interval(dice_of(system_rows, class_name), weights)
        means[label] = Mean(dice["mean"], std, interval)
    return means


def factors_of(run: Run) -> tuple[bool, bool, bool]:
    """The run's cell of the 2 x 2 x 2 design, in the order of `statistics.FACTORS`."""
    config = run.config
    adversarial = bool(config.discriminator.enabled and config.loss.adversarial)
    overlap = bool(config.loss.lovasz > 0 and config.loss.boundary > 0)
    return bool(config.model.residual), adversarial, overlap


def design_effects(study: Study) -> dict[str, dict[str, tuple[float, statistics.Interval]]]:
    """`statistics.main_effects` on the Dice of each class; empty unless the runs are the eight cells of the design."""
    cells = {factors_of(run): run.rows for run in study.runs.values()}
    if not len(cells) == len(study.runs) == 8:
        return {}
    return {
        name: statistics.main_effects({cell: dice_of(rows, name) for cell, rows in cells.items()})
        for name in study.classes
    }


def compare(study: Study, class_name: str) -> dict[str, statistics.Comparison]:
    """The Dice of each other system minus that of the reference, with Holm's correction over the systems."""
    dice = {label: dice_of(rows, class_name) for label, rows in study.rows.items()}
    reference = dice.pop(study.reference)
    return statistics.compare(dice, reference)


def differences(study: Study) -> list[tuple[str, str, statistics.Comparison]]:
    """`compare` on every class, as (system, class, comparison); the classes of a system stand together."""
    compared = {name: compare(study, name) for name in study.classes}
    others = [label for label in study.rows if label != study.reference]
    return [(label, name, compared[name][label]) for label in others for name in study.classes]


def other_means(study: Study) -> tuple[list[Measure], list[tuple[str, str, list[float]]]]:
    """The measures beside Dice, and their means as (system, class, mean of each measure)."""
    measures = [measure for measure in study.measures if measure.in_means and measure.name != "dice"]
    found = []
    for label, rows in study.rows.items():
        means = scores.means(rows)["classes"]
        for name in study.classes:
            found.append((label, name, [means[name][measure.name]["mean"] for measure in measures]))
    return measures, found


def format_mean(mean: float, interval: statistics.Interval, sign: str = "") -> str:
    """A mean with its interval in brackets, if it has one; `sign` is "+" for differences."""
    return f"{mean:{sign}.3f} {format_interval(interval, sign)}".rstrip()


def format_interval(interval: statistics.Interval, sign: str = "") -> str:
    """An interval in brackets; "" if there is none."""
    return "" if interval is None else f"[{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def format_p(p: float) -> str:
    """A p value as it is printed."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
