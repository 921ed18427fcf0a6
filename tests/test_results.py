import dataclasses
import json
import shutil

import pytest
import report_runs

from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.scoring import comparison, notes, run_files, scores


def test_read_run(finished_workdirs, finished_runs, report_folds):
    run = finished_runs[1]
    assert (run.name, run.folds) == ("proposed", report_folds)
    assert run.rows == sorted(
        scores.read_cases_csv(finished_workdirs["proposed"] / "cases.csv"), key=lambda row: row["case"]
    )
    assert [line["step"] for line in run.curves[2]] == list(range(10, 90, 10))
    assert [comparison.factors_of(run) for run in finished_runs] == list(report_runs.CELLS.values())


def test_read_run_names_what_is_missing(finished_workdirs, tmp_path):
    with pytest.raises(InputError, match=r"config\.json: found no readable file"):
        run_files.read_run(tmp_path)
    for name in ("config.json", "data.json", "folds.json"):
        (tmp_path / name).write_bytes((finished_workdirs["bl1"] / name).read_bytes())
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "DONE").touch()
    (tmp_path / "fold_1").mkdir()
    (tmp_path / "fold_1" / "metrics.jsonl").write_text('{"step": 10, "lr": 1.0}\n{"step": 20, "lr": 1.0}\n')
    standing = r"not finished \(fold 0 done, fold 1 at step 20, fold 2 not begun\); isles-jax train --workdir=/"
    with pytest.raises(InputError, match=standing):
        run_files.read_run(tmp_path)
    (tmp_path / "DONE").touch()
    with pytest.raises(InputError, match=r"cases\.csv: found no readable file"):
        run_files.read_run(tmp_path)
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(InputError, match=r"data\.json: found no JSON"):
        run_files.read_run(tmp_path)


def test_runs_on_other_data_are_refused(finished_runs, finished_workdirs, tmp_path):
    for name in ("config.json", "folds.json", "cases.csv"):
        (tmp_path / name).write_bytes((finished_workdirs["bl1"] / name).read_bytes())
    other = json.loads((finished_workdirs["bl1"] / "data.json").read_text())
    other["cases"].popitem()
    files.write_json(tmp_path / "data.json", other)
    with pytest.raises(InputError, match="expected runs on the same data"):
        comparison.make_study([finished_runs[0], run_files.read_run(tmp_path)])
    with pytest.raises(InputError, match="found no run"):
        comparison.make_study([])


def test_runs_are_on_the_same_data_if_one_of_them_does_not_know_the_sites(finished_runs):
    first, second = finished_runs[:2]

    def at(site):
        cases = {name: facts | {"site": site} for name, facts in second.data["cases"].items()}
        return dataclasses.replace(second, data=second.data | {"cases": cases})

    assert len(comparison.make_study([first, at("bern")]).runs) == 2
    other = dataclasses.replace(at("graz"), workdir=first.workdir / "copy")
    with pytest.raises(InputError, match="expected runs on the same data"):
        comparison.make_study([at("bern"), other])


def test_runs_on_other_folds_are_compared_with_a_note(finished_runs):
    first, second = finished_runs[:2]
    assert not any("Other folds" in note for note in notes.notes(comparison.make_study([first, second])))
    moved = dataclasses.replace(second, folds=[*second.folds[1:], second.folds[0]])
    found = [note for note in notes.notes(comparison.make_study([first, moved])) if "Other folds" in note]
    assert [note.split(".")[0] for note in found] == ["Other folds than in bl1: proposed"]


def test_two_runs_of_one_name_are_told_apart(finished_runs):
    with pytest.raises(InputError, match="found the run twice"):
        comparison.make_study([finished_runs[0], finished_runs[0]])
    again = finished_runs[0].workdir / ".." / finished_runs[0].workdir.name
    with pytest.raises(InputError, match="found the run twice"):
        comparison.make_study([finished_runs[0], dataclasses.replace(finished_runs[0], workdir=again)])
    other = dataclasses.replace(finished_runs[0], workdir=finished_runs[0].workdir / "copy")
    labels = list(comparison.make_study([finished_runs[0], other]).rows)
    assert labels[0] == comparison.RULE
    assert all(str(finished_runs[0].workdir) in label for label in labels[1:])


