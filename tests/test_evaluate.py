import json
import math
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from helpers import random_labels, spes_folder
from isles_folder import isles_2022

from isles_jax import evaluate, metrics
from isles_jax.data import layouts
from isles_jax.runtime.command import InputError
from isles_jax.scoring import lesions, scores
from isles_jax.scoring.folders import score_folders

CLASSES = ("penumbra", "core")
AFFINE = np.array([[0, -2.0, 0.1, 5], [1.5, 0, 0, -7], [0, 0.1, 3.0, 2], [0, 0, 0, 1]])
VOXEL_ML = abs(np.linalg.det(AFFINE)) / 1000


def write(path, data, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Predictions and labels of two cases, one of them compressed."""
    for number, suffix in enumerate((".nii", ".nii.gz")):
        write(tmp_path / "labels" / f"case{number}{suffix}", random_labels(number))
        write(tmp_path / "predictions" / f"case{number}.nii.gz", random_labels(10 + number))
    return tmp_path


def command(folder, *more):
    named = [] if any(flag.startswith("--classes") for flag in more) else ["--classes=penumbra,core"]
    evaluate.main([f"--predictions={folder / 'predictions'}", f"--labels={folder / 'labels'}", *named, *more])


def test_command_scores_flat_folders(folders, capsys):
    command(folders, f"--output={folders / 'out' / 'deep'}")
    rows = scores.read_cases_csv(folders / "out" / "deep" / "cases.csv")
    assert [row["case"] for row in rows] == ["case0"] * 3 + ["case1"] * 3
    spacing = np.linalg.norm(AFFINE[:3, :3], axis=0)
    expected = metrics.score(random_labels(11) == 2, random_labels(1) == 2, spacing, voxel_ml=VOXEL_ML)
    for name in scores.NAMES:
        assert rows[4][name] == pytest.approx(expected[name], abs=1e-5)
    pieces = lesions.read(folders / "out" / "deep" / "lesions.csv")
    each = metrics.each_lesion(random_labels(11) == 2, random_labels(1) == 2, VOXEL_ML)
    found = [row for row in pieces if (row["case"], row["class"]) == ("case1", "core")]
    assert [(row["lesion"], row["kind"], row["found"]) for row in found] == [(one[0], one[1], one[3]) for one in each]
    assert [row["ml"] for row in found] == pytest.approx([one.ml for one in each], abs=1e-6)
    summary = json.loads((folders / "out" / "deep" / "summary.json").read_text())
    assert summary["cases"] == 2
    shown = capsys.readouterr().out
    assert "means over 2 cases" in shown
    assert f"{summary['classes']['core']['dice']['mean']:.3f}" in shown


def test_command_takes_other_classes_and_values(folders):
    command(folders, f"--output={folders / 'plain'}")
    command(folders, f"--output={folders / 'swapped'}", "--classes=core,penumbra", "--values=2,1")
    plain, swapped = (
        {(row["case"], row["class"]): row for row in scores.read_cases_csv(folders / name / "cases.csv")}
        for name in ("plain", "swapped")
    )
    assert plain == swapped


def test_command_reads_a_data_set(phantom_root, tmp_path, capsys):
    from isles_jax.data.nifti import write_labels

    dataset = layouts.load(phantom_root, penumbra=1, core=2)
    (tmp_path / "predictions").mkdir()
    for case in dataset.cases:
        write_labels(tmp_path / "predictions" / f"{case.name}.nii.gz", case.labels, case, dataset.label_values)
    evaluate.main([f"--predictions={tmp_path / 'predictions'}", f"--labels={phantom_root}", f"--output={tmp_path}"])
    rows = scores.read_cases_csv(tmp_path / "cases.csv")
    assert len(rows) == 3 * len(dataset.cases)
    assert {row["dice"] for row in rows} == {1.0}
    assert "penumbra" in capsys.readouterr().out
    with pytest.raises(InputError, match="has the classes penumbra,core"):
        score_folders(tmp_path / "predictions", phantom_root, ("tumour",))


def test_a_data_set_whose_cases_lack_a_sequence_can_be_scored(tmp_path, capsys):
    root = isles_2022(tmp_path / "data", flair=False)
    for case in layouts.load(root).cases:
        write(tmp_path / "predictions" / f"{case.name}.nii.gz", case.labels, case.affine)
    next(root.rglob("*0002_ses-0001_adc.nii.gz")).unlink()
    evaluate.main([f"--predictions={tmp_path / 'predictions'}", f"--labels={root}"])
    assert re.search(r"lesion +1\.000", capsys.readouterr().out)


def test_empty_masks_are_counted(tmp_path, capsys):
    nothing = np.zeros((4, 4, 4), np.uint8)
    write(tmp_path / "labels" / "a.nii", nothing)
    write(tmp_path / "predictions" / "a.nii", np.full((4, 4, 4), 1, np.uint8))
    command(tmp_path)
    shown = capsys.readouterr().out
    assert "1 empty references, 1 empty predictions" in shown
    assert f"{math.dist((0, 0, 0), 4 * np.linalg.norm(AFFINE[:3, :3], axis=0)):.3f}" in shown


def test_a_subset_of_the_cases_can_be_scored(folders, capsys):
    command(folders, f"--output={folders / 'all'}")
    break_missing(folders)
    command(folders, "--subset", f"--output={folders / 'subset'}")
    assert "note: 1 of 2 cases have no prediction and are not scored" in capsys.readouterr().err
    every, some = (scores.read_cases_csv(folders / name / "cases.csv") for name in ("all", "subset"))
    assert some == [row for row in every if row["case"] == "case0"]
    (folders / "predictions" / "case0.nii.gz").rename(folders / "predictions" / "other.nii.gz")
    with pytest.raises(InputError, match=r"2 of 2 cases have none$"):
        command(folders, "--subset")


def test_a_prediction_without_a_label_is_named(folders, capsys):
    write(folders / "predictions" / "other.nii", random_labels(0))
    command(folders)
    assert "no label and are not scored: other" in capsys.readouterr().err


def break_missing(folder):
    (folder / "predictions" / "case1.nii.gz").unlink()


def break_shape(folder):
    write(folder / "predictions" / "case1.nii.gz", random_labels(0, (9, 8, 5)))


def break_affine(folder):
    write(folder / "predictions" / "case1.nii.gz", random_labels(0), AFFINE + np.diag([0.5, 0, 0, 0]))


def break_value(folder):
    write(folder / "predictions" / "case1.nii.gz", random_labels(0) + 5)


def break_label_value(folder):
    write(folder / "labels" / "case1.nii.gz", random_labels(0) + 5)


def break_twice(folder):
    write(folder / "predictions" / "case1.nii", random_labels(0))


def break_empty(folder):
    for path in (folder / "predictions").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (break_missing, "found no case1.nii or .nii.gz, expected a prediction for every case; 1 of 2 cases"),
        (break_shape, "case1.nii.gz: shape 9x8x5; expected 9x8x6"),
        (break_affine, "mm away"),
        (break_value, "case1.nii.gz: holds the label 5; expected only 0, 1, 2"),
        (break_label_value, "labels/case1.nii.gz: holds the label 5"),
        (break_twice, "expected one file for a case"),
        (break_empty, "expected label volumes"),
    ],
)
def test_mistakes_in_folders_end_in_one_line_and_write_nothing(folders, harm, message):
    harm(folders)
    with pytest.raises(InputError) as error:
        command(folders, f"--output={folders / 'out'}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folders / "out").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--values=1,x", "expected integers"), ("--values=1", "2 different integers"), ("--values=1,1", "different"),
     ("--values=0,1", "from 1 to 255")],
)  # fmt: skip
def test_mistakes_in_flags(folders, flag, message):
    with pytest.raises(InputError, match=message):
        command(folders, flag)


def test_missing_folder_is_exit_code_2(tmp_path):
    arguments = [f"--predictions={tmp_path / 'a'}", f"--labels={tmp_path / 'b'}"]
    done = subprocess.run([sys.executable, "-m", "isles_jax.evaluate", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'b'}")
    assert done.stderr.count("\n") == 1


def test_help_imports_neither_jax_nor_nibabel():
    code = (
        "import sys\nfrom isles_jax import evaluate\ntry:\n    evaluate.main(['--help'])\nexcept SystemExit as end:\n"
        "    assert end.code == 0\nassert not {'jax', 'nibabel', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--predictions DIR" in done.stdout


@pytest.mark.parametrize("classes", ["a,a", "whole lesion,b", ",b", "a,all classes"])
def test_class_names_that_clash_are_refused(folders, classes):
    with pytest.raises(InputError, match=r"--classes=.*: found a class|--classes=.*: found the class"):
        command(folders, f"--classes={classes}")


def test_volumes_of_a_sheared_grid_are_those_of_the_determinant(tmp_path):
    sheared = np.array([[1.0, 0.5, 0, 0], [0, 1, 0.4, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    for name in ("labels", "predictions"):
        write(tmp_path / name / "a.nii", np.ones((10, 10, 10), np.uint8), sheared)
    rows, _ = score_folders(tmp_path / "predictions", tmp_path / "labels")
    assert (rows[0]["volume_true_ml"], rows[0]["volume_pred_ml"]) == pytest.approx((3.0, 3.0))


# --- the classes of a folder of masks --------------------------------------------------------------------------------


def classes_of(folder, *more, labels="labels"):
    """{class: the mean Dice} of a folder's cases, and the integers by the volumes of one class alone."""
    flags = [
        f"--predictions={folder / 'predictions'}",
        f"--labels={folder / labels}",
        f"--output={folder.parent / f'{folder.name}-out'}",
    ]
    evaluate.main([*flags, *more])
    summary = json.loads((folder.parent / f"{folder.name}-out" / "summary.json").read_text())["classes"]
    return {name: row["dice"]["mean"] for name, row in summary.items()}


def test_binary_masks_have_one_class_named_by_its_integer(tmp_path):
    for value in (1, 255):
        for number in (0, 1):
            truth, found = (random_labels(seed) == 1 for seed in (number, number + 10))
            write(tmp_path / "labels" / f"c{number}.nii.gz", truth * np.uint8(value))
            write(tmp_path / "predictions" / f"c{number}.nii.gz", found * np.uint8(value))
        expected = np.mean(
            [metrics.overlap(random_labels(number + 10) == 1, random_labels(number) == 1)["dice"] for number in (0, 1)]
        )
        assert classes_of(tmp_path) == {str(value): pytest.approx(expected, abs=1e-6)}


def test_every_integer_of_any_volume_is_a_class(tmp_path):
    """One that only the predictions hold was never right."""
    labels = random_labels(0)
    write(tmp_path / "labels" / "a.nii", np.where(labels == 2, 7, 0).astype(np.uint8))
    write(tmp_path / "labels" / "b.nii", np.zeros((9, 8, 6), np.uint8))
    write(tmp_path / "predictions" / "a.nii", np.where(labels == 2, 7, 3 * labels).astype(np.uint8))
    write(tmp_path / "predictions" / "b.nii", np.zeros((9, 8, 6), np.uint8))
    found = classes_of(tmp_path)
    assert list(found) == ["3", "7", "whole lesion"]
    assert (found["3"], found["7"]) == (0.5, 1.0), "in b both are empty"


def test_empty_masks_alone_are_scored(tmp_path):
    for name in ("labels", "predictions"):
        write(tmp_path / name / "a.nii", np.zeros((9, 8, 6), np.uint8))
    assert classes_of(tmp_path) == {"1": 1.0}


@pytest.mark.parametrize("place", ["labelsTr", "."])
def test_classes_come_from_the_dataset_json_there_or_above(tmp_path, place):
    """Where the integers of the classes are not in the order of their names, and one class does not occur."""
    content = {"channel_names": {"0": "DWI"}, "labels": {"background": 0, "lesion": 4, "artery": 2, "vein": 9}}
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / place / "dataset.json").write_text(json.dumps(content))
    volume = np.array([0, 2, 4], np.uint8)[random_labels(0)]
    for name in ("labelsTr", "predictions"):
        write(tmp_path / name / "a.nii.gz", volume)
    assert list(classes_of(tmp_path, labels="labelsTr")) == ["artery", "lesion", "vein", "whole lesion"]
    found = classes_of(tmp_path, "--classes=a,b", "--values=2,4", labels="labelsTr")
    assert list(found) == ["a", "b", "whole lesion"]
    assert list(classes_of(tmp_path, "--values=2,4", labels="labelsTr")) == ["2", "4", "whole lesion"]
    if place == ".":
        assert list(classes_of(tmp_path, labels=".")) == ["artery", "lesion", "vein", "whole lesion"]
    (tmp_path / place / "dataset.json").write_text("no JSON")
    with pytest.raises(InputError, match=r"dataset\.json: not readable as JSON"):
        classes_of(tmp_path, labels="labelsTr")


