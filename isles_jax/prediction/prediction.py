"""What a run's networks predict for one new case, and what the reader needs to judge it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from isles_jax.data.case import Case


@dataclass(frozen=True)
class Prediction:
    """The prediction for one new case.

    Attributes:
      case: its images and affine; its labels are not used.
      channels: names of the images' channels.
      classes: names of the labels 1..
      labels: uint8 [X, Y, Z], 0 background and 1.. the classes.
      fold_labels: for each fold, what its network predicts alone, uint8 [X, Y, Z].
      summary: the case's row of summary.csv, columns in order; None is an empty cell.
      intervals: class name -> the interval of its volume in ml; empty where the run's errors are not known.
      warnings: one sentence each: what was seen, and what was expected.
      not_checked: the checks that were left out because the run lacks what they need, one sentence each.
      origin: the run's name, the folds and their steps, the hash of the weights, and versions.
    """

    case: Case
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    labels: np.ndarray
    fold_labels: tuple[np.ndarray, ...]
    summary: Mapping[str, float | int | str | None]
    intervals: Mapping[str, tuple[float, float]]
    warnings: tuple[str, ...]
    not_checked: tuple[str, ...]
    origin: Mapping[str, str]
