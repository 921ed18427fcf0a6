"""Nothing vanishes: what lies in a folder of cases and looks like an image, a label or a case is read or named."""

import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import SHAPE, nnunet_folder, save_volume, spes_folder, volumes
from isles_folder import isles_2022

from isles_jax.data import layouts
from isles_jax.runtime.command import InputError

CHANNELS = ("Tmax", "TTP", "DWI")
DICOM = bytes(128) + b"DICM" + bytes(99)


def dicom_of(uid):
    """The beginning of a DICOM object of a class (PS3.10): its length, version and class in the file's own group."""
    value = uid.encode() + b"\0" * (len(uid) % 2)
    group = b"\x02\0\x01\0OB\0\0\2\0\0\0\0\1" + b"\x02\0\x02\0UI" + len(value).to_bytes(2, "little") + value
    return bytes(128) + b"DICM\x02\0\0\0UL\4\0" + len(group).to_bytes(4, "little") + group + bytes(2000)


# A file of another format, and the words of the note on it.
UNREAD = {
    "x.mha": (b"ObjectType = Image\n", "SimpleITK"),
    "x.MHD": (b"ObjectType = Image\n", "SimpleITK"),
    "x.nrrd": (b"NRRD0004\n", "SimpleITK"),
    "x.hdr": (bytes(348), "SimpleITK"),
    "x.img": (bytes(99), "SimpleITK"),
    "x.mgz": (b"\x1f\x8b", "mri_convert"),
    "x.dcm": (DICOM, "dcm2niix"),
    "IM-0001": (DICOM, "dcm2niix"),
    "1.2.840.113619.2": (DICOM, "dcm2niix"),
    "mr.dcm": (dicom_of("1.2.840.10008.5.1.4.1.1.4"), "dcm2niix"),
    "seg.dcm": (dicom_of("1.2.840.10008.5.1.4.1.1.66.4"), "segimage2itkimage"),
    "SEG001": (dicom_of("1.2.840.10008.5.1.4.1.1.66.4"), "segimage2itkimage"),
    "rtss.dcm": (dicom_of("1.2.840.10008.5.1.4.1.1.481.3"), "plastimatch"),
    "x.nii.bz2": (b"BZ", "unpack it"),
    "x.zip": (b"PK", "unpack it"),
}
# What is no image.
OTHER = {"README": b"text", "x.txt": b"text", "notes.1": b"text", "x.json": b"{}", ".x.mha": b"hidden"}
PLACES = {
    "SPES": (spes_folder, "b"),
    "ISLES-2022": (isles_2022, "sub-strokecase0002/ses-0001/dwi"),
    "masks": (isles_2022, "derivatives/sub-strokecase0002/ses-0001"),
    "nnU-Net images": (nnunet_folder, "imagesTr"),
    "nnU-Net labels": (nnunet_folder, "labelsTr"),
}


def unread(dataset):
    """The notes on what was not read, without those on FLAIR."""
    return [note for note in dataset.notes if note.startswith("not read") and "FLAIR" not in note]


@pytest.mark.parametrize("place", PLACES)
def test_other_formats_are_named_with_what_converts_them(place, tmp_path):
    build, inside = PLACES[place]
    build(tmp_path)
    before = layouts.load(tmp_path)
    for name, (content, _) in UNREAD.items():
        (tmp_path / inside / name).write_bytes(content)
    for name, content in OTHER.items():
        (tmp_path / inside / name).write_bytes(content)
    dataset = layouts.load(tmp_path)
    assert [case.name for case in dataset.cases] == [case.name for case in before.cases]
    assert unread(before) == []
    found = unread(dataset)
    assert len(found) == len({words for _, words in UNREAD.values()})
    for words in ("SimpleITK", "mri_convert", "dcm2niix", "segimage2itkimage", "plastimatch", "unpack it"):
        [note] = [note for note in found if words in note]
        mine = sorted(name for name, (_, named) in UNREAD.items() if named == words)
        shown = [f"{inside}/{name}" for name in mine[:3]]
        assert note.startswith(f"not read: {', '.join(shown)}")
        assert (f"and {len(mine) - 3} more" in note) == (len(mine) > 3)
    assert not [note for note in dataset.notes if any(name in note for name in OTHER)]


@pytest.mark.parametrize("name", UNREAD)
def test_each_format_alone(name, tmp_path):
    content, words = UNREAD[name]
    (spes_folder(tmp_path) / "b" / name).write_bytes(content)
    [note] = unread(layouts.load(tmp_path))
    assert note.startswith(f"not read: b/{name}; ")
    assert words in note
    # A case that lacks a channel is refused, and the message says where it may be.
    (tmp_path / "b" / "TTP.nii").unlink()
    with pytest.raises(InputError, match=rf"b: no TTP\.nii .*found .*; {name} is .*{words}"):
        layouts.load(tmp_path)


