import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from isles_jax import inference, networks, predict
from isles_jax.data.case import Case
from isles_jax.data.layouts import load
from isles_jax.networks import make_segmenter
from isles_jax.runtime.command import InputError

CHANNELS = ("Tmax", "TTP", "DWI")
TURN = np.array([[1.9, -0.6, 0.1, 5], [0.6, 1.9, -0.2, -70], [0, 0.2, 3.0, 9], [0, 0, 0, 1]])
# Stored from the front to the back and from left to right, so of the other hand, and turned.
LEFT_HANDED = TURN @ np.diag([-1, -1, -1, 1])


@pytest.fixture(scope="module")
def forward(untrained_run):
    return networks.make_forward(make_segmenter(untrained_run[1], 3))


def make_case(shape, seed=0, affine=TURN):
    rng = np.random.default_rng(seed)
    images = np.zeros((*shape, 3), np.float32)
    images[1:-1, 2:-2, 1:] = rng.gamma(2.0, 3.0, (shape[0] - 2, shape[1] - 4, shape[2] - 1, 3)) + 0.01
    return Case("x", images, None, affine, nib.Nifti1Header())


def write_case(folder, case, codes=(1, 2)):
    """The case's channels as a scanner's files would hold them."""
    folder.mkdir(parents=True)
    for number, channel in enumerate(CHANNELS):
        image = nib.Nifti1Image(case.images[..., number], case.affine)
        image.set_qform(case.affine, codes[0])
        image.set_sform(case.affine, codes[1])
        nib.save(image, folder / f"{channel}.nii.gz")


def call(run, *arguments):
    predict.main([f"--workdir={run[0]}", *map(str, arguments)])


# --- volumes ---------------------------------------------------------------------------------------------------------


def test_probabilities_are_probabilities_and_background_outside_the_brain(untrained_run, forward):
    folds = untrained_run[2][:2]
    case = make_case((30, 41, 5))
    probabilities = inference.predict_case(forward, folds, case)
    assert probabilities.shape == (30, 41, 5, 3)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    outside = (case.images == 0).all(axis=-1)
    assert np.all(probabilities[outside] == [1, 0, 0])
    assert np.ptp(probabilities[~outside][:, 1]) > 0
    one, other = (inference.predict_case(forward, [variables], case) for variables in folds)
    np.testing.assert_allclose(probabilities, (one + other) / 2, atol=1e-6)
    assert np.abs(one - other).max() > 1e-3


def test_flips_average_with_the_mirror_image(untrained_run, forward):
    # Sides that need no padding, or the same on both sides, have exactly the same mirror image.
    case = make_case((30, 64, 5))
    mirrored = Case("x", case.images[::-1], None, case.affine, case.header)
    plain, mirror = (inference.predict_case(forward, untrained_run[2][:2], one) for one in (case, mirrored))
    flipped = inference.predict_case(forward, untrained_run[2][:2], case, flips=True)
    np.testing.assert_allclose(flipped, (plain + mirror[::-1]) / 2, atol=1e-6)
    assert np.abs(flipped - plain).max() > 1e-3
    np.testing.assert_allclose(
        inference.predict_case(forward, untrained_run[2][:2], mirrored, flips=True), flipped[::-1], atol=1e-6
    )


def test_slices_do_not_see_each_other_and_one_compilation_serves_a_padded_size(untrained_run):
    _, config, folds = untrained_run
    forward = networks.make_forward.__wrapped__(make_segmenter(config, 3))
    case = make_case((32, 40, 11))
    whole = inference.predict_case(forward, folds[:1], case)
    for shape in ((33, 64, 3), (64, 50, 9)):
        inference.predict_case(forward, folds[:1], make_case(shape))
    assert forward._cache_size() == 2, "32 x 64 and 64 x 64"
    inference.predict_case(forward, folds, case, flips=True)
    assert forward._cache_size() == 2, "other folds and flips"
    assert whole.shape == (32, 40, 11, 3)
    stack = np.random.default_rng(0).normal(size=(8, 32, 64, 3)).astype(np.float32)
    rolled = forward(folds[0], np.roll(stack, 3, axis=0))
    np.testing.assert_allclose(np.roll(rolled, -3, axis=0), forward(folds[0], stack), atol=1e-6)


