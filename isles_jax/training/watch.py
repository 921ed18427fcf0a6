"""The Dice of some held-out slices at a few moments of a fold's training, for the report. It chooses nothing."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array

from isles_jax.data.slices import Slices
from isles_jax.runtime import processes
from isles_jax.training import parallel
from isles_jax.training.metric_writer import MetricWriter
from isles_jax.training.networks import BATCH, make_forward
from isles_jax.training.plan import Plan

# The file in a fold's folder.
FILE = "held_out.jsonl"
# The most slices that are segmented in all moments together, for each slice that a fold trains on. Segmenting a slice
# takes a quarter of the time of training on it, or less.
SHARE = 0.15


class Watch:
    """Measures the Dice of some held-out slices while a fold trains. Process 0 does it and writes a line each time.

    A line holds the step and, for each class, the mean over the cases of the Dice of a case's chosen slices. A case
    without the class in these slices does not count, and the value is null where none has it. Training does not wait:
    the numbers are fetched at the next moment or the next checkpoint.
    """

    def __init__(self, plan: Plan, held_out: Sequence[str], directory: epath.Path, start: int) -> None:
        """Chooses the slices, and opens the file, which loses the lines after `start` that an interrupted run left."""
        self._plan = plan
        self._moments: set[int] = set()
        # The last step that was looked at, and the counts of its batches on the device.
        self._waiting: tuple[int, list[Array]] | None = None
        self._writer = None
        if not (processes.first() and plan.config.train.held_out_times):
            return
        total = SHARE * plan.steps * plan.config.train.batch_size / BATCH
        self._moments = moments(plan, min(plan.config.train.held_out_times, max(1, int(total))))
        each = max(1, int(total / len(self._moments))) * BATCH
        chosen = choose(plan.slices, [case.name in held_out for case in plan.dataset.cases], each)
        self._case = plan.slices.case[chosen]
        self._batches = np.split(chosen, range(BATCH, len(chosen), BATCH))
        self._writer = MetricWriter(directory, start, name=FILE)

    def look(self, done: int, variables: Any) -> None:
        """Begins to measure the segmenter with these variables if the step `done` is one of the moments."""
        if done not in self._moments:
            return
        self.flush()
        slices = self._plan.slices
        # That of the fold's predictions, which then need not compile again.
        forward: Callable[..., Array] = make_forward(self._plan.task.predictor())
        variables = parallel.one_copy(variables)
        counts = []
        for indices in self._batches:
            images = _filled(slices.images[indices]).astype(np.float32)
            labels = _filled(slices.labels[indices])
            counts.append(_overlap(forward(variables, images), images, labels))
        self._waiting = done, counts

    def flush(self) -> None:
        """Waits for the numbers that are on the way, and writes all lines to disk."""
        if self._writer is None:
            return
        if self._waiting:
            done, counts = self._waiting
            rows = self._fetch(counts)[: len(self._case)]
            values = mean_dice(rows, self._case)
            names = [f"dice/{name}" for name in self._plan.dataset.classes]
            self._writer.write_scalars(done, dict(zip(names, values, strict=True)))
            self._waiting = None
        self._writer.flush()

    def _fetch(self, counts: list[Array]) -> np.ndarray:
        return np.concatenate(jax.device_get(counts))


def _filled(batch: np.ndarray) -> np.ndarray:
    """A batch of at most `BATCH` slices, filled up with zeros, so that one compilation serves all."""
    return np.pad(batch, [(0, BATCH - len(batch))] + [(0, 0)] * (batch.ndim - 1))


def moments(plan: Plan, times: int) -> set[int]:
    """The steps, about `times` and evenly spaced, after which it is measured; each ends a call, and one is the last."""
    calls = [math.ceil(plan.steps * number / times / plan.per_call) for number in range(1, times + 1)]
    return {min(call * plan.per_call, plan.steps) for call in calls}


def choose(slices: Slices, held_out: Sequence[bool], most: int) -> np.ndarray:
    """The indices of at most `most` held-out slices: of each case the same number, those with the largest lesions.

    With more cases than `most`, the first cases have one slice each.

    Args:
      slices: of all cases.
      held_out: whether each case is held out.
      most: at least 1.
    """
    area = (slices.labels > 0).sum(axis=(1, 2))
    numbers = np.flatnonzero(held_out)
    each = max(1, most // max(1, len(numbers)))
    chosen = []
    for number in numbers[:most]:
        own = np.flatnonzero(slices.case == number)
        largest = own[np.argsort(-area[own], kind="stable")[:each]]
        chosen.append(np.sort(largest))
    return np.concatenate(chosen)


@jax.jit
def _overlap(probabilities: Array, images: Array, labels: Array) -> Array:
    """For each slice and foreground class the pixels in both prediction and reference, and in each: int32 [B, 3, C]."""
    # Outside the brain everything is background, as in a prediction.
    predicted = jnp.where((images != 0).any(axis=-1), probabilities.argmax(axis=-1), 0)
    classes = jnp.arange(1, probabilities.shape[-1])
    found = predicted[..., None] == classes
    true = labels[..., None] == classes
    return jnp.stack([mask.sum(axis=(1, 2)) for mask in (found & true, found, true)], axis=1)


def mean_dice(counts: np.ndarray, case: np.ndarray) -> list[float]:
    """The mean over cases of the Dice of each class; NaN where no case has the class.

    Args:
      counts: int [S, 3, C], for each slice the pixels in both prediction and reference, in the prediction, and in the
        reference.
      case: int [S], the case of each slice.
    """
    of_cases = np.stack([counts[case == number].sum(axis=0) for number in np.unique(case)])
    both, found, true = np.moveaxis(of_cases.astype(np.float64), 1, 0)
    means = []
    for column in range(counts.shape[-1]):
        there = true[:, column] > 0
        dice = 2 * both[there, column] / (found[there, column] + true[there, column])
        means.append(float(dice.mean()) if there.any() else math.nan)
    return means
