import re

import numpy as np
import pytest

from isles_jax.pages import charts


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


def test_ticks_of_small_and_large_values_fit_beside_the_axis():
    for size in 10.0 ** np.arange(-9, 10):
        for most in (1.2, 1.9, 4.2, 9.9):
            for tick in charts.ticks(0, most * size):
                text = charts._number(tick)
                assert float(text) == pytest.approx(tick)
                # A digit of this size is at most 7 wide.
                assert 7 * len(text) <= charts.LEFT


def test_charts_of_degenerate_values():
    assert charts.curves("x", {"fold 0": ([], [])}) == ""
    for drawn in (
        charts.curves("x", {"fold 0": ([1, 2], [0.5, 0.5]), "fold 1": ([1], [None])}),
        *charts.bland_altman("x", {"one": [("a", 0.0, 0.0)]}),
        *charts.bland_altman("x", {"one": [("a", 1.0, 2.0), ("b", 1.0, 2.0)]}),
        *charts.bland_altman("x", {"one": [("a", 1e3, 2e3), ("b", 1.0, -2e3)], "other": [("a", 0.0, 0.0)]}),
        charts.strip({"a": [("c", 1.0)]}, {"a": (1.0, None)}, {"a": None}, "x"),
    ):
        assert "nan" not in drawn
        assert "inf" not in drawn
        assert "e+0" not in drawn


def test_a_line_of_few_points_has_dots_with_their_values():
    for count, dots in ((1, 1), (12, 12), (13, 0)):
        steps = list(range(1, count + 1))
        drawn = charts.curves("loss", {"fold 0": (steps, [1 / step for step in steps])})
        assert drawn.count("<circle") == dots
        assert ("fold 0, step 1: 1</title>" in drawn) == (dots > 0)


def test_few_cases_have_no_limits_of_agreement_and_no_bar():
    many = [(f"p{number}", 10.0 + number, (-1.0) ** number) for number in range(6)]
    for points, lines in ((many, 3), (many[:5], 1)):
        (drawn,) = charts.bland_altman("core", {"one": points})
        assert drawn.count('<line class="limit') == lines
    for interval, lines in (((0.4, 0.6), 2), (None, 1)):
        drawn = charts.strip({"a": [("c", 0.5)]}, {"a": (0.5, interval)}, {"a": None}, "x")
        mark = re.search('<g class="mean">.*?</g>', drawn)[0]
        assert (mark.count("<line"), "95% interval 0.400 to 0.600" in mark) == (lines, interval is not None)


def test_bland_altman_charts_of_a_class_share_their_scales():
    points = {"small": [("a", 1.0, 0.5), ("b", 2.0, -0.5)], "large": [("a", 50.0, 30.0), ("b", 90.0, -40.0)]}
    small, large = charts.bland_altman("core", points)
    axis = r'class="(?:middle|end)">(-?[\d.]+)</text>'
    assert re.findall(axis, small) == re.findall(axis, large)
    # The dots of the first chart lie where the second chart's scale puts them.
    x, y = (np.array(re.findall(rf'{name}="([\d.]+)" ', small + large), float) for name in ("<circle cx", " cy"))
    assert np.polyfit([1, 2, 50, 90], x, 1)[0] * 89 == pytest.approx(x[3] - x[0], abs=0.2)
    assert np.polyfit([0.5, -0.5, 30, -40], y, 1)[0] * 70 == pytest.approx(y[2] - y[3], abs=0.2)
    for drawn in (small, large):
        assert "predicted − reference, ml" in drawn
        assert "mean of predicted and reference volume, ml" in drawn


def test_charts_name_their_axes():
    assert ">training step<" in charts.curves("loss", {"fold 0": ([1, 2], [0.5, 0.4])})
    assert ">Dice of core<" in charts.strip({"a": [("c", 1.0)]}, {"a": (1.0, (0.9, 1.0))}, {"a": None}, "Dice of core")
