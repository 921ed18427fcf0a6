"""A table of cases as a data set: any names and places of files, in training, prediction, evaluation and conversion."""

import csv
import json
import os

import nibabel as nib
import numpy as np
import pytest
from helpers import CHANNELS, checksums, files_in, refused, save_volume, spes_folder, tiny_config, volumes

from isles_jax import convert, evaluate, predict
from isles_jax.cross_validation import cross_validate
from isles_jax.data import layouts, profile, table
from isles_jax.data.nifti import ReadOptions
from isles_jax.runtime.command import InputError
from isles_jax.scoring import scores

CASES = ("a", "b", "c")
CLASSES = "# classes: penumbra=1, core=2"


def write_table(path, rows, first=CLASSES, newline="\n", **options):
    """Writes rows of cells, the header first, after the line with the classes; returns the path."""
    lines = [first] if first else []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        file.write("".join(line + newline for line in lines))
        csv.writer(file, lineterminator=newline, **options).writerows(rows)
    return path


def rows_of(root, start="", more=()):
    """The header and the rows of a SPES folder; `more` are further (column, cell) pairs."""
    header = ["case", *CHANNELS, "label", *(name for name, _ in more)]
    names = [*CHANNELS, "OT"]
    cells = [[case, *(f"{start}{case}/{n}.nii" for n in names), *(c for _, c in more)] for case in CASES]
    return [header, *cells] if root else cells


def phantom_rows(root, columns=("case", *CHANNELS, "label")):
    """The header and the rows of a phantom with absolute paths."""
    rows = [columns]
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        found = {path.stem.split(".")[-2].removeprefix("MR_"): str(path) for path in folder.rglob("*.nii")}
        cells = found | {"case": folder.name, "label": found["OT"], "note": "x"}
        rows.append([cells[column] for column in columns])
    return rows


@pytest.fixture
def spes(tmp_path):
    return spes_folder(tmp_path / "spes", CASES)


def assert_same(dataset, other):
    assert (dataset.channels, dataset.classes, dataset.label_values) == (
        other.channels,
        other.classes,
        other.label_values,
    )
    for case, expected in zip(dataset.cases, other.cases, strict=True):
        assert case.name == expected.name
        np.testing.assert_array_equal(case.images, expected.images)
        np.testing.assert_array_equal(case.labels, expected.labels)
        np.testing.assert_array_equal(case.affine, expected.affine)


# --- what it reads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "BOM", "CRLF", "quoted", "spreadsheet", "absolute", "beside", "folder"])
def test_a_table_gives_the_cases_of_the_folder(spes, tmp_path, monkeypatch, form):
    path, start, options, first = spes / "mine.csv", "", {}, CLASSES
    if form == "BOM":
        options = {"encoding": "utf-8-sig"}
    elif form == "CRLF":
        options = {"newline": "\r\n"}
    elif form == "quoted":
        options = {"quoting": csv.QUOTE_ALL}
    elif form == "spreadsheet":
        first = f'"{CLASSES}",,,,'
    elif form == "absolute":
        path, start = tmp_path / "elsewhere" / "x.csv", f"{spes}/"
    elif form == "beside":
        path, start = tmp_path / "tables" / "x.CSV", "../spes/"
    elif form == "folder":
        path = spes / "cases.csv"
    write_table(path, rows_of(spes, start), first, **options)
    # A relative path is relative to the table.
    monkeypatch.chdir(tmp_path)
    given = spes if form == "folder" else os.path.relpath(path)
    dataset = layouts.load(given)
    (spes / "cases.csv").unlink(missing_ok=True)
    assert_same(dataset, layouts.load(spes))
    assert dataset.notes == ()
    assert dataset.headline.startswith(f"{os.path.relpath(path) if form != 'folder' else path}: table, 3 cases, 3 with")