def test_the_same_network_is_compiled_once_for_all(untrained_run, forward):
    assert networks.make_forward(make_segmenter(untrained_run[1], 3)) is forward
    assert networks.make_forward(make_segmenter(untrained_run[1], 2)) is not forward


@pytest.mark.parametrize("seed", range(4))
def test_small_lesions_are_removed_whole(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (12, 11, 10)).astype(np.uint8) * (rng.random((12, 11, 10)) < 0.12)
    spacing = (1.5, 2.0, 5.0)
    lesions, count = ndimage.label(labels > 0, np.ones((3, 3, 3)))
    sizes = [int((lesions == number).sum()) for number in range(1, count + 1)]
    bound = max(sizes) * 0.015
    found = inference.remove_small(labels, bound, spacing)
    for number, size in enumerate(sizes, start=1):
        inside = lesions == number
        np.testing.assert_array_equal(found[inside], labels[inside] if size * 0.015 >= bound - 1e-9 else 0)
    assert 0 < (found > 0).sum() < (labels > 0).sum()
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(inference.remove_small(labels, 0, spacing), labels)
    assert not inference.remove_small(labels, 1e3, spacing).any()


def test_a_small_core_stays_with_its_penumbra():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[3, 3, 3] = 2
    labels[8, 8, 8] = 2
    found = inference.remove_small(labels, 0.01, (1, 1, 1))
    assert (found[3, 3, 3], found[8, 8, 8]) == (2, 0)
    assert (found == 1).sum() == 124


def test_a_run_predicts_its_own_folds_as_it_is_told(untrained_run, tmp_path, small_config, phantom_root):
    dataset = load(phantom_root, penumbra=1, core=2)
    names = [case.name for case in dataset.cases[:2]]
    found = []
    for keys in ({}, {"predict.flips": True}, {"predict.min_volume_ml": 1e5}):
        config = small_config(adversarial=False, **keys)
        folder = tmp_path / str(len(found))
        folder.mkdir()
        (folder / "checkpoints").symlink_to(untrained_run[0] / "fold_0" / "checkpoints")
        inference.predict_fold(config, dataset, names, folder)
        assert sorted(path.name for path in (folder / "predictions").iterdir()) == [f"{n}.nii.gz" for n in names]
        found.append([np.asarray(nib.load(folder / "predictions" / f"{n}.nii.gz").dataobj) for n in names])
    plain, flipped, large = np.array(found)
    assert plain.any()
    assert (plain != flipped).any()
    assert not large.any()


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "affine", "codes"),
    [("oblique", (45, 30, 7), TURN, (1, 2)), ("left", (33, 31, 3), LEFT_HANDED, (4, 0))],
)
def test_a_new_case_of_another_shape_and_affine(untrained_run, forward, tmp_path, capsys, name, shape, affine, codes):
    """With one and with three folds, labels and probabilities, on the grid of the input."""
    case = make_case(shape, 3, affine)
    write_case(tmp_path / "in" / name, case, codes)
    assert (np.linalg.det(affine[:3, :3]) < 0) == (name == "left")
    for folds in ((1,), (0, 1, 2)):
        out = tmp_path / str(len(folds))
        call(untrained_run, f"--input={tmp_path / 'in'}", f"--output={out}", f"--folds={','.join(map(str, folds))}",
             "--probabilities")  # fmt: skip
        assert f"1 case; {len(folds)} of 3 folds of {untrained_run[0]}: " in capsys.readouterr().out
        assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
            f"{name}.nii.gz", f"probabilities/{name}.nii.gz"
        ]  # fmt: skip
        labels, maps = nib.load(out / f"{name}.nii.gz"), nib.load(out / "probabilities" / f"{name}.nii.gz")
        source = nib.load(tmp_path / "in" / name / "Tmax.nii.gz")
        expected = inference.predict_case(forward, [untrained_run[2][fold] for fold in folds], case)
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
    assert written == [f"{case.name}.nii.gz" for case in dataset.cases]
    for case in dataset.cases:
        image = nib.load(tmp_path / "out" / f"{case.name}.nii.gz")
        assert image.shape == case.labels.shape
        np.testing.assert_array_equal(image.affine, case.affine)
        expected = inference.predict_case(forward, untrained_run[2][:2], case).argmax(axis=-1)
        np.testing.assert_array_equal(np.asarray(image.dataobj), np.array([0, 5, 9])[expected])


