import numpy as np

from isles_jax.reporting import charts


def test_ticks_are_round_and_inside():
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    rng = np.random.default_rng(1)
    for _ in range(200):
        low = rng.normal() * 10 ** rng.uniform(-3, 3)
        high = low + 10 ** rng.uniform(-3, 3)
        ticks = charts.ticks(low, high)
        assert 2 <= len(ticks) <= 6
        assert low - 1e-6 * (high - low) <= min(ticks)
        assert max(ticks) <= high + 1e-6 * (high - low)
        assert np.ptp(np.diff(ticks)) < 1e-9 * max(1, abs(high))


def test_charts_of_degenerate_values():
    assert charts.curves("x", {"fold 0": ([], [])}) == ""
    for drawn in (
        charts.curves("x", {"fold 0": ([1, 2], [0.5, 0.5]), "fold 1": ([1], [None])}),
        charts.bland_altman("x", [("a", 0.0, 0.0)]),
        charts.bland_altman("x", [("a", 1.0, 2.0), ("b", 1.0, 2.0)]),
        charts.bland_altman("x", [("a", 1e3, 2e3), ("b", 1.0, -2e3)]),
        charts.strip({"a": [("c", 1.0)]}, {"a": (1.0, 0.0, 1.0)}, {"a": None}, "x"),
    ):
        assert "nan" not in drawn
        assert "inf" not in drawn
        assert "e+0" not in drawn
