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
# The whole range of so many cases holds the median of their distribution in 1 - 2^(1 - cases) of all studies. For five
# cases, these are 94%, so that no interval within the range can be a 95% one.
LEAST_CASES = 6
FACTORS = ("residual", "adversarial", "overlap")

Values = Sequence[float] | np.ndarray
# The lower and the upper end; None where the cases are too few.
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same cases: the mean difference, its interval, and the two-sided p values of two tests."""

    difference: float
    interval: Interval
    wilcoxon: float
    bootstrap: float


def interval(values: Values, weights: Values | None = None) -> Interval:
    """The symmetric studentised bootstrap interval of a mean (Hall, J R Stat Soc B 1988;50:35), at `LEVEL`.

    Its half-width is the standard error times the quantile of the bootstrap's |pivots|, so that it tells the same as
    `bootstrap_p`. It ends where the range of the cases ends.

    Args:
      values: one for each case.
      weights: of the cases in the mean, with a sum of 1; None: all alike.

    Returns:
      The lower and the upper end. None for fewer than `LEAST_CASES` cases, and if all cases have one value, because
      such cases do not show a spread.
    """
    cases = np.asarray(values, dtype=np.float64)
    if len(cases) < LEAST_CASES or np.ptp(cases) == 0:
        return None
    shares = np.full(len(cases), 1 / len(cases)) if weights is None else np.asarray(weights, dtype=np.float64)
    mean = cases @ shares
    error = cases.std(ddof=1) * np.sqrt((shares**2).sum())
    # Interpolation between infinite pivots would give nan, so take the order statistic on the outer side.
    half = error * np.quantile(np.abs(_pivots(cases)), LEVEL, method="higher")
    return float(max(mean - half, cases.min())), float(min(mean + half, cases.max()))


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
        name: Comparison(float(values.mean()), interval(values), one, two)
        for (name, values), one, two in zip(differences.items(), wilcoxon, bootstrap, strict=True)
    }


def main_effects(cells: Mapping[tuple[bool, bool, bool], Sequence[float]]) -> dict[str, tuple[float, Interval]]:
    """The mean of `case_effects` over the cases and its interval, by factor."""
    effects = case_effects({cell: np.asarray(values) for cell, values in cells.items()})
    return {factor: (float(each.mean()), interval(each)) for factor, each in effects.items()}


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
