"""How often the intervals of this package hold the truth, by simulation, beside other intervals.

python -m experiments.intervals

It writes results/intervals.csv and results/volume_intervals.csv within two minutes on one core. It reads no data.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from isles_jax.prediction import expected
from isles_jax.runtime import files
from isles_jax.runtime.command import Parser, run_command
from isles_jax.scoring import statistics

TABLES = tuple(Path(__file__).with_name("results") / name for name in ("intervals.csv", "volume_intervals.csv"))
COLUMNS = ("distribution", "method", "cases", "coverage", "width")
CASES = (3, 4, 5, 6, 8, 12, 24, 60)
STUDIES = 2000
RESAMPLES = 1000
# So many studies are resampled at once, to save memory.
CHUNK = 100
CHOSEN = "symmetric studentised bootstrap"
RATIO = "ratio"
BRAIN_ML = 1300.0
# Volumes are simulated with at least so many cases, because fewer have no interval.
VOLUME_CASES = (9, 12, 24, 60)

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
Ends = tuple[np.ndarray, np.ndarray]
Row = tuple[str, str, int, float, float]


def dice(a: float, b: float, zeros: float = 0.0, ones: float = 0.0) -> tuple[Draw, float]:
    """A beta distribution of Dice with masses at 0 and 1, and its mean."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        values, place = rng.beta(a, b, shape), rng.random(shape)
        return np.where(place < zeros, 0.0, np.where(place >= 1 - ones, 1.0, values))

    return draw, ones + (1 - zeros - ones) * a / (a + b)


def difference(missed: float, found: float) -> tuple[Draw, float]:
    """Paired differences: normal, but for the shares of lesions that only one of the systems misses; and their mean."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        values, large, place = rng.normal(0.02, 0.05, shape), rng.beta(8, 3, shape), rng.random(shape)
        return np.where(place < found, large, np.where(place >= 1 - missed, -large, values))

    return draw, (1 - missed - found) * 0.02 + (found - missed) * 8 / 11


DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "good network": dice(8, 1.5),
    "good network, 5% missed": dice(8, 1.5, zeros=0.05),
    "small lesions, 25% missed": dice(2, 2, zeros=0.25),
    "15% missed, 15% without lesion": dice(3, 2, zeros=0.15, ones=0.15),
    "poor network, 10% missed": dice(1, 15, zeros=0.1),
    "failed network, 60% missed": dice(1, 30, zeros=0.6),
    "difference, normal": difference(0.0, 0.0),
    "difference, 6% missed by one system": difference(0.02, 0.04),
}


def ends(values: np.ndarray, rng: np.random.Generator) -> dict[str, Ends]:
    """Several intervals of the mean at `statistics.LEVEL`, each within the range of the cases.

    Args:
      values: [studies, cases], not all alike in a study.
      rng: draws the resamples.

    Returns:
      {method: (lower ends [studies], upper ends [studies])}.
    """
    count = values.shape[1]
    tails = (1 - statistics.LEVEL) / 2, (1 + statistics.LEVEL) / 2
    mean = values.mean(axis=1)
    error = values.std(axis=1, ddof=1) / np.sqrt(count)
    drawn = values[:, rng.integers(0, count, (RESAMPLES, count))]
    means = drawn.mean(axis=2)
    shift = np.where(np.abs(means - mean[:, None]) < 1e-12, 0.0, means - mean[:, None])
    spread = np.where(np.ptp(drawn, axis=2) == 0, 0.0, drawn.std(axis=2, ddof=1)) / np.sqrt(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        pivots = np.where(shift == 0, 0.0, shift / spread)
    lower = np.quantile(pivots, tails[0], axis=1, method="lower")
    upper = np.quantile(pivots, tails[1], axis=1, method="higher")
    half = error * np.quantile(np.abs(pivots), statistics.LEVEL, axis=1, method="higher")
    student = error * stats.t.ppf(tails[1], count - 1)
    low, high = np.quantile(means, tails, axis=1)
    found = {
        CHOSEN: (mean - half, mean + half),
        "studentised bootstrap, two tails": (mean - upper * error, mean - lower * error),
        "Student's t": (mean - student, mean + student),
        "percentile bootstrap": (low, high),
        "BCa bootstrap": _bca(values, means, tails),
    }
    least, most = values.min(axis=1), values.max(axis=1)
    return {name: (np.maximum(low, least), np.minimum(high, most)) for name, (low, high) in found.items()}


def _bca(values: np.ndarray, means: np.ndarray, tails: tuple[float, float]) -> Ends:
    """The bias-corrected and accelerated interval (Efron and Tibshirani 1993, section 14.3)."""
    mean = values.mean(axis=1, keepdims=True)
    equal = np.abs(means - mean) < 1e-12
    share = ((means < mean) & ~equal).mean(axis=1) + equal.mean(axis=1) / 2
    bias = stats.norm.ppf(np.clip(share, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    change = values - mean
    acceleration = (change**3).sum(axis=1) / (6 * (change**2).sum(axis=1) ** 1.5)
    found = []
    for tail in tails:
        shifted = bias + stats.norm.ppf(tail)
        level = stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
        found.append(np.array([np.quantile(row, one) for row, one in zip(means, level, strict=True)]))
    return found[0], found[1]


def of_means(rng: np.random.Generator) -> list[Row]:
    """The coverage of means: studies whose cases are all alike have no interval and do not count."""
    rows: list[Row] = []
    for name, (draw, truth) in DISTRIBUTIONS.items():
        for count in CASES:
            studies = draw(rng, (STUDIES, count))
            studies = studies[np.ptp(studies, axis=1) > 0]
            parts = [ends(studies[start : start + CHUNK], rng) for start in range(0, len(studies), CHUNK)]
            for method in parts[0]:
                low, high = (np.concatenate([part[method][end] for part in parts]) for end in (0, 1))
                held = float(((low <= truth) & (truth <= high)).mean())
                rows.append((name, method, count, held, float((high - low).mean())))
    return rows


def volumes(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted volumes in ml: log-normal over four decades, 8% without lesion, small lesions often missed."""
    true = 10 ** np.clip(rng.normal(1.0, 1.0, count), -2, 2.6)
    none = rng.random(count) < 0.08
    predicted = true * np.exp((0.15 + 0.5 / np.sqrt(1 + true)) * rng.standard_normal(count))
    missed = rng.random(count) < 0.03 + 0.6 * np.exp(-true / 0.5)
    false = np.where(rng.random(count) < 0.15, 10 ** rng.uniform(-2, 0.7, count), 0.0)
    predicted = np.where(none, false, np.where(missed, 0.0, predicted))
    return np.where(none, 0.0, true), np.minimum(predicted, BRAIN_ML)