def test_names_with_spaces_commas_quotes_and_umlauts(tmp_path):
    rows = [["case", "DWI", "label"]]
    for number, name in enumerate(["Müller, A", 'the "second"', "dritter Fall"]):
        there = volumes(seed=number)
        save_volume(tmp_path / name / "the scan.nii.gz", there["DWI"])
        save_volume(tmp_path / name / "Läsion.NII.GZ", (there["OT"] > 0).astype(np.uint8))
        rows.append([name, f"{name}/the scan.nii.gz", f"./{name}/Läsion.NII.GZ"])
    dataset = layouts.load(write_table(tmp_path / "cases.csv", rows, first=""))
    assert [case.name for case in dataset.cases] == sorted(row[0] for row in rows[1:])
    assert dataset.classes == ("lesion",)


def test_columns_that_are_no_channels_are_ignored_with_a_note(spes):
    more = [("age", "71"), ("patient", "p1"), ("site", "bern"), ("mRS", "")]
    dataset = layouts.load(write_table(spes / "mine.csv", rows_of(spes, more=more)), ("DWI", "Tmax"))
    assert dataset.channels == ("DWI", "Tmax")
    assert dataset.notes == ("mine.csv: columns that are not read: age, mRS, TTP",)
    assert {(case.patient, case.site) for case in dataset.cases} == {("p1", "bern")}
    assert "3 cases of 1 patients" in dataset.headline


@pytest.mark.parametrize("value", [1, 7, 255])
def test_binary_labels_need_no_classes(tmp_path, value):
    rows = [["case", "dwi", "label"]]
    for number, case in enumerate(CASES):
        there = volumes(seed=number)
        save_volume(tmp_path / f"{case}.nii", there["DWI"])
        save_volume(tmp_path / f"{case}_m.nii", ((there["OT"] > 0) * value * (case != "b")).astype(np.uint8))
        rows.append([case, f"{case}.nii", f"{case}_m.nii" if case != "c" else ""])
    dataset = layouts.load(write_table(tmp_path / "t.csv", rows, first=""))
    assert (dataset.channels, dataset.classes, dataset.label_values) == (("DWI",), ("lesion",), (value,))
    first, second, third = (case.labels for case in dataset.cases)
    np.testing.assert_array_equal(first, volumes(seed=0)["OT"] > 0)
    assert not second.any()
    assert third is None


def test_a_table_of_a_phantoms_files_is_called_a_phantom(phantom_root, tmp_path):
    assert layouts.load(write_table(tmp_path / "t.csv", phantom_rows(phantom_root))).phantom


def test_two_files_with_one_name_have_two_checksums(tmp_path):
    there = volumes()
    for word in ("DWI", "TTP"):
        save_volume(tmp_path / word / "image.nii.gz", there[word])
    rows = [["case", "DWI", "TTP"], ["a", "DWI/image.nii.gz", "TTP/image.nii.gz"]]
    dataset = layouts.load(write_table(tmp_path / "t.csv", rows))
    sums = profile.describe(dataset)["cases"]["a"]["sha256"]
    assert list(sums) == ["DWI/image.nii.gz", "TTP/image.nii.gz"]
    assert len(set(sums.values())) == 2


@pytest.mark.parametrize("first", ["#classes: core=2,penumbra=1", "#  Classes : penumbra = 1 , core = 2"])
def test_the_line_of_the_classes_is_read_as_people_write_it(spes, first):
    dataset = layouts.load(write_table(spes / "mine.csv", rows_of(spes), first))
    assert (dataset.classes, dataset.label_values) == (("penumbra", "core"), (1, 2))


# --- what it refuses -------------------------------------------------------------------------------------------------


def change(number, column, cell):
    """A function that puts a cell into a row, counted from the first row of a case; `column` is its name."""

    def act(rows, root):
        rows[number + 1][rows[0].index(column)] = cell

    return act


def rename(old, new):
    def act(rows, root):
        rows[0][rows[0].index(old)] = new

    return act


def copy_labels(rows, root):
    """A further image, which is that of a mask in the first case."""
    rows[0].append("T2")
    for row in rows[1:]:
        volume = nib.load(root / row[0] / "TTP.nii")
        values = volume.get_fdata()
        copy = nib.Nifti1Image((values > 20) * 1.0 if row[0] == "a" else values, volume.affine, volume.header)
        nib.save(copy, root / row[0] / "copy.nii")
        row.append(f"{row[0]}/copy.nii")


