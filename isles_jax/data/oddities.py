"""What is measured of each case of a data set, and what looks odd when the cases are compared.

Whether a single case is mirrored from left to right cannot be told: the two halves of a brain are too alike. Whether
its front is at its back, or its top at its bottom, shows in the outline of the brain.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from isles_jax import metrics
from isles_jax.data import grid, orientation
from isles_jax.data.case import Case, Dataset
from isles_jax.data.folder import listed
from isles_jax.data.profile import profile, volume_ml
from isles_jax.runtime.progress import track

# With fewer cases, one of them cannot be compared with what the others have in common.
_LEAST_CASES = 3
# A channel with no more different values is a label, or constant.
_FEW_VALUES = 3
# More than a label has. They are looked for in every such voxel first.
_MANY_VALUES = 256
_STEP = 101
# A label may lie outside the brain by this share of its voxels.
_OUTSIDE = 0.05
# Volumes have one shape if their numbers of voxels along an axis differ by less than this share.
_SAME_SHAPE = 0.2
# Values are far from those of the other cases if they are spread this many times as widely or as narrowly, or lie this
# many times their spread away. Scanners differ less.
_FAR = 10.0
# Outlines are compared in so many voxels along each axis. An outline fits the others better once it is mirrored if it
# differs from their mean in fewer voxels by this share: the outlines of whole brains by a tenth.
_OUTLINE = 24
_BETTER = 0.05
_WAYS = [way for count in range(4) for way in itertools.combinations(range(3), count)]
_SIDES = (
    dict.fromkeys("LR", "left and right")
    | dict.fromkeys("AP", "front and back")
    | dict.fromkeys("SI", "top and bottom")
)


class Facts(NamedTuple):
    """What is measured of one case.

    Attributes:
      case: its name.
      profile: the facts of its images, from `profile.profile`.
      backgrounds: of each channel, the value outside the brain; empty if that is not known.
      volumes_ml: of each class, empty without labels.
      lesions: their number; None without labels.
      outside: the share of the label that lies outside the brain, 0 without labels.
      values: {channel: how many different values it has}; of many, at least so many.
      prints: {channel or "label": digests of its voxels, and of the voxels in whatever way they are mirrored}. Volumes
        of one value have none.
      outline: [24, 24, 24] float32, the brain in the box around it.
    """

    case: str
    profile: dict[str, Any]
    backgrounds: tuple[float, ...]
    volumes_ml: dict[str, float]
    lesions: int | None
    outside: float
    values: dict[str, int]
    prints: dict[str, tuple[bytes, bytes]]
    outline: np.ndarray


def measure(dataset: Dataset) -> list[Facts]:
    """The facts of every case, in the order of the data set."""
    axes = orientation.most_frequent(dataset.cases)
    return [_facts(case, dataset, axes) for case in track(dataset.cases, "measuring", "case")]


def _facts(case: Case, dataset: Dataset, axes: str) -> Facts:
    volumes_ml: dict[str, float] = {}
    lesions, outside = None, 0.0
    turned = orientation.turned(case, axes)
    volumes = {name: turned.images[..., number] for number, name in enumerate(dataset.channels)}
    values = {name: _count(volume) for name, volume in volumes.items() if name not in case.absent}
    if case.labels is not None and turned.labels is not None:
        volumes_ml = {name: volume_ml(case, value) for value, name in enumerate(dataset.classes, 1)}
        marked = case.labels > 0
        lesions = metrics.lesions(marked)[1]
        outside = float((marked & ~case.brain).sum() / max(marked.sum(), 1))
        volumes["label"] = turned.labels
    return Facts(
        case=case.name,
        profile=profile(case, dataset.channels),
        backgrounds=case.backgrounds,
        volumes_ml=volumes_ml,
        lesions=lesions,
        outside=outside,
        values=values,
        prints={name: _prints(volume) for name, volume in volumes.items() if volume.min() < volume.max()},
        outline=_outline(turned.brain),
    )


def _count(volume: np.ndarray) -> int:
    """How many different values a volume has. Many values show in a part of it, which is sorted sooner."""
    some = len(np.unique(volume.ravel()[::_STEP]))
    return some if some > _MANY_VALUES else len(np.unique(volume))


def _prints(volume: np.ndarray) -> tuple[bytes, bytes]:
    """Digests of a volume, and of that one of its mirror images that is the same whichever of them is given."""
    upright = volume
    for axis in range(3):
        others = tuple({0, 1, 2} - {axis})
        # Neither counts nor maxima depend on how the other axes are mirrored.
        along = list(zip(np.count_nonzero(volume, others), volume.max(others), strict=True))
        if along[::-1] < along:
            upright = np.flip(upright, axis)
    return _digest(volume), _digest(upright)


def _digest(volume: np.ndarray) -> bytes:
    start = f"{volume.shape} {volume.dtype}".encode()
    return hashlib.sha256(start + np.ascontiguousarray(volume).tobytes()).digest()


def _outline(brain: np.ndarray) -> np.ndarray:
    box = brain[ndimage.find_objects(brain.astype(np.uint8))[0]].astype(np.float32)
    return ndimage.zoom(box, [_OUTLINE / side for side in box.shape], order=1)


def number_text(value: float) -> str:
    """A number in four digits, without an exponent if it is large."""
    return f"{value:.4g}" if abs(value) < 10000 else f"{value:.0f}"


def sides_text(sides: Sequence[float]) -> str:
    """The sides of a volume or a voxel, such as "64 x 64 x 16"."""
    return " x ".join(map(number_text, sides))


def oddities(found: Sequence[Facts], dataset: Dataset) -> list[str]:
    """What looks odd, a sentence for each kind that names the cases; empty if nothing does.

    Args:
      found: from `measure`.
      dataset: which was measured.
    """
    axes = orientation.most_frequent(dataset.cases)
    lines = [*_copies(found), *_labels(found), *_grids(found, axes), *_mirrored(found, axes)]
    few = max(_FEW_VALUES, 1 + len(dataset.classes))
    for name in dataset.channels:
        having = [facts for facts in found if name in facts.values]
        flat = {facts.case: f"{facts.values[name]}" for facts in having if facts.values[name] <= few}
        lines += _line(f"{name} has hardly any different values, as labels have", flat)
        lines += _line(f"the values of {name} are far from those of the others", _far(name, having))
    return lines


def _line(what: str, cases: Mapping[str, str]) -> list[str]:
    """The sentence on some cases, {name: what is seen}; none without cases."""
    named = [f"{name} ({seen})" if seen else name for name, seen in cases.items()]
    return [f"{what}: {listed(named)}"] if named else []


def _copies(found: Sequence[Facts]) -> list[str]:
    """Volumes that are equal, or equal once one of them is mirrored."""
    alike: dict[bytes, list[tuple[str, str, bytes]]] = {}
    for facts in found:
        for name, (stored, upright) in facts.prints.items():
            alike.setdefault(upright, []).append((facts.case, name, stored))
    # A case that was copied has several such volumes.
    names: dict[tuple[str, str], dict[str, None]] = {}
    for group in alike.values():
        if len(group) > 1:
            cases = list(dict.fromkeys(case for case, _, _ in group))
            mirrored = len({stored for _, _, stored in group}) > 1
            how = "the same voxels, once mirrored," if mirrored else "the same voxels"
            names.setdefault((how, listed(cases, " = ")), {}).update(dict.fromkeys(name for _, name, _ in group))
    lines: dict[str, dict[str, str]] = {}
    for (how, cases_text), volumes in names.items():
        lines.setdefault(f"{how} in {', '.join(volumes)}", {})[cases_text] = ""
    return [line for what, same in lines.items() for line in _line(what, same)]


def _labels(found: Sequence[Facts]) -> list[str]:
    """Labels that are empty or lie outside the brain."""
    empty = {facts.case: "" for facts in found if facts.lesions == 0}
    outside = {facts.case: f"{100 * facts.outside:.0f}%" for facts in found if facts.outside > _OUTSIDE}
    return [
        *_line("the label holds no lesion", empty),
        *_line("a share of the label lies outside the brain", outside),
    ]


def _grids(found: Sequence[Facts], axes: str) -> list[str]:
    """Cases with another shape, spacing or orientation than all others."""
    lines = []
    for key, title, unit, same in (("shape", "shape", "", _SAME_SHAPE), ("spacing_mm", "spacing", " mm", grid.SAME)):
        order = [orientation.order(facts.profile["axes"], axes) for facts in found]
        sides = np.array([np.array(facts.profile[key])[list(way)] for facts, way in zip(found, order, strict=True)])
        other = np.any(abs(sides / np.median(sides, axis=0) - 1) > same, axis=1)
        shown = [sides_text(facts.profile[key]) + unit for facts in found]
        lines += _alone(f"another {title} than all others", found, other, shown)
    other = np.array([facts.profile["axes"] != axes for facts in found])
    shown = [facts.profile["axes"] or "unknown" for facts in found]
    return lines + _alone(f"stored along other axes than all others, which are {axes}", found, other, shown)


def _alone(what: str, found: Sequence[Facts], other: np.ndarray, shown: Sequence[str]) -> list[str]:
    """The sentence on the cases that differ; none if they are more than one, and more than one in ten."""
    if len(found) < _LEAST_CASES or other.sum() > max(1, len(found) // 10):
        return []
    return _line(what, {found[number].case: shown[number] for number in np.flatnonzero(other).tolist()})


def _mirrored(found: Sequence[Facts], axes: str) -> list[str]:
    """Cases whose brain has the outline of the others only once it is mirrored."""
    if len(found) < _LEAST_CASES:
        return []
    total = np.sum([facts.outline for facts in found], axis=0)
    cases = {}
    for facts in found:
        others = (total - facts.outline) / (len(found) - 1)
        apart = {way: float(abs(np.flip(facts.outline, way) - others).mean()) for way in _WAYS}
        # The fewest exchanges that fit: those of left and right change nearly nothing.
        way = next(way for way in _WAYS if apart[way] < min(apart.values()) + _BETTER)
        if way:
            cases[facts.case] = ", ".join(_SIDES[axes[axis]] if axes else f"axis {axis + 1}" for axis in way)
    return _line("the brain looks like those of the others only with its sides exchanged", cases)


def _far(channel: str, having: Sequence[Facts]) -> dict[str, str]:
    """The cases whose values of a channel are far from those of the others."""
    if len(having) < _LEAST_CASES:
        return {}
    low, middle, high = np.array([facts.profile["percentiles"][channel] for facts in having]).T
    spread = high - low
    usual = np.median(spread)
    far = (spread > _FAR * usual) | (_FAR * spread < usual) | (abs(middle - np.median(middle)) > _FAR * usual)
    return {
        having[number].case: f"{number_text(low[number])} to {number_text(high[number])}"
        for number in np.flatnonzero(far).tolist()
        if usual > 0
    }
