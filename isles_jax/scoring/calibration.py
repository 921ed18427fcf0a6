"""Calibration: how often a predicted probability is right, counted over the brains of held-out cases.

A histogram divides probabilities from 0 to 1 into bins of equal width. For each bin it holds the voxels, the sum of
their probabilities, and the hits. For `confidence`, the probability is that of the predicted class, and a hit is a
voxel where this class is right. For a class, the probability is that of the class, and a hit is a voxel of this class.

A temperature T changes probabilities p to p^(1/T) over their sum (Guo et al., ICML 2017). The most probable class is
the same at any temperature.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from isles_jax.data.case import Case

BINS = 10
# The temperatures that are tried, from 1/4 to 4; the one in the middle changes nothing.
TEMPERATURES = tuple(2.0 ** (step / 4) for step in range(-8, 9))
_NONE = TEMPERATURES.index(1.0)
# In a likelihood, the smallest probability of a class, because networks may give 0.
_LEAST_PROBABILITY = 1e-7


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Class probabilities [..., C] at a temperature; above 1, they are less sure."""
    powers = probabilities ** np.float32(1 / temperature)
    result: np.ndarray = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return result


def histograms(probabilities: np.ndarray, case: Case, classes: Sequence[str]) -> dict[str, Any]:
    """The histograms of one case.

    Args:
      probabilities: [X, Y, Z, C], background first.
      case: has labels; only its brain counts.
      classes: names of the classes 1..

    Returns:
      {"confidence": histogram, "classes": {name: histogram}, "temperatures": {"nll", "confidence"}}, where a histogram
      is {"voxels", "probability", "hits"}, each a list of `BINS` numbers. For each of `TEMPERATURES`, "nll" is the sum
      of the negative log-likelihoods of the labels, and "confidence" a histogram.
    """
    assert case.labels is not None
    inside = probabilities[case.brain]
    truth = case.labels[case.brain]
    return {
        "confidence": _histogram(inside.max(axis=-1), inside.argmax(axis=-1) == truth),
        "classes": {name: _histogram(inside[:, value], truth == value) for value, name in enumerate(classes, 1)},
        "temperatures": _at_temperatures(inside, truth),
    }


def _at_temperatures(inside: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    hits = inside.argmax(axis=-1) == truth
    nll = []
    confidence = []
    for temperature in TEMPERATURES:
        changed = tempered(inside, temperature)
        true = np.take_along_axis(changed, truth[:, None].astype(np.intp), axis=-1)
        nll.append(round(float(-np.log(np.maximum(true, _LEAST_PROBABILITY)).sum(dtype=np.float64)), 3))
        confidence.append(_histogram(changed.max(axis=-1), hits))
    return {"nll": nll, "confidence": confidence}


def temperature(folds: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any] | None:
    """The temperature of a run, and what it gains on cases that did not choose it.

    Args:
      folds: for each fold, the `histograms` of its held-out cases.

    Returns:
      {"value": of all cases, the one with the smallest negative log-likelihood; "nll" and "error": the mean negative
      log-likelihood of a voxel and the expected calibration error of the confidence, each [before, after]; "pays":
      whether both are smaller after}. "After" is, for the cases of each fold, at the temperature of the other folds'.
      None if an earlier version kept no counts for temperatures.
    """
    every = [case for cases in folds for case in cases]
    if not all("temperatures" in case for case in every):
        return None
    chosen = []
    for number, cases in enumerate(folds):
        others = [case for other, fold in enumerate(folds) if other != number for case in fold]
        best = _best(others)
        chosen += [(case["temperatures"], best) for case in cases]
    voxels = sum(sum(case["confidence"]["voxels"]) for case in every)
    nll = [sum(at["nll"][_NONE] for at, _ in chosen), sum(at["nll"][best] for at, best in chosen)]
    error = [
        _curve([at["confidence"][_NONE] for at, _ in chosen])["error"],
        _curve([at["confidence"][best] for at, best in chosen])["error"],
    ]
    return {
        "value": TEMPERATURES[_best(every)],
        "nll": [round(total / max(voxels, 1), 6) for total in nll],
        "error": error,
        "pays": nll[1] < nll[0] and error[1] < error[0],
    }


def _best(cases: Sequence[dict[str, Any]]) -> int:
    """The place of the temperature with the smallest negative log-likelihood over some cases."""
    return int(np.argmin(np.sum([case["temperatures"]["nll"] for case in cases], axis=0)))


def _histogram(probability: np.ndarray, hit: np.ndarray) -> dict[str, list[float]]:
    bins = np.clip((probability * BINS).astype(int), 0, BINS - 1)
    return {
        "voxels": np.bincount(bins, minlength=BINS).tolist(),
        "probability": [round(total, 3) for total in np.bincount(bins, probability, BINS).tolist()],
        "hits": np.bincount(bins[hit], minlength=BINS).tolist(),
    }


def curves(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The calibration over cases, for calibration.json.

    Args:
      cases: one or more results of `histograms`.

    Returns:
      {"cases", "confidence": curve, "classes": {name: curve}}. A curve is {"voxels": of each bin, "probability": the
      mean in each bin, "frequency": hits per voxel in each bin, "error"}; None where a bin is empty. The error is the
      expected calibration error: the mean over voxels of |probability - frequency| of their bins.
    """
    return {
        "cases": len(cases),
        "confidence": _curve([case["confidence"] for case in cases]),
        "classes": {name: _curve([case["classes"][name] for case in cases]) for name in cases[0]["classes"]},
    }


def _curve(histograms: Sequence[dict[str, list[float]]]) -> dict[str, Any]:
    keys = ("voxels", "probability", "hits")
    voxels, probability, hits = (np.sum([histogram[key] for histogram in histograms], axis=0) for key in keys)
    return {
        "voxels": voxels.tolist(),
        "probability": _per_voxel(probability, voxels),
        "frequency": _per_voxel(hits, voxels),
        "error": round(float(np.abs(probability - hits).sum() / max(voxels.sum(), 1)), 6),
    }


def _per_voxel(totals: np.ndarray, voxels: np.ndarray) -> list[float | None]:
    return [round(float(total / n), 6) if n else None for total, n in zip(totals, voxels, strict=True)]
