"""Slices of cases for a page: gray images and label images for the viewer, outlines for the still pictures.

Slices lie along the stored third axis, as the networks saw them. Where the affine allows it they are shown in the
radiological convention: the patient's right on the left, the front at the top.
"""

import base64
import functools
import itertools
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from isles_jax.data.case import Case, Dataset, radiological
from isles_jax.data.nifti import read_labels
from isles_jax.pages import tmax
from isles_jax.runtime import files
from isles_jax.scoring import clinical
from isles_jax.scoring.comparison import RULE
from isles_jax.scoring.run_files import Run

# Gray levels in an image. An eye tells fewer apart in a noisy scan, and the file is a third smaller than with all 256.
# Level 0 is outside the brain; level n is stored as the byte n * STEP.
LEVELS = 64
STEP = 256 // LEVELS
# Up to this number of voxels in all cases together, every slice with brain is shown; above it, the slices with lesion.
ALL_SLICES_VOXELS = 8_000_000
# The most characters of images in one page. Further cases are left out, and the page says so.
PAGE_SIZE = 16_000_000


@dataclass(frozen=True)
class Picture:
    """One case, ready to be shown.

    Attributes:
      name: the case's name.
      gray: uint8 [channels, S, H, W], levels times `STEP`.
      ranges: for each channel its values at level 1 and at the last level; beyond them it is clipped.
      truth: the reference, uint8 [S, H, W]; 0 is background, 1, 2, ... are the classes; None without a reference.
      results: one prediction or more by the system's label, as `truth`.
      slices: the stored index of each of the S slices.
      places: where each of them lies, in mm, such as "S 34.0 mm".
      pixel_mm: height and width of a pixel in mm.
      sides: the patient's sides at the left, right, top and bottom of the picture, "RLAP", or "" where unknown.
      absent: names of the channels that the case lacks; their gray is that of a single value.
    """

    name: str
    gray: np.ndarray
    ranges: list[tuple[float, float]]
    truth: np.ndarray | None
    results: dict[str, np.ndarray]
    slices: list[int]
    places: list[str]
    pixel_mm: tuple[float, float]
    sides: str
    absent: tuple[str, ...] = ()

    @functools.cached_property
    def sheets(self) -> list[str]:
        """The sheet of each channel, see `_sheet`."""
        return [_sheet(gray) for gray in self.gray]

    def values(self, channel: int) -> np.ndarray:
        """A channel's approximate values, float [S, H, W]; its lowest value outside the brain."""
        values: np.ndarray = _value_of_byte(self.ranges[channel])[self.gray[channel]]
        return values


def make(
    dataset: Dataset, runs: Mapping[str, Run], first: Sequence[str], thresholds: Sequence[float] = ()
) -> list[Picture]:
    """Pictures of the runs' cases, as many as `PAGE_SIZE` holds, sorted by name.

    Args:
      dataset: the runs' data; a case that is not among them has no picture.
      runs: the runs by label.
      first: names of the cases that are taken first if there is no room for all.
      thresholds: of the clinical rule, for each fold; none: the rule is not shown.

    Raises:
      InputError: a prediction is missing or does not fit its case.
    """
    cases = {case.name: case for case in dataset.cases}
    held_out = sorted(name for fold in next(iter(runs.values())).folds for name in fold if name in cases)
    all_slices = sum(int(np.prod(cases[name].images.shape)) for name in held_out) <= ALL_SLICES_VOXELS
    pictures: list[Picture] = []
    used = 0
    for name in dict.fromkeys(name for name in (*first, *held_out) if name in cases):
        made = _read(cases[name], dataset, runs, thresholds, all_slices)
        used += sum(map(len, made.sheets))
        if pictures and used > PAGE_SIZE:
            break
        pictures.append(made)
    return sorted(pictures, key=lambda made: made.name)


def _read(
    case: Case, dataset: Dataset, runs: Mapping[str, Run], thresholds: Sequence[float], all_slices: bool
) -> Picture:
    results = {}
    for label, run in runs.items():
        fold = next(number for number, names in enumerate(run.folds) if case.name in names)
        path = run.workdir / f"fold_{fold}" / "predictions" / f"{case.name}.nii.gz"
        results[label] = read_labels(files.fetch(path), case, dataset.label_values)
    if thresholds:
        # The runs of a study have the same folds.
        results[RULE] = clinical.clinical_rule(case, thresholds[fold], dataset.channels, dataset.classes)
    return picture(case, results, all_slices)


