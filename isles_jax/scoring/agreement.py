"""Agreement of two measurements of the same cases: volumes, and the decision that follows from them.

docs/scores.md has the definitions and their sources.
"""

from collections.abc import Sequence

import numpy as np

from isles_jax.scoring.statistics import LEAST_CASES, Interval, Values

# The thresholds of DEFUSE 3 (Albers et al., N Engl J Med 2018;378:708).
CORE_BELOW_ML = 70
RATIO_AT_LEAST = 1.8
MISMATCH_AT_LEAST_ML = 15


def limits(changes: Values) -> Interval:
    """The 95% limits of agreement of differences (Bland and Altman, Lancet 1986;327:307).

    Returns:
      The mean difference minus and plus 1.96 standard deviations; None for fewer than `LEAST_CASES` cases.
    """
    if len(changes) < LEAST_CASES:
        return None
    mean, spread = float(np.mean(changes)), 1.96 * float(np.std(changes, ddof=1))
    return mean - spread, mean + spread


def ccc(one: Values, other: Values) -> float | None:
    """Lin's concordance correlation coefficient (Biometrics 1989;45:255) of two measurements of each case.

    Returns:
      1 if all pairs are equal, and less for any shift, scale or scatter. None for fewer than `LEAST_CASES` cases, and
      where both measurements are one constant.
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (one, other))
    if len(first) < LEAST_CASES:
        return None
    size = float(first.var() + second.var() + (first.mean() - second.mean()) ** 2)
    together = float(((first - first.mean()) * (second - second.mean())).mean())
    return 2 * together / size if size else None


def icc(values: np.ndarray) -> float | None:
    """ICC(A,1): absolute agreement of single measurements (McGraw and Wong, Psychol Methods 1996;1:30).

    It is the ICC(2,1) of Shrout and Fleiss (Psychol Bull 1979;86:420).

    Args:
      values: [cases, measurements].

    Returns:
      The share of the variance that lies between cases; None for fewer than `LEAST_CASES` cases, and where all values
      are equal.
    """
    cases, measurements = values.shape
    if cases < LEAST_CASES:
        return None
    of_case, of_measurement = values.mean(axis=1), values.mean(axis=0)
    rest = values - of_case[:, None] - of_measurement + values.mean()
    between = float(measurements * of_case.var(ddof=1))
    columns = float(cases * of_measurement.var(ddof=1))
    error = float((rest**2).sum()) / ((cases - 1) * (measurements - 1))
    size = between + (measurements - 1) * error + measurements * (columns - error) / cases
    return (between - error) / size if size else None


def kappa(one: Sequence[bool], other: Sequence[bool]) -> float | None:
    """Cohen's kappa (Educ Psychol Meas 1960;20:37) of two decisions on each case.

    Returns:
      The agreement beyond chance, 1 at most. None for fewer than `LEAST_CASES` cases, and where both decisions are the
      same for all cases.
    """
    first, second = np.asarray(one, dtype=bool), np.asarray(other, dtype=bool)
    if len(first) < LEAST_CASES:
        return None
    yes, other_yes = float(first.mean()), float(second.mean())
    chance = yes * other_yes + (1 - yes) * (1 - other_yes)
    return (float((first == second).mean()) - chance) / (1 - chance) if chance < 1 else None


def defuse3(core_ml: float, penumbra_ml: float) -> tuple[bool, bool, bool]:
    """Whether volumes meet the thresholds of DEFUSE 3: the core's, the ratio's and the mismatch's.

    Args:
      core_ml: the volume of the core.
      penumbra_ml: the volume of the penumbra without the core, which is the mismatch.
    """
    # Without core, the ratio has no bound, so nothing is divided.
    ratio = core_ml + penumbra_ml >= RATIO_AT_LEAST * core_ml and penumbra_ml > 0
    return core_ml < CORE_BELOW_ML, ratio, penumbra_ml >= MISMATCH_AT_LEAST_ML
