"""The diffusion scans of the phantom in the layout of ISLES-2022, and the label of its reader.

docs/phantom.md gives the numbers and what they were compared with.
"""

import numpy as np
from scipy import fft

from isles_jax.phantoms import perfusion
from isles_jax.phantoms.head import EDGE_MM, Head
from isles_jax.phantoms.scans import ADC, DENSITY, T2
from isles_jax.phantoms.tissue import ellipsoid, random_field, soft

# The part of the frequencies that a scan measures along X, Y and Z; the rest is filled with zeros. So the noise of
# neighbours is alike, and edges ring: published DWI and ADC have a few values below 0, and an ADC above that of water.
MEASURED = (0.75, 0.75, 0.85)
# The standard deviation of the noise in each of the two parts of the signal; white matter has 0.11 in the DWI.
NOISE = 0.005
# Air brightens the tissue near the frontal sinus, the middle ears and the mastoid cells: the place to the right of the
# midline and the spread, in mm. The signal is up to twice as large, as in the published cases.
AIR = (((8, 60, -14), (18, 12, 10)), ((44, 0, -40), (18, 22, 9)), ((48, -44, -40), (8, 22, 14)))
# The width over which an infarct becomes healthy tissue, in mm: its border in the published DWI is about a voxel wide.
RIM_MM = 0.8
# ADC of an infarct as a part of the healthy one, and how much longer its T2 is: in the first hours, and days later. The
# four published cases have a median ADC of 0.5 to 0.8 and a DWI of 1.5 to 2.3 times the brain's.
SLOWER, LONGER = (0.5, 0.85), (0.05, 1.7)
# The same of old lesions: T2 shines through although the diffusion is faster.
OLD_FASTER, OLD_LONGER = 0.35, 0.9


def scan(
    head: Head, infarct_mm: np.ndarray, days: float, difficulty: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The DWI in the scanner's units and the ADC in 1e-3 mm2/s, float32 [X, Y, Z], 0 outside the brain.

    Args:
      head: of the patient.
      infarct_mm: depth below the surface of an infarct, from `emboli.depth_mm`.
      days: from 0, an infarct of the first hours, to 1, one of some days, with a longer T2 and a higher ADC.
      difficulty: scales noise, shading and artefacts.
      rng: of the scan.
    """
    patchy = np.clip(1 + 0.35 * random_field(head.points, 8, 20, rng), 0.2, 1.7)
    dying = soft(infarct_mm, RIM_MM) * patchy
    slower = 1 - (1 - np.interp(days, (0, 1), SLOWER)) * dying + OLD_FASTER * head.old
    longer = 1 + (LONGER[0] + (LONGER[1] - LONGER[0]) * days**2) * dying + OLD_LONGER * head.old
    # Fibres, iron and flow vary the diffusion and T2 of healthy tissue, and of CSF.
    faster = 1 + 0.08 * random_field(head.points, 8, 25, rng)
    longer = longer * (1 + 0.07 * random_field(head.points, 8, 25, rng))
    # Around the brain there is bone, which gives no signal.
    shading = soft(head.depth, EDGE_MM) * np.exp(difficulty * _shade(head, rng))
    images = []
    # With b 1000 s/mm2, and without diffusion weighting.
    for b in (faster, 0.0):
        # The signals of a voxel's tissues add up; an infarct does not change cerebrospinal fluid.
        image = head.fractions[..., 0] * perfusion.diffusion_signal(T2[0], b * ADC[0], DENSITY[0])
        for kind in (1, 2):
            signal = perfusion.diffusion_signal(T2[kind] * longer, b * ADC[kind] * slower, DENSITY[kind])
            image = image + head.fractions[..., kind] * signal
        noise = NOISE * difficulty * rng.standard_normal((2, *image.shape), np.float32)
        images.append(np.hypot(image * shading + noise[0], noise[1]))
    dwi, plain = images
    # Maps end at the surface of the brain, before they are brought to the grid on which they are published.
    near = head.depth > -0.7
    adc = np.where(near, np.log(np.maximum(plain, 1e-4) / np.maximum(dwi, 1e-4)), 0)
    gain = rng.uniform(1300, 2600)
    dwi = np.where(head.brain, gain * _measured(np.where(near, dwi, 0)), 0)
    return dwi.astype(np.float32), np.where(head.brain, _measured(adc), 0).astype(np.float32)


def _shade(head: Head, rng: np.random.Generator) -> np.ndarray:
    """The logarithm of the coil's shading and of the signal that air piles up, [X, Y, Z]."""
    x, y, z = head.points
    # The coil is closer to the base of the head and to its back.
    tilt = rng.normal((0, -0.3, -1.0), 0.3) / 80
    shade = 0.2 * np.tensordot(tilt, head.points, 1) + 0.06 * random_field(head.points, 120, 250, rng)
    mirrored = np.stack([np.abs(x), y, z])
    air = sum(np.exp(-(ellipsoid(mirrored, middle, spread) ** 2)) for middle, spread in AIR)
    patchy = np.maximum(1 + random_field(head.points, 20, 50, rng), 0)
    piled: np.ndarray = shade + 0.5 * air * patchy * soft(12 - head.depth, 3)
    return piled


def _measured(image: np.ndarray) -> np.ndarray:
    """The image without the frequencies that the scan did not measure."""
    spectrum = fft.rfftn(image.astype(np.float32))
    for axis, count in enumerate(image.shape):
        frequency = (fft.rfftfreq if axis == 2 else fft.fftfreq)(count)
        kept = np.abs(frequency) <= MEASURED[axis] / 2
        spectrum *= kept.reshape([-1 if a == axis else 1 for a in range(3)])
    found: np.ndarray = fft.irfftn(spectrum, image.shape)
    return found


def read(head: Head, infarct_mm: np.ndarray, difficulty: float, rng: np.random.Generator) -> np.ndarray:
    """The reader's label, bool [X, Y, Z]: the infarcts with contour errors of about half of a mm, without CSF."""
    error_mm = 0.5 * difficulty * random_field(head.points, 20, 50, rng)
    found: np.ndarray = (infarct_mm + error_mm > 0) & head.brain & (head.fractions[..., 0] < 0.5)
    return found
