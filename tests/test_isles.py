"""The SPES reader on every kind of folder that the world holds: the promised result, or the promised line."""

import gzip
import os
import re
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import OBLIQUE, SHAPE, checksums, save_volume, spes_folder, volumes

from isles_jax.data import isles, layouts, nifti
from isles_jax.runtime.command import InputError

TMAX = ("b", "Tmax.nii")
ONES = np.ones(SHAPE, np.uint8)


def patch(root, where, offset, kind, *values):
    """Overwrites header bytes of a file in place."""
    path = root.joinpath(*where)
    content = bytearray(path.read_bytes())
    struct.pack_into(kind, content, offset, *values)
    path.write_bytes(content)


def long_form(root):
    """The challenge's own names, with T2, T1c, CBF and a decoy that only contains the words."""
    for case, number in (("a", 1), ("b", 20)):
        for word, volume in volumes(seed=number).items():
            name = f"VSD.Brain.XX.O.{word if word == 'OT' else 'MR_' + word}.{number}"
            save_volume(root / case / name / f"{name}.nii", volume)
        for word in ("MR_T2", "MR_T1c", "MR_CBF", "MR_CBV", "MR_TmaxTTP", "BIOTOT", "MR_DWIx"):
            name = f"VSD.Brain.XX.O.{word}.{number}"
            save_volume(root / case / name / f"{name}.nii", np.ones((2, 2, 2), np.uint8))


def lower_case(root):
    for path in spes_folder(root).rglob("*.nii"):
        path.rename(path.with_name(path.name.lower()))


def underscored(root):
    for number, path in enumerate(sorted(spes_folder(root).rglob("*.nii"))):
        path.rename(path.with_name(f"sub-{path.parent.name}_{path.name}" if number % 2 else f"Nr1-{path.name}"))


def hidden(root):
    spes_folder(root)
    for where in ("a/._DWI.nii", ".x/DWI.nii", "__MACOSX/a.nii"):
        save_volume(root / where, ONES)


def three_more(root):
    spes_folder(root)
    (root / "b" / "OT.nii").rename(root / "b" / "VSD.Brain_3more.XX.OT.6560.nii")


def separate(root, nested, suffix=".nii"):
    for number, case in enumerate("ab"):
        there = volumes(seed=number)
        labels = there.pop("OT")
        for word, volume in there.items():
            save_volume(root / case / f"{word}{suffix}", volume)
        penumbra = labels > 0 if nested else labels == 1
        save_volume(root / case / f"Nr{number}_penumbralabel{suffix}", penumbra.astype(np.uint8))
        save_volume(root / case / f"Nr{number}_corelabel{suffix}", (labels == 2).astype(np.int16))


def swapped_files(root, nested):
    separate(root, nested)
    for case in "ab":
        core, penumbra = sorted((root / case).glob("*label.nii"))
        core.rename(root / case / "x.nii")
        penumbra.rename(core)
        (root / case / "x.nii").rename(penumbra)


def scaled(root):
    """Integers with a slope and an intercept, big-endian."""
    spes_folder(root)
    stored = np.rint(volumes(seed=1)["Tmax"] / 0.01 - 100).astype(">i2")
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    image = nib.Nifti1Image(stored, OBLIQUE, header)
    image.header.set_slope_inter(0.01, 1.0)
    content = bytearray(image.to_bytes())
    struct.pack_into(">ff", content, 112, 0.01, 1.0)
    # nibabel rescales what it saves, so that the stored integers are put back.
    content[352:] = stored.tobytes(order="F")
    (root / "b" / "Tmax.nii").write_bytes(content)


def other_shapes(root):
    spes_folder(root, cases=("a",))
    for word, volume in volumes(shape=(12, 10, 6), seed=4).items():
        save_volume(root / "b" / f"{word}.nii.gz", volume, np.diag([2.0, 2.0, 2.0, 1.0]))


def with_value(word, value, dtype=np.float32):
    volume = volumes(seed=1)[word].astype(dtype)
    volume[0, 0, 0] = value
    volume[4, 4, 3] = value
    return volume


def truncate(root, where, size):
    path = root.joinpath(*where)
    path.write_bytes(path.read_bytes()[:size])


def moved(root):
    affine = OBLIQUE.copy()
    affine[0, 3] += 1.5
    spes_folder(root)
    save_volume(root / "b" / "TTP.nii", volumes(seed=1)["TTP"], affine)


