"""The command that predicts new cases."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import TURNED, random_case, save_case

from isles_jax import predict
from isles_jax.data.layouts import load
from isles_jax.prediction import inference
from isles_jax.runtime.command import InputError

# Stored from the front to the back and from left to right.
LEFT_HANDED = TURNED @ np.diag([-1, -1, -1, 1])


def call(run, *arguments):
    predict.main([f"--workdir={run[0]}", *map(str, arguments)])


@pytest.mark.parametrize(
    ("name", "shape", "affine", "codes"),
    [("oblique", (45, 30, 7), TURNED, (1, 2)), ("left", (33, 31, 3), LEFT_HANDED, (4, 0))],
)
def test_a_new_case_of_another_shape_and_affine(untrained_run, forward, tmp_path, capsys, name, shape, affine, codes):
    """With one and with three folds, labels and probabilities, on the grid of the input."""
    case = random_case(shape, 3, affine)
    save_case(tmp_path / "in" / name, case, codes)
    assert (np.linalg.det(affine[:3, :3]) < 0) == (name == "left")
    for folds in ((1,), (0, 1, 2)):
        out = tmp_path / str(len(folds))
        call(untrained_run, f"--input={tmp_path / 'in'}", f"--output={out}", f"--folds={','.join(map(str, folds))}",
             "--probabilities")  # fmt: skip
        assert f"1 case; {len(folds)} of 3 folds of {untrained_run[0]}: " in capsys.readouterr().out
        assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
            ".lock", ".predicted", f"{name}.html", f"{name}.json", f"{name}.nii.gz",
            f"probabilities/{name}.nii.gz", "summary.csv"
        ]  # fmt: skip
        labels, maps = nib.load(out / f"{name}.nii.gz"), nib.load(out / "probabilities" / f"{name}.nii.gz")
        source = nib.load(tmp_path / "in" / name / "Tmax.nii.gz")
        expected = inference.predict_case(forward, [untrained_run[2][fold] for fold in folds], case, untrained_run[1])
        np.testing.assert_allclose(maps.get_fdata(), expected, atol=1e-5)
        assert (maps.get_data_dtype(), labels.get_data_dtype()) == (np.float32, np.uint8)
        np.testing.assert_array_equal(
            np.asarray(labels.dataobj), np.array([0, 5, 9])[np.asarray(maps.dataobj).argmax(axis=-1)]
        )
        for image in (labels, maps):
            assert image.shape[:3] == shape
            np.testing.assert_array_equal(image.affine, source.affine)
            assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == codes
            assert image.header.get_zooms()[:3] == source.header.get_zooms()


def test_the_command_takes_the_finished_folds_and_every_case(untrained_run, forward, tmp_path, capsys, phantom_root):
    call(untrained_run, f"--input={phantom_root}", f"--output={tmp_path / 'out'}")
    assert f"6 cases; 2 of 3 folds of {untrained_run[0]}: 0 (0 steps), 1 (0 steps); to" in capsys.readouterr().out
    dataset = load(phantom_root, penumbra=1, core=2)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted(
        [
            ".lock",
            ".predicted",
            "summary.csv",
            *(f"{case.name}.{ending}" for case in dataset.cases for ending in ("html", "json", "nii.gz")),
        ]
    )
    for case in dataset.cases:
        image = nib.load(tmp_path / "out" / f"{case.name}.nii.gz")
        assert image.shape == case.labels.shape
        np.testing.assert_array_equal(image.affine, case.affine)
        expected = inference.predict_case(forward, untrained_run[2][:2], case, untrained_run[1]).argmax(axis=-1)
        np.testing.assert_array_equal(np.asarray(image.dataobj), np.array([0, 5, 9])[expected])


def test_flags_override_the_settings_of_the_run(untrained_run, forward, tmp_path, capsys):
    case = random_case((32, 32, 4), 5)
    save_case(tmp_path / "x", case)
    base = [f"--input={tmp_path / 'x'}", f"--output={tmp_path / 'out'}", "--folds=0"]
    call(untrained_run, *base, "--flips", "--probabilities")
    assert "; with flips; to" in capsys.readouterr().out
    found = nib.load(tmp_path / "out" / "probabilities" / "x.nii.gz").get_fdata()
    np.testing.assert_allclose(
        found, inference.predict_case(forward, untrained_run[2][:1], case, untrained_run[1], mirror=(1,)), atol=1e-5
    )
    # What is there may have been corrected by hand.
    before = (tmp_path / "out" / "x.nii.gz").read_bytes()
    with pytest.raises(InputError, match=r"out/x\.nii\.gz exists and 3 more of these cases' files; choose another"):
        call(untrained_run, *base, "--min-volume-ml=1000")
    assert (tmp_path / "out" / "x.nii.gz").read_bytes() == before
    (tmp_path / "out" / "x.html").unlink()
    call(untrained_run, *base, "--no-flips", "--min-volume-ml=1000", "--overwrite", "--no-page")
    assert not (tmp_path / "out" / "x.html").exists()
    assert "; no lesion below 1000 ml; to" in capsys.readouterr().out
    assert not np.asarray(nib.load(tmp_path / "out" / "x.nii.gz").dataobj).any()


def test_bad_input_is_named_and_nothing_is_written(untrained_run, tmp_path, phantom_root):
    out = f"--output={tmp_path / 'out'}"
    good = [f"--input={phantom_root}", out]
    with pytest.raises(InputError, match="nowhere: does not exist; expected a run"):
        predict.main([f"--workdir={tmp_path / 'nowhere'}", *good])
    with pytest.raises(InputError, match="does not exist"):
        call(untrained_run, f"--input={tmp_path / 'nowhere'}", out)
    with pytest.raises(InputError, match="found no fold 3, expected one of 0, 1, 2"):
        call(untrained_run, *good, "--folds=0,3")
    with pytest.raises(InputError, match="--min-volume-ml: found -1, expected 0 or more"):
        call(untrained_run, *good, "--min-volume-ml=-1")
    with pytest.raises(InputError, match="--folds: found 'one', expected whole numbers"):
        call(untrained_run, *good, "--folds=one")
    (tmp_path / "begun" / "fold_0").mkdir(parents=True)
    (tmp_path / "begun" / "fold_0" / "checkpoints").symlink_to(untrained_run[0] / "fold_2" / "checkpoints")
    with pytest.raises(InputError, match="found no finished fold, expected one; --folds=0 uses"):
        predict.main([f"--workdir={tmp_path / 'begun'}", *good])
    save_case(tmp_path / "cases" / "good", random_case((32, 32, 4)))
    save_case(tmp_path / "cases" / "bad", random_case((32, 32, 4)))
    (tmp_path / "cases" / "bad" / "TTP.nii.gz").unlink()
    with pytest.raises(InputError, match=r"bad: no TTP\.nii"):
        call(untrained_run, f"--input={tmp_path / 'cases'}", out)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: cannot be written \(File exists\)"):
        call(untrained_run, f"--input={tmp_path / 'cases' / 'good'}", f"--output={tmp_path / 'file'}")


@pytest.mark.slow
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "isles_jax.predict", f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}"]
    (tmp_path / "in").mkdir()
    for more, words in ((["--input=/nowhere"], "/nowhere: does not exist"), (["--inptu=x"], "--input"),
                        ([f"--input={tmp_path / 'in'}"], "expected a run of isles_jax.main")):  # fmt: skip
        done = subprocess.run([*command, *more], cwd=Path(__file__).parents[1], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_help_and_mistakes_do_not_wait_for_jax():
    code = """
import sys
from isles_jax import export, predict
for module in (predict, export):
    try:
        module.main(["--help"])
    except SystemExit as end:
        assert end.code == 0
    try:
        module.main(["--workdir=/nowhere", "--input=docs", "--output=x.stablehlo"][:: 1 + (module is export)])
    except ValueError as error:
        assert "/nowhere" in str(error), error
assert not {"jax", "scipy.ndimage", "orbax"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for flag in ("--flips", "--min-volume-ml", "--probabilities", "--folds", "--overwrite", ".stablehlo"):
        assert flag in done.stdout
