"""The command that checks a data set, and the tables that it writes."""

import csv
import shlex
import subprocess
import sys

import numpy as np
import pytest
from helpers import OBLIQUE, ROOT, files_in, in_terminal, nnunet_folder, refused, save_volume, spes_folder, volumes
from isles_folder import LAYOUTS

from isles_jax import check, convert
from isles_jax.data import layouts
from isles_jax.runtime import overrides
from isles_jax.runtime.command import InputError

NAMES = ("Müller, A", "p 02", "p3", 'the "fourth"')
IMAGES = ("--images", "DWI={case}/dwi.nii.gz", "perf={case}/tmax.nii")
LABEL = ("--label", "{case}/mask*.nii.gz")


def own_folder(root, names=NAMES, classes=1):
    """A folder of a user: a folder for each case, with names of his own."""
    for number, name in enumerate(names):
        there = volumes(seed=number)
        save_volume(root / name / "dwi.nii.gz", there["DWI"])
        save_volume(root / name / "tmax.nii", there["Tmax"])
        save_volume(root / name / f"mask_{number}.nii.gz", np.minimum(there["OT"], classes))
    return root


def run(capsys, *arguments):
    """The lines that the command prints."""
    check.main([str(argument) for argument in arguments])
    return capsys.readouterr().out.splitlines()


def trained_on(command):
    """The data set that a printed command trains on."""
    assert command.startswith("isles-jax train ")
    config = overrides.read("configs/proposed.py", shlex.split(command)[2:])
    return layouts.load(config.data.root, tuple(config.data.channels), how=layouts.read_options(config, None))


def test_patterns_become_a_table_and_its_survey(tmp_path, capsys):
    root = own_folder(tmp_path / "my data")
    output = root / "cases.csv"
    lines = run(capsys, root, *IMAGES, *LABEL, "--output", output)
    assert lines[:2] == [
        f"{output}: written, 4 cases",
        f"{output}: table, 4 cases, 4 with labels; channels DWI, perf; classes lesion",
    ]
    assert "labels       lesion = 1" in lines
    assert lines[-2] == "To train on it:"
    dataset = trained_on(lines[-1])
    assert {case.name for case in dataset.cases} == set(NAMES)
    for case in dataset.cases:
        there = volumes(seed=NAMES.index(case.name))
        np.testing.assert_array_equal(case.images[..., 0], there["DWI"])
        np.testing.assert_array_equal(case.labels, there["OT"] > 0)


def test_classes_stand_in_the_table(tmp_path, capsys):
    root = own_folder(tmp_path / "data", classes=2)
    lines = run(capsys, root, *IMAGES, *LABEL, "--classes", "core=2, penumbra=1", "--output", root / "cases.csv")
    assert "labels       penumbra = 1, core = 2" in lines
    assert (root / "cases.csv").read_text().startswith("# classes: penumbra=1, core=2\n")


@pytest.mark.parametrize("text", ["core", "core=x", "core=0", "core=256", "a=1,b=1", "a=1,a=2", "=1", "a=1,"])
def test_classes_that_are_none_are_refused(text, tmp_path):
    root = own_folder(tmp_path / "data")
    flags = [str(root), *IMAGES, *LABEL, "--classes", text, "--output", str(root / "cases.csv")]
    refused(lambda: check.main(flags), tmp_path, "--classes=.*: expected names with different integers from 1 to 255")


def test_a_table_outside_of_the_folder_leads_to_the_files(tmp_path, capsys, monkeypatch):
    root = own_folder(tmp_path / "data")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    for output in (tmp_path / "beside.csv", tmp_path / "new" / "folder" / "x.csv", tmp_path / "link" / "y.csv"):
        run(capsys, root, *IMAGES, *LABEL, "--output", output)
        assert [case.files[0].resolve().parent.parent for case in layouts.load(output).cases] == [root.resolve()] * 4
    monkeypatch.chdir(root)
    lines = run(capsys, ".", *IMAGES, *LABEL, "--output", "cases.csv")
    assert lines[-1] == "isles-jax train --config.data.root=cases.csv"
    assert next(csv.DictReader((root / "cases.csv").read_text().splitlines()))["DWI"] == "Müller, A/dwi.nii.gz"