def test_paper_is_table_1():
    assert [entry["penumbra"] for entry in comparison.PAPER.values()] == [
        0.835,
        0.838,
        0.803,
        0.841,
        0.845,
        0.844,
        0.852,
        0.881,
    ]
    assert [entry["core"] for entry in comparison.PAPER.values()] == [
        0.792,
        0.802,
        0.730,
        0.813,
        0.867,
        0.874,
        0.865,
        0.877,
    ]


@pytest.fixture
def copied(finished_workdirs, tmp_path):
    """A copy of a finished run that a test may damage."""
    return shutil.copytree(finished_workdirs["proposed"], tmp_path / "run")


def cut_number(text):
    first, rest = text.split("\n", 1)
    return first + "\n" + rest.replace("0,", ",", 1)


CSV = {
    "shortened": lambda text: "".join(text.splitlines(keepends=True)[:10]),
    "a row twice": lambda text: text + text.splitlines(keepends=True)[-1],
    "the last number cut short": lambda text: text[:-3],
    "a number cut short": cut_number,
    "two rows exchanged": lambda text: "".join(text.splitlines(keepends=True)[i] for i in (0, 2, 1)) + text[-1:],
    "another case": lambda text: text.replace("01,", "77,", 1),
}


@pytest.mark.parametrize("name", ["cases.csv", "clinical_rule.csv"])
@pytest.mark.parametrize("kind", CSV)
def test_scores_that_are_not_those_of_the_folds_are_refused(copied, kind, name):
    path = copied / name
    before = path.read_text()
    path.write_text(CSV[kind](before))
    assert path.read_text() != before
    with pytest.raises(InputError) as caught:
        run_files.read_run(copied)
    assert str(caught.value).startswith(f"{path}: found ")
    assert "\n" not in str(caught.value)


def test_a_file_that_changed_after_the_run_ended_is_refused(copied):
    expected = run_files.read_run(copied)
    run_files.seal(copied)
    assert run_files.read_run(copied) == expected
    for name in run_files.SEALED:
        path = copied / name
        if path.exists():
            content = path.read_bytes()
            path.write_bytes(content + b" ")
            with pytest.raises(InputError, match="found other content than when the run ended"):
                run_files.read_run(copied)
            path.write_bytes(content)
    (copied / "clinical_rule.csv").unlink()
    with pytest.raises(InputError, match="clinical_rule"):
        run_files.read_run(copied)


def test_notes_of_the_folds_reach_the_reader(copied):
    (copied / "fold_1" / "notes.txt").write_text("fold 1 is predicted from step 4\n")
    run = run_files.read_run(copied)
    assert run.notes == ["fold 1 is predicted from step 4"]
    assert "proposed: fold 1 is predicted from step 4." in notes.notes(comparison.make_study([run]))


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", "[]"), ("config.json", '{"name": 3}'), ("data.json", '{"cases": []}'), ("folds.json", "{}"),
     ("folds.json", "[[1]]"), ("data.json", "[" * 9999), ("fold_0/metrics.jsonl", "3\n"),
     ("fold_0/metrics.jsonl", '{"step": 1, "loss": "x"}\n'), ("fold_0/held_out.jsonl", '{"dice/core": 1}\n')],
)  # fmt: skip
def test_json_of_another_form_is_one_line(copied, name, content):
    (copied / name).write_text(content)
    with pytest.raises(InputError) as caught:
        run_files.read_run(copied)
    assert str(caught.value).startswith(f"{copied / name}: found ")
    assert "\n" not in str(caught.value)