def test_flags_overrule_the_run(untrained_run, forward, tmp_path, capsys):
    case = make_case((32, 32, 4), 5)
    write_case(tmp_path / "x", case)
    base = [f"--input={tmp_path / 'x'}", f"--output={tmp_path / 'out'}", "--folds=0"]
    call(untrained_run, *base, "--flips", "--probabilities")
    assert "; with flips; to" in capsys.readouterr().out
    found = nib.load(tmp_path / "out" / "probabilities" / "x.nii.gz").get_fdata()
    np.testing.assert_allclose(
        found, inference.predict_case(forward, untrained_run[2][:1], case, flips=True), atol=1e-5
    )
    # What is there may have been corrected by hand.
    before = (tmp_path / "out" / "x.nii.gz").read_bytes()
    with pytest.raises(InputError, match=r"out/x\.nii\.gz exists; choose another --output"):
        call(untrained_run, *base, "--min-volume-ml=1000")
    assert (tmp_path / "out" / "x.nii.gz").read_bytes() == before
    call(untrained_run, *base, "--no-flips", "--min-volume-ml=1000", "--overwrite")
    assert "; no lesion below 1000 ml; to" in capsys.readouterr().out
    assert not np.asarray(nib.load(tmp_path / "out" / "x.nii.gz").dataobj).any()


def test_what_is_wrong_is_named_and_nothing_is_written(untrained_run, tmp_path, phantom_root):
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
    with pytest.raises(InputError, match="--folds: invalid"):
        call(untrained_run, *good, "--folds=one")
    (tmp_path / "begun" / "fold_0").mkdir(parents=True)
    (tmp_path / "begun" / "fold_0" / "checkpoints").symlink_to(untrained_run[0] / "fold_2" / "checkpoints")
    with pytest.raises(InputError, match="found no finished fold, expected one; --folds=0 uses"):
        predict.main([f"--workdir={tmp_path / 'begun'}", *good])
    write_case(tmp_path / "cases" / "good", make_case((32, 32, 4)))
    write_case(tmp_path / "cases" / "bad", make_case((32, 32, 4)))
    (tmp_path / "cases" / "bad" / "TTP.nii.gz").unlink()
    with pytest.raises(InputError, match=r"bad: no TTP\.nii"):
        call(untrained_run, f"--input={tmp_path / 'cases'}", out)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written"):
        call(untrained_run, f"--input={tmp_path / 'cases' / 'good'}", f"--output={tmp_path / 'file'}")


def test_a_case_without_brain_is_refused(untrained_run, forward):
    empty = Case("empty", np.zeros((32, 32, 2, 3), np.float32), None, np.eye(4), nib.Nifti1Header())
    with pytest.raises(InputError, match="empty: found no voxel of brain"):
        inference.predict_case(forward, untrained_run[2], empty)


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "isles_jax.predict", f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}"]
    for more, words in ((["--input=/nowhere"], "/nowhere: does not exist"), (["--inptu=x"], "--input"),
                        ([f"--input={tmp_path}"], "expected a run of isles_jax.main")):  # fmt: skip
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
        module.main(["--workdir=/nowhere", "--input=.", "--output=x.stablehlo"][:: 1 + (module is export)])
    except ValueError as error:
        assert "/nowhere" in str(error), error
assert not {"jax", "scipy.ndimage", "orbax"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for flag in ("--flips", "--min-volume-ml", "--probabilities", "--folds", "--overwrite", ".stablehlo"):
        assert flag in done.stdout