@pytest.mark.parametrize("read", [layouts.load, lambda root: layouts.load_images(root, CHANNELS)])
def test_a_folder_of_dicom_alone_ends_in_one_line_that_says_what_converts_it(read, tmp_path):
    for number in range(5):
        path = tmp_path / "Müller Jörg" / "DWI" / f"IM-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DICOM)
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds no NIfTI file; not read: Müller Jörg/DWI/IM-0, Müller Jörg/DWI/IM-1, Müller Jörg/DWI/IM-2 "
        "and 2 more; each of them in a format that is not read; dcm2niix converts it to NIfTI (docs/dicom.md)"
    )


@pytest.mark.parametrize("ending", [".NII", ".NII.GZ", ".nii.GZ", ".Nii"])
def test_endings_in_upper_case_are_read(ending, tmp_path):
    spes_folder(tmp_path / "spes", suffix=ending)
    nnunet_folder(tmp_path / "nnunet")
    isles_2022(tmp_path / "2022", flair=False)
    for root in (tmp_path / "nnunet", tmp_path / "2022"):
        expected = layouts.load(root)
        for path in sorted(root.rglob("*.nii.gz")):
            image = nib.load(path)
            data = np.asarray(image.dataobj)
            path.unlink()
            save_volume(path.with_name(path.name.removesuffix(".nii.gz") + ending), data, image.affine)
        dataset = layouts.load(root)
        assert dataset.notes == expected.notes == ()
        for one, other in zip(dataset.cases, expected.cases, strict=True):
            np.testing.assert_array_equal(one.images, other.images)
            assert (one.labels is None) == (other.labels is None)
            assert one.labels is None or np.array_equal(one.labels, other.labels)
    for case, seed in zip(layouts.load(tmp_path / "spes").cases, (0, 1), strict=True):
        np.testing.assert_array_equal(case.labels, volumes(seed=seed)["OT"])
        np.testing.assert_array_equal(case.images[..., 2], volumes(seed=seed)["DWI"])


@pytest.mark.parametrize("other", [".nii", ".NII.GZ"])
def test_a_volume_beside_its_compressed_form_is_refused(other, tmp_path):
    """Either may be the right one."""
    spes_folder(tmp_path / "spes", suffix=".nii.gz")
    isles_2022(tmp_path / "2022")
    nnunet_folder(tmp_path / "nnunet")
    for place in ("spes/b/TTP", "2022/derivatives/sub-strokecase0002/ses-0001/sub-strokecase0002_ses-0001_msk",
                  "nnunet/imagesTr/p1_0001", "nnunet/labelsTr/p1"):  # fmt: skip
        first = tmp_path / f"{place}.nii.gz"
        second = first.with_name(first.name.removesuffix(".nii.gz") + other)
        save_volume(second, np.asarray(nib.load(first).dataobj))
        with pytest.raises(InputError) as caught:
            layouts.load(tmp_path / place.split("/")[0])
        assert first.name in str(caught.value)
        assert second.name in str(caught.value)
        second.unlink()


def test_links_to_nowhere_are_named_with_what_fetches_them(tmp_path):
    isles_2022(tmp_path, flair=False)
    mask = tmp_path / "derivatives/sub-strokecase0002/ses-0001/sub-strokecase0002_ses-0001_msk.nii.gz"
    mask.unlink()
    mask.symlink_to("../../../.git/annex/objects/XX/MD5E-s9--00.nii.gz")
    (tmp_path / "README").symlink_to("nowhere")
    dataset = layouts.load(tmp_path)
    assert [case.labels is None for case in dataset.cases] == [False, True, False]
    [note] = unread(dataset)
    assert note.startswith(f"not read: {mask.relative_to(tmp_path)}; ")
    assert "git annex get" in note
    assert "datalad get" in note
    image = tmp_path / "sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_adc.nii.gz"
    image.unlink()
    image.symlink_to("nowhere.nii.gz")
    with pytest.raises(InputError, match=r"no sub-strokecase0001_ses-0001_adc\.nii .*adc\.nii\.gz is .*datalad get"):
        layouts.load(tmp_path)


def test_links_to_nowhere_in_a_folder_of_nnunet(tmp_path):
    root = nnunet_folder(tmp_path)
    for number in range(3):
        path = root / "imagesTs" / f"p3_{number:04d}.nii.gz"
        path.unlink()
        path.symlink_to("nowhere")
    [note] = unread(layouts.load(root))
    assert "imagesTs/p3_0000.nii.gz, imagesTs/p3_0001.nii.gz, imagesTs/p3_0002.nii.gz; each of them a link to" in note
    shutil.rmtree(root / "imagesTr")
    with pytest.raises(InputError, match=r"no <case>_0000\.nii\.gz in imagesTr or imagesTs; p3_0000.* is a link to"):
        layouts.load(root)


