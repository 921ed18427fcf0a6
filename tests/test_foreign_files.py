"""Whatever lies where a command wants to write and is not its own stays as it is, to the byte."""

import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
from helpers import checksums, random_case, refused, save_case, tiny_config

from experiments import benchmark, critics, phantom_study, real_cases, results_page, study, table1
from experiments.benchmarks import ahead
from isles_jax import convert, evaluate, export, predict, report
from isles_jax import phantom as phantom_command
from isles_jax.cross_validation import cross_validate
from isles_jax.data import layouts
from isles_jax.data.case import PHANTOM_MARKER
from isles_jax.data.nifti import write_labels
from isles_jax.phantoms import phantom
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.scoring import run_files

PHANTOM = {"cases": 4, "shape": (16, 16, 4), "difficulty": 1.0, "seed": 0, "layout": "spes"}
ON_PHANTOM = {"data.phantom.cases": 4, "data.phantom.shape": (16, 16, 4)}


# --- a new workdir ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*sorted(set(run_files.WRITTEN) - {"config.json"}), "fold_0/metrics.jsonl", "fold_7/x"]
)
def test_a_new_workdir_with_a_file_of_a_run_is_refused(tmp_path, phantom_root, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    for data in ({"data.root": str(phantom_root)}, ON_PHANTOM):
        settings = tiny_config("bl1", **data)
        refused(lambda: cross_validate(settings, tmp_path / "run"), tmp_path, "found beside no config.json")  # noqa: B023


def test_the_folds_of_ones_own_in_the_new_workdir_are_kept(tmp_path, phantom_root):
    own = tmp_path / "run" / "folds.json"
    own.parent.mkdir()
    own.write_text(json.dumps([["01", "02", "03"], ["04", "05", "06"]]))
    settings = tiny_config("bl1", **{"data.root": str(phantom_root), "folds_by": str(own)})
    refused(lambda: cross_validate(settings, tmp_path / "run"), tmp_path, r"folds\.json: found beside no config\.json")


@pytest.mark.parametrize("content", ['{"name": {"a": 1}}', '{"model_type": "bert"}', "no JSON", "[]"])
def test_a_configuration_of_another_program_is_no_run(tmp_path, phantom_root, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(content)
    for more in ({}, {"train.init": str(tmp_path / "weights.safetensors")}):
        settings = tiny_config("bl1", **{"data.root": str(phantom_root), **more})
        refused(lambda: cross_validate(settings, tmp_path / "run"), tmp_path, r"config\.json: found|holds another run")  # noqa: B023


def test_other_files_in_the_workdir_are_left_alone(tmp_path, phantom_root):
    (tmp_path / "run").mkdir()
    theirs = ("letter.txt", ".letter.part", ".phantom.part")
    for name in theirs:
        (tmp_path / "run" / name).write_text("mine")
    cross_validate(tiny_config("bl1", **{"data.root": str(phantom_root), "fold": 0}), tmp_path / "run")
    assert (tmp_path / "run" / "config.json").exists()
    assert {(tmp_path / "run" / name).read_text() for name in theirs} == {"mine"}


def test_what_a_killed_process_left_is_removed(tmp_path, phantom_root):
    left = files.part_of(tmp_path / "run" / "config.json")
    left.parent.mkdir()
    left.write_text("half")
    cross_validate(tiny_config("bl1", **{"data.root": str(phantom_root), "fold": 0}), tmp_path / "run")
    assert not left.exists()


def test_a_foreign_phantom_is_neither_removed_nor_taken(tmp_path):
    run = tmp_path / "run"
    settings = tiny_config("bl1", **ON_PHANTOM)
    for name, words in (("scan.nii", "exists and is not an empty folder"), (PHANTOM_MARKER, "found another phantom")):
        (run / "phantom").mkdir(parents=True)
        (run / "phantom" / name).write_text("mine")
        refused(lambda: cross_validate(settings, run), tmp_path, words)
        shutil.rmtree(run)
    phantom.write_phantom(run / "phantom", **(PHANTOM | {"seed": 1}))
    refused(lambda: cross_validate(settings, run), tmp_path, "found another phantom, expected none")


def test_a_start_that_was_killed_goes_on_with_its_phantom(tmp_path):
    """Before config.json is written, the phantom alone is there."""
    run = tmp_path / "run"
    phantom.write_phantom(run / "phantom", **PHANTOM)
    before = {path: path.stat().st_mtime_ns for path in (run / "phantom").rglob("*")}
    cross_validate(tiny_config("bl1", **ON_PHANTOM, fold=0), run)
    assert before == {path: path.stat().st_mtime_ns for path in (run / "phantom").rglob("*")}


def test_a_start_that_was_refused_leaves_no_phantom(tmp_path):
    """The next call may ask for another one."""
    with pytest.raises(InputError, match="batch_size"):
        cross_validate(tiny_config("bl1", **ON_PHANTOM, **{"train.batch_size": 1000}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_phantom_in_a_bucket_completes_its_own_copy_alone(bucket):
    root = files.location("gs://bucket/run/phantom")
    settings = {"begun": False, **PHANTOM}
    assert phantom.provide(root, **settings)
    whole = checksums(bucket)
    (bucket / "run" / "phantom" / PHANTOM_MARKER).unlink()
    shutil.rmtree(bucket / "run" / "phantom" / "02")
    assert phantom.provide(root, **settings)
    assert checksums(bucket) == whole
    assert not phantom.provide(root, **settings)
    (bucket / "run" / "phantom" / PHANTOM_MARKER).unlink()
    for name in ("01/mine.txt", "mine.txt", "03"):
        path = bucket / "run" / "phantom" / name
        if name == "03":
            shutil.rmtree(path)
        path.write_text("mine")
        refused(lambda: phantom.provide(root, **settings), bucket, "found in the place of the phantom")
        path.unlink()


# --- new folders and files -------------------------------------------------------------------------------------------


def test_a_hidden_file_beside_a_new_folder_stays(tmp_path, phantom_root):
    for name in (".new.part", ".set.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    phantom_command.main([f"--output={tmp_path / 'new'}", "--cases=1", "--shape=16x16x4"])
    convert.main([f"--input={phantom_root}", f"--output={tmp_path / 'set'}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new.part", ".set.part", "new", "set"]
    assert (tmp_path / ".new.part" / "mine").read_text() == (tmp_path / ".set.part" / "mine").read_text() == "mine"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_new_folder_has_the_permissions_of_the_users_umask(tmp_path, phantom_root, umask):
    before = os.umask(umask)
    try:
        convert.main([f"--input={phantom_root}", f"--output={tmp_path / 'set'}"])
    finally:
        os.umask(before)
    for path in (tmp_path / "set", tmp_path / "set" / "imagesTr"):
        assert path.stat().st_mode & 0o777 == 0o777 & ~umask


def test_two_processes_that_write_one_file_have_parts_of_their_own(tmp_path):
    assert files.part_of(tmp_path / "x") != files.part_of(tmp_path / "x")
    assert len(files.part_of(tmp_path / ("x" * 255)).name) < 255


# --- evaluate, report, export ----------------------------------------------------------------------------------------


@pytest.fixture
def predictions(phantom_root, tmp_path):
    """The labels of the phantom as predictions."""
    dataset = layouts.load(phantom_root)
    folder = tmp_path / "predictions"
    folder.mkdir()
    for case in dataset.cases:
        write_labels(folder / f"{case.name}.nii.gz", case.labels, case, dataset.label_values)
    return folder


def test_an_evaluation_replaces_an_earlier_one_alone(phantom_root, predictions, finished_workdirs, tmp_path):
    data = shutil.copytree(phantom_root, tmp_path / "data")
    (data / "cases.csv").write_text("case,patient\n" + "".join(f"0{n},p{n}\n" for n in range(1, 7)))
    run = shutil.copytree(finished_workdirs["bl1"], tmp_path / "run")
    other = tmp_path / "other"
    other.mkdir()
    (other / "summary.json").write_text('{"mine": 1}')

    def score(output):
        evaluate.main([f"--predictions={predictions}", f"--labels={data}", f"--output={output}"])

    for output, words in (
        (data, "lies inside"),
        (data / "new", "lies inside"),
        (run, r"found config\.json"),
        (other, r"summary\.json: found a file that is not a summary"),
    ):
        refused(lambda: score(output), tmp_path, words)  # noqa: B023
    shutil.copy(data / "cases.csv", other / "cases.csv")
    refused(lambda: score(other), tmp_path, r"cases\.csv: found a file that is not a table of this program")
    (other / "cases.csv").rename(other / "lesions.csv")
    refused(lambda: score(other), tmp_path, r"lesions\.csv: found a file that is not a table of this program")
    for _ in range(2):
        score(tmp_path / "scores")
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["cases.csv", "lesions.csv", "summary.json"]


def test_a_report_replaces_an_earlier_page_alone(finished_workdirs, few_resamples, tmp_path):
    run = str(shutil.copytree(finished_workdirs["bl1"], tmp_path / "run"))
    page = tmp_path / "page.html"
    for content in ("<html>mine</html>", ""):
        page.write_text(content)
        refused(
            lambda: report.main([run, f"--output={page}"]), tmp_path, r"page\.html: found a file that is not a page"
        )
    refused(lambda: report.main([run, f"--output={run}/cases.csv"]), tmp_path, r"cases\.csv: found a file that is not")
    refused(lambda: report.main([run, f"--output={run}"]), tmp_path, "is a folder, expected a name for a page")
    page.unlink()
    for _ in range(2):
        report.main([run, f"--output={page}"])
    assert page.read_text().endswith("</html>\n")


def test_an_export_replaces_an_earlier_one_alone(untrained_run, tmp_path):
    for name in ("x.safetensors", "x.stablehlo"):
        path = tmp_path / name
        command = [f"--workdir={untrained_run[0]}", "--folds=0", f"--output={path}"]
        for content in (b"mine", safetensors.numpy.save({"a": np.zeros(3)})):
            path.write_bytes(content)
            refused(lambda: export.main(command), tmp_path, "found a file that is not an export")  # noqa: B023
        path.unlink()
        for _ in range(2):
            export.main(command)
        assert path.stat().st_size > 1000


def test_a_benchmark_replaces_its_own_results_alone(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    refused(
        lambda: benchmark.main(["losses", "--no-torch", f"--output={tmp_path / 'x.json'}"]),
        tmp_path,
        "not a benchmark's results",
    )


def test_a_study_replaces_its_own_tables_alone(tmp_path):
    for name in ("table1.csv", "table1_effects.csv", "table1.html"):
        (tmp_path / name).write_text("row,mine\n")
        refused(lambda: study.refuse_outputs(files.location(tmp_path), "table1"), tmp_path, name)
        refused(lambda: table1.main([f"--workdir={tmp_path}"]), tmp_path, name)
        (tmp_path / name).unlink()
    (tmp_path / "both").mkdir()
    for name in ("real_cases.csv", "both/cases.csv"):
        (tmp_path / name).write_text("case,mine\n")
        refused(lambda: real_cases.main([f"--workdir={tmp_path}"]), tmp_path, name)
        (tmp_path / name).unlink()
    (tmp_path / "critics.csv").write_text("row,mine\n")
    refused(lambda: critics.write(tmp_path / "critics.csv", {}), tmp_path, "critics")


def test_a_study_with_another_output_replaces_its_own_tables_and_pictures_alone(tmp_path, monkeypatch):
    output = tmp_path / "out"
    output.mkdir()
    for path in results_page.FOLDER.iterdir():
        shutil.copy(path, output)
    phantom_study.refuse_outputs(output)
    monkeypatch.setattr(phantom_study, "PARTS", {"none": lambda workdir: []})
    for name, content in (("best.csv", "row,mine\n"), ("second.json", '{"trainer": 1}'), ("critics.png", "mine")):
        (tmp_path / name).write_text(content)
        (output / name).rename(tmp_path / "kept")
        shutil.copy(tmp_path / name, output)
        command = [f"--workdir={tmp_path}", f"--output={output}"]
        refused(lambda: phantom_study.main(command), tmp_path, rf"{name}: found a file that is not a")  # noqa: B023
        (tmp_path / "kept").rename(output / name)


@pytest.mark.parametrize("content", ["[]mine", "{}", '[{"target": "x"}]', ""])
def test_a_list_of_reports_takes_no_other_file_for_one(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    refused(lambda: ahead.main(["--target=h100", f"--output={path}"]), tmp_path, "not a list of reports")


# --- a run that is there ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "fold_0", "fold_0/predictions", "fold_0/new", "phantom", "fold_9"])
def test_predictions_and_scores_are_not_written_into_a_run(finished_workdirs, phantom_root, tmp_path, place):
    run = shutil.copytree(finished_workdirs["bl1"], tmp_path / "run")
    (tmp_path / "link").symlink_to(run)
    for folder in (run, tmp_path / "link"):
        output = f"--output={folder / place}"
        commands = (
            lambda: predict.main([f"--workdir={run}", f"--input={phantom_root}", output]),  # noqa: B023
            lambda: evaluate.main([f"--predictions={run}", f"--labels={phantom_root}", output]),  # noqa: B023
        )
        for work in commands:
            refused(work, tmp_path, r"found config\.json of a run in .*run; expected another --output")


def test_a_folder_in_a_run_and_a_case_named_config_are_no_run(tmp_path, untrained_run):
    run = shutil.copytree(untrained_run[0], tmp_path / "run")
    files.write_json(run / "config.json", {"seed": 0, "data": {}, "model": {}})
    save_case(tmp_path / "config", random_case((32, 32, 3)))
    for _ in range(2):
        predict.main([f"--workdir={run}", f"--input={tmp_path / 'config'}", f"--output={run / 'new'}", "--overwrite"])
    assert (run / "new" / "config.json").exists()
