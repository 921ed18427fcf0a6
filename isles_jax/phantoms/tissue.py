"""The tissue of a phantom's patient: the anatomy, and an occlusion with its collaterals.

docs/phantom.md gives the equations, the numbers and their sources.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FIELD_OF_VIEW_MM = (192.0, 192.0, 112.0)
# Healthy CSF, grey and white matter: flow (ml/100 ml/min) and blood volume (ml/100 ml).
CBF = (3.0, 60.0, 25.0)
CBV = (0.4, 4.0, 2.1)
# Tissue dies if its flow is below this fraction of the healthy flow (DEFUSE 3: 30%).
CORE_FLOW = 0.30


class Tissue(NamedTuple):
    """The true state of the patient. Arrays are [X, Y, Z] unless a shape is given.

    Attributes:
      brain: bool; what is left after skull-stripping.
      fractions: [X, Y, Z, 3] of CSF, grey and white matter, with sum 1.
      flow: CBF as a fraction of the healthy one.
      late: delay of the blood by the occlusion, in s.
      benign: delay of the blood by everything else (a narrowed carotid, border zones, an old lesion), in s.
      old: fraction of an old lesion.
      healthy: healthy CBF, in ml/100 ml/min.
      volume: CBV after the occlusion, in ml/100 ml.
    """

    brain: np.ndarray
    fractions: np.ndarray
    flow: np.ndarray
    late: np.ndarray
    benign: np.ndarray
    old: np.ndarray
    healthy: np.ndarray
    volume: np.ndarray


def grid_mm(shape: tuple[int, ...], field_of_view_mm: tuple[float, ...] = FIELD_OF_VIEW_MM) -> np.ndarray:
    """Voxel centres [3, X, Y, Z] in mm from the middle of the field of view: x to the right, y to the front, z up."""
    axes = [(np.arange(n) - (n - 1) / 2) * side / n for n, side in zip(shape, field_of_view_mm, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def random_field(points: np.ndarray, shortest: float, longest: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random function of space with mean 0 and variance 1: a sum of plane waves in random directions.

    Args:
      points: [3, X, Y, Z] in mm, an affine function of the voxel's indices.
      shortest: shortest wavelength in mm.
      longest: longest wavelength in mm.
      rng: draws directions, wavelengths and phases.
    """
    waves = 20
    direction = rng.normal(size=(waves, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    number = 2 * np.pi * direction / rng.uniform(shortest, longest, (waves, 1))
    start = points[:, 0, 0, 0].astype(np.float64)
    phase = number @ start + rng.uniform(0, 2 * np.pi, waves)
    # A plane wave on a grid is a product of waves along the axes, so no cosine of each voxel and wave is needed.
    along = []
    for axis, count in enumerate(points.shape[1:]):
        step = np.moveaxis(points, axis + 1, 1)[:, 1, 0, 0] - start
        along.append(np.exp(1j * np.arange(count)[:, None] * (number @ step)))
    plane = (np.exp(1j * phase) * along[0][:, None] * along[1]).reshape(-1, waves)
    field: np.ndarray = (plane @ along[2].T).real * np.sqrt(2 / waves)
    return field.reshape(points.shape[1:]).astype(np.float32)


def make_tissue(points: np.ndarray, difficulty: float, rng: np.random.Generator) -> Tissue:
    """Draws the anatomy, the occlusion, and everything else that delays the blood or brightens the DWI.

    Args:
      points: from `grid_mm`; equal random numbers give the same patient on any grid.
      difficulty: see `make_patient`.
      rng: of the patient.
    """
    points = to_head(points, rng)
    brain, fractions = _anatomy(points, rng)
    side = rng.choice([-1.0, 1.0])
    severity = _severity(points, side, rng)
    # The delay rises steeply at the rim and little further inside: collaterals feed the whole territory late.
    late = rng.uniform(9, 12) * np.minimum(severity / 0.75, 1)
    # Collaterals maintain the flow up to the severity `reach`; tissue of a higher severity dies.
    reach = rng.uniform(0.62, 0.80)
    severity = np.clip(severity + 0.05 * random_field(points, 40, 80, rng), 0, 1)
    exponent = np.log((1 - CORE_FLOW) / 0.92) / np.log(reach)
    flow = 1 - 0.92 * severity**exponent
    old = old_lesions(points, side, difficulty, rng)
    benign = difficulty * _benign_delay(points, fractions, rng) + rng.uniform(0, 1.5) * old
    healthy = fractions @ np.array(CBF, np.float32) * (1 + 0.1 * random_field(points, 25, 60, rng))
    # Vessels dilate as flow falls, and collapse in the core.
    dilated = 1 + 0.5 * np.minimum(1 - flow, 0.5)
    volume = fractions @ np.array(CBV, np.float32) * dilated * np.clip(flow / 0.35, 0.3, 1)
    flow = flow * (1 - 0.6 * old)
    volume = volume * (1 - 0.5 * old)
    return Tissue(brain, fractions, flow, late, benign, old, healthy, volume)


def to_head(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turns scanner coordinates into the patient's: rotated, shifted, and scaled to the size of the head."""
    pitch, roll, yaw = np.deg2rad(rng.normal(0, 4, 3))
    cos, sin = np.cos([pitch, roll, yaw]), np.sin([pitch, roll, yaw])
    turn = np.array([[1, 0, 0], [0, cos[0], -sin[0]], [0, sin[0], cos[0]]])
    turn = turn @ np.array([[cos[1], 0, sin[1]], [0, 1, 0], [-sin[1], 0, cos[1]]])
    turn = turn @ np.array([[cos[2], -sin[2], 0], [sin[2], cos[2], 0], [0, 0, 1]])
    scale = rng.uniform(0.94, 1.06, 3)
    moved: np.ndarray = (turn / scale[:, None]) @ points.reshape(3, -1) + rng.normal(0, 2.5, (3, 1))
    return moved.reshape(points.shape).astype(np.float32)


def ellipsoid(points: np.ndarray, centre: npt.ArrayLike, radii: npt.ArrayLike) -> np.ndarray:
    """The distance from the centre in radii: 1 on the surface."""
    middle, sides = (np.asarray(vector, np.float32)[:, None, None, None] for vector in (centre, radii))
    offset = (points - middle) / sides
    distance: np.ndarray = np.sqrt((offset**2).sum(axis=0))
    return distance


def soft(inside_mm: np.ndarray, width_mm: float = 1.5) -> np.ndarray:
    """The fraction of a voxel inside a surface, as a smooth function of its depth below the surface."""
    return 1 / (1 + np.exp(-np.clip(inside_mm / width_mm, -30, 30)))


def _anatomy(points: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The brain's mask, and fractions of CSF, grey and white matter: a folded cortex, deep nuclei, ventricles."""
    x, y, z = points
    depth = 62 * (1 + 0.03 * random_field(points, 60, 120, rng) - ellipsoid(points, (0, 0, -4), (66, 83, 56)))
    brain = depth > 0
    folds = random_field(points, 16, 30, rng)
    grey = soft(4.5 + 8 * np.maximum(folds, 0) - depth)
    grey = np.maximum(grey, soft(3 - np.abs(x)) * soft(20 - depth, 3))
    wide = rng.uniform(0.8, 1.3)
    mirrored = np.stack([np.abs(x), y, z])
    for centre, radii in (((25, 6, 0), (8, 17, 11)), ((12, -12, 2), (9, 13, 9)), ((14, 16, 8), (6, 10, 9))):
        grey = np.maximum(grey, soft(min(radii) * (1 - ellipsoid(mirrored, centre, radii))))
    ventricles = soft(7 * (1 - ellipsoid(mirrored, (9, -4, 12), (6 * wide, 32 * wide, 8 * wide))))
    csf = np.maximum(ventricles, 0.7 * soft(folds * 2 - 2.4 - depth * 0.3, 0.5))
    return brain, np.stack([csf, (1 - csf) * grey, (1 - csf) * (1 - grey)], axis=-1).astype(np.float32)


def _severity(points: np.ndarray, side: float, rng: np.random.Generator) -> np.ndarray:
    """The severity of the occlusion, from 0 at the rim of the occluded branch's territory to 1 deep inside it."""
    middle, radii = {
        0: ((38, 0, 6), (38, 62, 48)),  # the whole artery
        1: ((40, 14, 14), (36, 48, 40)),  # its upper division
        2: ((40, -22, 2), (36, 48, 40)),  # its lower division
    }[int(rng.choice(3, p=[0.5, 0.3, 0.2]))]
    centre = np.array(middle) * (side, 1, 1) + rng.normal(0, 3, 3)
    inside = 1 - ellipsoid(points, centre, np.array(radii) * rng.uniform(0.9, 1.08))
    inside = inside + 0.09 * random_field(points, 40, 90, rng)
    # The other hemisphere has its own artery.
    severity: np.ndarray = np.clip(inside / 0.75, 0, 1) * soft(side * points[0] - 4, 1.5)
    return severity


def old_lesions(points: np.ndarray, side: float, difficulty: float, rng: np.random.Generator) -> np.ndarray:
    """The fraction of old lesions in each voxel; none to three lie outside the occluded territory."""
    old = np.zeros(points.shape[1:], np.float32)
    for _ in range(rng.binomial(3, min(0.3 * difficulty, 0.9))):
        centre = (-side * rng.uniform(12, 45), rng.uniform(-50, 45), rng.uniform(-25, 30))
        radius = rng.uniform(6, 13)
        rough = 0.2 * random_field(points, 20, 40, rng)
        shape = 1 + rough - ellipsoid(points, centre, radius * rng.uniform(0.8, 1.3, 3))
        old = np.maximum(old, soft(radius * shape))
    return old


def _benign_delay(points: np.ndarray, fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Delay in s that threatens no tissue: a narrowed carotid in half of the patients, border zones in all."""
    x, y, z = points
    carotid = 0.0
    if rng.uniform() < 0.5:
        anterior = soft(rng.choice([-1, 1]) * x - 2, 3) * soft(y + 40, 8)
        carotid = rng.uniform(1.5, 3.0) * anterior
    # Between the territories of the anterior, middle and posterior arteries, deep in the white matter.
    zones = np.exp(-(((np.abs(x) - 26) / 6) ** 2) - ((z - 22) / 14) ** 2)
    zones = zones + np.exp(-(((np.abs(x) - 36) / 12) ** 2) - ((y + 52) / 10) ** 2)
    patchy = np.maximum(random_field(points, 25, 50, rng), 0)
    delay: np.ndarray = carotid + rng.uniform(0.5, 2) * np.minimum(zones, 1) * (0.4 + patchy) + 0.5 * fractions[..., 2]
    return delay
