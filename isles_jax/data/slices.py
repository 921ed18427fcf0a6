"""Cases to arrays: normalised slices of one size, and which of them make a batch."""

import math
from typing import NamedTuple

import numpy as np

from isles_jax.data.case import Case


class Slices(NamedTuple):
    """Every slice with brain of a data set, as arrays that fit a device.

    Attributes:
      images: float32 [N, H, W, M], normalised, 0 outside the brain.
      labels: int8 [N, H, W], -1 where the slice was padded to H x W.
      case: int32 [N], the index of the case a slice comes from.
      lesion: bool [N], whether the slice holds any foreground.
    """

    images: np.ndarray
    labels: np.ndarray
    case: np.ndarray
    lesion: np.ndarray


def normalise(images: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Clips each channel to its in-brain percentiles 0.5 and 99.5, then z-scores it in the brain; 0 outside.

    Args:
      images: [X, Y, Z, M], any values; NaN and infinite ones count as 0.
      brain: bool [X, Y, Z].

    Returns:
      float32 [X, Y, Z, M]. A constant channel, or a case without brain, becomes 0.
    """
    result = np.zeros(images.shape, np.float32)
    if not brain.any():
        return result
    for channel in range(images.shape[-1]):
        inside = np.nan_to_num(images[..., channel][brain].astype(np.float32), posinf=0.0, neginf=0.0)
        inside = np.clip(inside, *np.percentile(inside, (0.5, 99.5)))
        result[brain, channel] = (inside - inside.mean()) / max(inside.std(), 1e-6)
    return result


def padded_size(shape: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The smallest sides divisible by `multiple` that hold a slice of `shape`."""
    height, width = (math.ceil(side / multiple) * multiple for side in shape)
    return height, width


def pad(array: np.ndarray, size: tuple[int, int], fill: float = 0) -> np.ndarray:
    """Pads the first two axes to `size`, half on either side (the odd one at the end)."""
    before = [(wanted - have) // 2 for wanted, have in zip(size, array.shape, strict=False)]
    widths = [(b, wanted - have - b) for b, wanted, have in zip(before, size, array.shape, strict=False)]
    return np.pad(array, widths + [(0, 0)] * (array.ndim - 2), constant_values=fill)


def unpad(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Undoes `pad`: the middle `shape` of the first two axes."""
    starts = [(have - wanted) // 2 for wanted, have in zip(shape, array.shape, strict=False)]
    return array[starts[0] : starts[0] + shape[0], starts[1] : starts[1] + shape[1]]


def network_input(case: Case, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A case as the network sees it: its slices with brain, normalised and padded.

    Args:
      case: its labels are not looked at.
      size: H and W, at least the slices' own sides.

    Returns:
      float32 [S, H, W, M], and the places [S] of these slices along the case's third axis.
    """
    places = np.flatnonzero(case.brain.any(axis=(0, 1)))
    return np.moveaxis(pad(normalise(case.images, case.brain)[:, :, places], size), 2, 0), places


def make_slices(cases: tuple[Case, ...], multiple: int) -> Slices:
    """Normalises, pads and stacks the slices with brain of labelled cases, in the cases' order.

    Args:
      cases: with labels; shapes may differ.
      multiple: sides are padded to a multiple of it, the same for all cases.

    Raises:
      ValueError: a case has no labels.
    """
    size = padded_size(tuple(np.max([case.images.shape[:2] for case in cases], axis=0)), multiple)
    counts = [int(case.brain.any(axis=(0, 1)).sum()) for case in cases]
    numbers = np.repeat(np.arange(len(cases), dtype=np.int32), counts)
    # Filled case by case: the images of all cases are in memory once here, not twice.
    images = np.zeros((len(numbers), *size, cases[0].images.shape[-1]), np.float32)
    labels = np.full((len(numbers), *size), -1, np.int8)
    for number, case in enumerate(cases):
        if case.labels is None:
            raise ValueError(f"{case.name} has no labels")
        of_case = numbers == number
        images[of_case], places = network_input(case, size)
        labels[of_case] = np.moveaxis(pad(case.labels[:, :, places].astype(np.int8), size, -1), 2, 0)
    return Slices(images, labels, numbers, np.any(labels > 0, axis=(1, 2)))


def draw_batch(pool: np.ndarray, lesion: np.ndarray, batch_size: int, seed: tuple[int, ...]) -> np.ndarray:
    """The slices of one batch: one half from the slices with lesion, the rest from all; a pure function.

    Args:
      pool: [P] indices of the slices to train on.
      lesion: bool [N], which slices of the data set hold lesion; at least one of the pool's does.
      batch_size: B.
      seed: e.g. (seed, fold, step).

    Returns:
      int32 [B] indices, in random order; no index twice where the pool allows it.
    """
    generator = np.random.default_rng(seed)
    with_lesion = pool[lesion[pool]]
    half = batch_size // 2
    first = generator.choice(with_lesion, half, replace=len(with_lesion) < half)
    others = np.setdiff1d(pool, first)
    if len(others) < batch_size - half:
        others = pool
    second = generator.choice(others, batch_size - half, replace=len(others) < batch_size - half)
    return generator.permutation(np.concatenate([first, second])).astype(np.int32)
