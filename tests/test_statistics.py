import itertools

import numpy as np
import pytest
from scipy import stats

from isles_jax.scoring import comparison, notes, scores, statistics


def draw(seed, size, mean=0.02, spread=0.05):
    return np.random.default_rng(seed).normal(mean, spread, size)


def test_interval_of_a_normal_sample_is_students():
    values = draw(0, 200)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert statistics.interval(values) == pytest.approx(tuple(expected), abs=0.0007)


def test_interval_contains_the_mean_moves_and_scales_with_the_sample():
    values = draw(1, 20)
    low, high = statistics.interval(values)
    assert low < values.mean() < high
    assert statistics.interval(values + 3) == pytest.approx((low + 3, high + 3))
    assert statistics.interval(values * 2) == pytest.approx((low * 2, high * 2))
    assert statistics.interval(values) == (low, high)


def test_fewer_than_six_cases_or_equal_ones_have_no_interval():
    assert statistics.interval([0.1, 0.3, 0.5, 0.7, 0.9]) is None
    assert statistics.interval([0.1, 0.3, 0.5, 0.7, 0.9, 0.6]) is not None
    assert statistics.interval([0.5] * 30) is None
    # The range of five cases holds a median too rarely for a 95% interval, and that of six does not.
    below, held = np.random.default_rng(4).random((2, 40000, 6)), {}
    for cases in (statistics.LEAST_CASES - 1, statistics.LEAST_CASES):
        values = below[0][:, :cases]
        held[cases] = ((values.min(axis=1) < 0.5) & (values.max(axis=1) > 0.5)).mean()
        assert held[cases] == pytest.approx(1 - 2.0 ** (1 - cases), abs=0.005)
    assert held[5] < statistics.LEVEL < held[6]


@pytest.mark.parametrize(
    "dice",
    [
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.022],
        [0.0, 0.0, 0.001, 0.031, 0.05, 0.118],
        [0.0, 0.9, 0.9, 0.9, 0.9, 0.9],
        [1.0] * 11 + [0.0],
    ],
)
def test_an_interval_stays_within_the_range_of_its_cases_and_holds_their_mean(dice):
    low, high = statistics.interval(dice)
    assert min(dice) <= low < np.mean(dice) < high <= max(dice)


def test_the_interval_excludes_what_the_bootstrap_test_rejects():
    values = draw(13, 20)
    low, high = statistics.interval(values)
    for end, inside in ((low, 1), (high, -1)):
        assert statistics.bootstrap_p(values - end) == pytest.approx(0.05, abs=2e-4)
        assert statistics.bootstrap_p(values - (end + inside * 1e-3)) > 0.05
        assert statistics.bootstrap_p(values - (end - inside * 1e-3)) < 0.05


def test_an_interval_of_uneven_folds_is_that_of_the_mean_over_the_folds():
    def rows(folds, dice):
        filled = dict.fromkeys(scores.NAMES, 1.0)
        pairs = enumerate(zip(folds, dice, strict=True))
        return [{"case": f"p{n}", "fold": fold, "class": "core", **filled, "dice": float(d)} for n, (fold, d) in pairs]

    good, poor = np.random.default_rng(14).normal(0.9, 0.02, 20), np.random.default_rng(15).normal(0.4, 0.02, 4)
    values = np.concatenate([good, poor])
    found = comparison.dice_means({"a": rows([0] * 20 + [1] * 4, values)}, "core")["a"]
    assert found.mean == pytest.approx((good.mean() + poor.mean()) / 2)
    low, high = found.interval
    assert low < found.mean < high
    assert (low + high) / 2 == pytest.approx(found.mean)
    # The variance of the mean over folds is that of a case times the sum of the squared weights.
    plain = np.ptp(statistics.interval(values))
    assert high - low == pytest.approx(plain * np.sqrt(24 * (20 / 40**2 + 4 / 8**2)))
    even = comparison.dice_means({"a": rows([0, 1] * 12, values)}, "core")["a"]
    assert even.interval == pytest.approx(statistics.interval(values))