# --- what is not read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stray", ["case2.mha", "case2.nii.gz", "below/case2.mgz", "below/case2.nii"])
def test_what_is_not_read_in_a_folder_of_masks_is_named(folders, capsys, stray):
    for name in ("labels", "predictions"):
        path = folders / name / stray
        path.parent.mkdir(exist_ok=True)
        if stray == "case2.nii.gz":
            path.symlink_to("/nowhere/case2.nii.gz")
        else:
            path.write_bytes((folders / "labels" / "case0.nii").read_bytes())
    command(folders)
    notes = capsys.readouterr().err.splitlines()
    # The maps of a prediction lie in folders below its label volumes.
    expected = ["labels", "predictions"] if stray != "below/case2.nii" else ["labels"]
    assert sorted(note.split(": ")[1] for note in notes) == [str(folders / name) for name in expected]
    assert all(f"not read: {stray}; " in note for note in notes)


def test_a_missing_prediction_in_another_format_is_named(folders):
    path = folders / "predictions" / "case0.nii.gz"
    path.rename(path.with_name("case0.mha"))
    with pytest.raises(InputError, match=r"leaves out the cases without one; case0\.mha is .*SimpleITK"):
        command(folders)
    (folders / "predictions" / "case1.nii.gz").unlink()
    with pytest.raises(InputError, match=r"found no \.nii or \.nii\.gz file, .*; case0\.mha is .*SimpleITK"):
        command(folders)


def test_the_notes_of_a_data_set_are_printed(folders, tmp_path, capsys):
    root = spes_folder(tmp_path / "set", ("case0", "case1"))
    (root / "case0" / "more.mha").touch()
    for name in ("case0", "case1"):
        shutil.copy(root / name / "OT.nii", folders / "predictions" / f"{name}.nii")
        (folders / "predictions" / f"{name}.nii.gz").unlink()
    evaluate.main([f"--predictions={folders / 'predictions'}", f"--labels={root}"])
    assert "note: not read: case0/more.mha; in a format" in capsys.readouterr().err
