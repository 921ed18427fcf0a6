"""Agreement of volumes and decisions against published values, closed forms and brute force."""

import itertools

import numpy as np
import pytest
from scipy import stats

from isles_jax.scoring import agreement, scores

# Shrout and Fleiss (1979), table 2: six targets, four judges.
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
# Bland and Altman (1986), table 1: peak flow by two meters, the first measurement by each.
WRIGHT = (494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427)
MINI = (512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451)


def pairs(seed, count=12):
    first = np.random.default_rng(seed).lognormal(3, 1, count)
    return first, first * np.random.default_rng(seed + 1).lognormal(0.1, 0.3, count)


def test_icc_is_that_of_the_publication():
    # ICC(2,1) is printed as .29 there; R's psych::ICC gives 0.2898.
    assert agreement.icc(JUDGES) == pytest.approx(0.2898, abs=5e-5)


def test_icc_is_the_share_of_variance_by_the_mean_squares_of_an_analysis_of_variance():
    values = np.stack(pairs(0), axis=1)
    cases, measurements = values.shape
    mean = values.mean()
    total = sum((value - mean) ** 2 for value in values.ravel())
    rows = measurements * sum((row.mean() - mean) ** 2 for row in values)
    columns = cases * sum((column.mean() - mean) ** 2 for column in values.T)
    between, judges = rows / (cases - 1), columns / (measurements - 1)
    error = (total - rows - columns) / ((cases - 1) * (measurements - 1))
    of_case, of_judge = (between - error) / measurements, (judges - error) / cases
    assert agreement.icc(values) == pytest.approx(of_case / (of_case + of_judge + error))


def test_limits_of_agreement_are_those_of_the_publication():
    low, high = agreement.limits(np.subtract(WRIGHT, MINI))
    # A mean of -2.1 l/min and a standard deviation of 38.8 l/min.
    assert (low + high) / 2 == pytest.approx(-2.1, abs=0.05)
    assert (high - low) / 2 / 1.96 == pytest.approx(38.8, abs=0.05)


def test_ccc_is_correlation_times_accuracy():
    """Lin's own factors: 2 / (v + 1 / v + u^2), with v the ratio of the scales and u the shift."""
    for one, other in (pairs(3), (np.array(WRIGHT), np.array(MINI))):
        v = one.std() / other.std()
        u = (one.mean() - other.mean()) / np.sqrt(one.std() * other.std())
        expected = stats.pearsonr(one, other)[0] * 2 / (v + 1 / v + u**2)
        assert agreement.ccc(one, other) == pytest.approx(expected)


def test_ccc_is_one_less_the_squared_distance_over_that_of_independent_pairs():
    one, other = pairs(5)
    independent = np.mean([(first - second) ** 2 for first, second in itertools.product(one, other)])
    assert agreement.ccc(one, other) == pytest.approx(1 - np.mean((one - other) ** 2) / independent)


def test_perfect_reversed_and_shifted_agreement():
    one = np.arange(8.0)
    assert agreement.ccc(one, one) == agreement.icc(np.stack([one, one], axis=1)) == pytest.approx(1)
    assert agreement.ccc(one, -one + 7) == pytest.approx(-1)
    # The variance of 0 to 7 is 5.25 by n and 6 by n - 1; a shift by d adds d^2 and d^2 / 2.
    assert agreement.ccc(one, one + 3) == pytest.approx(2 * 5.25 / (2 * 5.25 + 9))
    assert agreement.icc(np.stack([one, one + 3], axis=1)) == pytest.approx(6 / (6 + 9 / 2))


def test_kappa_of_a_known_table():
    # 20 and 15 agreements, 5 and 10 disagreements: 0.7 agree, 0.5 by chance.
    one = [True] * 25 + [False] * 25
    other = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert agreement.kappa(one, other) == agreement.kappa(other, one) == pytest.approx(0.4)
    assert agreement.kappa(one, one) == 1
    assert agreement.kappa(one, [not value for value in one]) == -1
    assert agreement.kappa([True] * 8, [True] * 8) is None
    assert agreement.kappa([True] * 8, [False] * 8) == 0


def test_too_few_cases_and_constants_have_no_agreement():
    few, none = np.arange(5.0), np.zeros(8)
    assert agreement.ccc(few, few) is agreement.limits(few) is agreement.kappa(few > 1, few > 2) is None
    assert agreement.icc(np.stack([few, few], axis=1)) is None
    assert agreement.ccc(none, none) is agreement.icc(np.zeros((8, 2))) is None
    assert agreement.ccc(none, none + 1) == agreement.icc(np.stack([none, none + 1], axis=1)) == 0


def rows_of(volumes):
    """Rows of cases with (core, penumbra) volumes of the reference and of the prediction."""
    rows = []
    for number, (true, predicted) in enumerate(volumes):
        for place, name in enumerate(("core", "penumbra")):
            scored = dict.fromkeys(scores.NAMES, 0.5)
            scored |= {"volume_true_ml": float(true[place]), "volume_pred_ml": float(predicted[place])}
            rows.append({"case": f"p{number}", "fold": 0, "class": name, **scored})
    return rows


def test_a_summary_has_the_agreement_of_volumes_and_of_the_decision():
    yes, large_core, no_mismatch, low_ratio = (10, 40), (80, 200), (5, 10), (30, 20)
    volumes = [(yes, yes)] * 3 + [(yes, large_core), (no_mismatch, yes), (low_ratio, no_mismatch), (large_core, yes)]
    found = scores.means(rows_of(volumes))
    true = [pair[0] == yes for pair in volumes]
    predicted = [pair[1] == yes for pair in volumes]
    assert found["mismatch"] == {
        "both": 3, "reference_only": 1, "predicted_only": 2, "neither": 1, "kappa": agreement.kappa(true, predicted),
    }  # fmt: skip
    of_core = found["classes"]["core"]["volume_agreement"]
    one, other = (np.array([pair[which][0] for pair in volumes], float) for which in (1, 0))
    assert of_core["difference_ml"] == pytest.approx((one - other).mean())
    assert of_core["limits_ml"] == agreement.limits(one - other)
    assert (of_core["ccc"], of_core["icc"]) == (agreement.ccc(one, other), agreement.icc(np.stack([one, other], 1)))
    alone = scores.means([row for row in rows_of(volumes) if row["class"] == "core"])
    assert "mismatch" not in alone
