"""Lesions one by one: against brute force, against lesion F1, and the files that hold them."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
from helpers import ParsedPage, random_labels

from isles_jax import metrics
from isles_jax.pages import charts, score_sections
from isles_jax.runtime.command import InputError
from isles_jax.scoring import comparison, lesions, run_files, scores

CLASSES = ("penumbra", "core")


def flood(mask):
    """The 26-connected components of a mask as sets of voxels, by brute force."""
    left = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]
    components = []
    while left:
        component, border = set(), [left.pop()]
        while border:
            voxel = border.pop()
            component.add(voxel)
            for step in steps:
                near = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if near in left:
                    left.remove(near)
                    border.append(near)
        components.append(component)
    return components


def sparse(seed, share=0.06, shape=(9, 8, 7)):
    return np.random.default_rng(seed).random(shape) < share


@pytest.mark.parametrize("seed", range(5))
def test_each_lesion_is_that_of_brute_force(seed):
    prediction, truth = sparse(seed), sparse(seed + 100)
    found = metrics.each_lesion(prediction, truth, 0.25)
    for kind, own, other in ((metrics.REFERENCE, truth, prediction), (metrics.PREDICTED, prediction, truth)):
        expected = []
        for component in flood(own):
            common = sum(bool(other[voxel]) for voxel in component)
            expected.append((0.25 * len(component), common > 0, common / len(component)))
        of_kind = [lesion for lesion in found if lesion.kind == kind]
        assert sorted((lesion.ml, lesion.found, lesion.overlap) for lesion in of_kind) == sorted(expected)
        assert [lesion.lesion for lesion in of_kind] == list(range(1, len(expected) + 1))
        assert all(one.ml >= next_one.ml for one, next_one in itertools.pairwise(of_kind))


def test_lesions_of_known_masks():
    truth, prediction = np.zeros((2, 12, 12, 3), bool)
    truth[0, 0, 0] = truth[1, 1, 1] = True  # one lesion, because corners connect
    truth[5:9, 5, 1] = True
    prediction[7:11, 5, 1] = True
    prediction[0, 11, 0] = True
    assert metrics.each_lesion(prediction, truth, 2.0) == [
        (1, "reference", 8.0, True, 0.5), (2, "reference", 4.0, False, 0.0),
        (1, "predicted", 8.0, True, 0.5), (2, "predicted", 2.0, False, 0.0),
    ]  # fmt: skip
    assert metrics.each_lesion(truth & False, truth & False, 2.0) == []
    assert [lesion.found for lesion in metrics.each_lesion(truth & False, truth, 2.0)] == [False, False]


@pytest.mark.parametrize("seed", range(4))
def test_lesion_f1_follows_from_the_table_of_lesions(seed):
    prediction, truth = (random_labels(seed + shift) * sparse(seed + shift, 0.1, (9, 8, 6)) for shift in (0, 50))
    rows = lesions.of_case("a", 1, prediction, truth, CLASSES, 0.012)
    for scored in scores.score_case("a", 1, prediction, truth, (2, 2, 3), CLASSES):
        of_class = [row for row in rows if row["class"] == scored["class"]]
        hits = sum(row["found"] for row in of_class if row["kind"] == "reference")
        missed = sum(not row["found"] for row in of_class if row["kind"] == "reference")
        false = sum(not row["found"] for row in of_class if row["kind"] == "predicted")
        assert scored["lesion_f1"] == pytest.approx(2 * hits / (2 * hits + missed + false))
        for kind, column in (("reference", "volume_true_ml"), ("predicted", "volume_pred_ml")):
            volume = sum(row["ml"] for row in of_class if row["kind"] == kind)
            assert volume == pytest.approx(scored[column])


def test_a_table_of_lesions_is_read_as_it_was_written(tmp_path):
    rows = lesions.of_case('=a, "b"', 1, random_labels(0), random_labels(1), CLASSES, 0.0128)
    lesions.write(tmp_path / "lesions.csv", rows)
    lines = (tmp_path / "lesions.csv").read_text().splitlines()
    assert lines[0] == "case,fold,class,lesion,kind,ml,found,overlap"
    rounded = [row | {"ml": round(row["ml"], 6), "overlap": round(row["overlap"], 6)} for row in rows]
    assert lesions.read(tmp_path / "lesions.csv") == rounded
    for old, new, message in (
        ("predicted", "guessed", "'guessed' and '1' are no kind and no 0 or 1"),
        (",1,", ",2,", "are no kind and no 0 or 1|no number"),
        (",overlap", "", "found the columns case,fold,class,lesion,kind,ml,found, expected case"),
    ):
        text = "\n".join(lines).replace(old, new) + "\n"
        (tmp_path / "damaged.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            lesions.read(tmp_path / "damaged.csv")


def test_sizes_are_counted_from_their_lower_end_on():
    kinds = [("reference", 0.05, 0), ("reference", 0.1, 1), ("reference", 0.99, 0), ("reference", 120.0, 1)]
    kinds += [("predicted", 0.1, 0), ("predicted", 0.5, 0), ("predicted", 10.0, 1)]
    rows = [{"kind": kind, "ml": ml, "found": found} for kind, ml, found in kinds]
    assert [tuple(size) for size in lesions.by_size(rows)] == [
        ("< 0.1", 1, 0, 0, 0), ("0.1–1", 2, 1, 2, 2), ("1–10", 0, 0, 0, 0), ("10–100", 0, 0, 1, 0),
        ("≥ 100", 1, 1, 0, 0),
    ]  # fmt: skip


def test_the_chart_of_sizes_shows_counts_and_marks_few_lesions():
    few, many = lesions.Detection("< 0.1", 4, 1, 0, 0), lesions.Detection("0.1–1", 8, 6, 3, 2)
    drawn = charts.detection("run", [few, many, lesions.Detection("1–10", 0, 0, 0, 0)])
    assert drawn.count("<rect") == 2
    assert drawn.count('class="bar few"') == 1
    for text in ("&lt; 0.1 ml: 1 of 4 found", "0.1–1 ml: 6 of 8 found", ">2</text>", ">of 3</text>"):
        assert text in drawn
    heights = [float(part.split('"')[0]) for part in drawn.split('height="')[1:]]
    assert heights[0] / heights[1] == pytest.approx(0.25 / 0.75, rel=0.01)


def test_counts_of_thousands_of_lesions_do_not_run_into_each_other():
    drawn = charts.detection("run", [lesions.Detection(str(size), 9, 9, 34567, 23456) for size in range(5)])
    lines = {}
    for x, y, text in re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="middle">(.*?)</text>', drawn):
        lines.setdefault(float(y), []).append((float(x), text))
    for texts in lines.values():
        # A digit of this size is at most 8 wide.
        for (x, text), (other_x, other) in itertools.pairwise(sorted(texts)):
            assert other_x - x > 8 * (len(text) + len(other)) / 2


def with_lesions(run):
    """The run with a lesion of 1 ml in each case and class."""
    rows = [{name: row[name] for name in ("case", "fold", "class")} for row in run.rows]
    of_one = {"lesion": 1, "kind": "reference", "ml": 1.0, "found": 1, "overlap": 0.5}
    return dataclasses.replace(run, lesions=[row | of_one for row in rows])


def test_a_report_shows_lesions_only_of_runs_that_kept_them(finished_runs):
    study = comparison.make_study(finished_runs)
    assert score_sections.lesions(study) == ""
    study = comparison.make_study([finished_runs[0], with_lesions(finished_runs[1])])
    text = ParsedPage(f"<!doctype html><html><body>{score_sections.lesions(study)}</body></html>").text
    assert text.count("6 of 6") == 3 * 2  # in the chart and on pointing, for each class
    assert "proposed" in text
    assert "bl1" not in text


def test_a_run_with_lesions_of_other_cases_is_refused(finished_runs, finished_workdirs, tmp_path):
    for name in ("config.json", "data.json", "folds.json", "cases.csv"):
        (tmp_path / name).write_bytes((finished_workdirs["bl1"] / name).read_bytes())
    assert run_files.read_run(tmp_path).lesions is None
    rows = with_lesions(finished_runs[0]).lesions
    lesions.write(tmp_path / "lesions.csv", rows)
    assert run_files.read_run(tmp_path).lesions == rows
    lesions.write(tmp_path / "lesions.csv", [rows[0] | {"case": "other"}])
    with pytest.raises(InputError, match=r"lesions.csv: found a lesion of \('other'"):
        run_files.read_run(tmp_path)


def test_the_page_shows_the_agreement_of_volumes(finished_runs):
    study = comparison.make_study(finished_runs)
    text = score_sections.volumes(study)
    for rows in study.rows.values():
        found = scores.means(rows)
        for of_class in found["classes"].values():
            agreed = of_class["volume_agreement"]
            assert f"<td>{agreed['difference_ml']:+.1f}</td>" in text
            assert f"<td>{agreed['ccc']:.3f}</td><td>{agreed['icc']:.3f}</td>" in text
        both = found["mismatch"]
        cells = "".join(f"<td>{both[key]}</td>" for key in ("both", "reference_only", "predicted_only", "neither"))
        assert cells in text
