"""What version 0.2.0 left on disk stays readable; the public commands alone read it.

tests/runs/README.md says how the run was made. Its numbers come from another machine, so a test compares bits only
where no network computes them.
"""

import csv
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import safetensors.numpy
from helpers import ROOT, ParsedPage, checksums, files_in

from isles_jax import evaluate, export, main, predict, report

ARCHIVE = Path(__file__).parent / "runs" / "0.2.0.tar.xz"
FLAGS = (
    "--config=configs/proposed.py", "--config.folds=2", "--config.data.phantom.cases=4",
    "--config.data.phantom.shape=(32,32,4)", "--config.model.width=1", "--config.discriminator.width=1",
    "--config.train.epochs=2", "--config.train.batch_size=4", "--config.train.checkpoint_every_steps=2",
    "--config.train.log_every_steps=1",
)  # fmt: skip
CASES, CLASSES = ("01", "02", "03", "04"), ("penumbra", "core", "whole lesion")
# What the run wrote after the second step of fold 1.
LATER = (
    "DONE", "cases.csv", "summary.json", "clinical_rule.csv", "calibration.json", "fold_1/DONE", "fold_1/predictions",
    "fold_1/calibration", "fold_1/checkpoints/4",
)  # fmt: skip


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The unpacked archive: run/, weights.safetensors and prediction/. No test changes it."""
    folder = tmp_path_factory.mktemp("0.2.0")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    before = checksums(folder)
    yield folder
    assert checksums(folder) == before


@pytest.fixture
def copied(old, tmp_path):
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(old / "run", tmp_path / "run"))


@pytest.fixture(scope="module")
def predicted(old, tmp_path_factory):
    """What the run's networks predict for the run's own phantom."""
    out = tmp_path_factory.mktemp("predicted") / "out"
    predict.main([f"--workdir={old / 'run'}", f"--input={old / 'run' / 'phantom'}", f"--output={out}", "--no-page"])
    return out


def train(run, *more):
    """The finished process of the command that made the run. ml_collections reads overrides from `sys.argv` alone."""
    command = [sys.executable, "-m", "isles_jax.main", *FLAGS, *more, f"--workdir={run}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def table_of(run):
    """What the command prints once the run is finished."""
    done = train(run)
    assert done.returncode == 0, done.stderr
    return done.stdout


def labels_in(path):
    return np.asarray(nib.load(path).dataobj)


def rows_of(path):
    """{(case, class): row} of a cases.csv, as text."""
    with path.open(newline="") as file:
        return {(row["case"], row["class"]): row for row in csv.DictReader(file)}


def seal(run):
    """Writes the checksums of the run's files, as they are now, to its DONE."""
    names = json.loads((run / "DONE").read_text())
    sums = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names}
    (run / "DONE").write_text(json.dumps(sums, indent=2) + "\n")


def assert_shows_the_scores(printed, run):
    """The printed table has the run's mean Dice of each class, and says that the data are the phantom."""
    scores = json.loads((run / "summary.json").read_text())["classes"]
    lines = [line for line in printed.splitlines() if line.startswith("proposed")][: len(CLASSES)]
    for name, line in zip(CLASSES, lines, strict=True):
        assert name in line
        assert f"  {scores[name]['dice']['mean']:.3f} ± " in line
    assert "not patients" in printed


@pytest.mark.slow
def test_the_finished_run_prints_its_table_and_nothing_is_written(old, capsys):
    before = checksums(old / "run")
    printed = table_of(old / "run")
    assert_shows_the_scores(printed, old / "run")
    main.main([f"--workdir={old / 'run'}"])
    assert capsys.readouterr().out.splitlines()[1:] == printed.splitlines(), "its own settings are enough"
    assert checksums(old / "run") == before


def test_a_report_is_made(old, tmp_path, capsys):
    report.main([str(old / "run"), f"--output={tmp_path / 'page.html'}"])
    assert_shows_the_scores(capsys.readouterr().out, old / "run")
    page = ParsedPage((tmp_path / "page.html").read_text())
    page.assert_names_no_address()
    for word in ("proposed", *CLASSES, *CASES):
        assert word in page.text


def test_the_run_and_its_exported_weights_predict_the_same(old, predicted, tmp_path):
    weights = old / "weights.safetensors"
    predict.main([f"--workdir={weights}", f"--input={old / 'run' / 'phantom'}", f"--output={tmp_path / 'out'}"])
    for case in CASES:
        from_run, from_weights = (labels_in(out / f"{case}.nii.gz") for out in (predicted, tmp_path / "out"))
        np.testing.assert_array_equal(from_run, from_weights)
        assert set(np.unique(from_run)) == {0, 1, 2}
    # Version 0.2.0 predicted this case on another machine, where rounding may decide another class in single voxels.
    assert (labels_in(predicted / "01.nii.gz") == labels_in(old / "prediction" / "01.nii.gz")).mean() > 0.999


def test_the_predictions_are_scored_against_the_phantom_of_the_run(old, predicted, tmp_path, capsys):
    labels = f"--labels={old / 'run' / 'phantom'}"
    evaluate.main([f"--predictions={predicted}", labels, f"--output={tmp_path / 'all'}"])
    assert "4 cases" in capsys.readouterr().out
    assert rows_of(tmp_path / "all" / "cases.csv").keys() == {(case, name) for case in CASES for name in CLASSES}


