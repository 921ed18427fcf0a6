"""Intervals of means over cases, and paired tests between systems.

Each case gives one number, and a mean is taken over cases. Cases are resampled; trainings are not. So an interval says
how the mean would change with other patients, but not with another seed. The random numbers are always the same, so a
page is reproducible.
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
    """Two systems on the same cases: the mean difference, its interval, and the two-sided p values of two tests."""

    difference: float
    low: float
    high: float
    wilcoxon: float
    bootstrap: float


def interval(values: Values, bounds: tuple[float, float] = (-np.inf, np.inf)) -> tuple[float, float]:
    """The studentised bootstrap interval of the mean (Efron and Tibshirani 1993, section 12.5), at `LEVEL`.

    Unlike the percentile interval it is wide enough for small and skewed samples, which are usual for Dice. With very
    few values it is as wide as `bounds`.

    Args:
      values: one for each case.
      bounds: the smallest and the largest possible mean: (0, 1) for Dice, (-1, 1) for differences of Dice.

    Returns:
      The lower and the upper end; `bounds` for a single value.
    """
    cases = np.asarray(values, dtype=np.float64)
    if len(cases) < 2:
        return bounds
    mean = cases.mean()
    error = _standard_error(cases)
    if error == 0:
        return float(mean), float(mean)
    pivots = _pivots(cases)
    # Interpolation between infinite pivots would give nan, so take the order statistic on the outer side.
    lower = np.quantile(pivots, (1 - LEVEL) / 2, method="lower")
    upper = np.quantile(pivots, (1 + LEVEL) / 2, method="higher")
    return float(np.clip(mean - upper * error, *bounds)), float(np.clip(mean - lower * error, *bounds))


def bootstrap_p(differences: Values) -> float:
    """Two-sided p of the bootstrap test that the mean is 0, from the resamples of `interval`; 1 if no case differs."""
    values = np.asarray(differences, dtype=np.float64)
    if not values.any() or len(values) < 2:
        return 1.0
    error = _standard_error(values)
    observed = np.inf if error == 0 else abs(values.mean()) / error
    return float((1 + np.sum(np.abs(_pivots(values)) >= observed)) / (1 + RESAMPLES))


def _standard_error(values: np.ndarray, axis: int = -1) -> np.ndarray:
    error = values.std(axis=axis, ddof=1) / np.sqrt(values.shape[axis])
    # The standard deviation of equal values may be a rounding error instead of 0.
    return np.where(np.ptp(values, axis=axis) == 0, 0.0, error)


def _pivots(values: np.ndarray) -> np.ndarray:
    """(mean of a resample - mean) / its standard error, [RESAMPLES]; infinite where a resample has no spread."""
    rng = np.random.default_rng(SEED)
    drawn = values[rng.integers(0, len(values), size=(RESAMPLES, len(values)))]
    error = _standard_error(drawn)
    shift = drawn.mean(axis=1) - values.mean()
    shift[np.abs(shift) < 1e-12] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(shift == 0, 0.0, shift / error)


def wilcoxon_p(differences: Values) -> float:
    """Two-sided p of the Wilcoxon signed-rank test; cases without a difference are dropped.

    The test is exact for up to 50 differences without ties, and uses the normal approximation otherwise.
    """
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if not len(values):
        return 1.0
    exact = len(values) <= 50 and len(np.unique(np.abs(values))) == len(values)
    method = "exact" if exact else "asymptotic"
    return float(stats.wilcoxon(values, method=method).pvalue)  # type: ignore[call-overload]  # lacks "asymptotic"


def smallest_wilcoxon_p(cases: int) -> float:
    """The smallest two-sided p that the signed-rank test can give for a number of cases."""
    return min(1.0, 2.0 ** (1 - cases))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values after Holm's step-down correction for several hypotheses, in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order.tolist()):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def compare(systems: Mapping[str, Sequence[float]], reference: Sequence[float]) -> dict[str, Comparison]:
    """The Dice of each system minus that of the reference, with Holm's correction over the systems.

    All hold the Dice of each case, and the order of the cases is the same everywhere.
    """
    differences = {name: np.subtract(values, reference) for name, values in systems.items()}
    wilcoxon = holm([wilcoxon_p(values) for values in differences.values()])
    bootstrap = holm([bootstrap_p(values) for values in differences.values()])
    return {
        name: Comparison(float(values.mean()), *interval(values, (-1.0, 1.0)), one, two)
        for (name, values), one, two in zip(differences.items(), wilcoxon, bootstrap, strict=True)
    }


def main_effects(cells: Mapping[tuple[bool, bool, bool], Sequence[float]]) -> dict[str, tuple[float, float, float]]:
    """The mean of `case_effects` over the cases and its interval, {factor: (mean, lower end, upper end)}."""
    effects = case_effects({cell: np.asarray(values) for cell, values in cells.items()})
    return {factor: (float(each.mean()), *interval(each, (-1.0, 1.0))) for factor, each in effects.items()}


def case_effects(cells: Mapping[tuple[bool, bool, bool], np.ndarray]) -> dict[str, np.ndarray]:
    """The effect of each factor on each case: the mean of the four cells with it minus that of the four without it.

    Args:
      cells: Dice for the eight combinations of `FACTORS`: arrays of one shape whose last axis is the case.
    """
    effects = {}
    for axis, factor in enumerate(FACTORS):
        on = [values for cell, values in cells.items() if cell[axis]]
        off = [values for cell, values in cells.items() if not cell[axis]]
        effects[factor] = np.mean(on, axis=0) - np.mean(off, axis=0)
    return effects