def picture(case: Case, results: Mapping[str, np.ndarray], all_slices: bool = True) -> Picture:
    """A picture of a case, with its reference if it has one.

    Args:
      case: it has a brain.
      results: predictions by the system's label, uint8 [X, Y, Z]; at least one.
      all_slices: show every slice with brain; False: the slices with a lesion and two more on either side.
    """
    brain = case.brain
    volumes = [*results.values()] if case.labels is None else [case.labels, *results.values()]
    lesion = np.any([volume > 0 for volume in volumes], axis=0)
    slices = _extent(brain, 2, 0) if all_slices or not lesion.any() else _extent(lesion, 2, 2)
    crop = (_extent(brain, 0, 2), _extent(brain, 1, 2), slices)
    flips, sides = radiological(case)

    def show(volume: np.ndarray) -> np.ndarray:
        # [X, Y, Z] -> [S, H, W]: x runs along a row, y down the columns.
        return np.ascontiguousarray(volume[crop].T[:, :: flips[1], :: flips[0]])

    x_mm, y_mm, _ = case.spacing_mm
    shown = range(*slices.indices(brain.shape[2]))
    channels = np.moveaxis(case.images, -1, 0)
    ranges = [_range(channel[brain]) for channel in channels]
    gray = [show(_gray(channel, brain, *ends)) for channel, ends in zip(channels, ranges, strict=True)]
    return Picture(
        name=case.name,
        gray=np.stack(gray),
        ranges=ranges,
        truth=None if case.labels is None else show(case.labels),
        results={label: show(result) for label, result in results.items()},
        slices=list(shown),
        places=[_place(case, index) for index in shown],
        pixel_mm=(y_mm, x_mm),
        sides=sides,
        absent=case.absent,
    )


def _place(case: Case, index: int) -> str:
    """Where a stored slice lies: its middle along its axis in the scanner's coordinates, or how far from slice 1."""
    if not case.oriented:
        return f"{index * case.spacing_mm[2]:.1f} mm from slice 1"
    x, y, _ = case.images.shape[:3]
    middle = case.affine[:3] @ ((x - 1) / 2, (y - 1) / 2, index, 1)
    # The axis of the world along which slices follow each other, and the names of its two directions.
    axis, ends = next((n, ends) for n, ends in enumerate(("RL", "AP", "SI")) if nib.aff2axcodes(case.affine)[2] in ends)
    towards = ends[0] if middle[axis] >= 0 else ends[1]
    return f"{towards} {abs(middle[axis]):.1f} mm"


def _extent(mask: np.ndarray, axis: int, margin: int) -> slice:
    """The indices along an axis of a volume that a mask [X, Y, Z] covers, and some more on either side."""
    covered = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
    return slice(max(0, int(covered[0]) - margin), int(covered[-1]) + 1 + margin)


def _range(values: np.ndarray) -> tuple[float, float]:
    """The percentiles 0.5 and 99.5, rounded to five digits."""
    low, high = (float(f"{value:.5g}") for value in np.percentile(values, (0.5, 99.5)))
    return low, max(high, low + 1e-6)


def _gray(image: np.ndarray, brain: np.ndarray, low: float, high: float) -> np.ndarray:
    """A channel [X, Y, Z] in levels times `STEP`: 1 to `LEVELS` - 1 from `low` to `high`, 0 outside the brain."""
    level = 1 + np.rint(np.clip((image - low) / ((high - low) or 1.0), 0, 1) * (LEVELS - 2))
    return np.where(brain, level * STEP, 0).astype(np.uint8)


def _value_of_byte(ends: tuple[float, float]) -> np.ndarray:
    """The value that each byte of a gray image stands for, [256]."""
    level = np.arange(256) // STEP
    return ends[0] + np.maximum(level - 1, 0) / (LEVELS - 2) * (ends[1] - ends[0])


