"""Scores of cases, their file and their summary."""

import numpy as np
import pytest
from helpers import random_labels

from isles_jax import metrics
from isles_jax.runtime.command import InputError
from isles_jax.scoring import scores

CLASSES = ("penumbra", "core")


def test_rows_of_a_case_are_its_classes_and_the_whole_lesion():
    prediction, truth = random_labels(0), random_labels(1)
    rows = scores.score_case("a", 2, prediction, truth, (2, 2, 3), CLASSES)
    assert [(row["case"], row["fold"], row["class"]) for row in rows] == [
        ("a", 2, w) for w in (*CLASSES, "whole lesion")
    ]
    assert rows[1] == {"case": "a", "fold": 2, "class": "core", **metrics.score(prediction == 2, truth == 2, (2, 2, 3))}
    assert rows[2]["dice"] == metrics.score(prediction > 0, truth > 0, (2, 2, 3))["dice"]
    single = scores.score_case(
        "a", 0, (prediction > 0).astype(np.uint8), (truth > 0).astype(np.uint8), (2, 2, 3), ("x",)
    )
    assert [row["class"] for row in single] == ["x"]
    with pytest.raises(ValueError, match="a label above 1"):
        scores.score_case("a", 0, prediction, truth, (2, 2, 3), ("x",))


def test_cases_csv_has_the_promised_columns_and_comes_back(tmp_path):
    rows = scores.score_case('a, "b"', 1, random_labels(0), random_labels(1), (2, 2, 3), CLASSES)
    path = tmp_path / "cases.csv"
    scores.write_cases_csv(path, rows)
    promised = "case,fold,class,dice,precision,recall,assd_mm,hd_mm,hd95_mm,volume_true_ml,volume_pred_ml,lesion_f1,"
    promised += "lesion_f1_iou,surface_dice,volume_difference_ml"
    assert path.read_text().startswith(promised)
    back = scores.read_cases_csv(path)
    for row, again in zip(rows, back, strict=True):
        assert list(row) == list(again)
        assert {k: again[k] for k in ("case", "fold", "class")} == {k: row[k] for k in ("case", "fold", "class")}
        for name in scores.NAMES:
            assert again[name] == pytest.approx(row[name], abs=5.1e-7)
    first = path.read_bytes()
    scores.write_cases_csv(path, back)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no readable file"),
        ("case,fold\n", "found the columns case,fold"),
        (",".join(scores.COLUMNS) + "\na,0,core,0.5\n", "no row of scores"),
        (",".join(scores.COLUMNS) + "\na,x,core" + ",1" * len(scores.NAMES) + "\n", "no row of scores"),
        (",".join(scores.COLUMNS) + "\na,0,core" + ",0.5" * len(scores.NAMES) + "\n", "six decimals"),
    ],
)
def test_damaged_cases_csv(tmp_path, text, message):
    path = tmp_path / "cases.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        scores.read_cases_csv(path)
    assert str(path) in str(error.value)


def row_of(case, fold, dice, true=1.0, predicted=1.0):
    values = dict.fromkeys(scores.NAMES, 0.0)
    return {"case": case, "fold": fold, "class": "core"} | values | {
        "dice": dice, "volume_true_ml": true, "volume_pred_ml": predicted,
    }  # fmt: skip


def test_summary_is_the_mean_of_folds_and_counts_empty_masks():
    rows = [row_of("a", 0, 0.2), row_of("b", 0, 0.4, true=0), row_of("c", 0, 0.6), row_of("d", 1, 1.0, predicted=0)]
    found = scores.means(rows)
    assert (found["cases"], found["folds"]) == (4, 2)
    core = found["classes"]["core"]
    assert core["dice"]["folds"] == pytest.approx([0.4, 1.0])
    assert core["dice"]["mean"] == pytest.approx(0.7)
    assert core["dice"]["std"] == pytest.approx(np.std([0.2, 0.4, 0.6, 1.0], ddof=1))
    assert (core["cases"], core["empty_truths"], core["empty_predictions"]) == (4, 1, 1)
    assert scores.means(rows[:1])["classes"]["core"]["dice"]["std"] is None


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "'a", "a=1", "'"])
def test_no_name_is_a_formula_in_a_spreadsheet_and_all_come_back(name, tmp_path):
    rows = [row_of(name, 0, 1.0) | {"class": name}]
    scores.write_cases_csv(tmp_path / "cases.csv", rows)
    line = (tmp_path / "cases.csv").read_text().splitlines()[1]
    assert line[0] not in "=+-@"
    assert scores.read_cases_csv(tmp_path / "cases.csv") == rows
