"""Turns cases into arrays of normalised slices of one size, and draws batches of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from isles_jax.data import grid
from isles_jax.data.case import Case
from isles_jax.data.grid import AS_STORED, Target
from isles_jax.runtime.progress import track


class Slices(NamedTuple):
    """Every slice of a data set that shows brain, as arrays for a device.

    Attributes:
      images: float32 or float16 [N, H, W, M], normalised, 0 outside the brain.
      labels: int8 [N, H, W], -1 where the slice was padded to H x W.
      case: int32 [N], index of the case that a slice comes from.
      lesion: bool [N], True if the slice has any foreground.
    """

    images: np.ndarray
    labels: np.ndarray
    case: np.ndarray
    lesion: np.ndarray


def normalise(images: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Clips each channel to its percentiles 0.5 and 99.5 in the brain and standardises it there; 0 outside.

    Args:
      images: [X, Y, Z, M]; values that are not finite count as 0.
      brain: bool [X, Y, Z].

    Returns:
      float32 [X, Y, Z, M]. A constant channel becomes 0, and so does a case without brain.
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
    """The smallest sides that are multiples of `multiple` and at least `shape`."""
    height, width = (math.ceil(side / multiple) * multiple for side in shape)
    return height, width


def pad(array: np.ndarray, size: tuple[int, int], fill: float = 0) -> np.ndarray:
    """Pads the first two axes to `size`, equally on both sides; an odd voxel goes to the end."""
    before = [(target - side) // 2 for target, side in zip(size, array.shape, strict=False)]
    widths = [(b, target - side - b) for b, target, side in zip(before, size, array.shape, strict=False)]
    return np.pad(array, widths + [(0, 0)] * (array.ndim - 2), constant_values=fill)


def unpad(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Undoes `pad`: cuts the middle `shape` out of the first two axes."""
    starts = [(side - target) // 2 for target, side in zip(shape, array.shape, strict=False)]
    return array[starts[0] : starts[0] + shape[0], starts[1] : starts[1] + shape[1]]


def network_input(case: Case, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The network's input for a case: its slices that show brain, normalised and padded.

    Args:
      case: needs no labels.
      size: H and W, at least X and Y.

    Returns:
      float32 [S, H, W, M], and the indices [S] of these slices along the case's third axis.
    """
    indices = np.flatnonzero(case.brain.any(axis=(0, 1)))
    return np.moveaxis(pad(normalise(case.images, case.brain)[:, :, indices], size), 2, 0), indices


def _shape(case: Case, made: grid.Grid | None) -> tuple[int, ...]:
    return made.shape if made else case.images.shape[:3]


def shape_on_grid(case: Case, target: Target) -> tuple[int, ...]:
    """The shape of a case on the network's grid."""
    return _shape(case, grid.make_grid(case, target))


def largest_sides(cases: Sequence[Case], target: Target = AS_STORED) -> tuple[int, int]:
    """The largest height and the largest width of a slice on the network's grid."""
    shapes = [shape_on_grid(case, target) for case in cases]
    height, width, _ = np.max(shapes, axis=0).tolist()
    return height, width


def make_slices(
    cases: tuple[Case, ...], size: tuple[int, int], target: Target = AS_STORED, dtype: str = "float32"
) -> Slices:
    """Normalises, pads and stacks all slices that show brain, in the order of the cases.

    Args:
      cases: all have labels; their shapes may differ.
      size: H and W, to which all slices are padded; at least `largest_sides`.
      target: what the network works on.
      dtype: of the images.

    Raises:
      ValueError: a case has no labels.
    """
    grids = [grid.make_grid(case, target) for case in cases]
    shapes = [_shape(case, made) for case, made in zip(cases, grids, strict=True)]
    # Filling an array case by case keeps one copy of the images in memory; stacking a list would need two. The array is
    # as long as if every slice showed brain; the system gives no memory to the end that stays untouched.
    most = sum(shape[2] for shape in shapes)
    images = np.zeros((most, *size, cases[0].images.shape[-1]), dtype)
    labels = np.empty((most, *size), np.int8)
    numbers = np.empty(most, np.int32)
    end = 0
    for number in track(range(len(cases)), "preparing", "case"):
        case = grid.to_network(cases[number], grids[number])
        if case.labels is None:
            raise ValueError(f"{case.name} has no labels")
        stack, indices = network_input(case, size)
        start = end
        end += len(stack)
        images[start:end] = stack
        numbers[start:end] = number
        labels[start:end] = np.moveaxis(pad(case.labels[:, :, indices].astype(np.int8), size, -1), 2, 0)
    labels = labels[:end]
    return Slices(images[:end], labels, numbers[:end], np.any(labels > 0, axis=(1, 2)))


def draw_batch(pool: np.ndarray, lesion: np.ndarray, batch_size: int, seed: tuple[int, ...]) -> np.ndarray:
    """Draws the slices of one batch: one half from those with lesion, the rest from all.

    Args:
      pool: [P] indices of the training slices, at least one of them with lesion.
      lesion: bool [N], which slices of the data set have lesion.
      batch_size: B.
      seed: for example (seed, fold, step).

    Returns:
      int32 [B] indices in random order. No index occurs twice if the pool is large enough.
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
