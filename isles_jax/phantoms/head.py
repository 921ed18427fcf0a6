"""The head of the phantom in the layout of ISLES-2022: a folded brain with its fissures, ventricles and hind brain.

docs/phantom.md gives the numbers and what they were compared with.
"""

from typing import NamedTuple

import numpy as np

from isles_jax.phantoms.tissue import ellipsoid, old_lesions, random_field, soft, to_head

# Of the published cases: 112 x 112 x 73 voxels of 2 mm.
FIELD_OF_VIEW_MM = (224.0, 224.0, 146.0)
# The width over which one tissue changes into the next, in mm: about half of a voxel, since a voxel averages.
EDGE_MM = 0.5
CORTEX_MM = 2.7
# Centre and radii of deep grey matter, right of the middle, in mm: lentiform nucleus, thalamus, caudate.
NUCLEI = (((25, 4, 2), (7, 16, 9)), ((11, -12, 4), (8, 12, 8)), ((13, 16, 10), (5, 9, 8)))
# The same of the lateral ventricle: body, front and back horn; then the third and the fourth ventricle.
LATERAL = (((9, -6, 18), (5, 30, 7)), ((9, 22, 10), (5, 12, 8)), ((22, -38, 8), (6, 16, 9)))
MIDDLE = (((0, -6, 2), (2, 13, 8)), ((0, -34, -34), (6, 5, 8)))


class Head(NamedTuple):
    """The anatomy of a patient. Arrays are [X, Y, Z] unless a shape is given.

    Attributes:
      points: [3, X, Y, Z], the patient's coordinates in mm: x to the right, y to the front, z up.
      depth: below the surface of the brain, in mm.
      brain: bool; what is left after skull-stripping.
      fractions: [X, Y, Z, 3] of CSF, grey and white matter, with sum 1.
      hind: distance in mm, positive in the cerebellum and the brain stem, and negative in the cerebrum.
      old: fraction of old lesions, and of what age leaves in white matter around the ventricles.
    """

    points: np.ndarray
    depth: np.ndarray
    brain: np.ndarray
    fractions: np.ndarray
    hind: np.ndarray
    old: np.ndarray


def make_head(points: np.ndarray, difficulty: float, rng: np.random.Generator) -> Head:
    """Draws the anatomy of a patient.

    Args:
      points: [3, X, Y, Z] from `grid_mm`; equal random numbers give the same patient on any grid.
      difficulty: scales the number of old lesions.
      rng: of the patient.
    """
    points = to_head(points, rng)
    x, y, z = points
    mirrored = np.stack([np.abs(x), y, z])
    # Age widens sulci and ventricles: 0 is a young patient, 1 an old one.
    age = np.sqrt(rng.uniform())
    uneven = 2.0 * random_field(points, 50, 100, rng)
    cerebrum = np.minimum(58 * (1 - ellipsoid(points, (0, 0, 8), (65, 78, 59))), z + 26 + 0.05 * y)
    temporal = 18 * (1 - ellipsoid(mirrored, (38, 6, -24), (21, 36, 20)))
    cerebellum = 22 * (1 - ellipsoid(points, (0, -46, -36), (49, 29, 23)))
    stem = 12 * (1 - ellipsoid(points, (0, -24, -32), (13, 14, 30)))
    front = np.maximum(cerebrum, temporal)
    hind = np.maximum(cerebellum, stem) - front
    depth = np.maximum(front, np.maximum(cerebellum, stem)) + uneven
    lateral = [_inside(mirrored, centre, np.multiply(radii, 0.9 + 0.9 * age)) for centre, radii in LATERAL]
    middle = [_inside(points, centre, np.multiply(radii, 0.9 + 0.9 * age)) for centre, radii in MIDDLE]
    ventricles = np.maximum.reduce(lateral + middle)
    outside = _outer_csf(points, depth, hind, (hind > 0) & (stem > cerebellum), age, rng)
    nuclei = np.maximum.reduce([_inside(mirrored, centre, radii) for centre, radii in NUCLEI])
    csf = soft(np.maximum(ventricles, outside), EDGE_MM)
    grey = soft(np.maximum(outside + CORTEX_MM, nuclei), EDGE_MM)
    fractions = np.stack([csf, (1 - csf) * grey, (1 - csf) * (1 - grey)], axis=-1).astype(np.float32)
    spread = 0.35 * age * soft(np.maximum.reduce(lateral) + 5, 3) * (hind < 0)
    old = np.maximum(old_lesions(points, rng.choice([-1.0, 1.0]), difficulty, rng), spread)
    # Skull-stripping leaves a little, or takes a little.
    brain = depth + 0.5 * random_field(points, 8, 20, rng) > -0.5
    return Head(points, depth, brain, fractions, hind, old)


def _inside(points: np.ndarray, centre: tuple[float, ...], radii: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """The depth in mm below the surface of an ellipsoid, near its surface: the distance in radii over its slope."""
    middle, sides = (np.asarray(vector, np.float32)[:, None, None, None] for vector in (centre, radii))
    offset = (points - middle) / sides
    slope = np.linalg.norm(offset / sides, axis=0)
    distance = np.linalg.norm(offset, axis=0)
    depth: np.ndarray = (1 - distance) * distance / np.maximum(slope, 1e-6)
    return depth


def _outer_csf(
    points: np.ndarray, depth: np.ndarray, hind: np.ndarray, smooth: np.ndarray, age: float, rng: np.random.Generator
) -> np.ndarray:
    """The depth in mm below the surface of the CSF around the brain and in its fissures and sulci.

    There are no sulci where the surface is `smooth`.
    """
    x, y, z = points
    # The folds of the cerebellum are half as large as those of the cerebrum.
    size = np.where(hind > 0, 0.5, 1)
    # Where a random field crosses 0 there is a sulcus: the sheets meet the surface in winding lines. The distance from
    # the sheet is the field divided by its mean slope, 2 pi over its wavelength.
    coarse, fine = (np.abs(random_field(points, *waves, rng)) for waves in ((14, 28), (8, 16)))
    sulcus = np.where(size < 1, 1.8 * fine, 3.2 * coarse)
    wide = (0.1 + 1.3 * age) * (1 + 0.5 * random_field(points, 25, 70, rng))
    sulci = wide * size - sulcus - 4 * (np.maximum(depth, 0) / (28 * size)) ** 2 - 9 * smooth
    rim = 0.7 * age - depth
    # The fissure between the hemispheres ends at the corpus callosum.
    between = np.minimum(0.5 + age - np.abs(x), 12 * (ellipsoid(points, (0, -4, 8), (30, 44, 20)) - 1))
    between = np.where(size < 1, -9, between)
    mirrored = np.stack([np.abs(x), y, z])
    sylvian = _inside(mirrored, (38, 8, 0), (1 + 3 * age, 20, 10))
    cistern = _inside(points, (0, -2, -20), (14, 14, 8))
    tentorium = 0.3 + 0.7 * age - np.abs(hind) - 9 * smooth
    found: np.ndarray = np.maximum.reduce([sulci, rim, between, sylvian, cistern, tentorium])
    return found
