"""A volume on the grid of another one, as their headers place them in the world. Interpolation is linear."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

# An image is known where at least this share of what is interpolated between has a value.
LEAST_SHARE = 0.5


def image(
    volume: np.ndarray, inside: np.ndarray, affine: np.ndarray, shape: Sequence[int], target: np.ndarray
) -> np.ndarray:
    """An image at the voxels of another grid.

    Args:
      volume: float32 [X, Y, Z], finite.
      inside: bool [X, Y, Z], where it has a value.
      affine: [4, 4], its voxels to world in mm.
      shape: of the other grid.
      target: [4, 4], the other grid's voxels to world in mm.

    Returns:
      float32 of this shape; 0 outside. It is divided by the interpolated share of `inside`, so that the zeros around
      the head do not darken its border.
    """
    to_volume = np.linalg.inv(affine) @ target
    share = _sample(inside.astype(np.float32), to_volume, shape)
    sampled = _sample(np.where(inside, volume, np.float32(0)), to_volume, shape)
    return np.where(share >= LEAST_SHARE, sampled / np.maximum(share, LEAST_SHARE), np.float32(0))


def labels(classes: np.ndarray, affine: np.ndarray, shape: Sequence[int], target: np.ndarray) -> np.ndarray:
    """Labels at the voxels of another grid: the class with the largest share of a voxel.

    Args:
      classes: uint8 [X, Y, Z], 0 background.
      affine: as for `image`.
      shape: as for `image`.
      target: as for `image`.

    Returns:
      uint8 of this shape; background beyond the volume.
    """
    to_volume = np.linalg.inv(affine) @ target
    masks = (classes == value for value in range(1, int(classes.max()) + 1))
    shares = [_sample(mask.astype(np.float32), to_volume, shape) for mask in masks]
    background = 1 - np.sum(shares, axis=0) if shares else np.ones(shape, np.float32)
    largest: np.ndarray = np.argmax([background, *shares], axis=0).astype(np.uint8)
    return largest


def _sample(volume: np.ndarray, to_volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A float32 volume at the voxels of a grid, whose indices `to_volume` [4, 4] takes to those of the volume."""
    # Where the new voxels are larger, the old ones between them count, too.
    steps = np.linalg.norm(to_volume[:3, :3], axis=1)
    blur = np.maximum(steps - 1, 0) / 2
    if blur.any():
        volume = ndimage.gaussian_filter(volume, blur, mode="constant")
    sampled: np.ndarray = ndimage.affine_transform(
        volume, to_volume[:3, :3], to_volume[:3, 3], tuple(shape), order=1, mode="grid-constant"
    )
    return sampled
