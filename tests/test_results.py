import json

import pytest
import report_runs

from isles_jax.reporting import results, scores
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError


def test_read_run(finished_workdirs, finished_runs, report_folds):
    run = finished_runs[1]
    assert (run.name, run.folds) == ("proposed", report_folds)
    assert run.rows == sorted(
        scores.read_cases_csv(finished_workdirs["proposed"] / "cases.csv"), key=lambda row: row["case"]
    )
    assert [line["step"] for line in run.curves[2]] == list(range(10, 90, 10))
    assert [results.factors_of(run) for run in finished_runs] == list(report_runs.CELLS.values())


def test_read_run_names_what_is_missing(finished_workdirs, tmp_path):
    with pytest.raises(InputError, match=r"config\.json: found no readable file"):
        results.read_run(tmp_path)
    for name in ("config.json", "data.json", "folds.json"):
        (tmp_path / name).write_bytes((finished_workdirs["bl1"] / name).read_bytes())
    with pytest.raises(InputError, match=r"cases\.csv"):
        results.read_run(tmp_path)
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(InputError, match=r"data\.json: found no JSON"):
        results.read_run(tmp_path)


def test_runs_on_other_data_are_refused(finished_runs, finished_workdirs, tmp_path):
    for name in ("config.json", "folds.json", "cases.csv"):
        (tmp_path / name).write_bytes((finished_workdirs["bl1"] / name).read_bytes())
    other = json.loads((finished_workdirs["bl1"] / "data.json").read_text())
    other["cases"].popitem()
    files.write_json(tmp_path / "data.json", other)
    with pytest.raises(InputError, match="expected runs on the same data"):
        results.make_study([finished_runs[0], results.read_run(tmp_path)])
    with pytest.raises(InputError, match="found no run"):
        results.make_study([])


def test_two_runs_of_one_name_have_different_labels(finished_runs):
    labels = list(results.make_study([finished_runs[0], finished_runs[0]]).rows)
    assert labels[0] == results.RULE
    assert all(str(finished_runs[0].workdir) in label for label in labels[1:])


def test_paper_is_table_1():
    assert [entry["penumbra"] for entry in results.PAPER.values()] == [
        0.835,
        0.838,
        0.803,
        0.841,
        0.845,
        0.844,
        0.852,
        0.881,
    ]
    assert [entry["core"] for entry in results.PAPER.values()] == [
        0.792,
        0.802,
        0.730,
        0.813,
        0.867,
        0.874,
        0.865,
        0.877,
    ]
