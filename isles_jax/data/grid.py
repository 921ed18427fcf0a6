"""The network's grid: cases are brought to one orientation and one spacing, and probabilities are brought back.

The axes are turned first, without loss. Then a voxel of one grid lies at a scaled and shifted index of the other, along
each axis alone. Interpolation is linear, after a Gaussian if voxels become larger.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from scipy import ndimage

from isles_jax.data import orientation
from isles_jax.data.case import Case
from isles_jax.runtime.command import InputError

# A side that differs by less than this share is not resampled.
SAME = 0.05
# Slices thicker than this many times a voxel's shorter side in the plane are never interpolated between.
THICK = 3.0
# No scanner makes smaller or larger voxels.
SIDES_MM = (0.01, 100.0)


class Target(NamedTuple):
    """What the network works on.

    Attributes:
      spacing_mm: of the network's voxels; None: every case as stored.
      crop: cut every case to its brain's box. A case that is resampled is always cut.
      axes: the orientation to which every case is brought, such as "LAS", so that all slices are cut along the same
        anatomical axis; "": the axes as stored, as earlier versions took them.
    """

    spacing_mm: tuple[float, float, float] | None = None
    crop: bool = False
    axes: str = ""


AS_STORED = Target()


class Grid(NamedTuple):
    """The network's grid of one case.

    Along each axis, its voxel i lies at voxel start + step * i of the case, once the case has the orientation `axes`.
    """

    start: np.ndarray
    step: np.ndarray
    shape: tuple[int, ...]
    axes: str = ""


def misfit(target: Target) -> str:
    """What is wrong with a target that was read from a file; "" if nothing is."""
    spacing, crop, axes = target
    if spacing is not None:
        sides = spacing if isinstance(spacing, (list, tuple)) else ()
        if len(sides) != 3 or not all(type(s) in (int, float) and SIDES_MM[0] <= s <= SIDES_MM[1] for s in sides):
            return f"the spacing {spacing!r} in its grid"
    if not isinstance(crop, bool):
        return f"the crop {crop!r} in its grid"
    return "" if axes in ("", *orientation.ALL) else f"the axes {axes!r} in its grid"


def read_target(path: epath.PathLike, record: Any) -> Target:
    """The target of a `record` (the dict of a target) that stands in a file; an InputError if it is none."""
    try:
        target = Target(**record)
        wrong = misfit(target)
    except TypeError:
        wrong = f"the grid {reprlib.repr(record)}"
    if wrong:
        raise InputError(f"{path}: found {wrong}, expected the file as it was written")
    return target


def choose(setting: str, cases: Sequence[Case]) -> Target:
    """What the network works on for these training cases.

    Args:
      setting: `data.spacing_mm`: "0" as stored, "median" of the cases, or one side or three in mm.
      cases: only their spacing and orientation are looked at.
    """
    axes = orientation.most_frequent(cases)
    cases = [orientation.turned(case, axes) for case in cases]
    sides = np.array([case.spacing_mm for case in cases])
    if setting == "0":
        return Target(axes=axes)
    if setting == "median":
        wanted = np.median(sides, axis=0)
    else:
        wanted = np.broadcast_to([float(side) for side in setting.split(",")], 3)
    x, y, z = (round(float(side), 4) for side in wanted)
    # Where nothing has to be resampled, the slices stay whole here; a run cuts them if that makes them smaller.
    return Target((x, y, z), any((_steps(case, (x, y, z)) != 1).any() for case in cases), axes)


def make_grid(case: Case, target: Target) -> Grid | None:
    """The network's grid of a case: the brain's box at the target's spacing; None for the case as stored."""
    stored, case = case, orientation.turned(case, target.axes)
    step = np.ones(3) if target.spacing_mm is None else _steps(case, target.spacing_mm)
    if not stored.brain.any() or not (target.crop or (step != 1).any()):
        return None if case is stored else Grid(np.zeros(3), step, case.images.shape[:3], target.axes)
    box = ndimage.find_objects(case.brain.astype(np.int8))[0]
    first, length = np.array([(side.start, side.stop - side.start) for side in box]).T
    shape = np.maximum(np.ceil(length / step - 1e-6), 1).astype(int)
    # Both boxes have one centre.
    start = first + (length - 1) / 2 - step * (shape - 1) / 2
    return Grid(start, step, tuple(shape.tolist()), target.axes)


def to_network(case: Case, grid: Grid | None) -> Case:
    """A case on the network's grid; its labels, if any, are the class with the largest share of a voxel."""
    if grid is None:
        return case
    case = orientation.turned(case, grid.axes)
    affine = case.affine @ np.block([[np.diag(grid.step), grid.start[:, None]], [np.zeros(3), 1]])
    share = _sample(case.brain.astype(np.float32), grid)
    images = np.zeros((*grid.shape, case.images.shape[-1]), np.float32)
    for channel in range(images.shape[-1]):
        # Divided by the brain's share, so that the zeros outside do not darken its border.
        sampled = _sample(np.where(case.brain, case.images[..., channel], np.float32(0)), grid)
        images[..., channel] = np.where(share >= 0.5, sampled / np.maximum(share, 0.5), 0)
    labels = None
    if case.labels is not None:
        masks = (case.labels == value for value in range(int(case.labels.max()) + 1))
        labels = np.argmax([_sample(mask.astype(np.float32), grid) for mask in masks], axis=0).astype(np.uint8)
    header = orientation.header(grid.shape, affine, case.oriented)
    return replace(case, images=images, labels=labels, affine=affine, header=header)


def to_case(probabilities: np.ndarray, grid: Grid | None, case: Case) -> np.ndarray:
    """Class probabilities [X', Y', Z', C] of the network's grid on the case's grid [X, Y, Z, C], float32.

    Outside the grid the nearest value is repeated.
    """
    if grid is None:
        return probabilities
    shape = orientation.turned(case, grid.axes).images.shape[:3]
    back = Grid(-grid.start / grid.step, 1 / grid.step, shape)
    sampled = np.stack([_sample(part, back) for part in np.moveaxis(probabilities, -1, 0)], axis=-1)
    return orientation.turned_back(sampled, case, grid.axes)


def _steps(case: Case, spacing_mm: Sequence[float]) -> np.ndarray:
    """The side of the network's voxel in voxels of the case, along each axis.

    It is 1 where the two are nearly equal, and between thick slices, which must not be mixed.
    """
    have, wanted = np.array(case.spacing_mm), np.array(spacing_mm)
    step = np.where(abs(wanted / have - 1) <= SAME, 1.0, wanted / have)
    if any(sides[2] > THICK * sides[:2].min() for sides in (have, wanted)):
        step[2] = 1.0
    return step


def _sample(volume: np.ndarray, grid: Grid) -> np.ndarray:
    """A float32 volume at the voxels of a grid; beyond its edge the nearest value."""
    start = np.rint(grid.start)
    if (grid.step == 1).all() and np.allclose(start, grid.start, atol=1e-6):
        sides = zip(grid.shape, start.astype(int), volume.shape, strict=True)
        return volume[np.ix_(*(np.clip(np.arange(count) + first, 0, size - 1) for count, first, size in sides))]
    blur = np.maximum(grid.step - 1, 0) / 2
    if blur.any():
        volume = ndimage.gaussian_filter(volume, blur, mode="nearest")
    return ndimage.affine_transform(volume, grid.step, grid.start, grid.shape, order=1, mode="nearest")
