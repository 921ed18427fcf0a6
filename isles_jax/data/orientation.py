"""The axes of a volume: cases that are stored along different axes are brought to one orientation, without loss.

An orientation is written as the three letters of where the axes point to, such as "LAS": to the patient's left, to the
front and to the top. The axes of an oblique volume have the letters of the directions that are closest.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import nibabel as nib
import numpy as np
from nibabel import orientations

from isles_jax.data.case import Case

# Every orientation.
ALL = tuple(
    "".join(letters) for order in itertools.permutations(("LR", "PA", "IS")) for letters in itertools.product(*order)
)


def axes_of(case: Case) -> str:
    """The orientation of a case; "" if its header does not say where the patient's sides are."""
    return "".join(nib.aff2axcodes(case.affine)) if case.oriented else ""


def most_frequent(cases: Sequence[Case]) -> str:
    """The orientation that most cases have, the first in the alphabet of several; "" if none has any."""
    counts = Counter(filter(None, map(axes_of, cases)))
    return min(counts, key=lambda axes: (-counts[axes], axes), default="")


def turned(case: Case, axes: str) -> Case:
    """The case with its axes in this orientation; the case itself if they are, if `axes` is "", or if it has none.

    Every voxel keeps its value and its place in the world. The arrays are views.
    """
    have = axes_of(case)
    if not axes or have in ("", axes):
        return case
    turn = _turn(have, axes)
    affine = case.affine @ orientations.inv_ornt_aff(turn, case.images.shape[:3])
    images = orientations.apply_orientation(case.images, turn)
    labels = None if case.labels is None else orientations.apply_orientation(case.labels, turn)
    return replace(case, images=images, labels=labels, affine=affine, header=header(images.shape[:3], affine, True))


def turned_back(volume: np.ndarray, case: Case, axes: str) -> np.ndarray:
    """A volume [X', Y', Z', ...] of the turned case along the axes of the case itself."""
    have = axes_of(case)
    if not axes or have in ("", axes):
        return volume
    back: np.ndarray = orientations.apply_orientation(volume, _turn(axes, have))
    return back


def notes(cases: Sequence[Case]) -> tuple[str, ...]:
    """A note on cases that are stored along other axes than most; none if all are stored along the same."""
    axes = most_frequent(cases)
    others = Counter(found for case in cases if (found := axes_of(case)) not in ("", axes))
    if not others:
        return ()
    counts = ", ".join(f"{found}: {count}" for found, count in sorted(others.items()))
    return (
        f"the axes of most cases point to {axes}, of some elsewhere ({counts}); the networks see all cases as {axes}",
    )


def order(have: str, axes: str) -> tuple[int, ...]:
    """The numbers of the axes of an orientation, in the order of another: (1, 0, 2) for "ARS" and "LAS".

    It is (0, 1, 2) if one of them is not known.
    """
    if not (have and axes):
        return (0, 1, 2)
    return tuple(int(axis) for axis in np.argsort(_turn(have, axes)[:, 0]))


def header(shape: Sequence[int], affine: np.ndarray, oriented: bool) -> nib.Nifti1Header:
    """A header that places a volume in space, and says where the patient's sides are only if that is known."""
    made = nib.Nifti1Header()
    made.set_data_shape(shape)
    made.set_sform(affine, int(oriented))
    return made


def _turn(start: str, end: str) -> np.ndarray:
    codes = (orientations.axcodes2ornt(axes) for axes in (start, end))
    turn: np.ndarray = orientations.ornt_transform(*codes)
    return turn
