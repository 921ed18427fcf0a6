"""Intervals and tests over cases: what the difference between two systems, or two rows of a table, is worth.

Everything here is about the mean of one number per case. Cases are resampled, trainings are not: an interval says how
the mean would move with other patients, not with another seed. Random numbers are seeded, so a page is reproducible.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 0
FACTORS = ("residual", "adversarial", "overlap")

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Comparison:
    """A system against another on the same cases: mean difference, its interval, two-sided p values of two tests."""

    difference: float
    low: float
    high: float
    wilcoxon: float
    bootstrap: float


def interval(values: Values, bounds: tuple[float, float] = (-np.inf, np.inf)) -> tuple[float, float]:
    """The studentised bootstrap interval of the mean (Efron and Tibshirani 1993, section 12.5), at `LEVEL`.

    Unlike the percentile interval it is wide enough for the small and skewed samples that Dice gives. Of very few
    values it is as wide as `bounds`: they show no more.

    Args:
      values: one for each case.
      bounds: between which the mean must lie; for Dice (0, 1), for differences of Dice (-1, 1).

    Returns:
      The lower and upper end; `bounds` for a single value.
    """
    cases = np.asarray(values, dtype=np.float64)
    if len(cases) < 2:
        return bounds
    mean, error = cases.mean(), _standard_error(cases)
    pivots = _pivots(cases)
    # A quantile between two infinite neighbours must not become nan: take order statistics, outwards.
    low, high = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    upper = np.quantile(pivots, high, method="higher")
    lower = np.quantile(pivots, low, method="lower")
    if error == 0:
        return float(mean), float(mean)
    return float(np.clip(mean - upper * error, *bounds)), float(np.clip(mean - lower * error, *bounds))


def bootstrap_p(differences: Values) -> float:
    """Two-sided p of a mean difference of 0, from the same resamples as `interval`; 1 if no case differs."""
    values = np.asarray(differences, dtype=np.float64)
    error = _standard_error(values) if len(values) > 1 else 0.0
    if not values.any() or len(values) < 2:
        return 1.0
    observed = np.inf if error == 0 else abs(values.mean()) / error
    return float((1 + np.sum(np.abs(_pivots(values)) >= observed)) / (1 + RESAMPLES))


def _standard_error(values: np.ndarray, axis: int = -1) -> np.ndarray:
    error = values.std(axis=axis, ddof=1) / np.sqrt(values.shape[axis])
    # Equal values leave rounding, not spread.
    return np.where(np.ptp(values, axis=axis) == 0, 0.0, error)


def _pivots(values: np.ndarray) -> np.ndarray:
    """(mean of a resample - mean) / its standard error, [RESAMPLES]; infinite where a resample has no spread."""
    rng = np.random.default_rng(SEED)
    drawn = values[rng.integers(0, len(values), size=(RESAMPLES, len(values)))]
    shift, error = drawn.mean(axis=1) - values.mean(), _standard_error(drawn)
    shift[np.abs(shift) < 1e-12] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(shift == 0, 0.0, shift / error)


def wilcoxon_p(differences: Values) -> float:
    """Two-sided p of the Wilcoxon signed-rank test, exact where scipy can; cases without a difference are dropped."""
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if not len(values):
        return 1.0
    exact = len(values) <= 50 and len(np.unique(np.abs(values))) == len(values)
    method = "exact" if exact else "asymptotic"
    return float(stats.wilcoxon(values, method=method).pvalue)  # type: ignore[call-overload]  # lacks "asymptotic"


def smallest_wilcoxon_p(cases: int) -> float:
    """The smallest two-sided p that the signed-rank test can give, whatever the difference."""
    return min(1.0, 2.0 ** (1 - cases))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for testing several hypotheses; in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order.tolist()):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def compare(systems: Mapping[str, Sequence[float]], reference: Sequence[float]) -> dict[str, Comparison]:
    """Each system minus the reference on the same cases, p values corrected with Holm over the systems.

    Args:
      systems: Dice of each case, by name of the system, in the order of `reference`.
      reference: Dice of each case of the row compared with.
    """
    differences = {name: np.subtract(values, reference) for name, values in systems.items()}
    wilcoxon = holm([wilcoxon_p(values) for values in differences.values()])
    bootstrap = holm([bootstrap_p(values) for values in differences.values()])
    return {
        name: Comparison(float(values.mean()), *interval(values, (-1.0, 1.0)), one, two)
        for (name, values), one, two in zip(differences.items(), wilcoxon, bootstrap, strict=True)
    }


def main_effects(cells: Mapping[tuple[bool, bool, bool], Sequence[float]]) -> dict[str, tuple[float, float, float]]:
    """The three main effects of the 2 x 2 x 2 design on Dice.

    The effect of a factor on one case: the mean of the four cells that have it minus that of the four that do not.

    Args:
      cells: Dice of each case, in one order of cases, for the eight combinations of `FACTORS`.

    Returns:
      {factor: (effect, lower end, upper end)}.
    """
    effects = {}
    for axis, factor in enumerate(FACTORS):
        having, lacking = ([values for cell, values in cells.items() if cell[axis] is state] for state in (True, False))
        by_case = np.mean(having, axis=0) - np.mean(lacking, axis=0)
        effects[factor] = (float(by_case.mean()), *interval(by_case, (-1.0, 1.0)))
    return effects
