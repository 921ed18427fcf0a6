"""A baseline without learning: the thresholds that clinicians use, applied to the same cases.

Tissue at risk is where Tmax exceeds 6 s (Olivot et al., Stroke 2009; DEFUSE 2). The core is the part of it that is
bright in DWI; a bright spot outside it has normal perfusion, and a clinician would take it for an old lesion. The DWI
threshold is a multiple of the brain's median DWI. It is fitted on the training cases.
"""

from collections.abc import Sequence

import numpy as np

from isles_jax.data.case import Case, Dataset
from isles_jax.data.isles import CHANNELS, CLASSES

TMAX_SECONDS = 6.0
# Candidate thresholds: multiples of the brain's median DWI.
GRID = np.round(np.arange(0.80, 4.0001, 0.02), 2)


def fit_core_threshold(
    cases: Sequence[Case], channels: Sequence[str] = CHANNELS, classes: Sequence[str] = CLASSES
) -> float:
    """The threshold in `GRID` with the best mean Dice of the core over the cases; the lowest one if several are best.

    Args:
      cases: the training cases, with labels.
      channels: names of the images' last axis; must hold "Tmax" and "DWI".
      classes: names of the labels 1..; must hold "core".
    """
    core = list(classes).index("core") + 1
    dice = np.zeros((len(cases), len(GRID)))
    for row, case in zip(dice, cases, strict=True):
        at_risk = _at_risk(case, channels)
        dwi = _relative_dwi(case, channels)
        assert case.labels is not None
        truth = case.labels == core
        # A search in the sorted values counts the voxels above all thresholds at once.
        predicted = at_risk.sum() - np.searchsorted(np.sort(dwi[at_risk]), GRID, side="right")
        hits = (at_risk & truth).sum() - np.searchsorted(np.sort(dwi[at_risk & truth]), GRID, side="right")
        size = predicted + truth.sum()
        row[:] = np.where(size > 0, 2 * hits / np.maximum(size, 1), 1.0)
    return float(GRID[np.argmax(dice.mean(axis=0))])


def threshold_of_fold(dataset: Dataset, held_out: Sequence[str]) -> float:
    """The threshold of `fit_core_threshold` on the cases of a data set that a fold does not hold out."""
    training_cases = [case for case in dataset.cases if case.name not in held_out]
    return fit_core_threshold(training_cases, dataset.channels, dataset.classes)


def clinical_rule(
    case: Case, threshold: float, channels: Sequence[str] = CHANNELS, classes: Sequence[str] = CLASSES
) -> np.ndarray:
    """Segments a case by thresholds.

    Args:
      case: its Tmax is in seconds.
      threshold: from `fit_core_threshold`, a multiple of the brain's median DWI.
      channels: names of the images' last axis; must hold "Tmax" and "DWI".
      classes: names of the labels 1..; must hold "penumbra" and "core".

    Returns:
      uint8 [X, Y, Z], 0 for background and the labels of `classes` for penumbra and core.
    """
    penumbra, core = (list(classes).index(name) + 1 for name in ("penumbra", "core"))
    at_risk = _at_risk(case, channels)
    bright = _relative_dwi(case, channels) > threshold
    return np.where(at_risk, np.where(bright, core, penumbra), 0).astype(np.uint8)


def _at_risk(case: Case, channels: Sequence[str]) -> np.ndarray:
    return case.brain & (case.images[..., list(channels).index("Tmax")] > TMAX_SECONDS)


def _relative_dwi(case: Case, channels: Sequence[str]) -> np.ndarray:
    dwi = case.images[..., list(channels).index("DWI")].astype(np.float64)
    return dwi / max(float(np.median(dwi[case.brain])), 1e-12)