def larger_than_memory(root):
    """A file with holes that does hold what its header claims: 20000 x 20000 x 2000 bytes."""
    spes_folder(root)
    patch(root, TMAX, 40, "<8h", 3, 20000, 20000, 2000, 1, 1, 1, 1)
    patch(root, TMAX, 70, "<2h", 2, 8)
    os.truncate(root.joinpath(*TMAX), 352 + 20000 * 20000 * 2000)


def many_bad(root):
    spes_folder(root, cases=("a", "b", "c", "d"))
    (root / "a" / "DWI.nii").unlink()
    truncate(root, ("b", "TTP.nii"), 0)
    truncate(root, ("d", "OT.nii"), 400)


def compressed(root, spoil):
    spes_folder(root, suffix=".nii.gz")
    path = root / "b" / "Tmax.nii.gz"
    path.write_bytes(spoil(path.read_bytes()))


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 40]) + content[middle + 40 :]


def lying_header(content):
    """Compressed, and claiming 30000 times 30000 times 30000 voxels."""
    plain = bytearray(gzip.decompress(content))
    struct.pack_into("<8h", plain, 40, 3, 30000, 30000, 30000, 1, 1, 1, 1)
    return gzip.compress(bytes(plain))


def expect_same(dataset):
    """The labels and images are those that were written."""
    for case, seed in zip(dataset.cases, (0, 1), strict=True):
        there = volumes(seed=seed)
        np.testing.assert_array_equal(case.labels, there["OT"])
        for index, word in enumerate(("Tmax", "TTP", "DWI")):
            np.testing.assert_allclose(case.images[..., index], there[word], rtol=1e-6, atol=0.006)


def expect_finite(dataset):
    assert np.isfinite(dataset.cases[1].images).all()
    assert dataset.cases[1].images[4, 4, 3, 0] == 0
    assert any("2 voxels are not finite" in note and "Tmax.nii" in note for note in dataset.notes)


def expect_nested(share):
    def check(dataset):
        expect_same(dataset)
        assert any(share in note for note in dataset.notes), dataset.notes

    return check


def expect_unlabelled(dataset):
    assert [case.labels is None for case in dataset.cases] == [False, True]


def expect_shapes(dataset):
    assert [case.images.shape for case in dataset.cases] == [(*SHAPE, 3), (12, 10, 6, 3)]


# What is odd: (how the folder is made, what must come of it: a check of the data set, or words of the one line).
GOOD = {
    "short names": (spes_folder, expect_same),
    "gzip": (lambda r: spes_folder(r, suffix=".nii.gz"), expect_same),
    "lower case names": (lower_case, expect_same),
    "the 3more variant of the label's name": (three_more, expect_same),
    "hidden files and folders": (
        hidden,
        expect_same,
    ),
    "links to the case folders": (
        lambda r: (spes_folder(r / ".real"), [(r / c).symlink_to(r / ".real" / c) for c in "ab"]),
        expect_same,
    ),
    "an empty folder beside the cases": (lambda r: (spes_folder(r), (r / "c").mkdir()), expect_same),
    "names with underscores and hyphens": (underscored, expect_same),
    "a reading-me beside the cases": (lambda r: (spes_folder(r), (r / "README.txt").write_text("x")), expect_same),
    "integers with slope and intercept, big-endian": (scaled, expect_same),
    "labels as float64": (lambda r: spes_folder(r, OT=volumes(seed=1)["OT"].astype(np.float64)), expect_same),
    "labels as int16": (lambda r: spes_folder(r, OT=volumes(seed=1)["OT"].astype(np.int16)), expect_same),
    "images as float64": (lambda r: spes_folder(r, TTP=volumes(seed=1)["TTP"].astype(np.float64)), expect_same),
    "a fourth axis of length 1": (lambda r: spes_folder(r, DWI=volumes(seed=1)["DWI"][..., None]), expect_same),
    "NIfTI-2": (
        lambda r: (spes_folder(r), nib.save(nib.Nifti2Image(volumes(seed=1)["DWI"], OBLIQUE), r / "b" / "DWI.nii")),
        expect_same,
    ),
    "separate label files, penumbra with the core in it": (
        lambda r: separate(r, True),
        expect_nested("contain the core (100%"),
    ),
    "separate label files, exclusive": (
        lambda r: separate(r, False, ".nii.gz"),
        expect_nested("do not contain the core (0%"),
    ),
    "a test case without labels": (lambda r: spes_folder(r, OT=None), expect_unlabelled),
    "cases of different shapes and spacings": (other_shapes, expect_shapes),
    "NaN voxels": (lambda r: spes_folder(r, Tmax=with_value("Tmax", np.nan)), expect_finite),
    "infinite voxels": (lambda r: spes_folder(r, Tmax=with_value("Tmax", -np.inf)), expect_finite),
    "values beyond float32": (lambda r: spes_folder(r, Tmax=with_value("Tmax", 1e300, np.float64)), expect_finite),
    "a constant image": (
        lambda r: spes_folder(r, TTP=np.full(SHAPE, 7, np.int16)),
        lambda d: np.testing.assert_array_equal(d.cases[1].images[..., 1], 7),
    ),
    "an empty sequence": (
        lambda r: spes_folder(r, TTP=np.zeros(SHAPE, np.int16)),
        lambda d: np.testing.assert_array_equal(d.cases[1].images[..., 1], 0),
    ),
    "a case whose labels are all background": (
        lambda r: spes_folder(r, OT=np.zeros(SHAPE, np.uint8)),
        lambda d: np.testing.assert_array_equal(d.cases[1].labels, 0),
    ),
}

