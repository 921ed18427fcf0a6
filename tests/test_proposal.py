"""Folders of many shapes, and the patterns that are proposed for them: right, or with a doubt, or none."""

import os
import random
import shlex
import subprocess
import unicodedata
from typing import NamedTuple

import numpy as np
import pytest
from helpers import save_volume

from isles_jax.data.patterns import LABEL, Row, match
from isles_jax.data.proposal import Proposal, command, propose

IMAGE, LESION, BRAIN, MAP, SERIES = "image", "lesion", "brain", "probability map", "four axes"
# What the words of the files' names are in the table, if not a channel of that name.
COLUMNS = {"dwi": "DWI", "adc": "ADC", "flair": "FLAIR", "t2": "T2", "mask": LABEL}
P = ("p01", "p02", "p03", "p04")


class Shape(NamedTuple):
    """A folder and the right answer.

    Attributes:
      files: {path: what the volume holds}.
      rows: of the right proposal; None if no patterns are right, or none for sure.
      doubt: words that the doubts must hold if there is a proposal; () if none is needed.
    """

    files: dict[str, str]
    rows: list[Row] | None
    doubt: tuple[str, ...] = ()


def kind(word):
    return LESION if COLUMNS.get(word) == LABEL else IMAGE


def grid(place, cases=P, words=("dwi", "adc", "mask"), row=lambda case: (case, "", ""), **columns):
    """A shape whose file of each case and word lies at place(case, word); `row` gives case, patient and site."""
    columns = COLUMNS | columns
    names = {word: columns.get(word, word) for word in words}
    files = {place(c, w): LESION if names[w] == LABEL else IMAGE for c in cases for w in words}
    return Shape(files, sorted(Row(*row(c), {names[w]: place(c, w) for w in words}) for c in cases))


def text(pattern, **options):
    """The grid whose place is a format of {c} and {w}."""
    return grid(lambda case, word: pattern.format(c=case, w=word), **options)


def joined(*shapes, doubt=()):
    """Several shapes in one folder; the files of a case are in one row."""
    rows: dict[str, Row] = {}
    for shape in shapes:
        for row in shape.rows or []:
            files = rows[row.case].files | row.files if row.case in rows else row.files
            rows[row.case] = row._replace(files=files)
    files = {path: held for shape in shapes for path, held in shape.files.items()}
    return Shape(files, sorted(rows.values()), doubt)


def without(shape, *paths):
    """The shape without some files."""
    rows = [row._replace(files={c: p for c, p in row.files.items() if p not in paths}) for row in shape.rows]
    return shape._replace(files={p: held for p, held in shape.files.items() if p not in paths}, rows=rows)


def beside(shape, held, *paths, doubt=()):
    """The shape with more files, which are in no row."""
    return shape._replace(files=shape.files | dict.fromkeys(paths, held), doubt=doubt)


SESSIONS = [(case, session) for case in P for session in ("ses-1", "ses-2") if (case, session) != ("p04", "ses-2")]
SITES = {"p01": "bern", "p02": "bern", "p03": "bern", "p04": "ulm", "p05": "ulm"}
SPLIT = {"p01": "train", "p02": "train", "p03": "train", "p04": "test", "p05": "test"}
DATES = dict(zip(P, ("2021-03-04", "2021-05-11", "2020-12-24", "2021-03-05"), strict=True))
NUMBERS = dict(zip(P, (3, 4, 3, 7), strict=True))
NAMES = ("Müller Jörg", unicodedata.normalize("NFD", "Özdemir, Ayşe"), "O'Neill Pat", "Weiß")


def of_session(key):
    return f"{key[0]}_{key[1]}", key[0], ""


def at(key, word, pattern):
    return pattern.format(c=key[0], s=key[1], w=word)