@pytest.mark.parametrize(("content", "words"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    (b"/annex/objects/MD5E-s9--00.nii.gz\n", "git annex get"),
])  # fmt: skip
def test_a_pointer_is_named_with_what_fetches_its_content(content, words, tmp_path):
    spes_folder(tmp_path)
    (tmp_path / "b" / "TTP.nii").write_bytes(content)
    with pytest.raises(InputError, match=rf"b/TTP\.nii: a pointer of .*{words}"):
        layouts.load(tmp_path)


def test_a_file_that_may_not_be_read_is_named_with_this_reason(tmp_path, monkeypatch):
    spes_folder(tmp_path)
    real = Path.open

    def guarded(self, *arguments, **options):
        if self.name == "TTP.nii":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", guarded)
    with pytest.raises(InputError, match=r"/a/TTP\.nii: cannot be read \(Permission denied\)"):
        layouts.load(tmp_path)


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    nnunet_folder(tmp_path)
    (tmp_path / "closed").mkdir()
    real = Path.iterdir

    def guarded(self):
        if self.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", guarded)
    [note] = unread(layouts.load(tmp_path))
    assert note == "not read: closed; a folder that cannot be read (Permission denied)"


def test_a_file_in_a_folder_that_may_only_be_listed_is_named(tmp_path, monkeypatch):
    nnunet_folder(tmp_path)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "x.nii.gz").touch()
    real = Path.stat

    def guarded(self, **options):
        if self.parent.name == "code":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, **options)

    monkeypatch.setattr(Path, "stat", guarded)
    assert unread(layouts.load(tmp_path)) == ["not read: code/x.nii.gz; a file that cannot be read (Permission denied)"]


def test_volumes_that_are_no_channel_are_named(tmp_path):
    root = spes_folder(tmp_path)
    save_volume(root / "a" / "T2.nii", np.ones(SHAPE, np.uint8))
    save_volume(root / "report.nii.gz", np.ones(SHAPE, np.uint8))
    [note] = unread(layouts.load(root))
    assert note == (
        "not read: a/T2.nii, report.nii.gz; each of them by its name and folder none of the channels Tmax, TTP, DWI or "
        "their labels"
    )


def test_in_prediction_too(tmp_path):
    root = nnunet_folder(tmp_path / "set") / "imagesTs"
    for name in ("e_0.nii.gz", "f_00000.nii.gz", "g.nii.gz"):
        save_volume(root / name, np.ones(SHAPE, np.uint8))
    for number in range(3):
        shutil.copy(root / f"p3_{number:04d}.nii.gz", root / f"b_{number:04d}.NII.GZ")
    dataset = layouts.load_images(root, CHANNELS)
    assert [case.name for case in dataset.cases] == ["b", "p3"]
    np.testing.assert_array_equal(dataset.cases[0].images, dataset.cases[1].images)
    assert unread(dataset) == [
        "not read: e_0.nii.gz, f_00000.nii.gz, g.nii.gz; each of them by its name and folder none of the channels "
        "Tmax, TTP, DWI"
    ]
    (root / "c_0000.mha").write_bytes(b"ObjectType = Image\n")
    assert any("c_0000.mha; in a format" in note for note in unread(layouts.load_images(root, CHANNELS)))


def test_the_labels_of_a_data_set_that_is_predicted_are_named(tmp_path):
    [note] = unread(layouts.load_images(spes_folder(tmp_path), CHANNELS))
    assert note.startswith("not read: a/OT.nii, b/OT.nii; each of them")


@pytest.mark.parametrize(("build", "stray"), [(spes_folder, "c"), (isles_2022, "sub-x")])
def test_a_folder_without_images_beside_the_cases_is_named(build, stray, tmp_path):
    build(tmp_path)
    (tmp_path / stray / "inner").mkdir(parents=True)
    (tmp_path / stray / "notes.txt").write_text("x")
    assert unread(layouts.load(tmp_path)) == [f"not read: {stray}; a folder without an image"]
    channels = layouts.load(tmp_path).channels
    assert f"not read: {stray}; a folder without an image" in unread(layouts.load_images(tmp_path, channels))


def test_a_link_to_a_folder_above_ends(tmp_path):
    spes_folder(tmp_path)
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    assert len(layouts.load(tmp_path).cases) == 2


def test_no_labels_at_all(tmp_path):
    isles_2022(tmp_path / "2022", mask=False, flair=False)
    [note] = layouts.load(tmp_path / "2022").notes
    assert note.startswith(f"no labels: no file NAME_WORD.nii.gz in {tmp_path / '2022'}, where WORD is one of msk")
    for path in sorted(spes_folder(tmp_path / "spes").rglob("OT.nii")):
        path.unlink()
    (tmp_path / "spes/a/OT.mha").write_bytes(b"x")
    notes = layouts.load(tmp_path / "spes").notes
    assert notes[0].startswith("no labels: no file with OT, or penumbralabel and corelabel in its name")
    assert notes[1].startswith("not read: a/OT.mha; in a format that is not read; SimpleITK")
