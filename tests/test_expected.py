"""What is expected of a new case: quantiles and intervals against their definitions."""

import json
import math

import numpy as np
import pytest
from etils import epath

from isles_jax.prediction import expected
from isles_jax.runtime.command import InputError
from isles_jax.scoring import scores


def test_the_quantile_is_the_rank_of_split_conformal_prediction():
    assert expected.quantile(list(range(8))) is None
    assert expected.quantile(list(range(9))) == 8
    assert expected.LEAST_CASES == 9
    assert expected.quantile(list(range(19))) == 17
    assert expected.quantile(list(range(24))) == 22


def test_an_interval_holds_the_volumes_of_errors_up_to_the_quantile():
    errors = [0.1 * n for n in range(9)]
    low, high = expected.interval(20.0, errors, 1272.0)
    assert (low, high) == (pytest.approx(21 * math.exp(-0.8) - 1), pytest.approx(21 * math.exp(0.8) - 1))
    for true in (low, high):
        assert expected._error(20.0, true) == pytest.approx(0.8)
    assert expected.interval(0.0, errors, 1272.0) == (0.0, pytest.approx(math.exp(0.8) - 1))
    assert expected.interval(20.0, errors[:8], 1272.0) is None
    assert expected.interval(20.0, (), 1272.0) is None


def test_an_interval_of_a_volume_does_not_leave_the_brain():
    """A network that misses 60 ml in one of nine cases has an error of a factor of 61."""
    errors = sorted(expected._error(0.0 if number else 10.0, 60.0 if number == 8 else 0.0) for number in range(9))
    assert expected.interval(30.0, errors, 1272.0) == (0.0, 1272.0)
    assert expected.interval(30.0, errors, 5000.0) == (0.0, pytest.approx(31 * 61 - 1))
    # Where more is predicted than the brain holds, the interval still holds the prediction.
    assert expected.interval(1300.0, errors, 1272.0)[1] == 1300.0


def test_coverage_leaves_each_case_out():
    errors = sorted(np.random.default_rng(0).exponential(size=30).tolist())
    inside = 0
    for place, error in enumerate(errors):
        others = errors[:place] + errors[place + 1 :]
        inside += error <= others[27 - 1]  # 0.9 * (29 + 1) = 27
    assert expected.coverage(errors) == pytest.approx(inside / 30, abs=1e-4)
    assert expected.coverage(errors[:9]) is None


def test_the_intervals_of_new_cases_cover_as_often_as_they_claim():
    """Exchangeable volumes and errors: over many data sets of 24 cases, nine new volumes in ten lie inside."""
    rng, inside = np.random.default_rng(2), 0
    for _ in range(2000):
        true = rng.gamma(2, 20, 25)
        predicted = true * np.exp(0.3 * rng.standard_normal(25))
        errors = sorted(expected._error(p, t) for p, t in zip(predicted[1:], true[1:], strict=True))
        low, high = expected.interval(predicted[0], errors, 1272.0)
        inside += low <= true[0] <= high
    # 23 / 25 in the mean, with a standard deviation of 0.006.
    assert abs(inside / 2000 - 0.92) < 0.02


def test_a_run_is_read_from_its_files(finished_workdirs, tmp_path):
    run = epath.Path(finished_workdirs["bl1"])
    found = json.loads(json.dumps(expected.read(run)))
    rows = scores.read_cases_csv(run / "cases.csv")
    assert found["norms"]["cases"] == 6
    whole = [row["dice"] for row in rows if row["class"] == "whole lesion"]
    assert found["least_dice"] == min(whole)
    assert found["dice"].keys() == found["errors"].keys() == {"penumbra", "core", "whole lesion"}
    assert found["coverage"]["core"] is None  # six cases are too few
    for name, errors in found["errors"].items():
        of_class = [row for row in rows if row["class"] == name]
        ratios = [(row["volume_true_ml"] + 1) / (row["volume_pred_ml"] + 1) for row in of_class]
        np.testing.assert_allclose(errors, np.sort(np.abs(np.log(ratios))))
    names = {row["case"] for row in rows}
    assert not [name for name in names if f'"{name}"' in json.dumps(found)], "no case is named"

    assert expected.read(epath.Path(tmp_path)) == {}
    (tmp_path / "data.json").write_text('{"cases": {"a": {}}, "channels": ["DWI"]}')
    with pytest.raises(InputError, match=r"data\.json: found no facts of the cases"):
        expected.read(epath.Path(tmp_path))
