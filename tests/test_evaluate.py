import json
import math
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from isles_jax import evaluate, metrics
from isles_jax.data import layouts
from isles_jax.reporting import scores
from isles_jax.runtime.command import InputError

CLASSES = ("penumbra", "core")
AFFINE = np.array([[0, -2.0, 0.1, 5], [1.5, 0, 0, -7], [0, 0.1, 3.0, 2], [0, 0, 0, 1]])


def volume(seed, shape=(9, 8, 6)):
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def write(path, data, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Predictions and labels of two cases, one of them compressed."""
    for number, suffix in enumerate((".nii", ".nii.gz")):
        write(tmp_path / "labels" / f"case{number}{suffix}", volume(number))
        write(tmp_path / "predictions" / f"case{number}.nii.gz", volume(10 + number))
    return tmp_path


def command(folder, *more):
    evaluate.main([f"--predictions={folder / 'predictions'}", f"--labels={folder / 'labels'}", *more])


def test_rows_of_a_case_are_its_classes_and_the_whole_lesion():
    prediction, truth = volume(0), volume(1)
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
    rows = scores.score_case('a, "b"', 1, volume(0), volume(1), (2, 2, 3), CLASSES)
    path = tmp_path / "cases.csv"
    scores.write_cases_csv(path, rows)
    promised = "case,fold,class,dice,precision,recall,assd_mm,hd_mm,hd95_mm,volume_true_ml,volume_pred_ml,lesion_f1,"
    assert path.read_text().startswith(promised)
    back = scores.read_cases_csv(path)
    for row, again in zip(rows, back, strict=True):
        assert list(row) == list(again)
        assert {k: again[k] for k in ("case", "fold", "class")} == {k: row[k] for k in ("case", "fold", "class")}
        for name in scores.METRICS:
            assert again[name] == pytest.approx(row[name], abs=5.1e-7)
    first = path.read_bytes()
    scores.write_cases_csv(path, back)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no readable file"),
        ("case,fold\n", "found the columns case,fold"),
        (",".join(scores.COLUMNS) + "\na,0,core,0.5\n", "no row of scores"),
        (",".join(scores.COLUMNS) + "\na,x,core" + ",1" * len(scores.METRICS) + "\n", "no row of scores"),
    ],
)
def test_damaged_cases_csv(tmp_path, text, said):
    path = tmp_path / "cases.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        scores.read_cases_csv(path)
    assert str(path) in str(error.value)


def row_of(case, fold, dice, true=1.0, predicted=1.0):
    values = dict.fromkeys(scores.METRICS, 0.0)
    return {"case": case, "fold": fold, "class": "core"} | values | {
        "dice": dice, "volume_true_ml": true, "volume_pred_ml": predicted,
    }  # fmt: skip


def test_summary_is_the_mean_of_folds_and_counts_empty_masks():
    rows = [row_of("a", 0, 0.2), row_of("b", 0, 0.4, true=0), row_of("c", 0, 0.6), row_of("d", 1, 1.0, predicted=0)]
    found = scores.summarise(rows)
    assert (found["cases"], found["folds"]) == (4, 2)
    core = found["classes"]["core"]
    assert core["dice"]["folds"] == pytest.approx([0.4, 1.0])
    assert core["dice"]["mean"] == pytest.approx(0.7)
    assert core["dice"]["std"] == pytest.approx(np.std([0.2, 0.4, 0.6, 1.0], ddof=1))
    assert (core["cases"], core["empty_truths"], core["empty_predictions"]) == (4, 1, 1)
    assert scores.summarise(rows[:1])["classes"]["core"]["dice"]["std"] is None


def test_command_scores_flat_folders(folders, capsys):
    command(folders, f"--output={folders / 'out' / 'deep'}")
    rows = scores.read_cases_csv(folders / "out" / "deep" / "cases.csv")
    assert [row["case"] for row in rows] == ["case0"] * 3 + ["case1"] * 3
    spacing = np.linalg.norm(AFFINE[:3, :3], axis=0)
    expected = metrics.score(volume(11) == 2, volume(1) == 2, spacing)
    for name in scores.METRICS:
        assert rows[4][name] == pytest.approx(expected[name], abs=1e-5)
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
        scores.score_folders(tmp_path / "predictions", phantom_root, ("tumour",))


def test_empty_masks_are_told(tmp_path, capsys):
    nothing = np.zeros((4, 4, 4), np.uint8)
    write(tmp_path / "labels" / "a.nii", nothing)
    write(tmp_path / "predictions" / "a.nii", np.full((4, 4, 4), 1, np.uint8))
    command(tmp_path)
    shown = capsys.readouterr().out
    assert "1 empty references, 1 empty predictions" in shown
    assert f"{math.dist((0, 0, 0), 4 * np.linalg.norm(AFFINE[:3, :3], axis=0)):.3f}" in shown


def test_a_prediction_without_a_label_is_told(folders, capsys):
    write(folders / "predictions" / "other.nii", volume(0))
    command(folders)
    assert "no label and are not scored: other" in capsys.readouterr().err


def break_missing(folder):
    (folder / "predictions" / "case1.nii.gz").unlink()


def break_shape(folder):
    write(folder / "predictions" / "case1.nii.gz", volume(0, (9, 8, 5)))


def break_affine(folder):
    write(folder / "predictions" / "case1.nii.gz", volume(0), AFFINE + np.diag([0.5, 0, 0, 0]))


def break_value(folder):
    write(folder / "predictions" / "case1.nii.gz", volume(0) + 5)


def break_label_value(folder):
    write(folder / "labels" / "case1.nii.gz", volume(0) + 5)


def break_twice(folder):
    write(folder / "predictions" / "case1.nii", volume(0))


def break_empty(folder):
    for path in (folder / "predictions").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (break_missing, "found no case1.nii or .nii.gz"),
        (break_shape, "case1.nii.gz: shape 9x8x5; expected 9x8x6"),
        (break_affine, "mm away"),
        (break_value, "case1.nii.gz: holds the label 5; expected only 0, 1, 2"),
        (break_label_value, "labels/case1.nii.gz: holds the label 5"),
        (break_twice, "expected one file for a case"),
        (break_empty, "expected label volumes"),
    ],
)
def test_mistakes_in_folders_end_in_one_line_and_write_nothing(folders, harm, said):
    harm(folders)
    with pytest.raises(InputError) as error:
        command(folders, f"--output={folders / 'out'}")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folders / "out").exists()


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--values=1,x", "expected integers"), ("--values=1", "2 different integers"), ("--values=1,1", "different"),
     ("--values=0,1", "from 1 to 255")],
)  # fmt: skip
def test_mistakes_in_flags(folders, flag, said):
    with pytest.raises(InputError, match=said):
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
