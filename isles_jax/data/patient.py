"""A patient of the phantom: the anatomy, an occlusion with its collaterals, the scans, and the reader's labels.

docs/data.md gives the equations, the numbers and their sources; `perfusion.py` holds the physics of the scans.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from isles_jax.data import perfusion

FIELD_OF_VIEW_MM = (192.0, 192.0, 112.0)
# Healthy tissue, in the order CSF, grey, white: flow (ml/100 ml/min), blood volume (ml/100 ml), T2 (ms),
# diffusion coefficient (um2/ms), proton density.
CBF = (3.0, 60.0, 25.0)
CBV = (0.4, 4.0, 2.1)
T2 = (1200.0, 92.0, 80.0)
ADC = (3.0, 0.85, 0.75)
DENSITY = (1.0, 0.83, 0.72)
# Tissue dies if its flow is below this fraction of the healthy flow (DEFUSE 3: 30%).
CORE_FLOW = 0.30
# Seconds. A delay of 4 s gives a measured Tmax of 6 s, because the deconvolution adds 2 s.
PENUMBRA_DELAY = 4.0


class Patient(NamedTuple):
    """The scans and the reader's labels.

    Attributes:
      tmax: [X, Y, Z] in s.
      ttp: [X, Y, Z] in s.
      dwi: [X, Y, Z] in the scanner's arbitrary units.
      labels: uint8 [X, Y, Z]: 0 background, 1 penumbra, 2 core.
    """

    tmax: np.ndarray
    ttp: np.ndarray
    dwi: np.ndarray
    labels: np.ndarray


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


def make_patient(shape: tuple[int, ...], difficulty: float, rng: np.random.Generator) -> Patient:
    """Draws a random patient and their scans.

    Args:
      shape: X, Y and Z.
      difficulty: scales noise, artefacts and look-alikes; 0 has none.
      rng: the patient is a function of its state.
    """
    points = grid_mm(shape)
    tissue = make_tissue(points, difficulty, rng)
    tmax, ttp = scan_perfusion(tissue, difficulty, rng)
    dwi = scan_diffusion(points, tissue, difficulty, rng)
    return Patient(tmax, ttp, dwi, read_labels(points, tissue, difficulty, rng))


def grid_mm(shape: tuple[int, ...]) -> np.ndarray:
    """Voxel centres [3, X, Y, Z] in mm from the middle of the field of view: x to the right, y to the front, z up."""
    axes = [(np.arange(n) - (n - 1) / 2) * side / n for n, side in zip(shape, FIELD_OF_VIEW_MM, strict=True)]
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
    field = (plane @ along[2].T).real * np.sqrt(2 / waves)
    return field.reshape(points.shape[1:]).astype(np.float32)


def make_tissue(points: np.ndarray, difficulty: float, rng: np.random.Generator, size: float = 1.0) -> Tissue:
    """Draws the anatomy, the occlusion, and everything else that delays the blood or brightens the DWI.

    Args:
      points: from `grid_mm`; equal random numbers give the same patient on any grid.
      difficulty: see `make_patient`.
      rng: of the patient.
      size: of the occluded territory; 1 for that of a large artery, 0 for no occlusion.
    """
    points = _to_head(points, rng)
    brain, fractions = _anatomy(points, rng)
    side = rng.choice([-1.0, 1.0])
    severity = _severity(points, side, rng, size)
    # The delay rises steeply at the rim and little further inside: collaterals feed the whole territory late.
    late = rng.uniform(9, 12) * np.minimum(severity / 0.75, 1)
    # Collaterals maintain the flow up to the severity `reach`; tissue of a higher severity dies.
    reach = rng.uniform(0.62, 0.80)
    severity = np.clip(severity + 0.05 * random_field(points, 40, 80, rng), 0, 1)
    exponent = np.log((1 - CORE_FLOW) / 0.92) / np.log(reach)
    flow = 1 - 0.92 * severity**exponent
    old = _old_lesions(points, side, difficulty, rng)
    benign = difficulty * _benign_delay(points, fractions, rng) + rng.uniform(0, 1.5) * old
    healthy = fractions @ np.array(CBF, np.float32) * (1 + 0.1 * random_field(points, 25, 60, rng))
    # Vessels dilate as flow falls, and collapse in the core.
    volume = (
        fractions @ np.array(CBV, np.float32) * (1 + 0.5 * np.minimum(1 - flow, 0.5)) * np.clip(flow / 0.35, 0.3, 1)
    )
    flow, volume = flow * (1 - 0.6 * old), volume * (1 - 0.5 * old)
    return Tissue(brain, fractions, flow, late, benign, old, healthy, volume)


def _to_head(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turns scanner coordinates into the patient's: rotated, shifted, and scaled to the size of the head."""
    pitch, roll, yaw = np.deg2rad(rng.normal(0, 4, 3))
    c, s = np.cos([pitch, roll, yaw]), np.sin([pitch, roll, yaw])
    turn = np.array([[1, 0, 0], [0, c[0], -s[0]], [0, s[0], c[0]]])
    turn = turn @ np.array([[c[1], 0, s[1]], [0, 1, 0], [-s[1], 0, c[1]]])
    turn = turn @ np.array([[c[2], -s[2], 0], [s[2], c[2], 0], [0, 0, 1]])
    scale = rng.uniform(0.94, 1.06, 3)
    moved = (turn / scale[:, None]) @ points.reshape(3, -1) + rng.normal(0, 2.5, (3, 1))
    return moved.reshape(points.shape).astype(np.float32)


