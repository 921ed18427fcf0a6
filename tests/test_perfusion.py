"""The phantom's physics against closed forms and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isles_jax.phantoms import perfusion

FLOWS = np.array([60.0, 25.0, 12.0, 4.0])
MTTS = np.array([4.0, 5.0, 9.0, 14.0])
DELAYS = np.array([0.0, 2.2, 5.0, 11.3])
ARRIVAL, WIDTH = 10.0, 1.5


def curves(interval, duration, cbf=FLOWS, mtt=MTTS, delay=DELAYS):
    times = np.arange(0, duration, interval)
    return times, perfusion.tissue_curves(times, cbf, mtt, delay, ARRIVAL, WIDTH)


def test_arterial_input():
    times = np.arange(0, 60, 0.001)
    arterial = perfusion.arterial_input(times, ARRIVAL, WIDTH).astype(np.float64)
    assert arterial.max() == pytest.approx(perfusion.ARTERIAL_PEAK, rel=1e-5)
    assert times[arterial.argmax()] == pytest.approx(ARRIVAL + 3 * WIDTH, abs=0.02)
    area = 6 * (np.e / 3) ** 3 * perfusion.ARTERIAL_PEAK * WIDTH
    assert arterial.sum() * 0.001 == pytest.approx(area, rel=1e-5)
    assert (arterial[times <= ARRIVAL] == 0).all()


@settings(max_examples=30, deadline=None)
@given(
    cbf=st.floats(1, 80),
    mtt=st.floats(3, 25),
    delay=st.floats(0, 15),
    arrival=st.floats(5, 14),
    width=st.floats(1.3, 1.9),
)
def test_tissue_curves_are_the_convolution(cbf, mtt, delay, arrival, width):
    fine = 0.01
    times = np.arange(0, 72, fine)
    arterial = perfusion.arterial_input(times - delay, arrival, width).astype(np.float64)
    brute = cbf / 6000 * fine * np.convolve(arterial, np.exp(-times / mtt))[: len(times)]
    closed = perfusion.tissue_curves(times, np.array(cbf), np.array(mtt), np.array(delay), arrival, width)
    np.testing.assert_allclose(closed, brute, atol=4e-3 * brute.max())


def test_area_is_the_blood_volume():
    times, tissue = curves(0.1, 400)
    arterial = perfusion.arterial_input(times, ARRIVAL, WIDTH)
    np.testing.assert_allclose(100 * tissue.sum(axis=-1) / arterial.sum(), FLOWS * MTTS / 60, rtol=1e-4)


def test_curves_peak_where_they_cross_the_scaled_input():
    _, tissue = curves(0.01, 72)
    peaks = perfusion.peak_time(tissue, 0.01)
    volume = FLOWS * MTTS / 6000
    there = volume * perfusion.arterial_input(peaks - DELAYS, ARRIVAL, WIDTH)
    np.testing.assert_allclose(there, tissue.max(axis=-1), rtol=2e-3)
    assert (np.diff(peaks - DELAYS) > 0).all(), "a longer transit time peaks later"


def test_deconvolution_finds_flow_transit_time_and_delay():
    times, tissue = curves(0.1, 250)
    arterial = perfusion.arterial_input(times, ARRIVAL, WIDTH)
    late = []
    for cutoff in (1e-2, 1e-3, 1e-4):
        residue = tissue @ perfusion.deconvolution(arterial, cutoff, 0.1).T
        late.append(perfusion.tmax(residue, 0.1) - DELAYS)
    # The less is cut off, the nearer Tmax comes to the delay; at the last one flow and transit time are right too.
    assert (np.diff(late, axis=0) < 0).all()
    assert (late[-1] > 0).all()
    assert (late[-1] < 0.55).all()
    flow = 6000 * residue.max(axis=-1)
    np.testing.assert_allclose(flow, FLOWS, rtol=0.07)
    volume = 100 * tissue.sum(axis=-1) / arterial.sum()
    np.testing.assert_allclose(60 * volume / flow, MTTS, rtol=0.07)


def test_the_clinical_deconvolution_adds_two_seconds():
    delay = np.linspace(0, 14, 60)
    for mtt in (3.5, 5.0, 8.0, 12.0):
        _, tissue = curves(perfusion.INTERVAL, 72, np.full(60, 30.0), np.full(60, mtt), delay)
        arterial = perfusion.arterial_input(perfusion.TIMES, ARRIVAL, WIDTH)
        added = perfusion.tmax(tissue @ perfusion.deconvolution(arterial, 0.1).T) - delay
        assert added.min() > 1.4
        assert added.max() < 3.0


def test_deconvolution_is_the_truncated_block_circulant_inverse():
    arterial = perfusion.arterial_input(perfusion.TIMES, ARRIVAL, WIDTH).astype(np.float64)
    count = len(arterial)
    padded = np.concatenate([arterial, np.zeros(count)]) * perfusion.INTERVAL
    circulant = np.stack([np.roll(padded, shift) for shift in range(2 * count)], axis=1)
    for cutoff in (0.05, 0.1, 0.25):
        u, s, v = np.linalg.svd(circulant)
        assert np.abs(s / s[0] - cutoff).min() > 1e-6
        inverse = (v.T * np.where(s >= cutoff * s[0], 1 / s, 0)) @ u.T
        np.testing.assert_allclose(perfusion.deconvolution(arterial, cutoff), inverse[:, :count], atol=1e-6)


def test_times_shift_with_the_delay_and_ignore_the_scale():
    _, tissue = curves(perfusion.INTERVAL, 72, np.full(4, 30.0), np.full(4, 5.0), perfusion.INTERVAL * np.arange(4))
    arterial = perfusion.arterial_input(perfusion.TIMES, ARRIVAL, WIDTH)
    operator = perfusion.deconvolution(arterial, 0.1)
    for times in (perfusion.tmax(tissue @ operator.T), perfusion.peak_time(tissue)):
        np.testing.assert_allclose(np.diff(times), perfusion.INTERVAL, atol=0.02)
    np.testing.assert_allclose(perfusion.tmax(7 * tissue @ operator.T), perfusion.tmax(tissue @ operator.T), atol=1e-4)
    np.testing.assert_allclose(perfusion.concentration(perfusion.signal(tissue)), tissue, atol=1e-5)
    # Blood that arrives before the measured artery's has Tmax 0, not a bump at the end of the series.
    early = perfusion.tissue_curves(perfusion.TIMES, 30.0, 4.0, 0.0, ARRIVAL - 4.5, WIDTH)
    assert perfusion.tmax(early @ operator.T) == 0


@given(st.floats(-0.5, 0.5), st.integers(1, 8))
def test_peak_time_is_exact_on_a_parabola(shift, place):
    samples = np.arange(10)
    assert perfusion.peak_time(5 - (samples - place - shift) ** 2) == pytest.approx(1.5 * (place + shift), abs=1e-9)
