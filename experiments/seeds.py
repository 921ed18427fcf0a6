"""What several seeds add to a comparison: how much of a difference is the luck of a training."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from isles_jax.scoring import comparison, statistics
from isles_jax.scoring.run_files import Run


@dataclasses.dataclass(frozen=True)
class Crossed:
    """A mean over seeds and cases.

    Attributes:
      mean: over both.
      std: the standard deviation over seeds of the mean over cases.
      interval: the 95% interval for other seeds and other cases; None for too few cases.
      p: of the two-sided test that the mean is 0.
    """

    mean: float
    std: float
    interval: statistics.Interval
    p: float


def crossed(values: np.ndarray) -> Crossed:
    """The mean of values [seeds, cases], with seeds and cases both as random draws (a crossed random-effects model).

    The variance of the mean comes from the mean squares of the two-way analysis of variance without repetition, and its
    degrees of freedom from Satterthwaite (1946). The values are Dice or differences of Dice, so that the interval ends
    at -1 and 1. Two seeds or more, and two cases or more.
    """
    from scipy import stats

    seeds, cases = values.shape
    mean = values.mean()
    of_seed = values.mean(axis=1)
    of_case = values.mean(axis=0)
    rest = values - of_seed[:, None] - of_case + mean
    degrees = np.array([seeds - 1, cases - 1, (seeds - 1) * (cases - 1)])
    sums = np.array([cases * ((of_seed - mean) ** 2).sum(), seeds * ((of_case - mean) ** 2).sum(), (rest**2).sum()])
    squares = sums / degrees
    # The squares of seeds and of cases each contain those of the rest, which must count once. The sum is never below
    # one of the two.
    total = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    if total <= 1e-24:
        return Crossed(float(mean), 0.0, None, float(np.isclose(mean, 0)))
    freedom = total**2 / (squares**2 / degrees).sum()
    error = np.sqrt(total / (seeds * cases))
    half = error * stats.t.ppf((1 + statistics.LEVEL) / 2, freedom)
    p = 2 * stats.t.sf(abs(mean) / error, freedom)
    ends = float(max(mean - half, -1.0)), float(min(mean + half, 1.0))
    return Crossed(float(mean), float(of_seed.std(ddof=1)), ends if cases >= statistics.LEAST_CASES else None, float(p))


def dice(runs: Sequence[Run], class_name: str) -> np.ndarray:
    """Dice of one class in the runs of one row, one for each seed: [seeds, cases]."""
    return np.array([comparison.dice_of(run.rows, class_name) for run in runs])