def test_a_table_that_would_be_the_same_stays(tmp_path, capsys):
    root = own_folder(tmp_path / "data")
    flags = (root, *IMAGES, *LABEL, "--output", root / "cases.csv")
    run(capsys, *flags)
    before = (root / "cases.csv").stat()
    assert run(capsys, *flags)[0] == f"{root / 'cases.csv'}: holds this table already, 4 cases"
    assert (root / "cases.csv").stat().st_mtime_ns == before.st_mtime_ns


def test_another_table_is_replaced_only_on_request(tmp_path, capsys):
    root = own_folder(tmp_path / "data")
    output = root / "cases.csv"
    run(capsys, root, *IMAGES, *LABEL, "--output", output)
    fewer = [str(root), "--images", "DWI={case}/dwi.nii.gz", "--output", str(output), *LABEL]
    refused(
        lambda: check.main(fewer), tmp_path, "holds another table than these patterns give; --overwrite replaces it"
    )
    assert run(capsys, *fewer, "--overwrite")[0] == f"{output}: written, 4 cases"
    assert layouts.load(root).channels == ("DWI",)


FOREIGN = {
    "scores of a run": "case,fold,class,dice\na,0,core,0.5\n",
    "a table with a column of the user": "case,age,DWI,label\np3,71,p3/dwi.nii.gz,p3/mask_2.nii.gz\n",
    "a table with a comment": "# mine\ncase,DWI,label\np3,p3/dwi.nii.gz,p3/mask_2.nii.gz\n",
    "patients and sites": "case,patient\np3,p\n",
    "nothing": "",
    "no text": "\udcff\udcfe",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_this_command_has_not_written_is_never_replaced(kind, tmp_path):
    root = own_folder(tmp_path / "data")
    output = tmp_path / "cases.csv"
    output.write_text(FOREIGN[kind], errors="surrogateescape")
    flags = [str(root), *IMAGES, *LABEL, "--output", str(output), "--overwrite"]
    refused(lambda: check.main(flags), tmp_path, "found a file that is not a table of cases of this program")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((*IMAGES, *LABEL), "--images: found no --output beside it"),
        (LABEL, "--label: found no --images beside it"),
        (("--classes", "a=1"), "--classes: found no --images"),
        (("--output", "x.csv"), "--output: found no --images"),
        (("--overwrite",), "--overwrite: found no --images"),
        ((*IMAGES, "--output", "table.txt"), "table.txt: expected a name for the table that ends in .csv"),
        (("--images", "DWI={case}/flair.nii", "--output", "x.csv"), "matches no NIfTI file"),
        (("--images", "DWI", "--output", "x.csv"), "expected CHANNEL=PATTERN"),
    ],
)
def test_mistakes_in_the_flags_are_one_line(flags, words, tmp_path, monkeypatch):
    own_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    refused(lambda: check.main(["data", *flags]), tmp_path, words)


@pytest.mark.parametrize("place", ["gs://bucket/data", "data/cases.csv", "nowhere"])
def test_patterns_need_a_folder_on_this_machine(place, tmp_path, monkeypatch):
    own_folder(tmp_path / "data")
    (tmp_path / "data" / "cases.csv").write_text("case,DWI\np3,p3/dwi.nii.gz\n")
    monkeypatch.chdir(tmp_path)
    flags = [place, *IMAGES, "--output", "x.csv"]
    refused(
        lambda: check.main(flags), tmp_path, f"^{place}: found no folder on this machine, expected one for --images$"
    )


def test_a_terminal_breaks_lines_between_words_and_leaves_the_command_whole(tmp_path, capsys):
    root = own_folder(tmp_path / "data")
    table = root / "cases.csv"
    run(capsys, root, *IMAGES, *LABEL, "--output", table)
    whole = run(capsys, table)
    lines = in_terminal(50, f"from isles_jax import check\ncheck.main([{str(table)!r}])").splitlines()
    assert " ".join(lines).split() == " ".join(whole).split()
    assert lines[-1] == whole[-1]
    assert len(lines[-1]) > 50
    # A path alone may be longer than a line.
    assert all(len(line) <= 50 or len(line.split()) == 1 for line in lines[:-1])


# --- without patterns -------------------------------------------------------------------------------------------------