SHAPES = {
    "a folder for each case": text("{c}/{w}.nii.gz", words=("dwi", "adc", "flair", "mask")),
    "a folder for each channel": text("{w}/{c}.nii.gz", words=("dwi", "adc", "masks"), masks=LABEL),
    "flat, the case first": text("{c}_{w}.nii.gz"),
    "flat, the case last": text("{w}_{c}.nii.gz", words=("dwi", "adc", "seg"), seg=LABEL),
    "flat, with hyphens": text("{c}-{w}.nii.gz"),
    "images and labels": text("{w}/{c}.nii.gz", words=("images", "labels"), labels=LABEL),
    "images and labels, two channels": joined(
        text("images/{c}_{w}.nii.gz", words=("dwi", "adc")), text("labels/{c}.nii.gz", words=("mask",))
    ),
    "numbers of channels": joined(
        text("images/{c}_{w}.nii.gz", words=("0000", "0001")), text("labels/{c}.nii.gz", words=("mask",))
    ),
    "numbers of channels, flat": joined(
        text("{c}_{w}.nii.gz", words=("0000", "0001")), text("{c}.nii.gz", words=("mask",))
    ),
    "BIDS": joined(
        text("{c}/ses-1/dwi/{c}_ses-1_{w}.nii.gz", cases=("sub-1", "sub-2", "sub-3"), words=("dwi", "adc")),
        text("derivatives/manual_masks/{c}/ses-1/anat/{c}_ses-1_label-lesion_{w}.nii.gz",
             cases=("sub-1", "sub-2", "sub-3"), words=("mask",)),
    ),
    "BIDS with sessions": joined(
        grid(lambda k, w: at(k, w, "{c}/{s}/dwi/{c}_{s}_{w}.nii.gz"), SESSIONS, ("dwi", "adc"), of_session),
        grid(lambda k, w: at(k, w, "derivatives/masks/{c}/{s}/anat/{c}_{s}_{w}.nii.gz"), SESSIONS, ("mask",),
             of_session),
    ),
    "two sessions": grid(lambda k, w: at(k, w, "{c}/{s}/{w}.nii.gz"), SESSIONS, row=of_session),
    "two sessions, flat": grid(lambda k, w: at(k, w, "{c}_{s}_{w}.nii.gz"), SESSIONS, row=of_session),
    "two sessions by their dates": grid(
        lambda k, w: at(k, w, "{c}/{s}/{w}.nii.gz"),
        [("p01", "20210304"), ("p01", "20220105"), ("p02", "20210609"), ("p03", "20210304"), ("p03", "20220607")],
        row=of_session,
    ),
    "sites": grid(lambda c, w: f"{SITES[c]}/{c}/{w}.nii.gz", SITES, row=lambda c: (c, "", SITES[c]))._replace(
        doubt=("bern", "ulm", "site")
    ),
    "sites with the same names": Shape(
        {f"{s}/{c}/{w}.nii.gz": kind(w) for s in ("bern", "ulm") for c in P for w in ("dwi", "adc", "mask")},
        None, ("bern", "ulm"),
    ),
    "sites in the names": text("{c}_{w}.nii.gz", cases=("BE_001", "BE_002", "ZH_001", "ZH_002", "ZH_003"))._replace(
        rows=None, doubt=("BE", "ZH")
    ),
    "names of people": text("{c}/{w}.nii.gz", cases=NAMES, words=("DWI Bild", "ADC Bild", "Läsion von Hand"),
        row=lambda c: (unicodedata.normalize("NFC", c), "", ""), **{
        "DWI Bild": "DWI", "ADC Bild": "ADC", "Läsion von Hand": LABEL}),
    "names with spaces, flat": text("Fall {c} {w}.nii.gz", cases=("1", "2", "13")),
    "dates between": grid(lambda c, w: f"{c}/{DATES[c]}/{w}.nii.gz"),
    "the case in the names": text("{c}/{c}_{w}.nii.gz", words=("DWI", "ADC", "lesion"), lesion=LABEL),
    "series numbers": joined(
        grid(lambda c, w: f"{c}/{NUMBERS[c]:03d}_dwi.nii.gz", words=("dwi",)),
        grid(lambda c, w: f"{c}/{NUMBERS[c] + 1:03d}_adc.nii.gz", words=("adc",)),
        text("{c}/mask.nii.gz", words=("mask",)),
    ),
    "dates and series numbers": joined(
        grid(lambda c, w: f"{c}/{DATES[c]}/{NUMBERS[c]:03d}_dwi.nii.gz", words=("dwi",)),
        grid(lambda c, w: f"{c}/{DATES[c]}/{NUMBERS[c] + 1:03d}_adc.nii.gz", words=("adc",)),
        grid(lambda c, w: f"{c}/{DATES[c]}/roi.nii.gz", words=("roi",), roi=LABEL),
    ),
    "both endings": grid(lambda c, w: f"{c}/{w}{'.nii' if c < 'p03' else '.nii.gz'}"),
    "one sequence more, one less": beside(
        without(text("{c}/{w}.nii.gz", words=("dwi", "adc", "flair", "mask")), "p02/flair.nii.gz", "p03/mask.nii.gz"),
        IMAGE, "p01/swi.nii.gz", doubt=("p01/swi.nii.gz",),
    ),
    "a mask of the brain": beside(
        text("{c}/{w}.nii.gz", words=("dwi", "adc", "lesion_mask"), lesion_mask=LABEL),
        BRAIN, *(f"{c}/brain_mask.nii.gz" for c in P), doubt=("brain_mask",),
    ),
    "a mask of the brain, flat": beside(
        text("{c}_{w}.nii.gz"), BRAIN, *(f"{c}_brainmask.nii.gz" for c in P), doubt=("brainmask",)
    ),
    "a mask that may be the brain's": Shape(
        text("{c}/{w}.nii.gz", words=("dwi", "adc")).files | {f"{c}/mask.nii.gz": BRAIN for c in P}, None, ("brain",)
    ),
    "train and test": without(
        grid(lambda c, w: f"{SPLIT[c]}/{c}/{w}.nii.gz", SPLIT), "test/p04/mask.nii.gz", "test/p05/mask.nii.gz"
    )._replace(doubt=("train", "test")),
    "train and test, flat": without(
        grid(lambda c, w: f"{w}_{SPLIT[c]}/{c}.nii.gz", SPLIT, ("dwi", "adc", "mask")),
        "mask_test/p04.nii.gz", "mask_test/p05.nii.gz",
    )._replace(doubt=("train", "test")),
    "one case": Shape(text("{c}/{w}.nii.gz", cases=P[:1]).files, None),
    "one case, flat": Shape(text("{w}.nii.gz", cases=P[:1]).files, None),
    "nothing that repeats": Shape(
        dict.fromkeys(("scan.nii.gz", "old/T1_final_v2.nii.gz", "new/a/b.nii", "atlas/MNI152.nii.gz"), IMAGE), None
    ),
    "unknown sequences": text("{c}/{w}.nii.gz", words=("b1000", "trace", "mask")),
    "unknown sequences without labels": text("{c}/{w}.nii.gz", words=("b1000", "trace"))._replace(
        doubt=("b1000", "p01")
    ),
    "two b-values": text("{c}/{c}_{w}.nii.gz", words=("dwi_b0", "dwi_b1000", "adc", "mask"))._replace(
        doubt=("dwi_b0",)
    ),
    "no labels": text("{c}/{w}.nii.gz", words=("dwi", "adc")),
    "a label of floats": Shape(
        text("{c}/{w}.nii.gz", words=("dwi", "adc")).files | {f"{c}/seg.nii.gz": MAP for c in P}, None, ("seg",)
    ),
    "a label without a word": Shape(
        text("{c}/{w}.nii.gz", words=("dwi", "adc")).files | {f"{c}/x.nii.gz": LESION for c in P}, None, ("x.nii.gz",)
    ),
    "two raters": Shape(
        text("{c}/{w}.nii.gz", words=("dwi", "adc")).files
        | {f"{c}/mask_{rater}.nii.gz": LESION for c in P for rater in ("anna", "bert")},
        None, ("mask_anna", "mask_bert"),
    ),
    "labels elsewhere": joined(
        text("scans/{c}/{w}.nii.gz", words=("dwi", "adc")), text("rois/lesion_{c}.nii", words=("mask",))
    ),
    "raw and processed": Shape(
        {f"{s}/{c}/{w}.nii.gz": IMAGE for s in ("raw", "processed") for c in P for w in ("dwi", "adc")}
        | {f"masks/{c}.nii.gz": LESION for c in P}, None, ("raw", "processed"),
    ),
    "a series of volumes": beside(
        text("{c}/{w}.nii.gz"), SERIES, *(f"{c}/perfusion.nii.gz" for c in P), doubt=("perfusion",)
    ),
    "other sequences in other cases": Shape(
        {f"images/{c}_{w}.nii.gz": IMAGE for c, w in zip(P, ("dwi", "flair", "dwi", "flair"), strict=True)}
        | {f"labels/{c}.nii.gz": LESION for c in P}, None, ("FLAIR",),
    ),
    "labels with other names": Shape(
        text("{c}/{w}.nii.gz", words=("dwi", "adc")).files | {f"masks/{c.upper()}.nii.gz": LESION for c in P}, None,
        ("masks",),
    ),
    "names without a number": text("{c}/{w}.nii.gz", cases=("anna", "bert", "carla")),
    "unrelated files, flat": Shape(dict.fromkeys(("scan.nii", "atlas.nii", "final.nii", "test2.nii"), IMAGE), None),
    "an old file": beside(
        text("{w}_{c}.nii.gz", cases=[f"p{number}" for number in range(9)]), IMAGE, "dwi_old_p1.nii.gz"
    )._replace(rows=None, doubt=("old",)),
    "many files that do not repeat": Shape(
        text("{c}/{w}.nii.gz").files | {f"p01/{word}.nii": IMAGE for word in ("a", "b", "c", "d")}, None
    ),
    "other words in two cases": beside(
        text("{c}_{w}.nii.gz", cases=(*P, *"abcdef")), IMAGE, "p01_foo.nii.gz", "p02_bar.nii.gz", doubt=("foo", "bar")
    ),
    "other numbers in two cases": beside(
        text("{c}/{w}.nii.gz", cases=(*P, *"abcdef")), IMAGE, "p01/scan7.nii.gz", "p02/scan9.nii.gz",
        doubt=("scan7", "scan9"),
    ),
    "sessions of another name": grid(
        lambda k, w: at(k, w, "{c}/{s}/{w}.nii.gz"), [(c, s) for c in P for s in "xy"], row=of_session
    )._replace(doubt=("p01", "x, y")),
    "sessions without labels": grid(
        lambda k, w: at(k, w, "{c}/{s}/{w}.nii.gz"), SESSIONS, ("dwi", "adc"), row=of_session
    ),
    "sessions and dates": grid(
        lambda k, w: f"{k[0]}/{k[1]}/{20200101 + 100 * P.index(k[0]) + int(k[1][-1])}/{w}.nii", SESSIONS, row=of_session
    ),
    "scans of two sites by their dates": Shape(
        {f"{s}/202{y}0304/{w}.nii": kind(w) for s in ("bern", "ulm") for y in range(5) for w in ("dwi", "mask")},
        None, ("bern", "2020"),
    ),
    "numbers at the end": joined(
        grid(lambda c, w: f"{c}/dwi_{1000 + P.index(c)}.nii", words=("dwi",)),
        text("{c}/{w}.nii", words=("adc", "mask")), doubt=("1000",),
    ),
    "folders of other names": grid(lambda c, w: f"{c}/scan{'ABCD'[P.index(c)]}/{w}.nii")._replace(
        doubt=("scanA", "same channel")
    ),
    "labels as deep as images": joined(
        text("{c}/scans/{w}.nii", cases=("x1", "x2", "x3"), words=("dwi", "adc")),
        text("derivatives/{c}/{w}.nii", cases=("x1", "x2", "x3"), words=("mask",)),
    ),
    "dates above": grid(lambda c, w: f"{DATES[c]}/{c}/{w}.nii"),
    "numbers alone": text("{c}/{w}.nii.gz", cases=("1", "2", "3", "10", "11")),
}  # fmt: skip


