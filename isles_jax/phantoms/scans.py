"""The scans of a phantom's patient, and the labels of a reader; `perfusion.py` holds the physics of the scans."""

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from isles_jax.phantoms import perfusion
from isles_jax.phantoms.tissue import CORE_FLOW, FIELD_OF_VIEW_MM, Tissue, grid_mm, make_tissue, random_field, soft

# Healthy CSF, grey and white matter: T2 (ms), diffusion coefficient (um2/ms), proton density.
T2 = (1200.0, 92.0, 80.0)
ADC = (3.0, 0.85, 0.75)
DENSITY = (1.0, 0.83, 0.72)
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


def make_patient(shape: tuple[int, ...], difficulty: float, rng: np.random.Generator) -> Patient:
    """Draws a random patient and their scans, of `shape` X, Y, Z.

    `difficulty` scales noise, artefacts and look-alikes; 0 has none.
    """
    points = grid_mm(shape)
    tissue = make_tissue(points, difficulty, rng)
    tmax, ttp = scan_perfusion(tissue, difficulty, rng)
    dwi = scan_diffusion(points, tissue, difficulty, rng)
    return Patient(tmax, ttp, dwi, read_labels(points, tissue, difficulty, rng))


def scan_perfusion(tissue: Tissue, difficulty: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Tmax and TTP [X, Y, Z] in s, 0 outside the brain, from a noisy T2*-weighted series, smoothed and deconvolved."""
    arrival = rng.uniform(8, 14)
    width = rng.uniform(1.3, 1.9)
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
        middle = np.moveaxis(padded, axis, 0)
        count = series.shape[axis]
        series = np.moveaxis((middle[:count] + middle[2:]) / 4 + middle[1:-1] / 2, 0, axis)
    return series


def scan_diffusion(points: np.ndarray, tissue: Tissue, difficulty: float, rng: np.random.Generator) -> np.ndarray:
    """The DWI [X, Y, Z] in the scanner's units, 0 outside the brain: shaded, moved and noisy."""
    dying = soft(CORE_FLOW - tissue.flow, 0.02) * (1 - tissue.old)
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
    # The signals of a voxel's tissues add up; the occlusion does not change cerebrospinal fluid.
    image = tissue.fractions[..., 0] * perfusion.diffusion_signal(T2[0], ADC[0], DENSITY[0])
    for kind in (1, 2):
        signal = perfusion.diffusion_signal(T2[kind] * longer, ADC[kind] * slower, DENSITY[kind])
        image = image + tissue.fractions[..., kind] * signal
    image = ndimage.affine_transform(image * shading, turn, offset, order=1, mode="nearest")
    noise = 0.006 * difficulty * rng.standard_normal((2, *image.shape), np.float32)
    image = np.hypot(image + noise[0], noise[1])
    # A scanner stores integers, with an arbitrary gain.
    gain = rng.uniform(1500, 4000)
    return np.where(tissue.brain, np.maximum(np.rint(gain * image), 1), 0).astype(np.int16)


def _motion(shape: tuple[int, ...], difficulty: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset for `affine_transform`: a fraction of a voxel, and a turn about the slices' axis."""
    angle = np.deg2rad(0.6 * difficulty * rng.normal())
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    middle = (np.array(shape) - 1) / 2
    return turn, middle - turn @ middle + 0.25 * difficulty * rng.normal(size=3)


def save(path: Path, volume: np.ndarray, affine: np.ndarray, codes: tuple[int, int] = (1, 1)) -> None:
    """Writes a volume as NIfTI, with `codes` for its qform and its sform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    nib.save(image, path)


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
