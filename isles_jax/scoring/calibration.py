"""Calibration: how often a predicted probability is right, counted over the brains of held-out cases.

A histogram divides probabilities from 0 to 1 into bins of equal width. For each bin it holds the voxels, the sum of
their probabilities, and the hits. For `confidence`, the probability is that of the predicted class, and a hit is a
voxel where this class is right. For a class, the probability is that of the class, and a hit is a voxel of this class.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from isles_jax.data.case import Case

BINS = 10


def histograms(probabilities: np.ndarray, case: Case, classes: Sequence[str]) -> dict[str, Any]:
    """The histograms of one case.

    Args:
      probabilities: [X, Y, Z, C], background first.
      case: has labels; only its brain counts.
      classes: names of the classes 1..

    Returns:
      {"confidence": histogram, "classes": {name: histogram}}, where a histogram is {"voxels", "probability", "hits"},
      each a list of `BINS` numbers.
    """
    assert case.labels is not None
    inside = probabilities[case.brain]
    truth = case.labels[case.brain]
    return {
        "confidence": _histogram(inside.max(axis=-1), inside.argmax(axis=-1) == truth),
        "classes": {name: _histogram(inside[:, value], truth == value) for value, name in enumerate(classes, 1)},
    }


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