def _ellipsoid(
    points: np.ndarray, centre: Sequence[float] | np.ndarray, radii: Sequence[float] | np.ndarray
) -> np.ndarray:
    """The distance from the centre in radii: 1 on the surface."""
    middle, sides = (np.asarray(vector, np.float32)[:, None, None, None] for vector in (centre, radii))
    offset = (points - middle) / sides
    return np.sqrt((offset**2).sum(axis=0))


def _soft(inside_mm: np.ndarray, width_mm: float = 1.5) -> np.ndarray:
    """The fraction of a voxel inside a surface, as a smooth function of its depth below the surface."""
    return 1 / (1 + np.exp(-np.clip(inside_mm / width_mm, -30, 30)))


def _anatomy(points: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The brain's mask, and fractions of CSF, grey and white matter: a folded cortex, deep nuclei, ventricles."""
    x, y, z = points
    depth = 62 * (1 + 0.03 * random_field(points, 60, 120, rng) - _ellipsoid(points, (0, 0, -4), (66, 83, 56)))
    brain = depth > 0
    folds = random_field(points, 16, 30, rng)
    grey = _soft(4.5 + 8 * np.maximum(folds, 0) - depth)
    grey = np.maximum(grey, _soft(3 - np.abs(x)) * _soft(20 - depth, 3))
    wide = rng.uniform(0.8, 1.3)
    mirrored = np.stack([np.abs(x), y, z])
    for centre, radii in (((25, 6, 0), (8, 17, 11)), ((12, -12, 2), (9, 13, 9)), ((14, 16, 8), (6, 10, 9))):
        grey = np.maximum(grey, _soft(min(radii) * (1 - _ellipsoid(mirrored, centre, radii))))
    ventricles = _soft(7 * (1 - _ellipsoid(mirrored, (9, -4, 12), (6 * wide, 32 * wide, 8 * wide))))
    csf = np.maximum(ventricles, 0.7 * _soft(folds * 2 - 2.4 - depth * 0.3, 0.5))
    return brain, np.stack([csf, (1 - csf) * grey, (1 - csf) * (1 - grey)], axis=-1).astype(np.float32)


def _severity(points: np.ndarray, side: float, rng: np.random.Generator, size: float) -> np.ndarray:
    """The severity of the occlusion, from 0 at the rim of the occluded branch's territory to 1 deep inside it."""
    if size == 0:
        return np.zeros(points.shape[1:], np.float32)
    middle, radii = {
        0: ((38, 0, 6), (38, 62, 48)),  # the whole artery
        1: ((40, 14, 14), (36, 48, 40)),  # its upper division
        2: ((40, -22, 2), (36, 48, 40)),  # its lower division
    }[int(rng.choice(3, p=[0.5, 0.3, 0.2]))]
    # The territory of a small branch lies anywhere within that of its artery.
    centre = np.array(middle) * (side, 1, 1) + rng.normal(0, 3 + 8 * (1 - size), 3)
    inside = 1 - _ellipsoid(points, centre, size * np.array(radii) * rng.uniform(0.9, 1.08))
    inside = inside + 0.09 * random_field(points, 40, 90, rng)
    # The other hemisphere has its own artery.
    return np.clip(inside / 0.75, 0, 1) * _soft(side * points[0] - 4, 1.5)


def _old_lesions(points: np.ndarray, side: float, difficulty: float, rng: np.random.Generator) -> np.ndarray:
    """The fraction of old lesions in each voxel; none to three lie outside the occluded territory."""
    old = np.zeros(points.shape[1:], np.float32)
    for _ in range(rng.binomial(3, min(0.3 * difficulty, 0.9))):
        centre = (-side * rng.uniform(12, 45), rng.uniform(-50, 45), rng.uniform(-25, 30))
        radius = rng.uniform(6, 13)
        shape = (
            1 + 0.2 * random_field(points, 20, 40, rng) - _ellipsoid(points, centre, radius * rng.uniform(0.8, 1.3, 3))
        )
        old = np.maximum(old, _soft(radius * shape))
    return old


def _benign_delay(points: np.ndarray, fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Delay in s that threatens no tissue: a narrowed carotid in half of the patients, border zones in all."""
    x, y, z = points
    carotid = 0.0
    if rng.uniform() < 0.5:
        anterior = _soft(rng.choice([-1, 1]) * x - 2, 3) * _soft(y + 40, 8)
        carotid = rng.uniform(1.5, 3.0) * anterior
    # Between the territories of the anterior, middle and posterior arteries, deep in the white matter.
    zones = np.exp(-(((np.abs(x) - 26) / 6) ** 2) - ((z - 22) / 14) ** 2)
    zones = zones + np.exp(-(((np.abs(x) - 36) / 12) ** 2) - ((y + 52) / 10) ** 2)
    patchy = np.maximum(random_field(points, 25, 50, rng), 0)
    return carotid + rng.uniform(0.5, 2) * np.minimum(zones, 1) * (0.4 + patchy) + 0.5 * fractions[..., 2]


def scan_perfusion(tissue: Tissue, difficulty: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Tmax and TTP [X, Y, Z] in s, 0 outside the brain, from a noisy T2*-weighted series, smoothed and deconvolved."""
    arrival, width = rng.uniform(8, 14), rng.uniform(1.3, 1.9)
    cbf = np.maximum(tissue.healthy * tissue.flow, 1.0)
    mtt = np.clip(60 * tissue.volume / cbf, 3.0, 25.0)
    # Times are relative to the measured artery, which may lie up- or downstream of where the blood arrives first.
    site = 1.0 * difficulty * rng.normal()
    # Only the bounding box of the brain is simulated.
    box = ndimage.find_objects(tissue.brain.astype(np.int8))[0]
    inside = tissue.brain[box]
    curves = perfusion.tissue_curves(
        perfusion.TIMES, cbf[box][inside], mtt[box][inside], (tissue.late + tissue.benign)[box][inside], arrival, width
    )
    series = np.zeros((*inside.shape, perfusion.SAMPLES), np.float32)
    series[inside] = perfusion.signal(curves)
    series += 0.015 * difficulty * rng.standard_normal(series.shape, np.float32)
    weight = _smooth_in_plane(inside.astype(np.float32)[..., None])
    relative = _smooth_in_plane(series)[inside] / weight[inside]
    measured = perfusion.concentration(relative)
    operator = perfusion.deconvolution(perfusion.arterial_input(perfusion.TIMES, arrival + site, width), 0.1)
    tmax, ttp = np.zeros((2, *tissue.brain.shape), np.float32)
    tmax[box][inside] = perfusion.tmax(measured @ operator.T)
    ttp[box][inside] = perfusion.peak_time(measured)
    return tmax, ttp


def _smooth_in_plane(series: np.ndarray) -> np.ndarray:
    """Smooths [X, Y, Z, T] with (1, 2, 1) / 4 along X and Y."""
    for axis in (0, 1):
        padded = np.pad(series, [(1, 1) if a == axis else (0, 0) for a in range(4)])
        middle, count = np.moveaxis(padded, axis, 0), series.shape[axis]
        series = np.moveaxis((middle[:count] + middle[2:]) / 4 + middle[1:-1] / 2, 0, axis)
    return series


def scan_diffusion(points: np.ndarray, tissue: Tissue, difficulty: float, rng: np.random.Generator) -> np.ndarray:
    """The DWI [X, Y, Z] in the scanner's units, 0 outside the brain: shaded, moved and noisy."""
    [image] = _diffusion_images(points, tissue, difficulty, rng, (1.0,))
    return _stored(image, tissue, rng)


def scan_adc(
    points: np.ndarray, tissue: Tissue, difficulty: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The DWI as `scan_diffusion` gives it, and the ADC in 1e-3 mm2/s from it and an image without weighting."""
    weighted, plain = _diffusion_images(points, tissue, difficulty, rng, (1.0, 0.0))
    adc = np.log(np.maximum(plain, 1e-4) / np.maximum(weighted, 1e-4))
    return _stored(weighted, tissue, rng), np.where(tissue.brain, adc, 0).astype(np.float32)


def _stored(image: np.ndarray, tissue: Tissue, rng: np.random.Generator) -> np.ndarray:
    """The image as a scanner stores it: integers, with an arbitrary gain; 0 outside the brain."""
    gain = rng.uniform(1500, 4000)
    return np.where(tissue.brain, np.maximum(np.rint(gain * image), 1), 0).astype(np.int16)


def _diffusion_images(
    points: np.ndarray, tissue: Tissue, difficulty: float, rng: np.random.Generator, b_values: Sequence[float]
) -> list[np.ndarray]:
    """One noisy image for each b value (in 1000 s/mm2); all share the shading and the position of the head."""
    dying = _soft(CORE_FLOW - tissue.flow, 0.02) * (1 - tissue.old)
    longer = 1 + rng.uniform(0.0, 0.1) * dying + rng.uniform(0.7, 1.1) * tissue.old
    slower = 1 - rng.uniform(0.42, 0.52) * dying + 0.3 * tissue.old
    tilt = rng.normal(0, 1, 3) / 80
    shade = np.tensordot(tilt, points, 1) + 0.6 * random_field(points, 120, 250, rng)
    # Air in the frontal sinus and the ears increases the signal nearby.
    x, y, z = points
    air = np.exp(-((x / 14) ** 2) - ((y - 62) / 12) ** 2 - ((z + 34) / 12) ** 2)
    air = air + np.exp(-(((np.abs(x) - 50) / 9) ** 2) - ((y + 10) / 12) ** 2 - ((z + 38) / 9) ** 2)
    shading = np.exp(difficulty * (0.20 * shade + 0.6 * air))
    turn, offset = _motion(shade.shape, difficulty, rng)
    images = []
    for b in b_values:
        # The signals of a voxel's tissues add up; the occlusion does not change cerebrospinal fluid.
        image = tissue.fractions[..., 0] * perfusion.diffusion_signal(T2[0], b * ADC[0], DENSITY[0])
        for kind in (1, 2):
            signal = perfusion.diffusion_signal(T2[kind] * longer, b * ADC[kind] * slower, DENSITY[kind])
            image = image + tissue.fractions[..., kind] * signal
        image = ndimage.affine_transform(image * shading, turn, offset, order=1, mode="nearest")
        noise = 0.006 * difficulty * rng.standard_normal((2, *image.shape), np.float32)
        images.append(np.hypot(image + noise[0], noise[1]))
    return images


def _motion(shape: tuple[int, ...], difficulty: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset for `affine_transform`: a fraction of a voxel, and a turn about the slices' axis."""
    angle = np.deg2rad(0.6 * difficulty * rng.normal())
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    middle = (np.array(shape) - 1) / 2
    return turn, middle - turn @ middle + 0.25 * difficulty * rng.normal(size=3)


def read_labels(points: np.ndarray, tissue: Tissue, difficulty: float, rng: np.random.Generator) -> np.ndarray:
    """The reader's labels, uint8 [X, Y, Z], 1 penumbra and 2 core: the truth with contour errors of about a mm."""
    spacing = (np.array(FIELD_OF_VIEW_MM) / tissue.brain.shape).tolist()
    solid = tissue.brain & (tissue.fractions[..., 0] < 0.5)
    masks = []
    # The distance of a quantity from its threshold, divided by its slope, is the distance from the contour in mm.
    for beyond in (tissue.late - PENUMBRA_DELAY, CORE_FLOW - tissue.flow):
        slope = np.sqrt(sum(part**2 for part in np.gradient(beyond, *spacing)))
        error_mm = 0.8 * difficulty * random_field(points, 20, 50, rng)
        masks.append((beyond / np.maximum(slope, 1e-3) + error_mm > 0) & solid)
    masks[1] &= tissue.old < 0.5
    return np.where(masks[1], 2, masks[0]).astype(np.uint8)