def volume(held, seed):
    """A tiny volume: noise in a brain, a lesion, a brain's mask, probabilities, or a series."""
    rng = np.random.default_rng(seed)
    inside = np.zeros((6, 6, 4), bool)
    inside[1:5, 1:5] = True
    lesion = np.zeros(inside.shape, np.uint8)
    lesion[2:4, 2, 1:3] = 1
    noise = np.where(inside, rng.uniform(50, 150, inside.shape), 0).astype(np.float32)
    made = {IMAGE: noise, LESION: lesion, BRAIN: inside.astype(np.uint8), MAP: noise / 150}
    return np.stack([noise] * 3, axis=-1) if held == SERIES else made[held]


def build(root, shape):
    """Writes the files of a shape."""
    for seed, (path, held) in enumerate(shape.files.items()):
        save_volume(root / path, volume(held, seed))
    return root


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_and_its_answer_agree(name):
    """Every file of the rows exists and holds what its column says; cases have different names."""
    shape = SHAPES[name]
    rows = shape.rows or []
    assert len({row.case for row in rows}) == len(rows)
    for row in rows:
        for column, path in row.files.items():
            assert shape.files[path] == (LESION if column == LABEL else IMAGE)
    used = {path for row in rows for path in row.files.values()}
    if rows:
        assert all(any(word in path for word in shape.doubt) for path in shape.files.keys() - used)