# --- what the page holds ---------------------------------------------------------------------------------------------


def png(gray: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """A uint8 [H, W] image as PNG: its gray values, or the colours that they have in a palette, uint8 [256, 3]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = gray.shape
    rows = np.zeros((height, width + 1), np.uint8)
    rows[:, 1:] = gray
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if palette is None else 3, 0, 0, 0)
    colours = b"" if palette is None else chunk(b"PLTE", palette.tobytes())
    data = chunk(b"IDAT", zlib.compress(rows.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colours + data + chunk(b"IEND", b"")


def data_uri(gray: np.ndarray, palette: np.ndarray | None = None) -> str:
    """What `png` makes, as a data address."""
    return "data:image/png;base64," + base64.b64encode(png(gray, palette)).decode()


def tmax_palette(picture: Picture, channel: int) -> np.ndarray:
    """The colours of a picture's Tmax, for `png`; black outside the brain."""
    palette = tmax.colours(_value_of_byte(picture.ranges[channel]))
    palette[:STEP] = 0
    return palette


def _sheet(stack: np.ndarray) -> str:
    """The slices of a stack, uint8 [S, H, W], below each other as one data address."""
    return data_uri(stack.reshape(-1, stack.shape[2]))


def viewer_case(picture: Picture, channels: Sequence[str]) -> dict[str, Any]:
    """A picture as the page's script reads it; every channel, the reference and every result is one sheet of slices.

    A channel that the case lacks has no sheet.
    """
    sheets = dict(zip(channels, picture.sheets, strict=True))
    _, _, height, width = picture.gray.shape
    return {
        "name": picture.name,
        "slices": picture.slices,
        "places": picture.places,
        "size": [height, width],
        "pixel_mm": picture.pixel_mm,
        "sides": picture.sides,
        "images": {name: sheet for name, sheet in sheets.items() if name not in picture.absent},
        "ranges": picture.ranges,
        "truth": None if picture.truth is None else _sheet(picture.truth),
        "results": {label: _sheet(result) for label, result in picture.results.items()},
        "start": representative_slice(picture),
    }


def representative_slice(picture: Picture) -> int:
    """The position of the slice with the largest share of all classes together; the middle slice without a lesion.

    The lesion is that of the reference, or of the first result that has one.
    """
    known = [picture.truth] if picture.truth is not None else []
    every = [*known, *picture.results.values()]
    labels = next((labels for labels in every if labels.any()), every[0])
    share = np.zeros(len(labels))
    for value in np.unique(labels[labels > 0]):
        area = (labels == value).sum(axis=(1, 2))
        share += area / area.sum()
    return int(share.argmax()) if share.any() else len(labels) // 2


# A pixel's four edges, clockwise: the neighbour (row, column) behind the edge, the corner where the edge starts, and
# the direction of the edge.
_EDGES = (
    ((-1, 0), (0, 0), (0, 1)),
    ((0, 1), (0, 1), (1, 0)),
    ((1, 0), (1, 1), (0, -1)),
    ((0, -1), (1, 0), (-1, 0)),
)


def outline(mask: np.ndarray) -> str:
    """The boundary of a bool [H, W] mask along its pixels' edges, as the data of an SVG path."""
    padded = np.pad(mask, 1)
    directions: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for neighbour, start, direction in _EDGES:
        on_boundary = padded & ~np.roll(padded, (-neighbour[0], -neighbour[1]), (0, 1))
        for row, column in (np.argwhere(on_boundary) - 1).tolist():
            directions.setdefault((row + start[0], column + start[1]), []).append(direction)
    loops = []
    while directions:
        first = corner = next(iter(directions))
        steps = []
        while corner in directions:
            steps.append(directions[corner].pop())
            if not directions[corner]:
                del directions[corner]
            corner = (corner[0] + steps[-1][0], corner[1] + steps[-1][1])
        runs = [(step, len(list(group))) for step, group in itertools.groupby(steps)]
        path = "".join(f"v{down * count}" if down else f"h{right * count}" for (down, right), count in runs)
        loops.append(f"M{first[1]} {first[0]}{path}z")
    return "".join(loops)