BAD = {
    "a case twice": (change(1, "case", "a"), "found the case 'a' twice"),
    "a missing file": (change(1, "DWI", "b/none.nii"), r"line 4: the DWI of b, .*/b/none.nii, is no file"),
    "a missing label": (change(2, "label", "c/none.nii"), r"line 5: the label of c, .*none.nii, is no file"),
    "a folder": (lambda rows, root: ((root / "x.nii").mkdir(), change(0, "TTP", "x.nii")(rows, root)), "is no file"),
    "one path in two rows": (
        change(1, "DWI", "a/DWI.nii"),
        r"the DWI of a \(line 3\) and the DWI of b \(line 4\) are both .*a/DWI.nii; expected each file once",
    ),
    "one path in another spelling": (change(1, "TTP", "./b/../a/TTP.nii"), "expected each file once"),
    "one path, once from the root": (
        lambda rows, root: change(1, "TTP", f"{root}/x/../a/TTP.nii")(rows, root),
        "expected each file once",
    ),
    "the label as a channel": (change(0, "DWI", "a/OT.nii"), r"the DWI of a \(line 3\) and the label of a \(line 3\)"),
    "labels in place of an image": (copy_labels, "line 3: the T2 of a holds only 0 and 1; expected an image"),
    "a channel called like a class": (rename("TTP", "core"), "'core' is a channel and a class; expected different"),
    "a channel called mask": (rename("label", "mask"), "has the column 'mask'; expected labels in a column called"),
    "a channel in two spellings": (rename("TTP", "dwi"), "has the columns dwi and DWI; expected each channel once"),
    "a column twice": (rename("TTP", "DWI"), "has the column 'DWI' twice"),
    "a column without a name": (rename("TTP", ""), "without a name"),
    "no column case": (rename("case", "subject"), "has the columns subject, .*; expected one that is called 'case'"),
    "another format": (change(0, "DWI", "a/DWI.dcm"), "line 3: the DWI of a is 'a/DWI.dcm', .*dcm2niix.*; expected"),
    "no path": (change(0, "label", "yes"), "line 3: the label of a is 'yes'; expected a path that ends in .nii or"),
    "an empty cell": (change(2, "DWI", ""), "line 5: c has no DWI; expected a path"),
    "a case without a name": (change(2, "case", ""), "line 5: the case is called ''; expected a name"),
    "a case with a slash": (change(2, "case", "../c"), "line 5: the case is called '../c'; expected a name"),
    "a cell too many": (lambda rows, root: rows[1].append("x"), "line 3: found 6 cells; expected 5, as in the header"),
    "a cell too few": (lambda rows, root: rows[1].pop(), "line 3: found 4 cells; expected 5, as in the header"),
    "no row": (lambda rows, root: rows.__delitem__(slice(1, None)), "has a header and no row"),
    "nothing": (lambda rows, root: rows.clear(), "is empty; expected a header with the column 'case'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_tables_are_refused_in_one_line(spes, kind):
    act, words = BAD[kind]
    rows = rows_of(spes)
    act(rows, spes)
    path = write_table(spes / "mine.csv", rows)
    refused(lambda: layouts.load(path), spes, words)


TEXTS = {
    "semicolons": ("case;DWI\na;b.nii\n", "has the columns case;DWI; expected .*separated by ';', expected commas"),
    "tabs": ("case\tDWI\na\tb.nii\n", "separated by '.t', expected commas"),
    "an open quote": ('case,DWI\n"a,b.nii\n', "line 2: not readable as CSV"),
    "a damaged quote": ('case,DWI\n"a"x,b.nii\n', "line 2: not readable as CSV"),
    "no image": ("case,age\na,3\n", "has no column of .nii or .nii.gz files; expected one for each channel"),
    "UTF-16": ("case,DWI\n".encode("utf-16"), "not readable as a table in UTF-8"),
    "a class of 0": ("# classes: a=0\ncase,DWI\na,b.nii\n", "found the line '# classes: a=0'; expected names with"),
    "a class of 256": ("# classes: a=256\ncase,DWI\na,b.nii\n", "integers from 1 to 255"),
    "one integer twice": ("# classes: a=1, b=1\ncase,DWI\na,b.nii\n", "different integers"),
    "a class twice": ("# classes: a=1, a=2\ncase,DWI\na,b.nii\n", "different integers"),
    "a class without integer": ("# classes: a, b\ncase,DWI\na,b.nii\n", "such as '# classes: penumbra=1, core=2'"),
    "a class without a name": ("# classes: =1\ncase,DWI\na,b.nii\n", "found a class with the name ''"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_that_are_no_table_are_refused_in_one_line(tmp_path, kind):
    text, words = TEXTS[kind]
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(lambda: layouts.load(path), tmp_path, words)


def test_labels_of_several_classes_need_their_names(spes):
    path = write_table(spes / "mine.csv", rows_of(spes), first="")
    refused(lambda: layouts.load(path), spes, "labels hold 1, 2; expected a first line .*'# classes: NAME=1, NAME=2'")


def test_an_integer_that_is_no_class_is_refused(spes):
    path = write_table(spes / "mine.csv", rows_of(spes), first="# classes: stroke=1")
    with pytest.raises(InputError, match=r"OT\.nii: holds the label 2; expected only 0, 1"):
        layouts.load(path)


def test_names_that_the_images_contradict_are_refused(spes):
    path = write_table(spes / "mine.csv", rows_of(spes), first="# classes: penumbra=2, core=1")
    refused(lambda: layouts.load(path), spes, "exchanging the names penumbra and core in .*mine.csv would agree")


def test_every_bad_case_is_listed(spes):
    rows = rows_of(spes)
    change(0, "DWI", "a/x.nii")(rows, spes)
    change(2, "TTP", "")(rows, spes)
    with pytest.raises(InputError) as caught:
        layouts.load(write_table(spes / "mine.csv", rows))
    assert [line.split(":")[0].rpartition(", ")[2] for line in str(caught.value).splitlines()] == ["line 3", "line 5"]


# --- the commands ----------------------------------------------------------------------------------------------------


def test_a_run_on_a_table_has_the_scores_of_the_folder(phantom_root, tmp_path):
    """The same cases by a table and by the folder: the same predictions and scores, byte for byte."""
    path = write_table(tmp_path / "tables" / "all.csv", phantom_rows(phantom_root))
    keys = {"model.conv": "lax"}
    for name, root in (("table", path), ("folder", phantom_root)):
        cross_validate(tiny_config("bl1", **keys, **{"data.root": str(root)}), tmp_path / name)
    kinds = [
        {name: sum for name, sum in checksums(tmp_path / run).items() if name == "cases.csv" or "predictions" in name}
        for run in ("table", "folder")
    ]
    assert kinds[0] == kinds[1]
    assert json.loads((tmp_path / "table" / "data.json").read_text())["layout"] == "table"
    # The columns change places, and with them the channels.
    write_table(path, phantom_rows(phantom_root, ("case", "DWI", "TTP", "Tmax", "label")))
    (tmp_path / "table" / "DONE").unlink()
    (tmp_path / "table" / "fold_1" / "DONE").unlink()
    with pytest.raises(InputError, match=r"the data changed since this run began \(channels"):
        cross_validate(tiny_config("bl1", **keys, **{"data.root": str(path)}), tmp_path / "table")


def test_new_cases_of_a_table(untrained_run, phantom_root, tmp_path, capsys):
    """Its columns may stand in any order, its labels are not needed, and a column may be missing only by permission."""
    rows = phantom_rows(phantom_root, ("DWI", "case", "note", "TTP", "Tmax"))
    path = write_table(tmp_path / "new.csv", rows, first="")
    predict.main([f"--workdir={untrained_run[0]}", f"--input={path}", f"--output={tmp_path / 'out'}", "--no-page"])
    assert "note: new.csv: columns that are not read: note" in capsys.readouterr().out
    predict.main(
        [f"--workdir={untrained_run[0]}", f"--input={phantom_root}", f"--output={tmp_path / 'same'}", "--no-page"]
    )
    for name in ("01", "02"):
        first, second = tmp_path / "out" / f"{name}.nii.gz", tmp_path / "same" / f"{name}.nii.gz"
        assert first.read_bytes() == second.read_bytes()
    write_table(path, [row[:4] for row in rows], first="")
    with pytest.raises(InputError, match="has the columns DWI, TTP; expected Tmax, TTP, DWI"):
        predict.main([f"--workdir={untrained_run[0]}", f"--input={path}", f"--output={tmp_path / 'none'}"])
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match=r"none\.csv: does not exist; expected a folder of cases or a table"):
        predict.main(
            [f"--workdir={untrained_run[0]}", f"--input={tmp_path / 'none.csv'}", f"--output={tmp_path / 'none'}"]
        )


def test_labels_of_a_table_score_predictions(spes, tmp_path, capsys):
    """Its images are not read. The classes are those of the table, or else the lesion."""
    for number, case in enumerate(CASES):
        save_volume(tmp_path / "mine" / f"{case}.nii.gz", volumes(seed=number)["OT"])
    path = write_table(spes / "t.csv", [["case", "DWI", "label"]] + [[c, "gone.nii", f"{c}/OT.nii"] for c in CASES])
    evaluate.main([f"--predictions={tmp_path / 'mine'}", f"--labels={path}", f"--output={tmp_path / 'out'}"])
    rows = scores.read_cases_csv(tmp_path / "out" / "cases.csv")
    assert {(row["class"], float(row["dice"])) for row in rows} == {
        ("penumbra", 1.0), ("core", 1.0), ("whole lesion", 1.0)
    }  # fmt: skip
    for case in CASES:
        save_volume(tmp_path / "binary" / f"{case}.nii.gz", (volumes()["OT"] > 0).astype(np.uint8) * 255)
    cells = [[c, f"../binary/{c}.nii.gz"] for c in CASES]
    path = write_table(tmp_path / "tables" / "t.csv", [["case", "label"], *cells], first="")
    evaluate.main([f"--predictions={tmp_path / 'binary'}", f"--labels={path}", f"--output={tmp_path / 'two'}"])
    assert {row["class"] for row in scores.read_cases_csv(tmp_path / "two" / "cases.csv")} == {"lesion"}
    capsys.readouterr()
    path = write_table(spes / "t.csv", [["case", "DWI"]] + [[c, f"{c}/DWI.nii"] for c in CASES])
    refused(
        lambda: evaluate.main([f"--predictions={tmp_path / 'mine'}", f"--labels={path}"]),
        tmp_path,
        "no case with labels",
    )


def test_a_table_is_converted(spes, tmp_path):
    path = write_table(spes / "t.csv", rows_of(spes, more=[("patient", "p")]))
    convert.main([f"--input={path}", f"--output={tmp_path / 'new'}"])
    assert_same(layouts.load(path), layouts.load(tmp_path / "new"))
    assert (tmp_path / "new" / table.NAME).read_text() == "case,patient\na,p\nb,p\nc,p\n"
    assert len(files_in(tmp_path / "new")) == 3 * 4 + 2


def test_an_absent_sequence_is_zero_and_named(spes):
    rows = rows_of(spes)
    change(1, "Tmax", "")(rows, spes)
    path = write_table(spes / "t.csv", rows)
    dataset = layouts.load(path, how=ReadOptions(missing=True))
    case = dataset.cases[1]
    assert case.absent == ("Tmax",)
    assert not case.images[..., 0].any()
    np.testing.assert_array_equal(case.images[..., 1:], layouts.load(spes).cases[1].images[..., 1:])
    assert "no Tmax in 1 of 3 cases (b); zeros stand for it" in dataset.notes
    rows = [["case", "DWI"], ["a", "a/DWI.nii"]]
    [alone] = layouts.load_images(write_table(path, rows), CHANNELS, ReadOptions(missing=True)).cases
    assert alone.absent == ("Tmax", "TTP")
    with pytest.raises(InputError, match="has the columns DWI; expected Tmax, TTP"):
        layouts.load_images(path, ("Tmax", "TTP"), ReadOptions(missing=True))