# How the error of a volume may be measured: a function of volumes, and its inverse.
SCALES: Mapping[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    RATIO: (lambda ml: np.log(ml + 1), lambda value: np.exp(value) - 1),
    "radius": (np.cbrt, lambda value: np.maximum(value, 0) ** 3),
    "difference": (lambda ml: ml, lambda value: value),
}


def of_volumes(rng: np.random.Generator) -> list[Row]:
    """The coverage of the interval of a new case's volume, also by the predicted volume; the width is the median."""
    rows: list[Row] = []
    for count in VOLUME_CASES:
        drawn = [volumes(rng, count + 1) for _ in range(STUDIES)]
        true, predicted = (np.array([pair[which][0] for pair in drawn]) for which in (0, 1))
        groups = {"all": predicted >= 0, "predicted below 1 ml": predicted < 1, "predicted above 30 ml": predicted > 30}
        for method, (scale, inverse) in SCALES.items():
            errors = [np.sort(np.abs(scale(one[1:]) - scale(other[1:]))) for one, other in drawn]
            spans = np.array([expected.quantile(each.tolist()) for each in errors])
            low = np.maximum(inverse(scale(predicted) - spans), 0)
            high = np.minimum(inverse(scale(predicted) + spans), BRAIN_ML)
            held = (low - 1e-9 <= true) & (true <= high + 1e-9)
            for name, group in groups.items():
                width = float(np.median((high - low)[group]))
                rows.append((name, method, count, float(held[group].mean()), width))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulates and writes the tables."""
    Parser(prog="python -m experiments.intervals", description=main.__doc__).parse_args(arguments)
    rng = np.random.default_rng(0)
    for path, rows in zip(TABLES, (of_means(rng), of_volumes(rng)), strict=True):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for *names, coverage, width in rows:
            writer.writerow([*names, f"{coverage:.4f}", f"{width:.4f}"])
        files.write_atomic(path, text.getvalue())
        print(path)


if __name__ == "__main__":
    run_command(main)