def outcome(shape, root):
    """What the proposal for a folder is: right, none, a doubt that is named, or wrong."""
    proposal = propose(root)
    if proposal is None:
        return "none"
    rows, _ = match(root, proposal.images, proposal.label)
    if rows == shape.rows and all(word in " ".join(proposal.doubts) for word in shape.doubt):
        return "right"
    return "doubt" if proposal.doubts else "wrong"


# The shapes with a right answer for which it is not found, and those without one for which there is a proposal.
UNSEEN = {"numbers of channels, flat": "none"}
DOUBTFUL = {
    "sites with the same names", "sites in the names", "a mask that may be the brain's", "a label of floats",
    "a label without a word", "two raters", "raw and processed", "other sequences in other cases", "an old file",
    "scans of two sites by their dates",
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_the_proposal_is_right_or_says_its_doubt(name, tmp_path):
    shape = SHAPES[name]
    found = outcome(shape, build(tmp_path, shape))
    if shape.rows is not None:
        assert found == UNSEEN.get(name, "right")
    else:
        assert found == ("doubt" if name in DOUBTFUL else "none")
        proposal = propose(tmp_path)
        assert proposal is None or all(word in " ".join(proposal.doubts) for word in shape.doubt)


@pytest.mark.parametrize("name", [
    "a folder for each case", "flat, the case first", "BIDS with sessions", "two sessions", "dates between",
    "series numbers", "names of people", "unknown sequences", "no labels", "labels elsewhere", "numbers alone",
])  # fmt: skip
def test_what_is_sure_has_no_doubt(name, tmp_path):
    proposal = propose(build(tmp_path, SHAPES[name]))
    assert proposal is not None
    assert proposal.doubts == ()


CASES = (
    P, ("1", "2", "3"), ("anna", "bert", "carla"), ("case_001", "case_002", "case_010"), ("20123456", "31415926"),
    ("patient 1", "patient 2"), ("stroke01", "stroke02", "stroke03"), ("A01", "B02", "A03"), ("Li_Wei", "Ott_O"),
)  # fmt: skip
PLACES = (
    "{c}/{w}", "{w}/{c}", "{c}_{w}", "{w}_{c}", "{c}-{w}", "{c} {w}", "{c}/{c}_{w}", "imgs/{c}_{w}", "{c}/{w}/{w}",
    "{c}/{w}/image", "{c}/x_{w}_final", "{d}/{c}/{w}", "{c}/{d}/{w}", "{c}/{n}_{w}", "{c}/{d}_{w}", "{g}/{c}/{w}",
    "{w}/{g}/{c}", "{c}/{s}/{w}", "{c}_{s}_{w}", "{c}/{s}/{c}_{s}_{w}", "{s}/{c}/{w}", "{g}/{c}/{s}/{w}",
)  # fmt: skip
WORDS = ("dwi", "ADC", "flair", "T1", "tmax", "b1000", "trace", "perf1", "0000", "0001", "img")
LABELS = ("mask", "msk", "seg", "lesion", "OT", "gt", "manual-seg", "ground_truth", None)


def random_shape(seed):
    """A folder of one of the forms above, and the files that belong together."""
    draw = random.Random(seed)
    place, label, cases = draw.choice(PLACES), draw.choice(LABELS), draw.choice(CASES)
    words = [*draw.sample(WORDS, draw.choice((1, 2, 3))), *([label] if label else [])]
    sessions = draw.choice((("ses-1", "ses-2"), ("1", "2"), ("20200101", "20200505"), ("a", "b")))
    groups = draw.choice((("bern", "ulm"), ("1", "2"), ("train", "test"), ("2020", "2021")))
    files, together = {}, set()
    for case in cases:
        date = f"20{draw.randint(10, 22)}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"
        group, first = draw.choice(groups), draw.randint(1, 5)
        for session in sessions if "{s}" in place else ("",):
            row = set()
            for number, word in enumerate(words, first):
                path = place.format(c=case, w=word, s=session, d=date, g=group, n=f"{number:03d}") + ".nii"
                # Some files are missing.
                if draw.random() > 0.03:
                    row.add(path)
                    files[path] = LESION if word == label else IMAGE
            together.add(frozenset(row))
    return Shape(files, None), together


@pytest.mark.parametrize("seeds", [range(start, start + 40) for start in (0, 40, 80)])
def test_what_is_proposed_without_a_doubt_keeps_the_files_of_a_case_together(seeds, tmp_path):
    sure = 0
    for seed in seeds:
        shape, together = random_shape(seed)
        root = build(tmp_path / str(seed), shape)
        proposal = propose(root)
        if proposal and not proposal.doubts:
            rows, _ = match(root, proposal.images, proposal.label)
            used = {path for row in rows for path in row.files.values()}
            # A label without images is in no row.
            assert {shape.files[path] for path in shape.files.keys() - used} <= {LESION}
            assert {frozenset(row.files.values()) for row in rows} <= together, seed
            for column in (*proposal.images, LABEL):
                held = {shape.files[row.files[column]] for row in rows if column in row.files}
                assert held <= {LESION if column == LABEL else IMAGE}, seed
            sure += 1
    assert sure > len(seeds) / 3


def test_a_volume_beside_its_compressed_form_gives_no_proposal(tmp_path):
    """Either may be the right one."""
    build(tmp_path, SHAPES["a folder for each case"])
    save_volume(tmp_path / "p01/dwi.nii", volume(IMAGE, 0))
    assert propose(tmp_path) is None


def test_files_that_cannot_be_read_are_no_channel(tmp_path):
    build(tmp_path, SHAPES["a folder for each case"])
    for case in P:
        (tmp_path / case / "flair.nii.gz").write_bytes(b"no volume")
    proposal = propose(tmp_path)
    assert list(proposal.images) == ["ADC", "DWI"]
    assert proposal.doubts == ("{case}/flair.nii.gz is left out: flair.nii.gz cannot be read as NIfTI",)


def test_links_and_hidden_files(tmp_path):
    build(tmp_path / "real", SHAPES["a folder for each case"])
    (tmp_path / "root").mkdir()
    for case in P:
        os.symlink(tmp_path / "real" / case, tmp_path / "root" / case)
    save_volume(tmp_path / "root/.hidden/x.nii.gz", volume(IMAGE, 0))
    proposal = propose(tmp_path / "root")
    assert (list(proposal.images), proposal.label, proposal.doubts) == (
        ["ADC", "DWI", "FLAIR"], "{case}/mask.nii.gz", ()
    )  # fmt: skip


def test_no_folder_and_no_files(tmp_path):
    assert propose(tmp_path) is None
    assert propose(tmp_path / "nowhere") is None


def test_the_command_reaches_the_program_as_it_is(tmp_path):
    """A real shell splits it into the arguments."""
    root = tmp_path / 'Jörg\'s "data" $HOME'
    proposal = Proposal({"DWI": "{case}/a b's*.nii", "ADC": "{case}/$x `y`.nii"}, "{case}/ma?k.nii", ())
    line = command(root, proposal)
    assert "\n" not in line
    assert line.startswith("isles-jax check ")
    shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [
        "isles-jax", "check", str(root), "--images", "DWI={case}/a b's*.nii", "ADC={case}/$x `y`.nii",
        "--label", "{case}/ma?k.nii", "--output", str(root / "cases.csv"),
    ]  # fmt: skip
    assert "--label" not in shlex.split(command(root, proposal._replace(label="")))
