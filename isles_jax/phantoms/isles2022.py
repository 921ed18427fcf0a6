"""The phantom's patients in the layout of ISLES-2022: DWI, ADC and the mask of the core, without perfusion.

The physics is that of `scans.py`. As in the real set, spacings and shapes are mixed, ADC comes in three units, some
lesions are smaller than 1 ml, some patients have two scans, and two scans show no lesion.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isles_jax.data.adc import UNITS
from isles_jax.phantoms import scans
from isles_jax.phantoms.tissue import FIELD_OF_VIEW_MM, grid_mm, make_tissue

# Voxels in the plane and slices, as multiples of the shape asked for; most scans have that shape.
GRIDS = ((1.0, 1.0), (1.0, 1.0), (1.5, 1.0), (1.0, 1.0), (1.25, 0.75), (1.0, 1.0), (0.75, 1.25))
# The last of every six scans is a second scan of the patient before.
REPEATED = 6
WITHOUT_LESION = (3, 8)


def write_case(root: Path, index: int, shape: Sequence[int], difficulty: float, seed: int) -> None:
    """Writes one scan, sub-phantomNNNN/ses-000N and its mask under derivatives."""
    again = index % REPEATED == REPEATED - 1
    number = index - 1 if again else index
    drawn = np.random.default_rng([seed, number, 1])
    # Volumes spread over two orders of magnitude; every fourth lesion is a small one.
    low, high = (0.27, 0.34) if number % 4 == 1 else (0.3, 1)
    size = 0.0 if number in WITHOUT_LESION else drawn.uniform(low, high)
    in_plane, through = GRIDS[index % len(GRIDS)]
    sides = [max(round(n * factor), 4) for n, factor in zip(shape, (in_plane, in_plane, through), strict=True)]
    points = grid_mm(tuple(sides))
    tissue = make_tissue(points, difficulty, np.random.default_rng([seed, number]), size)
    scan = np.random.default_rng([seed, index, 2])
    dwi, adc = scans.scan_adc(points, tissue, difficulty, scan)
    mask = scans.read_labels(points, tissue, difficulty, scan) == 2
    unit = 1 / UNITS[number % len(UNITS)][1]
    subject = f"sub-phantom{number + 1:04d}"
    session = f"ses-{1 + again:04d}"
    affine, cut = _placed(tissue.brain, scan)
    volumes = (
        (f"{subject}/{session}/dwi", "dwi", dwi, (2, 1)),
        (f"{subject}/{session}/dwi", "adc", adc * np.float32(unit), (2, 1)),
        (f"derivatives/{subject}/{session}", "msk", mask.astype(np.uint16), (0, 2)),
    )
    for folder, word, volume, codes in volumes:
        # Stored from right to left, as the real ones are.
        scans.save(root / folder / f"{subject}_{session}_{word}.nii.gz", volume[cut][::-1], affine, codes)


def _placed(brain: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, tuple[slice, ...]]:
    """An oblique affine for the volume stored from right to left, and how much of its empty margin is stored."""
    spacing = np.array(FIELD_OF_VIEW_MM) / brain.shape
    cut = []
    for axis in range(2):
        inside = np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis})))
        margin = int(rng.integers(1, 5))
        cut.append(slice(max(inside[0] - margin, 0), min(inside[-1] + 1 + margin, brain.shape[axis])))
    angle = np.deg2rad(rng.uniform(-12, 12))
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag(spacing * (-1, 1, 1))
    first = np.array([brain.shape[0] - cut[0].stop, cut[1].start, 0])
    affine[:3, 3] = affine[:3, :3] @ (first - (np.array(brain.shape) - 1) / 2)
    return affine, (*cut, slice(None))