@pytest.mark.parametrize(("cases", "share"), [(6, 0.93), (24, 0.95)])
def test_interval_covers_a_skewed_truth_at_the_stated_rate(cases, share, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(5)
    trials, mean, covered = 600, 8 / 9.5, 0
    for _ in range(trials):
        low, high = statistics.interval(rng.beta(8, 1.5, cases))
        covered += low <= mean <= high
    # Three standard errors of the simulation.
    assert abs(covered / trials - share) < 0.031


def test_rare_total_misses_narrow_the_intervals_as_the_notes_say(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    rng = np.random.default_rng(0)
    trials, mean, covered = 800, 0.95 * 8 / 9.5, 0
    for _ in range(trials):
        low, high = statistics.interval(rng.beta(8, 1.5, 24) * (rng.random(24) >= 0.05))
        covered += low <= mean <= high
    # Three standard errors of the simulation.
    assert abs(covered / trials - 0.87) < 0.036
    assert "about 87%" in limitations(24, 1)


def test_bootstrap_p_is_close_to_students_and_uniform_without_a_difference(monkeypatch):
    values = draw(2, 60, mean=0.012)
    assert statistics.bootstrap_p(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.015)
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng = np.random.default_rng(3)
    p_values = [statistics.bootstrap_p(rng.normal(0, 0.1, 24)) for _ in range(500)]
    assert abs(np.mean(np.array(p_values) < 0.05) - 0.05) < 0.03
    assert abs(np.mean(p_values) - 0.5) < 0.05


def test_bootstrap_p_without_evidence():
    assert statistics.bootstrap_p([0.0] * 8) == 1
    assert statistics.bootstrap_p([0.3]) == 1
    assert statistics.bootstrap_p([0.1, 0.2]) > 0.3


def test_wilcoxon_equals_counting_all_signs():
    differences = np.array([0.11, -0.02, 0.31, 0.05, 0.07, -0.13, 0.21, 0.09])
    ranks = stats.rankdata(np.abs(differences))
    observed = abs(np.sum(np.sign(differences) * ranks))
    every = [abs(np.dot(signs, ranks)) for signs in itertools.product((-1, 1), repeat=len(ranks))]
    assert statistics.wilcoxon_p(differences) == pytest.approx(np.mean(np.array(every) >= observed - 1e-9))


def test_wilcoxon_equals_scipy_with_ties_and_zeros():
    differences = np.array([0.1, -0.2, 0.3, 0.3, 0.0, 0.5, -0.1, 0.2, 0.4, 0.0, 0.6, 0.7])
    kept = differences[differences != 0]
    assert statistics.wilcoxon_p(differences) == stats.wilcoxon(kept, method="asymptotic").pvalue
    large = draw(6, 80)
    assert statistics.wilcoxon_p(large) == stats.wilcoxon(large, method="asymptotic").pvalue
    assert statistics.wilcoxon_p([0.0, 0.0]) == 1


def test_smallest_wilcoxon_p_is_reached_when_all_cases_agree():
    for cases in (1, 4, 6, 10):
        assert statistics.smallest_wilcoxon_p(cases) == pytest.approx(statistics.wilcoxon_p(np.arange(1.0, cases + 1)))


def test_holm_is_the_closed_testing_procedure():
    rng = np.random.default_rng(7)
    for _ in range(20):
        p = rng.uniform(0, 0.3, 4)
        # A hypothesis falls if every set of hypotheses that holds it falls by Bonferroni.
        sets = [s for size in range(1, 5) for s in itertools.combinations(range(4), size)]
        expected = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(4)]
        assert statistics.holm(p) == pytest.approx(expected)
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []


def test_compare_is_paired():
    base = np.random.default_rng(8).uniform(0.3, 0.95, 20)
    better, other = base + 0.01 + draw(9, 20, 0, 0.001), np.random.default_rng(10).permutation(base) + 0.01
    compared = statistics.compare({"better": better, "other": other}, base)
    assert compared["better"].difference == pytest.approx(np.mean(better - base))
    assert 0 < compared["better"].interval[0] < 0.01 < compared["better"].interval[1]
    assert compared["better"].wilcoxon < 0.001 > compared["better"].bootstrap
    assert compared["other"].interval[0] < 0 < compared["other"].interval[1]
    assert compared["other"].wilcoxon > 0.5 < compared["other"].bootstrap


def test_main_effects_recover_an_additive_design():
    rng = np.random.default_rng(11)
    case = rng.uniform(0.4, 0.7, 15)
    cells = {
        (r, a, o): case + 0.1 * r - 0.03 * a + 0.05 * o + 0.02 * r * o
        for r, a, o in itertools.product((False, True), repeat=3)
    }
    effects = statistics.main_effects(cells)
    expected = {"residual": 0.11, "adversarial": -0.03, "overlap": 0.06}
    for factor, value in expected.items():
        assert effects[factor][0] == pytest.approx(value)
    cells[True, True, True] = cells[True, True, True] + 4 * draw(12, 15, 0)
    mean, (low, high) = statistics.main_effects(cells)["residual"]
    assert low < mean < high


def test_main_effects_of_the_papers_table():
    cells = {}
    for number, name in enumerate(comparison.PAPER):
        cells[bool(number & 4), bool(number & 2), bool(number & 1)] = name
    expected = {"penumbra": (0.026, 0.004, 0.017), "core": (0.087, -0.013, 0.028)}
    for class_name, means in expected.items():
        effects = statistics.main_effects(
            {cell: [comparison.PAPER[name][class_name]] * 2 for cell, name in cells.items()}
        )
        assert [effects[factor][0] for factor in statistics.FACTORS] == pytest.approx(means, abs=0.0006)


def limitations(cases, comparisons):
    """The sentences on what a number of cases and of comparisons cannot show."""
    return " ".join(notes.limitations(cases, comparisons))


def test_report_says_what_few_cases_cannot_show():
    few = limitations(6, 7)
    assert f"{7 * 2 / 2**6:.2g}" in few
    assert "6 cases are too few" in few
    many = limitations(30, 7)
    assert "cannot" not in many
    assert "may still be real" in many
    assert "may still be real" not in limitations(30, 0)


@pytest.mark.parametrize(("cases", "comparisons"), [(6, 0), (6, 1), (5, 0), (5, 1)])
def test_notes_speak_of_the_coverage_and_the_width_of_intervals_only_where_there_are_some(cases, comparisons):
    text = limitations(cases, comparisons)
    assert ("95% interval" in text) == (cases == 6)
    assert ("half-width" in text) == (cases == 6 and comparisons == 1)
    assert ("resample cases" in text) == (cases == 6 or comparisons == 1)


def test_a_difference_of_1_4_half_widths_is_found_in_four_studies_of_five(monkeypatch):
    """What the notes say of small differences, by simulation."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng = np.random.default_rng(12)
    width = np.mean([np.ptp(statistics.interval(rng.normal(0, 0.1, 24))) for _ in range(200)]) / 2
    significant = [statistics.interval(rng.normal(1.4 * width, 0.1, 24))[0] > 0 for _ in range(600)]
    assert abs(np.mean(significant) - 0.8) < 0.05
