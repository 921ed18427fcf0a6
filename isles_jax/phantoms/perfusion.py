"""The physics of the phantom: contrast agent in tissue, the signal that a scanner measures, and the maps made of it.

Indicator dilution: a tissue has the blood flow CBF and the residue function exp(-t / MTT), and the blood reaches it
`delay` seconds after the artery in which the input C_a was measured. Its concentration is

    C(t) = CBF * integral of C_a(s) exp(-(t - delay - s) / MTT) ds over s <= t - delay,      MTT = CBV / CBF.

With the gamma-variate input C_a(t) = A (t - t0)^3 exp(-(t - t0) / b) (Ostergaard et al., MRM 1996) the integral has a
closed form. Without noise, the area of C is CBV times the area of C_a; Tmax, the time at which the residue function
peaks, is `delay`; and C peaks (TTP) where it crosses CBV * C_a(t - delay), because there
dC/dt = CBF * C_a(t - delay) - C / MTT = 0.

Units: seconds; CBF in ml/100 ml/min; CBV in ml/100 ml; concentrations in mM.
"""

import numpy as np

# Number of volumes in the series, and the time between two of them in s.
SAMPLES = 48
INTERVAL = 1.5
TIMES = (INTERVAL * np.arange(SAMPLES)).astype(np.float32)
# Peak arterial concentration, mM; transverse relaxivity in tissue, 1/(s mM); echo time, s.
ARTERIAL_PEAK = 6.0
RELAXIVITY = 87.0
ECHO_TIME = 0.03


def arterial_input(times: np.ndarray, arrival: float, width: float) -> np.ndarray:
    """The gamma-variate C_a in mM at `times`: peak at arrival + 3 * width, area 6 (e / 3)^3 * ARTERIAL_PEAK * width."""
    u = np.maximum(times - arrival, 0) / width
    return np.asarray(ARTERIAL_PEAK * (u / 3) ** 3 * np.exp(3 - u), np.float32)


def tissue_curves(
    times: np.ndarray, cbf: np.ndarray, mtt: np.ndarray, delay: np.ndarray, arrival: float, width: float
) -> np.ndarray:
    """Concentrations in tissue, in mM.

    Args:
      times: [T], in s.
      cbf: [...], in ml/100 ml/min.
      mtt: [...], in s; every one exceeds `width`.
      delay: [...], in s.
      arrival: of the arterial input, in s.
      width: of the arterial input, in s.

    Returns:
      float32 [..., T].
    """
    flow, mtt, delay = (np.asarray(a, np.float32)[..., None] for a in (cbf, mtt, delay))
    u = np.maximum(times - np.float32(arrival) - delay, 0)
    rate = np.float32(1 / width) - 1 / mtt
    x = rate * u
    # 1 - exp(-x) (1 + x + x^2/2 + x^3/6) is the regularised incomplete gamma function of order 4.
    share = 1 - np.exp(-x) * (1 + x * (1 + x / 2 * (1 + x / 3)))
    scale = ARTERIAL_PEAK * np.exp(3) / 27 / width**3 * 6 / rate**4 * flow / 6000
    return np.asarray(scale * np.exp(-u / mtt) * share, np.float32)


def signal(concentration: np.ndarray) -> np.ndarray:
    """Relative signal of a T2*-weighted image: exp(-TE * r2 * C)."""
    relative: np.ndarray = np.exp(-ECHO_TIME * RELAXIVITY * concentration)
    return relative


def concentration(relative_signal: np.ndarray) -> np.ndarray:
    """The inverse of `signal`, for signals above a thousandth."""
    amount: np.ndarray = np.log(np.maximum(relative_signal, 1e-3)) / (-ECHO_TIME * RELAXIVITY)
    return amount


def deconvolution(arterial: np.ndarray, cutoff: float, interval: float = INTERVAL) -> np.ndarray:
    """The linear operator [2 T, T] that turns a tissue curve into its residue function CBF * R, in 1/s.

    Block-circulant deconvolution by truncated singular values (Wu et al., MRM 2003): the singular values of a
    circulant matrix are the moduli of the Fourier transform of its first column, so truncation removes frequencies.
    The samples from T on are negative times: blood may reach tissue before it reaches the measured artery.

    Args:
      arterial: [T] the arterial input, every `interval` seconds.
      cutoff: singular values below this fraction of the largest one are removed.
      interval: seconds between two samples.
    """
    count = len(arterial)
    spectrum = np.fft.rfft(arterial.astype(np.float64), 2 * count) * interval
    kept = np.abs(spectrum) >= cutoff * np.abs(spectrum).max()
    inverse = np.where(kept, 1 / np.where(kept, spectrum, 1), 0)
    impulses = np.fft.rfft(np.eye(count), 2 * count, axis=0)
    return np.fft.irfft(inverse[:, None] * impulses, 2 * count, axis=0).astype(np.float32)


def peak_time(curves: np.ndarray, interval: float = INTERVAL) -> np.ndarray:
    """The time of each curve's maximum in s, [..., T] -> [...], refined by a parabola through three samples."""
    index = curves[..., 1:-1].argmax(axis=-1) + 1
    before, at, after = (np.take_along_axis(curves, index[..., None] + d, -1)[..., 0] for d in (-1, 0, 1))
    bend = before - 2 * at + after
    shift = np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, 1), 0)
    peak: np.ndarray = interval * (index + np.clip(shift, -0.5, 0.5))
    return peak


def tmax(residues: np.ndarray, interval: float = INTERVAL) -> np.ndarray:
    """The time of each residue function's peak in s, [..., 2 T] -> [...]; negative times become 0."""
    count = residues.shape[-1] // 2
    # The search begins at -6 s: otherwise a later, smaller peak would be taken for that of early tissue.
    early = round(6 / interval)
    ordered = np.concatenate([residues[..., -early:], residues[..., :count]], axis=-1)
    return np.maximum(peak_time(ordered, interval) - early * interval, 0)


def diffusion_signal(t2: np.ndarray | float, adc: np.ndarray | float, density: float) -> np.ndarray:
    """The DWI's signal, density * exp(-TE / T2) * exp(-b * ADC); TE 90 ms, b 1000 s/mm2, T2 in ms, ADC in um2/ms."""
    return density * np.exp(-90.0 / t2 - adc)