def test_the_held_out_predictions_still_have_their_scores(old, tmp_path):
    recorded = rows_of(old / "run" / "cases.csv")
    for fold in ("0", "1"):
        predictions, out = old / "run" / f"fold_{fold}" / "predictions", tmp_path / fold
        labels = f"--labels={old / 'run' / 'phantom'}"
        evaluate.main([f"--predictions={predictions}", labels, "--subset", f"--output={out}"])
        scored = rows_of(out / "cases.csv")
        assert scored.keys() == {key for key, row in recorded.items() if row["fold"] == fold}
        for key, row in scored.items():
            shared = row.keys() & recorded[key].keys() - {"case", "fold", "class"}
            assert "dice" in shared
            for name in shared:
                assert float(row[name]) == pytest.approx(float(recorded[key][name]), abs=2e-6), (key, name)


def test_the_run_is_exported_with_the_same_tensors(old, tmp_path):
    path = tmp_path / "again.safetensors"
    export.main([f"--workdir={old / 'run'}", f"--output={path}"])
    again, before = safetensors.numpy.load_file(path), safetensors.numpy.load_file(old / "weights.safetensors")
    assert again.keys() == before.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name, strict=True)


@pytest.mark.slow
def test_an_unfinished_run_goes_on_from_its_checkpoint(old, copied):
    for name in LATER:
        path = copied / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    printed = table_of(copied)
    assert "steps 2 to 4" in printed
    assert_shows_the_scores(printed, copied)
    for fold in ("fold_0", "fold_1"):
        steps = [
            [json.loads(line)["step"] for line in (run / fold / "metrics.jsonl").read_text().splitlines()]
            for run in (old / "run", copied)
        ]
        assert steps == [[1, 2, 3, 4]] * 2
    assert files_in(old / "run" / "fold_0").keys() == files_in(copied / "fold_0").keys()
    assert sorted(path.name for path in (copied / "fold_1" / "checkpoints").iterdir()) == ["2", "4"]
    rows = rows_of(copied / "cases.csv")
    assert [(key, row["fold"]) for key, row in rows.items()] == [
        (key, row["fold"]) for key, row in rows_of(old / "run" / "cases.csv").items()
    ]
    for row in rows.values():
        assert all(math.isfinite(float(value)) for name, value in row.items() if name not in ("case", "class"))
    for name in ("DONE", "report.html", "calibration.json", "clinical_rule.csv", "fold_1/DONE"):
        assert (copied / name).exists()


@pytest.mark.slow
def test_another_setting_is_refused_in_one_line_that_names_it_alone(old):
    done = train(old / "run", "--config.seed=1")
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    named = re.fullmatch(r"error: .* holds another run: (.*); choose another --workdir", line)
    assert named[1] == "seed is 0 there and 1 here"


@pytest.mark.slow
def test_keys_that_did_not_exist_yet_do_not_lock_the_run(copied, tmp_path):
    """A later version adds keys, whose defaults compute what was computed without them."""
    config = json.loads((copied / "config.json").read_text())
    assert (config["loss"].pop("focal"), config["data"].pop("dtype")) == (0.0, "float32")
    (copied / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    seal(copied)
    predict.main([f"--workdir={copied}", f"--input={copied / 'phantom' / '01'}", f"--output={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "01.nii.gz").exists()
    report.main([str(copied), f"--output={tmp_path / 'page.html'}"])
    assert_shows_the_scores(table_of(copied), copied)
    refused = train(copied, "--config.loss.focal=0.5")
    assert refused.returncode == 2
    assert "holds another run: loss.focal is" in refused.stderr
    assert "data.dtype" not in refused.stderr


def with_columns(run, change):
    """Changes every row of cases.csv, a list of the columns' names or values."""
    path = run / "cases.csv"
    with path.open(newline="") as file:
        [names, *rows] = csv.reader(file)
    lines = [",".join(change(names, row)) for row in (names, *rows)]
    path.write_text("\n".join(lines) + "\n")
    seal(run)


def test_a_column_that_a_later_version_adds_is_passed_over(copied, tmp_path, capsys):
    with_columns(copied, lambda names, row: [*row, "zzz" if row is names else "0.500000"])
    report.main([str(copied), f"--output={tmp_path / 'page.html'}"])
    assert_shows_the_scores(capsys.readouterr().out, copied)
    assert "proposed" in ParsedPage((tmp_path / "page.html").read_text()).text


@pytest.mark.slow
def test_a_column_that_did_not_exist_yet_may_be_missing(copied, tmp_path, capsys):
    with_columns(copied, lambda names, row: [v for n, v in zip(names, row, strict=True) if n != "lesion_f1_iou"])
    report.main([str(copied), f"--output={tmp_path / 'page.html'}"])
    assert_shows_the_scores(capsys.readouterr().out, copied)
    assert "proposed" in ParsedPage((tmp_path / "page.html").read_text()).text
    assert_shows_the_scores(table_of(copied), copied)
