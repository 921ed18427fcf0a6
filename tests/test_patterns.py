"""Patterns find the files of each case, and what they do not find is named."""

import csv
import io
import os
import unicodedata

import pytest

from isles_jax.data import patterns, table
from isles_jax.data.patterns import Row, match, parse
from isles_jax.runtime.command import InputError

COMPOSED = "Müller, Jörg"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def make(root, *paths):
    """Empty files; a pattern looks at names alone."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def four(root, cases=("p01", "p02", "p03")):
    return make(root, *(f"{case}/{word}.nii.gz" for case in cases for word in ("dwi", "adc", "mask")))


def refused(root, images, label="", *words):
    """The one line of the error, which holds all words."""
    with pytest.raises(InputError) as caught:
        match(root, images, label)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


def test_parse():
    assert parse(["DWI={case}/dwi.nii.gz", " b=0 ={case}/b=0.nii"]) == {
        "DWI": "{case}/dwi.nii.gz",
        "b": "0 ={case}/b=0.nii",
    }
    assert parse([]) == {}


@pytest.mark.parametrize(("texts", "word"), [
    (["{case}/dwi.nii"], "expected CHANNEL=PATTERN"), (["=x"], "expected CHANNEL=PATTERN"),
    (["DWI="], "expected CHANNEL=PATTERN"), ([""], "expected CHANNEL=PATTERN"),
    (["label={case}"], "another column"), (["Case={case}"], "another column"), (["site={case}"], "another column"),
    (["patient={case}"], "another column"), (["DWI={case}", "dwi={case}"], "dwi is there twice"),
])  # fmt: skip
def test_a_bad_channel_is_refused(texts, word):
    with pytest.raises(InputError) as caught:
        parse(texts)
    assert word in str(caught.value)
    assert f'--images "{texts[-1]}"' in str(caught.value)


def test_case_folders(tmp_path):
    rows, notes = match(
        four(tmp_path), {"ADC": "{case}/adc.nii.gz", "DWI": "./{case}//dwi.nii.gz"}, "{case}/mask.nii.gz"
    )
    assert rows == [
        Row(case, "", "", {"ADC": f"{case}/adc.nii.gz", "DWI": f"{case}/dwi.nii.gz", "label": f"{case}/mask.nii.gz"})
        for case in ("p01", "p02", "p03")
    ]
    assert list(rows[0].files) == ["ADC", "DWI", "label"]
    assert notes == ()


def test_a_placeholder_is_the_same_text_in_both_places(tmp_path):
    make(tmp_path, "sub-1/sub-1_dwi.nii.gz", "sub-2/sub-1_dwi.nii.gz")
    rows, notes = match(tmp_path, {"DWI": "sub-{case}/sub-{case}_dwi.nii.gz"})
    assert [row.files for row in rows] == [{"DWI": "sub-1/sub-1_dwi.nii.gz"}]
    assert notes == ("not read: sub-2/sub-1_dwi.nii.gz; matched by no pattern",)


@pytest.mark.parametrize("text", [
    "*/dwi.nii.gz", "*/*.nii.gz", "*/*_?.nii.gz", "**/*.nii.gz", "a/**/*.nii.gz", "**/b/*", "*.nii.gz", "**/a/**/x*",
    "?/b/**/*.nii.gz", "**/*_dwi.nii.gz", "*.*", "[ab]/*.nii.gz",
])  # fmt: skip
def test_stars_match_as_in_a_glob(text, tmp_path):
    """The star that names the case comes first or last; everything else is as in pathlib."""
    folders = ("", "a/", "b/", "a/b/", "a/b/c/", "b/a/b/", "xa/b.c/")
    names = ("dwi", "x", "x_1", "p_dwi", "x.1", "dwi.nii")
    make(tmp_path, *(f"{folder}{name}.nii.gz" for folder in folders for name in names))
    # A bracket is a bracket here, as names on disk have them.
    expected = {path for path in tmp_path.glob(text.replace("[ab]", "[[]ab]")) if path.is_file()}
    assert bool(expected) == ("[" not in text)
    pattern = patterns._compile("X", text + "{case}")
    assert {
        path
        for path in tmp_path.rglob("*.nii.gz")
        if pattern.regex.fullmatch(path.relative_to(tmp_path).as_posix() + "|")
    } == expected


def test_two_stars_at_the_end_are_any_file_below(tmp_path):
    make(tmp_path, "a/x.nii", "b/c/d/y.nii", "z.nii")
    rows, _ = match(tmp_path, {"X": "{case}/**"})
    assert [row.files["X"] for row in rows] == ["a/x.nii", "b/c/d/y.nii"]


def test_sessions(tmp_path):
    make(tmp_path, *(f"sub-{c}/ses-{s}/dwi.nii.gz" for c, s in (("1", "a"), ("1", "b"), ("2", "a"))))
    rows, _ = match(tmp_path, {"DWI": "sub-{case}/ses-{session}/dwi.nii.gz"})
    assert [row[:3] for row in rows] == [("1_a", "1", ""), ("1_b", "1", ""), ("2_a", "2", "")]
    rows, _ = match(tmp_path, {"DWI": "sub-{patient}/ses-{session}/dwi.nii.gz"})
    assert [row[:3] for row in rows] == [("1_a", "1", ""), ("1_b", "1", ""), ("2_a", "2", "")]


def test_patients_and_sites(tmp_path):
    make(tmp_path, "bern/p1/c1_dwi.nii", "bern/p1/c2_dwi.nii", "ulm/p2/c3_dwi.nii", "masks/c1.nii", "masks/c3.nii")
    rows, notes = match(tmp_path, {"DWI": "{site}/{patient}/{case}_dwi.nii"}, "masks/{case}.nii")
    assert [row[:3] for row in rows] == [("c1", "p1", "bern"), ("c2", "p1", "bern"), ("c3", "p2", "ulm")]
    assert notes == ('--label "masks/{case}.nii": no file for c2',)
    make(tmp_path / "2", "bern/x/1/dwi.nii", "ulm/y/1/dwi.nii")
    rows, _ = match(tmp_path / "2", {"DWI": "{site}/{patient}/{session}/dwi.nii"})
    assert [row[:3] for row in rows] == [("x_1", "x", "bern"), ("y_1", "y", "ulm")]
    rows, _ = match(tmp_path / "2", {"DWI": "{patient}/{case}/{session}/dwi.nii"})
    assert [row[:3] for row in rows] == [("x_1", "bern", ""), ("y_1", "ulm", "")]


def test_the_patient_of_a_case_without_the_file_that_names_him_is_not_made_up(tmp_path):
    make(tmp_path, "a/1_2_dwi.nii", "b/3_4_dwi.nii", "adc/1_2.nii", "adc/5_6.nii")
    images = {"DWI": "{patient}/{case}_{session}_dwi.nii", "ADC": "adc/{case}_{session}.nii"}
    rows, notes = match(tmp_path, images)
    assert [row[:2] for row in rows] == [("1_2", "a"), ("3_4", "b"), ("5_6", "")]
    assert "the patient is not known of 5_6: no file there whose pattern has {patient}" in notes


def test_a_label_without_sessions(tmp_path):
    make(tmp_path, "1/a/dwi.nii", "2/b/dwi.nii", "masks/1.nii", "masks/3.nii")
    images = {"DWI": "{case}/{session}/dwi.nii"}
    rows, notes = match(tmp_path, images, "masks/{case}.nii")
    assert [(row.case, row.files.get("label")) for row in rows] == [("1_a", "masks/1.nii"), ("2_b", None)]
    assert notes == (
        '--label "masks/{case}.nii": no file for 2_b',
        "not read: masks/3.nii; a label whose case has no image",
    )
    make(tmp_path, "1/c/dwi.nii")
    refused(tmp_path, images, "masks/{case}.nii", "sessions a, c of 1", "expected {session}")


def test_patterns_that_name_a_case_in_different_ways(tmp_path):
    make(tmp_path, "1/a/dwi.nii", "1/a/adc.nii", "1/a/mask.nii")
    refused(tmp_path, {"DWI": "{case}/{session}/dwi.nii", "ADC": "{case}/*/adc.nii"}, "",
            'ADC={case}/*/adc.nii": names a case by {case}; expected {case} and {session}')  # fmt: skip
    refused(tmp_path, {"DWI": "{case}/*/dwi.nii"}, "{patient}/*/mask.nii", "by {patient}; expected {case}, as")
    refused(tmp_path, {"DWI": "{case}/*/dwi.nii"}, "{case}/{session}/mask.nii", "expected {case}, as")


@pytest.mark.parametrize(("text", "words"), [
    ("p01/dwi.nii.gz", ("no {case}", "expected {case} or {patient}")), ("{session}/dwi.nii.gz", ("no {case}",)),
    ("{subject}/dwi.nii.gz", ("found {subject}", "{case}, {patient}, {session}, {site}")), ("{}/x", ("found {}",)),
    ("/data/{case}.nii", ("below the folder",)), ("../{case}.nii", ("below the folder",)),
    ("a/../{case}.nii", ("below the folder",)), ("{case}/a**.nii", ("found a**.nii", "alone")),
])  # fmt: skip
def test_a_bad_pattern_is_refused(text, words, tmp_path):
    refused(four(tmp_path), {"DWI": text}, "", f'--images "DWI={text}"', *words)
    refused(tmp_path, {"DWI": "{case}/dwi.nii.gz"}, text, f'--label "{text}"', *words)


def test_two_files_for_a_case(tmp_path):
    make(tmp_path, *(f"p1/{day}/dwi.nii.gz" for day in ("2021-03-04", "2022-01-01")), "p2/2021-01-01/dwi.nii.gz")
    found = "two files for the case p1: p1/2021-03-04/dwi.nii.gz, p1/2022-01-01/dwi.nii.gz"
    refused(
        tmp_path,
        {"DWI": "{case}/*/dwi.nii.gz"},
        "",
        found,
        'two sessions, "{case}/{session}/dwi.nii.gz" keeps them apart',
    )
    refused(
        tmp_path,
        {"DWI": "{case}/**/dwi.nii.gz"},
        "",
        found,
        'two sessions, "{case}/{session}/dwi.nii.gz" keeps them apart',
    )
    rows, _ = match(tmp_path, {"DWI": "{case}/{session}/dwi.nii.gz"})
    assert len(rows) == 3


def test_the_star_that_differs_is_found(tmp_path):
    make(tmp_path, *(f"sub-1/ses-{s}/dwi/sub-1_ses-{s}_dwi.nii.gz" for s in "12"))
    text = refused(tmp_path, {"DWI": "**/dwi/sub-{case}_*_dwi.nii.gz"})
    assert text.endswith('"**/dwi/sub-{case}_{session}_dwi.nii.gz" keeps them apart')


def test_two_files_that_no_session_keeps_apart(tmp_path):
    make(tmp_path, "p1/dwi.nii", "p1/dwi.nii.gz")
    assert refused(tmp_path, {"DWI": "{case}/dwi.*"}).endswith("p1/dwi.nii, p1/dwi.nii.gz; expected one")
    make(tmp_path / "2", "p1/a/dwi_1.nii", "p1/a/dwi_2.nii")
    assert refused(tmp_path / "2", {"DWI": "{case}/{session}/dwi_*.nii"}).endswith("; expected one")
    make(tmp_path / "3", "bern/p1/dwi.nii", "ulm/p1/dwi.nii")
    text = refused(tmp_path / "3", {"DWI": "{site}/{case}/dwi.nii"})
    assert text.endswith("expected cases whose names are different for each site")


def test_files_of_two_patients_are_no_case(tmp_path):
    make(tmp_path, "a/1_dwi.nii", "b/1_adc.nii")
    refused(tmp_path, {"DWI": "{patient}/{case}_dwi.nii", "ADC": "{patient}/{case}_adc.nii"}, "",
            "case 1: found a/1_dwi.nii and b/1_adc.nii; expected files of one patient")  # fmt: skip


def test_two_cases_of_one_name(tmp_path):
    make(tmp_path, "a_b/c/dwi.nii", "a/b_c/dwi.nii")
    refused(tmp_path, {"DWI": "{case}/{session}/dwi.nii"}, "", "a_b_c: the name of two cases", "a/b_c/dwi.nii")


def test_one_file_for_two_patterns(tmp_path):
    root = four(tmp_path)
    refused(root, {"DWI": "{case}/mask.nii.gz"}, "{case}/m*.nii.gz", "p01/", "matched by", "DWI=", "--label")


def test_a_pattern_without_a_file(tmp_path):
    root = four(tmp_path)
    make(root, "p01/dwi/a.nii.gz")
    refused(root, {"DWI": "{case}/DWI.nii"}, "", f"no NIfTI file in {root}", "the closest is p01/dwi.nii.gz")
    refused(root, {"DWI": "{case}/dwi.nii.gz"}, "masks/{case}.nii.gz", "--label", "the closest is")
    make(root, "p01/t2.mha")
    refused(root, {"T2": "{case}/t2.mha"}, "", "p01/t2.mha is in a format that is not read; SimpleITK")
    make(root, f"masks/{DECOMPOSED}.nii.bz2")
    refused(root, {"T2": "masks/{case}" + COMPOSED[-3:] + ".nii.bz2"}, "", f"{DECOMPOSED}.nii.bz2 is packed")
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty", {"DWI": "{case}.nii"}).endswith("/empty")
    refused(tmp_path / "nowhere", {"DWI": "{case}.nii"}, "", "nowhere: cannot be read as a folder")
    refused(root, {}, "{case}/mask.nii.gz", "--images: found no pattern")


def test_what_cases_lack_is_named(tmp_path):
    root = four(tmp_path, [f"p{number}" for number in range(1, 8)])
    for number in (1, 2, 4, 5, 7):
        (root / f"p{number}/adc.nii.gz").unlink()
    (root / "p3/mask.nii.gz").unlink()
    for word in ("dwi", "adc"):
        (root / f"p6/{word}.nii.gz").unlink()
    rows, notes = match(root, {"DWI": "{case}/dwi.nii.gz", "ADC": "{case}/adc.nii.gz"}, "{case}/mask.nii.gz")
    assert [row.case for row in rows] == ["p1", "p2", "p3", "p4", "p5", "p7"]
    assert [list(row.files) for row in rows[1:3]] == [["DWI", "label"], ["DWI", "ADC"]]
    assert notes == (
        '--images "ADC={case}/adc.nii.gz": no file for p1, p2, p4 and 2 more',
        '--label "{case}/mask.nii.gz": no file for p3',
        "not read: p6/mask.nii.gz; a label whose case has no image",
    )


def test_what_no_pattern_matches_is_named(tmp_path):
    root = make(four(tmp_path), "p01/t1.nii", "t2.nii.gz", "p02/scan.dcm", "p02/readme.txt", ".hidden/dwi.nii.gz")
    _, notes = match(root, {"DWI": "{case}/dwi.nii.gz", "ADC": "{case}/adc.nii.gz"})
    assert notes == (
        "not read: p01/mask.nii.gz, p01/t1.nii, p02/mask.nii.gz and 2 more; each of them matched by no pattern",
        "not read: p02/scan.dcm; in a format that is not read; dcm2niix converts it to NIfTI (docs/dicom.md)",
    )


def test_links_are_followed(tmp_path):
    real = four(tmp_path / "real", ["x"])
    root = four(tmp_path / "root", ["p01"])
    os.symlink(real / "x", root / "p02")
    os.symlink(root, root / "p01" / "loop")
    os.symlink("nowhere", root / "p02" / "t1.nii.gz")
    rows, notes = match(root, {"DWI": "{case}/dwi.nii.gz", "ADC": "{case}/adc.nii.gz"}, "{case}/mask.nii.gz")
    assert [row.files["DWI"] for row in rows] == ["p01/dwi.nii.gz", "p02/dwi.nii.gz"]
    [note] = notes
    assert note.startswith("not read: p02/t1.nii.gz; a link to nowhere")


@pytest.mark.parametrize("typed", [COMPOSED, DECOMPOSED])
def test_names_with_spaces_commas_quotes_and_accents(typed, tmp_path):
    """One file system composes accents and another decomposes them; the table has the names that are on the disk."""
    quoted = 'A "B"\'s; {x} [1]'
    make(
        tmp_path,
        f"{COMPOSED}/dwi größe.nii",
        f"masks/{DECOMPOSED}.nii",
        f"{quoted}/dwi größe.nii",
        f"masks/{quoted}.nii",
    )
    rows, notes = match(tmp_path, {"DWI": "{case}/dwi größe.nii"}, "masks/{case}.nii")
    assert notes == ()
    assert rows[1].files == {"DWI": f"{COMPOSED}/dwi größe.nii", "label": f"masks/{DECOMPOSED}.nii"}
    assert all((tmp_path / path).is_file() for row in rows for path in row.files.values())
    lines = list(csv.reader(io.StringIO(table.text([row.cells for row in rows], ["DWI"]))))
    assert lines == [["case", "DWI", "label"], *([row.case, *row.files.values()] for row in rows)]
    make(tmp_path / "own", f"1/{COMPOSED}.nii", f"2/{DECOMPOSED}.nii")
    assert len(match(tmp_path / "own", {"DWI": "{case}/" + typed + ".nii"})[0]) == 2


def test_a_name_that_is_not_utf8(tmp_path):
    make(tmp_path, "a/dwi.nii", os.fsdecode(b"M\xfcller/dwi.nii"))
    refused(tmp_path, {"DWI": "{case}/dwi.nii"}, "", r"'M\udcfcller/dwi.nii'", "not in UTF-8").encode()


def test_the_text_of_the_table():
    rows = [Row("1", "p1", "", {"DWI": "1/dwi.nii", "label": "1/m.nii"}), Row("2", "", "", {"ADC": "2/adc.nii"})]
    cells = [row.cells for row in rows]
    assert table.text(cells, ["DWI", "ADC"], {"penumbra": 1, "core": 2}) == (
        "# classes: penumbra=1, core=2\ncase,patient,DWI,ADC,label\n1,p1,1/dwi.nii,,1/m.nii\n2,,,2/adc.nii,\n"
    )
    assert table.text(cells[1:], ["ADC"]) == "case,ADC\n2,2/adc.nii\n"
