"""Patients in the layout of ISLES-2022: DWI, ADC and the mask of the infarct.

As in the real set, most scans have voxels of 2 mm if the shape is 112 x 112 x 73, ADC comes in three units, lesions
have one to about fifty pieces, some are smaller than 1 ml, some patients have two scans, and two have no lesion.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isles_jax.data.adc import UNITS
from isles_jax.phantoms import diffusion, emboli
from isles_jax.phantoms.head import FIELD_OF_VIEW_MM, make_head
from isles_jax.phantoms.scans import save
from isles_jax.phantoms.tissue import grid_mm

# Voxels in the plane and slices, as multiples of the shape asked for; most scans have that shape.
GRIDS = ((1.0, 1.0), (1.0, 1.0), (1.5, 1.0), (1.0, 1.0), (1.25, 0.75), (1.0, 1.0), (0.75, 1.25))
# The last of every six scans is a second scan of the patient before.
REPEATED = 6
WITHOUT_LESION = (3, 8)
# The kinds of patients of `emboli.KINDS`, in turn.
IN_TURN = ("territory", "single", "shower", "shower", "territory")
# Infarcts are placed on a grid of 4 mm, whatever the grid of the scan is.
COARSE = (56, 56, 37)


def write_case(root: Path, index: int, shape: Sequence[int], difficulty: float, seed: int) -> None:
    """Writes one scan, sub-phantomNNNN/ses-000N and its mask under derivatives."""
    again = index % REPEATED == REPEATED - 1
    number = index - 1 if again else index
    in_plane, through = GRIDS[index % len(GRIDS)]
    sides = [max(round(n * factor), 4) for n, factor in zip(shape, (in_plane, in_plane, through), strict=True)]
    head, coarse = (
        make_head(grid_mm(tuple(grid), FIELD_OF_VIEW_MM), difficulty, np.random.default_rng([seed, number]))
        for grid in (sides, COARSE)
    )
    patient, scan = np.random.default_rng([seed, number, 1]), np.random.default_rng([seed, index, 2])
    infarcts = [] if number in WITHOUT_LESION else emboli.draw(IN_TURN[number % len(IN_TURN)], coarse, patient)
    infarct_mm = emboli.depth_mm(infarcts, head, patient)
    dwi, adc = diffusion.scan(head, infarct_mm, patient.uniform(), difficulty, scan)
    mask = diffusion.read(head, infarct_mm, difficulty, scan)
    unit = 1 / UNITS[number % len(UNITS)][1]
    subject = f"sub-phantom{number + 1:04d}"
    session = f"ses-{1 + again:04d}"
    affine = _affine(head.brain.shape, scan)
    volumes = (
        (f"{subject}/{session}/dwi", "dwi", dwi, (2, 1)),
        (f"{subject}/{session}/dwi", "adc", adc * np.float32(unit), (2, 1)),
        (f"derivatives/{subject}/{session}", "msk", mask.astype(np.uint16), (0, 2)),
    )
    for folder, word, volume, codes in volumes:
        # Stored from right to left, as the real ones are.
        save(root / folder / f"{subject}_{session}_{word}.nii.gz", volume[::-1], affine, codes)


def _affine(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """An oblique affine for the volume stored from right to left, around the middle of the field of view."""
    # Slices follow the base of the brain: they are turned by 3 to 19 degrees in the published cases, mostly about x.
    x, y, z = np.deg2rad(rng.normal((11, 0, 0), (6, 3, 3)))
    turns = (
        [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]],
        [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]],
        [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]],
    )
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.multi_dot(turns) @ np.diag(np.array(FIELD_OF_VIEW_MM) / shape * (-1, 1, 1))
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine
