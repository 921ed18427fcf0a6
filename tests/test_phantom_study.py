"""The study in one command, with stand-ins for the trainings: what each part trains, reads and hands over."""

import json
from pathlib import Path

import pytest

from experiments import (
    ablation,
    best,
    critics,
    figures,
    first_weights,
    ideas,
    intervals,
    nnunet,
    peers,
    phantom_study,
    results_page,
    table1,
)
from isles_jax.runtime.command import InputError

ROWS = {table1: table1.table_rows, ablation: ablation.ablation_rows, best: best.best_rows, ideas: ideas.idea_rows}


def read_flags(arguments):
    """The flags of a study's command line by their names, and its --config.KEY=VALUE."""
    overrides = [word for word in arguments if word.startswith("--config.")]
    pairs = [word.removeprefix("--").split("=", 1) for word in arguments if word not in overrides]
    return dict(pairs), overrides


class Trainings:
    """Stand-ins for the studies. They write tables with the name of their file, and check that rows they read exist."""

    def __init__(self, monkeypatch):
        self.seeds, self.calls, self.drawn = {}, [], []
        for study in ROWS:
            monkeypatch.setattr(study, "main", lambda arguments, study=study: self.train(study, arguments))
        for study in (first_weights, peers, nnunet):
            monkeypatch.setattr(study, "main", lambda arguments, study=study: self.compare(study, arguments))
        monkeypatch.setattr(phantom_study, "read_seeds", self.read_seeds)
        monkeypatch.setattr(critics, "write", lambda path, runs: path.write_text(path.name))
        monkeypatch.setattr(figures, "draw", self.drawn.append)

    def train(self, study, arguments):
        flags, overrides = read_flags(arguments)
        rows = ROWS[study](overrides)
        chosen = flags["rows"].split(",") if "rows" in flags else list(rows)
        assert set(chosen) <= rows.keys()
        workdir = Path(flags["workdir"])
        workdir.mkdir(parents=True, exist_ok=True)
        for name in chosen:
            self.seeds[workdir, name] = int(flags.get("seeds", 1))
        stem = study.__name__.split(".")[-1]
        self.calls.append(stem)
        if "rows" not in flags:
            for name in (stem, *(["table1_effects"] if study is table1 else [])):
                (workdir / f"{name}.csv").write_text(f"{name}.csv")

    def read_seeds(self, workdir, names, seeds):
        for name in names:
            assert self.seeds[workdir, name] >= seeds, name
        return {name: [] for name in names}

    def compare(self, study, arguments):
        flags, overrides = read_flags(arguments)
        assert overrides == []
        workdir = Path(flags["workdir"])
        needed = {first_weights: "bl1", peers: "bl1,proposed"}.get(study) or flags["rows"]
        self.read_seeds(workdir, needed.split(","), int(flags.get("seeds", 1)))
        stem = study.__name__.split(".")[-1]
        self.calls.append(stem)
        if study is nnunet:
            stem += "_" + flags.get("trainer", "nnUNetTrainer_5epochs").removeprefix("nnUNetTrainer_")
            (workdir / f"{stem}.json").write_text(json.dumps(stem))
        (workdir / f"{stem}.csv").write_text(f"{stem}.csv")


@pytest.fixture
def trainings(monkeypatch):
    return Trainings(monkeypatch)


def test_all_parts_make_the_tables_of_the_page_from_rows_that_they_trained(trainings, tmp_path):
    page = results_page.PAGE.read_text()
    phantom_study.main([f"--workdir={tmp_path / 'study'}", f"--output={tmp_path / 'out'}"])
    expected = {path.name for path in results_page.FOLDER.iterdir() if path.suffix in (".csv", ".json")}
    # The first two are simulated without a training; the others are of commands of their own.
    expected -= {path.name for path in intervals.TABLES} | {"ideas.csv", "ideas_once.csv", "real_cases.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    assert trainings.drawn == [tmp_path / "out"]
    assert results_page.PAGE.read_text() == page, "it changes only with the default output"


@pytest.mark.parametrize(
    ("part", "calls", "tables"),
    [
        ("table1", ["table1"], {"table1.csv", "table1_effects.csv"}),
        ("first_weights", ["table1", "first_weights"], {"first_weights.csv"}),
        ("ablation", ["ablation"], {"ablation.csv", "critics.csv"}),
        ("best", ["best"], {"best.csv"}),
        ("peers", ["table1", "peers"], {"peers.csv"}),
        ("longer", ["table1", "peers"] * 2, {"shorter.csv", "longer.csv"}),
        ("nnunet", ["best", "nnunet"], {"nnunet_5epochs.csv", "nnunet_5epochs.json"}),
        ("longer_nnunet", ["ideas", "nnunet"], {"nnunet_20epochs.csv", "nnunet_20epochs.json"}),
        ("second", ["table1", "best", "nnunet"], {"second.csv", "second.json"}),
        ("third", ["ideas", "nnunet"], {"third.csv", "third.json"}),
    ],
)
def test_a_part_alone_trains_what_it_reads(trainings, tmp_path, part, calls, tables):
    phantom_study.main([f"--workdir={tmp_path / 'study'}", f"--output={tmp_path / 'out'}", f"--parts={part}"])
    assert trainings.calls == calls
    assert {path.name for path in (tmp_path / "out").iterdir()} == tables


def test_every_part_is_in_the_test_above():
    [mark] = test_a_part_alone_trains_what_it_reads.pytestmark
    assert [part for part, *_ in mark.args[1]] == list(phantom_study.PARTS)


def test_an_unknown_part_is_refused_before_anything_is_trained(trainings, tmp_path):
    with pytest.raises(InputError, match=r"--parts=tabel1: expected some of table1,.*second"):
        phantom_study.main([f"--workdir={tmp_path / 'study'}", f"--output={tmp_path / 'out'}", "--parts=best,tabel1"])
    assert trainings.calls == []
    assert list(tmp_path.iterdir()) == []


def test_the_default_output_fills_in_the_page(trainings, tmp_path, monkeypatch):
    filled = []
    monkeypatch.setattr(results_page, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(results_page, "main", filled.append)
    phantom_study.main([f"--workdir={tmp_path / 'study'}", "--parts=best"])
    assert (tmp_path / "results" / "best.csv").read_text() == "best.csv"
    assert filled == [[]]
