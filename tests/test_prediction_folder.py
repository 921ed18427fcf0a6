"""A folder of predictions: rows of many calls, one run alone, and nobody else's files."""

import csv
import itertools
import json
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT, checksums, random_case, refused, save_case

from isles_jax import predict
from isles_jax.prediction import folder
from isles_jax.runtime.command import InputError


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    root = tmp_path_factory.mktemp("cases")
    for number, name in enumerate(("a", "b", "c")):
        save_case(root / name, random_case((32, 32, 3), number))
    return root


def predicting(run, cases, out, *more):
    predict.main([f"--workdir={run}", f"--input={cases}", f"--output={out}", *more])


def rows_of(out):
    with (out / "summary.csv").open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def visible(out):
    return {name: sum_ for name, sum_ in checksums(out).items() if not name.startswith(".")}


def test_case_by_case_is_the_same_as_all_at_once_in_any_order(untrained_run, cases, tmp_path):
    predicting(untrained_run[0], cases, tmp_path / "all")
    expected = visible(tmp_path / "all")
    for order in itertools.permutations("abc"):
        out = tmp_path / "".join(order)
        for number, name in enumerate(order, 1):
            predicting(untrained_run[0], cases / name, out)
            assert list(rows_of(out)) == sorted(order[:number])
        assert visible(out) == expected


def test_a_case_that_is_predicted_again_replaces_its_own_row(untrained_run, cases, tmp_path):
    out = tmp_path / "out"
    predicting(untrained_run[0], cases, out, "--spread")
    before = rows_of(out)
    refused(lambda: predicting(untrained_run[0], cases / "b", out), out, r"b\.nii\.gz exists and 3 more")
    predicting(untrained_run[0], cases / "b", out, "--overwrite", "--min-volume-ml=1000", "--defuse3")
    after = rows_of(out)
    new = set(after["b"]) - set(before["b"])
    assert {row[column] for name in "ac" for column in new for row in [after[name]]} == {""}
    assert all(after["b"][column] in ("yes", "no") for column in new)
    for name in "ac":
        assert {key: value for key, value in after[name].items() if key not in new} == before[name]
    assert (after["b"]["min_volume_ml"], before["b"]["min_volume_ml"]) == ("1000.000000", "0.000000")
    assert sorted(path.name for path in (out / "spread").iterdir()) == ["a.nii.gz", "c.nii.gz"]


def test_another_run_is_refused_in_one_line_that_names_both(untrained_run, weights_file, cases, tmp_path):
    out = tmp_path / "out"
    predicting(untrained_run[0], cases / "a", out)
    predicting(weights_file, cases / "b", out)  # the same weights are the same run
    ours = json.loads((out / "a.json").read_text())["origin"]["weights_sha256"][:8]
    for case, more in (("c", []), ("c", ["--overwrite"]), ("a", []), ("a", ["--overwrite"])):
        refused(
            lambda: predicting(untrained_run[0], cases / case, out, "--folds=2", *more),  # noqa: B023
            out,
            rf"out: found predictions of the run bl6 \(weights {ours}\), such as .; expected those of bl6 "
            r"\(weights (?!" + ours + r")\w{8}\) alone; choose another --output$",
        )


def test_another_run_may_replace_all_predictions_of_the_first(untrained_run, cases, tmp_path):
    out = tmp_path / "out"
    predicting(untrained_run[0], cases / "a", out)
    refused(
        lambda: predicting(untrained_run[0], cases, out, "--folds=2"),
        out,
        "alone; choose another --output, or replace them with --overwrite$",
    )
    predicting(untrained_run[0], cases, out, "--folds=2", "--overwrite")
    predicting(untrained_run[0], cases, tmp_path / "fresh", "--folds=2")
    assert visible(out) == visible(tmp_path / "fresh")
    assert folder.read(out).cases == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["a.nii.gz", "a.json", "a.html", "spread/a.nii.gz", "summary.csv"])
