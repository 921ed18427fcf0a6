"""Slices of cases for a page: gray PNG sprites, label sprites for the viewer, outlines for still panels.

Slices lie along the stored third axis, as the networks saw them. They are shown as radiologists do, where the affine
allows it: the patient's right on the left, the front at the top.
"""

import base64
import functools
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isles_jax.data.case import Case, Dataset, radiological
from isles_jax.data.nifti import read_labels
from isles_jax.reporting.results import Run
from isles_jax.runtime import files

# Gray levels in a sprite: more than an eye tells apart in a noisy scan, and a third smaller than all 256.
LEVELS = 64
# Voxels of all cases together up to which every slice with brain is shown, not only those around the lesion.
ALL_SLICES_VOXELS = 8_000_000
# Characters of sprites in one page; cases that would exceed it are left out, and the page says so.
PAGE_SIZE = 16_000_000


@dataclass(frozen=True)
class Picture:
    """One case, ready to be shown.

    Attributes:
      name: of the case.
      gray: uint8 [channels, S, H, W].
      truth: uint8 [S, H, W], the classes as 1...
      results: as `truth`, by system.
      slices: the stored index of each of the S slices.
      pixel: height and width of a pixel in mm.
      sides: what lies at the left, right, top and bottom of the picture ("R", "L", "A", "P"), or "".
    """

    name: str
    gray: np.ndarray
    truth: np.ndarray
    results: dict[str, np.ndarray]
    slices: list[int]
    pixel: tuple[float, float]
    sides: str

    @functools.cached_property
    def sheets(self) -> list[str]:
        """Every channel's slices below each other, as an address that holds its own PNG."""
        return [data_uri(_sheet(gray)) for gray in self.gray]


def make(dataset: Dataset, runs: Mapping[str, Run], first: Sequence[str]) -> list[Picture]:
    """Pictures of the runs' cases, as many as `PAGE_SIZE` holds, sorted by name.

    Args:
      dataset: the runs' data.
      runs: by label.
      first: names of the cases that come before all others if not all have room.

    Raises:
      InputError: a prediction is missing or does not fit its case.
    """
    cases = {case.name: case for case in dataset.cases}
    held_out = sorted(name for fold in next(iter(runs.values())).folds for name in fold)
    whole = sum(int(np.prod(cases[name].images.shape)) for name in held_out) <= ALL_SLICES_VOXELS
    pictures: list[Picture] = []
    used = 0
    for name in dict.fromkeys([*first, *held_out]):
        picture = _picture(cases[name], dataset, runs, whole)
        used += sum(map(len, picture.sheets))
        if pictures and used > PAGE_SIZE:
            break
        pictures.append(picture)
    return sorted(pictures, key=lambda picture: picture.name)


def _picture(case: Case, dataset: Dataset, runs: Mapping[str, Run], whole: bool) -> Picture:
    assert case.labels is not None
    results = {}
    for label, run in runs.items():
        fold = next(number for number, names in enumerate(run.folds) if case.name in names)
        path = run.workdir / f"fold_{fold}" / "predictions" / f"{case.name}.nii.gz"
        results[label] = read_labels(files.fetch(path), case, dataset.label_values)
    brain = case.brain
    wanted = brain if whole else np.any([case.labels > 0, *(result > 0 for result in results.values())], axis=0)
    places = np.flatnonzero((wanted if wanted.any() else brain).any(axis=(0, 1)))
    margin = 0 if whole else 2
    slices = range(max(0, places[0] - margin), min(brain.shape[2], places[-1] + 1 + margin))
    box = []
    for axis in (0, 1):
        inside = np.flatnonzero(brain.any(axis=(1 - axis, 2)))
        box.append(slice(max(0, inside[0] - 2), inside[-1] + 3))
    cut = (*box, slice(slices.start, slices.stop))
    flips, sides = radiological(case.affine)

    def show(volume: np.ndarray) -> np.ndarray:
        # [X, Y, Z] -> [Z, rows, columns]: x runs along a row, y down the columns.
        return np.ascontiguousarray(volume[cut].T[:, :: flips[1], :: flips[0]])

    x_mm, y_mm, _ = case.spacing_mm
    return Picture(
        name=case.name,
        gray=np.stack([show(_gray(case.images[..., channel], brain)) for channel in range(case.images.shape[3])]),
        truth=show(case.labels),
        results={label: show(result) for label, result in results.items()},
        slices=list(slices),
        pixel=(y_mm, x_mm),
        sides=sides,
    )