def test_a_folder_of_no_layout_ends_with_the_command_for_its_table(tmp_path):
    root = own_folder(tmp_path / "my data", names=("p01", "p02", "p03"))
    done = subprocess.run(
        [sys.executable, "-m", "isles_jax.check", str(root)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {root}: fits no known layout; expected one, or the table that the command above writes\n"
    )
    lines = done.stdout.splitlines()
    assert lines[0] == f"The files of {root} seem to be these, for each case:"
    assert [line.split() for line in lines[1:4]] == [
        ["DWI", "{case}/dwi.nii.gz"], ["Tmax", "{case}/tmax.nii"], ["label", "{case}/mask_*.nii.gz"]
    ]  # fmt: skip
    assert lines[-2] == "If so, this command writes a table of them:"
    program, name, *flags = shlex.split(lines[-1])
    assert (program, name) == ("isles-jax", "check")
    check.main(flags)
    dataset = layouts.load(root)
    assert [case.name for case in dataset.cases] == ["p01", "p02", "p03"]
    assert all(case.labels.any() for case in dataset.cases)


def test_a_folder_with_one_of_the_channels_of_a_challenge_is_not_taken_for_the_challenge(tmp_path, capsys):
    root = own_folder(tmp_path / "data", names=("p01", "p02", "p03"))
    with pytest.raises(InputError, match="fits no known layout"):
        check.main([str(root), "--channels=DWI"])
    assert f"The files of {root} seem to be these" in capsys.readouterr().out


def test_labels_of_other_names_than_the_layout_has_are_proposed(tmp_path, capsys):
    root = spes_folder(tmp_path / "data", cases=("a", "b", "c"))
    for path in sorted(root.rglob("OT.nii")):
        path.rename(path.with_name("lesion_mask.nii"))
    with pytest.raises(InputError, match="cannot be trained: found labels of 0 patients"):
        check.main([str(root)])
    lines = capsys.readouterr().out.splitlines()
    assert "3 cases, 0 with labels" in lines[0]
    flags = shlex.split(lines[-1])[2:]
    assert "{case}/lesion_mask.nii" in flags
    for path in root.rglob("lesion_mask.nii"):
        path.unlink()
    with pytest.raises(InputError, match="cannot be trained: found labels of 0 patients"):
        check.main([str(root)])
    assert "isles-jax check" not in capsys.readouterr().out


def test_a_folder_in_which_nothing_repeats_is_refused_as_in_training(tmp_path, capsys):
    save_volume(tmp_path / "data" / "x.nii", volumes()["DWI"])
    (tmp_path / "data" / "empty").mkdir()
    with pytest.raises(InputError) as training:
        layouts.load(tmp_path / "data")
    with pytest.raises(InputError) as checked:
        check.main([str(tmp_path / "data")])
    assert str(checked.value) == str(training.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_is_known(kind, tmp_path):
    LAYOUTS[kind][2](tmp_path)
    assert layouts.is_known(tmp_path)


def test_a_flat_folder_of_another_channel_is_known_by_it(tmp_path, capsys):
    for number, name in enumerate(("a", "b", "c")):
        there = volumes(seed=number)
        save_volume(tmp_path / "data" / f"{name}_1_swi.nii.gz", there["DWI"])
        save_volume(tmp_path / "data" / f"{name}_1_msk.nii.gz", (there["OT"] > 0).astype(np.uint8))
    lines = run(capsys, tmp_path / "data", "--channels=SWI")
    assert "ISLES-2022, 3 cases, 3 with labels; channels SWI" in lines[0]
    assert trained_on(lines[-1]).channels == ("SWI",)


def test_nothing_is_written_without_patterns(tmp_path, capsys, monkeypatch):
    spes_folder(tmp_path / "data", cases=("a", "b", "c"))
    monkeypatch.chdir(tmp_path)
    before = files_in(tmp_path).keys()
    lines = run(capsys, "data")
    assert lines[0].startswith("data: ISLES-2015 SPES, 3 cases, 3 with labels")
    assert lines[-1] == "isles-jax train --config.data.root=data"
    assert files_in(tmp_path).keys() == before


def test_channels_and_integers_reach_the_command(tmp_path, capsys):
    root = spes_folder(tmp_path / "data", cases=("a", "b", "c"))
    for name in ("a", "b", "c"):
        path = root / name / "OT.nii"
        labels = volumes(seed="abc".index(name))["OT"]
        path.unlink()
        save_volume(path, np.array([0, 4, 1], np.uint8)[labels])
    lines = run(capsys, root, "--penumbra=4", "--core=1", "--channels=DWI, Tmax")
    expected = [
        "--config.data.labels.core=1",
        "--config.data.labels.penumbra=4",
        '--config.data.channels=("DWI","Tmax")',
    ]
    assert sorted(shlex.split(lines[-1])[3:]) == sorted(expected)


def test_resampling_is_part_of_the_command(tmp_path, capsys):
    root = own_folder(tmp_path / "data")
    image = volumes()["Tmax"][::2]
    coarse = np.diag([2.0, 1, 1, 1])
    save_volume(root / "p3" / "tmax.nii", image, OBLIQUE @ coarse)
    output = root / "cases.csv"
    with pytest.raises(InputError, match=r"p3/tmax.nii: shape .*--resample"):
        check.main([str(root), *IMAGES, *LABEL, "--output", str(output)])
    lines = run(capsys, output, "--resample")
    assert shlex.split(lines[-1])[2:] == [f"--config.data.root={output}", "--config.data.resample=True"]
    assert len(trained_on(lines[-1]).cases) == 4


def test_an_empty_cell_is_a_channel_of_zeros_on_request(tmp_path, capsys):
    root = own_folder(tmp_path / "data")
    (root / "p3" / "tmax.nii").unlink()
    output = root / "cases.csv"
    with pytest.raises(InputError, match=r"p3 has no perf"):
        check.main([str(root), *IMAGES, *LABEL, "--output", str(output)])
    capsys.readouterr()
    lines = run(capsys, output, "--missing=zero")
    assert shlex.split(lines[-1])[2:] == [f"--config.data.root={output}", "--config.data.missing=zero"]
    assert {case.name: case.absent for case in trained_on(lines[-1]).cases if case.absent} == {"p3": ("perf",)}
    # The channel that is not there has no percentiles, and is not odd.
    there = [np.percentile(v["Tmax"][v["DWI"] > 0], 50) for v in map(volumes, [(9, 8, 5)] * 4, (0, 1, 3))]
    [row] = [line for line in lines if line.startswith("perf, 50th percentile")]
    assert [float(word) for word in row.split()[3:]] == pytest.approx(
        [min(there), np.median(there), max(there)], rel=1e-3
    )
    assert not [line for line in lines if line.startswith("odd") and "perf" in line]


def test_bad_cases_are_the_lines_of_training(tmp_path):
    root = spes_folder(tmp_path / "data", cases=("a", "b", "c"), DWI=None)
    with pytest.raises(InputError) as training:
        layouts.load(root)
    done = subprocess.run(
        [sys.executable, "-m", "isles_jax.check", str(root)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {training.value}\n")


def test_what_cannot_be_trained_is_described_and_ends_with_the_reason(tmp_path):
    root = spes_folder(tmp_path / "data", cases=("a", "b", "c"))
    for path in root.rglob("OT.nii"):
        path.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "isles_jax.check", str(root)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "3 cases, 0 with labels" in done.stdout
    assert "To train" not in done.stdout
    assert done.stderr == (
        f"error: {root}: cannot be trained: found labels of 0 patients, expected 2 or more, of whom one is held out\n"
    )


def test_a_converted_data_set_has_the_same_ranges(tmp_path, capsys, phantom_root):
    convert.main([f"--input={phantom_root}", f"--output={tmp_path / 'raw'}"])
    capsys.readouterr()
    first, second = run(capsys, phantom_root), run(capsys, tmp_path / "raw")
    assert "nnU-Net, 6 cases" in second[0]
    assert first[1:-1] == second[1:-1]


def test_cases_without_labels_are_described_too(tmp_path, capsys):
    lines = run(capsys, nnunet_folder(tmp_path / "set"))
    assert "3 cases, 2 with labels" in lines[0]
    assert "labels       penumbra = 1, core = 3" in lines
    assert lines[-1].endswith("--config.folds=2")