BAD = {
    "a missing sequence": (lambda r: spes_folder(r, DWI=None), "b: no DWI.nii.*found OT.nii, TTP.nii, Tmax.nii"),
    "an empty root": (lambda r: None, "holds no case folder"),
    "files where folders should be": (lambda r: save_volume(r / "DWI.nii", ONES), "holds no case folder"),
    "a sequence twice": (lambda r: (spes_folder(r), save_volume(r / "b" / "TTP.nii.gz", ONES)), "b: 2 files for TTP"),
    "the folder above the cases": (
        lambda r: spes_folder(r / "SPES2015_Training"),
        "SPES2015_Training: 2 files for Tmax .a/Tmax.nii, b/Tmax.nii",
    ),
    "a link into nowhere": (
        lambda r: (spes_folder(r, TTP=None), (r / "b" / "TTP.nii").symlink_to("/nowhere/TTP.nii")),
        "b: no TTP.nii",
    ),
    "another shape": (
        lambda r: spes_folder(r, TTP=np.ones((9, 8, 4), np.int16)),
        "TTP.nii: shape 9x8x4; expected 9x8x5 as in Tmax",
    ),
    "another affine": (moved, "TTP.nii: its affine lies 1.5 mm away"),
    "labels of another shape": (lambda r: spes_folder(r, OT=np.ones((9, 8, 6), np.uint8)), "OT.nii: shape 9x8x6"),
    "an unknown label": (
        lambda r: spes_folder(r, OT=with_value("OT", 3, np.uint8)),
        r"OT.nii: holds the label 3; expected only 0, 1, 2",
    ),
    "a negative label": (lambda r: spes_folder(r, OT=with_value("OT", -1, np.int16)), "OT.nii: holds the label -1"),
    "a label between two": (lambda r: spes_folder(r, OT=with_value("OT", 1.5)), "OT.nii: holds the label 1.5"),
    "a label that is not a number": (
        lambda r: spes_folder(r, OT=with_value("OT", np.nan)),
        "OT.nii: holds the label nan",
    ),
    "a binary label file with twos": (
        lambda r: (separate(r, True), save_volume(r / "b" / "Nr1_corelabel.nii", volumes(seed=1)["OT"])),
        r"corelabel.nii: holds the label 2; expected only 0, 1",
    ),
    "a core file without its penumbra": (
        lambda r: (separate(r, True), (r / "b" / "Nr1_penumbralabel.nii").unlink()),
        "b: no penumbralabel",
    ),
    "both forms of labels": (
        lambda r: (separate(r, True), save_volume(r / "b" / "OT.nii", volumes()["OT"])),
        "OT.nii: stands beside",
    ),
    "an empty file": (lambda r: (spes_folder(r), truncate(r, TMAX, 0)), "Tmax.nii: not a readable NIfTI"),
    "a truncated header": (lambda r: (spes_folder(r), truncate(r, TMAX, 200)), "Tmax.nii: not a readable NIfTI"),
    "truncated voxels": (
        lambda r: (spes_folder(r), truncate(r, TMAX, 800)),
        "Tmax.nii: the header claims 1792 bytes.*at most 800",
    ),
    "voxels that lack the last byte": (
        lambda r: (spes_folder(r), truncate(r, TMAX, -1)),
        "header claims 1792 bytes.*at most 1791",
    ),
    "truncated gzip": (lambda r: compressed(r, lambda c: c[: len(c) // 2]), "Tmax.nii.gz: not a readable NIfTI"),
    "a damaged gzip": (lambda r: compressed(r, flipped), "Tmax.nii.gz: not a readable NIfTI"),
    "a gzip that is none": (lambda r: compressed(r, gzip.decompress), "Tmax.nii.gz: not a readable NIfTI"),
    "text under a NIfTI name": (
        lambda r: (spes_folder(r), r.joinpath(*TMAX).write_text("no volume " * 99)),
        "Tmax.nii: not a readable NIfTI",
    ),
    "more voxels than the file": (
        lambda r: (spes_folder(r), patch(r, TMAX, 42, "<h", 30000)),
        "Tmax.nii: the header claims",
    ),
    "more voxels than a gzip can hold": (lambda r: compressed(r, lying_header), "Tmax.nii.gz: the header claims"),
    "more voxels than the memory": (larger_than_memory, "Tmax.nii: 800000000000 voxels need"),
    "a negative side": (lambda r: (spes_folder(r), patch(r, TMAX, 42, "<h", -9)), "Tmax.nii: (shape|not a readable)"),
    "an empty side": (lambda r: (spes_folder(r), patch(r, TMAX, 42, "<h", 0)), "Tmax.nii: shape 0x8x5"),
    "two axes": (
        lambda r: spes_folder(r, Tmax=np.ones((9, 8), np.float32)),
        "Tmax.nii: shape 9x8; expected three axes",
    ),
    "a series": (
        lambda r: spes_folder(r, Tmax=np.ones((9, 8, 5, 4), np.float32)),
        "Tmax.nii: holds 4 volumes; expected one",
    ),
    "complex voxels": (lambda r: spes_folder(r, Tmax=np.ones(SHAPE, np.complex64)), "Tmax.nii: holds complex64"),
    "coloured voxels": (
        lambda r: spes_folder(r, Tmax=np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "Tmax.nii: holds colours; expected integers or real numbers, and not a picture",
    ),
    "an unknown data type": (
        lambda r: (spes_folder(r), patch(r, TMAX, 70, "<h", 77)),
        "Tmax.nii: not a readable NIfTI",
    ),
    "a slope without intercept": (
        lambda r: (spes_folder(r), patch(r, TMAX, 112, "<ff", 2.0, np.nan)),
        "Tmax.nii: not a readable NIfTI",
    ),
    "an affine that is not finite": (
        lambda r: (spes_folder(r), patch(r, TMAX, 280, "<f", np.nan)),
        "Tmax.nii: the affine",
    ),
    "an affine without inverse": (
        lambda r: (spes_folder(r), patch(r, TMAX, 280, "<8f", *[0.0] * 8)),
        "Tmax.nii: the affine",
    ),
    "micrometres": (
        lambda r: (spes_folder(r), patch(r, TMAX, 123, "<b", 3)),
        "Tmax.nii: its header measures in micrometres",
    ),
    "a case of zeros": (
        lambda r: spes_folder(r, **{word: np.zeros(SHAPE, np.int16) for word in ("Tmax", "TTP", "DWI")}),
        "b/Tmax.nii: no voxel of this case differs from 0",
    ),
    "no core in any case": (
        lambda r: spes_folder(r, cases=("b",), OT=(volumes(seed=1)["OT"] > 0).astype(np.uint8)),
        "images contradict the labels: .*core 0 ml.*not agree either",
    ),
    "the two label files exchanged, nested": (
        lambda r: swapped_files(r, True),
        "exchanging the files named penumbralabel and",
    ),
    "the two label files exchanged": (
        lambda r: swapped_files(r, False),
        "exchanging the files named penumbralabel and",
    ),
}


def nifti2(affine, shape=SHAPE):
    """A folder in which one volume is NIfTI-2 with this affine and shape."""

    def make(root):
        spes_folder(root)
        nib.save(nib.Nifti2Image(np.zeros(shape, np.uint8), affine), root.joinpath(*TMAX))

    return make


def far_away():
    affine = OBLIQUE.copy()
    affine[0, 3] = 1e39
    return affine


def bomb(content):
    """Compressed, and much longer than its header claims."""
    return gzip.compress(gzip.decompress(content) + bytes(5 << 20))


def in_two_members(root):
    """Compressed in two pieces, one after the other, with zeros at the end."""
    spes_folder(root, suffix=".nii.gz")
    path = root / "b" / "Tmax.nii.gz"
    plain = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(plain[:500]) + gzip.compress(plain[500:]) + bytes(99))


def cifti(root):
    """NIfTI-2 with the intent of CIFTI and an extension that should be XML."""
    spes_folder(root)
    image = nib.Nifti2Image(np.zeros((1, 1, 1, 1, 3, 4), np.float32), np.eye(4))
    image.header.set_intent(3006)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"<CIFTI><broken"))
    content = bytearray(image.to_bytes())
    struct.pack_into("<i", content, 548, 32)
    root.joinpath(*TMAX).write_bytes(content)


GOOD["gzip of two members"] = (in_two_members, expect_same)
BAD |= {
    "an affine beyond float32": (nifti2(far_away()), "Tmax.nii: the affine"),
    "a side beyond NIfTI-1": (nifti2(OBLIQUE, (40000, 1, 1)), "Tmax.nii: shape 40000x1x1; expected sides of at most"),
    "CIFTI with broken XML": (cifti, "Tmax.nii: "),
    "gzip without its trailer": (lambda r: compressed(r, lambda c: c[:-8]), "Tmax.nii.gz: not a readable NIfTI"),
    "gzip with another checksum": (
        lambda r: compressed(r, lambda c: c[:-8] + bytes([c[-8] ^ 1]) + c[-7:]),
        "Tmax.nii.gz: not a readable NIfTI volume .*CRC check failed",
    ),
    "gzip that goes on": (lambda r: compressed(r, bomb), "Tmax.nii.gz: goes on after the"),
}


def test_a_case_that_all_its_channels_make_too_large_is_refused(tmp_path, monkeypatch):
    spes_folder(tmp_path, suffix=".nii.gz")
    monkeypatch.setattr(nifti, "machine_memory", lambda: 9 * 8 * 5 * 4 * 7)
    with pytest.raises(InputError, match=r"Tmax\.nii\.gz: 360 voxels need 6112 bytes; expected at most half"):
        layouts.load_images(tmp_path, isles.CHANNELS)
    layouts.load_images(tmp_path, ("DWI",))


def test_no_flipped_bit_of_a_compressed_volume_changes_a_voxel(tmp_path):
    path = tmp_path / "a.nii.gz"
    save_volume(path, np.random.default_rng(0).random((20, 20, 10), np.float32))
    content, expected = path.read_bytes(), nifti.read_volume(path)[0]
    refused = 0
    for place in np.random.default_rng(1).integers(0, 8 * len(content), 200):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        try:
            np.testing.assert_array_equal(nifti.read_volume(path)[0], expected)
        except InputError:
            refused += 1
    assert refused > 190


@pytest.mark.parametrize("kind", GOOD)
def test_unusual_folders_are_read(kind, tmp_path):
    prepare, check = GOOD[kind]
    prepare(tmp_path)
    before = checksums(tmp_path)
    dataset = layouts.load(tmp_path, penumbra=1, core=2)
    check(dataset)
    for case in dataset.cases:
        assert case.images.dtype == np.float32
        assert case.labels is None or case.labels.dtype == np.uint8
    assert checksums(tmp_path) == before


@pytest.mark.parametrize("kind", BAD)
def test_damaged_folders_end_in_one_line(kind, tmp_path):
    prepare, words = BAD[kind]
    prepare(tmp_path)
    before = None if kind == "more voxels than the memory" else checksums(tmp_path)
    with pytest.raises(InputError) as caught:
        layouts.load(tmp_path, penumbra=1, core=2)
    message = str(caught.value)
    assert re.search(words, message), message
    assert "\n" not in message
    assert str(tmp_path) in message
    assert before is None or checksums(tmp_path) == before


def test_sheared_axes_are_named(tmp_path):
    """The volume of a voxel is right for any affine, but surface distances take its sides as perpendicular."""
    spes_folder(tmp_path)
    sheared = np.diag([2.0, 2.0, 3.0, 1.0])
    sheared[0, 1] = 2 / np.sqrt(3)
    for path in sorted((tmp_path / "b").iterdir()):
        save_volume(path, np.asarray(nib.load(path).dataobj).copy(), sheared, (0, 1))
    dataset = layouts.load(tmp_path)
    [note] = [note for note in dataset.notes if "surface distances" in note]
    assert note == "b: the axes meet at 60 degrees; surface distances are measured as if at 90"


def test_the_challenges_own_names(tmp_path):
    long_form(tmp_path)
    dataset = layouts.load(tmp_path, penumbra=1, core=2)
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert dataset.channels == ("Tmax", "TTP", "DWI")
    for case, seed in zip(dataset.cases, (1, 20), strict=True):
        np.testing.assert_array_equal(case.images[..., 2], volumes(seed=seed)["DWI"])
        assert [path.name.split(".")[-3] for path in case.files] == ["MR_Tmax", "MR_TTP", "MR_DWI", "OT"]


def test_all_bad_cases_are_listed_at_once(tmp_path):
    many_bad(tmp_path)
    with pytest.raises(InputError) as caught:
        layouts.load(tmp_path, penumbra=1, core=2)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for line, words in zip(
        lines, ("/a: no DWI", "/b/TTP.nii: not a readable", "/d/OT.nii: the header claims"), strict=True
    ):
        assert words in line


def test_label_integers_are_configurable_and_checked(tmp_path):
    spes_folder(tmp_path)
    for case in "ab":
        labels = volumes(seed="ab".index(case))["OT"]
        save_volume(tmp_path / case / "OT.nii", np.where(labels == 1, 7, np.where(labels == 2, 4, 0)).astype(np.uint8))
    dataset = layouts.load(tmp_path, penumbra=7, core=4)
    expect_same(dataset)
    assert dataset.label_values == (7, 4)
    with pytest.raises(InputError, match=r"--config.data.labels.penumbra=7 --config.data.labels.core=4 would agree"):
        layouts.load(tmp_path, penumbra=4, core=7)
    with pytest.raises(InputError, match="holds the label 4"):
        layouts.load(tmp_path, penumbra=1, core=2)
    for values in ((1, 1), (0, 2), (1, 256)):
        with pytest.raises(InputError, match="expected two different integers from 1 to 255"):
            layouts.load(tmp_path, penumbra=values[0], core=values[1])


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    spes_folder(tmp_path)
    real = Path.iterdir

    def guarded(self):
        if self.name == "b":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", guarded)
    with pytest.raises(InputError, match=r"/b: cannot be read as a folder \(Permission denied\)"):
        layouts.load(tmp_path, penumbra=1, core=2)


def test_images_for_prediction(tmp_path):
    spes_folder(tmp_path, OT=None)
    truncate(tmp_path, ("a", "OT.nii"), 100)
    folder = layouts.load_images(tmp_path, isles.CHANNELS)
    assert [case.name for case in folder.cases] == ["a", "b"]
    assert all(case.labels is None for case in folder.cases)
    alone = layouts.load_images(tmp_path / "b", ("DWI", "Tmax"))
    assert [case.name for case in alone.cases] == ["b"]
    np.testing.assert_array_equal(alone.cases[0].images[..., 0], volumes(seed=1)["DWI"])
    with pytest.raises(InputError, match=r"b: no FLAIR\.nii"):
        layouts.load_images(tmp_path / "b", ("DWI", "FLAIR"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no case folder"):
        layouts.load_images(tmp_path / "empty", isles.CHANNELS)


def test_a_case_is_named_by_its_entry_in_the_folder(tmp_path):
    spes_folder(tmp_path / "A", cases=("mri",))
    spes_folder(tmp_path / "B", cases=("mri",))
    (tmp_path / "in").mkdir()
    for name, target in (("p1", "A"), ("p2", "B")):
        (tmp_path / "in" / name).symlink_to(tmp_path / target / "mri")
    cases = layouts.load_images(tmp_path / "in", isles.CHANNELS).cases
    assert [case.name for case in cases] == ["p1", "p2"]
    assert [case.name for case in layouts.load_images(tmp_path / "in" / "p2", isles.CHANNELS).cases] == ["p2"]


def test_images_of_several_patients_are_not_read_as_one(tmp_path):
    for case, names in (("p1", ["Tmax"]), ("p2", ["TTP", "DWI"])):
        for name in names:
            save_volume(tmp_path / "x" / case / f"{name}.nii", volumes()[name])
    for read in (
        lambda: layouts.load_images(tmp_path / "x", isles.CHANNELS),
        lambda: layouts.load(tmp_path, penumbra=1, core=2),
    ):
        with pytest.raises(InputError, match=r"x: found p1/Tmax\.nii and .*, expected the images of one patient"):
            read()