def _gray(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """A channel as `LEVELS` gray levels between the brain's 0.5 and 99.5 percentiles, 0 outside the brain."""
    low, high = np.percentile(image[brain], (0.5, 99.5))
    level = np.clip((image - low) / max(high - low, 1e-12), 0, 1)
    return np.where(brain, np.rint(level * (LEVELS - 1)) * (255 // (LEVELS - 1)), 0).astype(np.uint8)


# --- what the page holds ---------------------------------------------------------------------------------------------


def png(gray: np.ndarray) -> bytes:
    """A uint8 [H, W] image as PNG (8-bit gray)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = gray.shape
    rows = np.zeros((height, width + 1), np.uint8)
    rows[:, 1:] = gray
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows.tobytes())), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def data_uri(gray: np.ndarray) -> str:
    """A uint8 [H, W] image as an address that holds its own PNG."""
    return "data:image/png;base64," + base64.b64encode(png(gray)).decode()


def _sheet(stack: np.ndarray) -> np.ndarray:
    """[S, H, W] -> [S * H, W]: the slices below each other."""
    return stack.reshape(-1, stack.shape[2])


def viewer_case(picture: Picture, channels: Sequence[str]) -> dict:
    """A picture as the page's script reads it: every channel, the truth and every result as one sheet of slices."""
    _, height, width = picture.truth.shape
    return {
        "name": picture.name,
        "slices": picture.slices,
        "size": [height, width],
        "pixel": picture.pixel,
        "sides": picture.sides,
        "images": dict(zip(channels, picture.sheets, strict=True)),
        "truth": data_uri(_sheet(picture.truth)),
        "results": {label: data_uri(_sheet(result)) for label, result in picture.results.items()},
    }


def telling_slice(picture: Picture) -> int:
    """The position of the slice with the largest share of every class together; the middle one without a lesion."""
    labels = (
        picture.truth if picture.truth.any() else max(picture.results.values(), key=lambda result: (result > 0).sum())
    )
    share = np.zeros(len(labels))
    for value in np.unique(labels[labels > 0]):
        area = (labels == value).sum(axis=(1, 2))
        share += area / area.sum()
    return int(share.argmax()) if share.any() else len(labels) // 2


def outline(mask: np.ndarray) -> str:
    """The boundary of a bool [H, W] mask along its pixels' edges, as the data of an SVG path."""
    padded = np.pad(mask, 1)
    # Edges go round the mask clockwise: from each corner (row, column) to the next.
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (row, column), step in (((-1, 0), (0, 1)), ((0, 1), (1, 0)), ((1, 0), (0, -1)), ((0, -1), (-1, 0))):
        outside = ~np.roll(padded, (-row, -column), (0, 1)) & padded
        start = (max(row, 0) if row else (1 if column < 0 else 0), max(column, 0) if column else (1 if row > 0 else 0))
        for y, x in (np.argwhere(outside) - 1).tolist():
            corner = (y + start[0], x + start[1])
            following.setdefault(corner, []).append((corner[0] + step[0], corner[1] + step[1]))
    path = []
    while following:
        first = corner = next(iter(following))
        points = []
        while corner in following:
            points.append(corner)
            options = following[corner]
            nearest = options.pop()
            if not options:
                del following[corner]
            corner = nearest
        path.append(_loop(first, points))
    return "".join(path)


def _loop(first: tuple[int, int], points: Sequence[tuple[int, int]]) -> str:
    """A closed loop of corners, straight runs joined."""
    text, run, before = f"M{first[1]} {first[0]}", 0, None
    for here, then in zip(points, [*points[1:], first], strict=True):
        step = (then[0] - here[0], then[1] - here[1])
        if step == before:
            run += 1
            continue
        text += _run(before, run)
        before, run = step, 1
    return text + _run(before, run) + "z"


def _run(step: tuple[int, int] | None, count: int) -> str:
    if step is None:
        return ""
    return f"v{step[0] * count}" if step[0] else f"h{step[1] * count}"