def test_a_file_that_no_prediction_wrote_is_never_replaced(untrained_run, cases, tmp_path, name):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text('{"mine": 1}')
    for more in ([], ["--overwrite"]):
        refused(
            lambda: predicting(untrained_run[0], cases / "a", out, "--spread", *more),  # noqa: B023
            out,
            rf"{name}: found a file that no prediction wrote",
        )


@pytest.mark.parametrize("content", ["[]", "no JSON", '{"run": {}}'])
def test_a_damaged_record_is_one_line(untrained_run, cases, tmp_path, content):
    (tmp_path / folder.RECORD).write_text(content)
    refused(lambda: predicting(untrained_run[0], cases, tmp_path), tmp_path, r"\.predicted: found")


def test_a_link_to_nowhere_in_the_place_of_the_record_stays(untrained_run, cases, tmp_path):
    (tmp_path / folder.RECORD).symlink_to("nowhere")
    with pytest.raises(InputError, match=r"\.predicted: found no readable file"):
        predicting(untrained_run[0], cases, tmp_path)
    assert (tmp_path / folder.RECORD).is_symlink()


def test_a_folder_of_an_earlier_version_goes_on(untrained_run, cases, tmp_path):
    """It has no record; each CASE.json names its run."""
    out = tmp_path / "out"
    predicting(untrained_run[0], cases / "a", out)
    (out / folder.RECORD).unlink()
    refused(lambda: predicting(untrained_run[0], cases / "b", out, "--folds=2"), out, "expected those of bl6")
    predicting(untrained_run[0], cases / "b", out)
    assert list(rows_of(out)) == ["a", "b"]
    predicting(untrained_run[0], cases, out, "--overwrite")
    # Two runs in one folder, as earlier versions allowed.
    predicting(untrained_run[0], cases / "a", tmp_path / "other", "--folds=2")
    shutil.copy(tmp_path / "other" / "a.json", out)
    (out / folder.RECORD).unlink()
    refused(lambda: predicting(untrained_run[0], cases / "a", out, "--overwrite"), out, "of several runs")
    predicting(untrained_run[0], cases, out, "--overwrite")
    assert list(rows_of(out)) == ["a", "b", "c"]


def started(run, cases, out, *more):
    command = [sys.executable, "-m", "isles_jax.predict", f"--workdir={run}", f"--input={cases}", f"--output={out}"]
    return subprocess.Popen([*command, *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_at_once_lose_no_row(untrained_run, cases, tmp_path):
    processes = [started(untrained_run[0], cases / name, tmp_path / "out") for name in "abc"]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 3
    predicting(untrained_run[0], cases, tmp_path / "all")
    assert visible(tmp_path / "out") == visible(tmp_path / "all")


HOLDER = """
import sys
from etils import epath
from isles_jax.prediction import folder
from isles_jax.runtime import lock
out, case, run = sys.argv[1:]
with lock.hold(out, folder.parts([case])) as held:
    with held():
        folder.begin(epath.Path(out), [case], {"run": run, "weights_sha256": 64 * "0"}, held, overwrite=False)
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_process_at_work_with_another_run_is_not_joined(untrained_run, cases, tmp_path):
    """It has written nothing yet, so that its record and its lock alone show that it is there."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", HOLDER, str(out), "b", "other"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        for more in ([], ["--overwrite"]):
            words = r"another process at work with the run other \(weights 0{8}\), expected bl6 \(weights \w{8}\)"
            refused(lambda: predicting(untrained_run[0], cases / "a", out, *more), out, words)  # noqa: B023
            words = "another process at work on the case b, expected none; wait for it or choose another --output"
            refused(lambda: predicting(untrained_run[0], cases, out, *more), out, words)  # noqa: B023
        holder.kill()
    predicting(untrained_run[0], cases / "a", out)
    assert list(rows_of(out)) == ["a"]
