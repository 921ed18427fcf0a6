"""Geometry and privacy of what is written, what a data set's description says, and what the label check catches."""

import contextlib
import re
import struct

import nibabel as nib
import numpy as np
import pytest
from helpers import OBLIQUE, SHAPE, save_volume, spes_folder, volumes
from hypothesis import given, settings
from hypothesis import strategies as st

from isles_jax.data import layouts
from isles_jax.data.nifti import read_labels, read_volume, write_labels, write_volume
from isles_jax.runtime.command import InputError

SECRET = b"Jane Doe 1950"
LEFT_HANDED = np.diag([-2.0, 2.0, 3.5, 1.0])
SHEARED = OBLIQUE @ np.array([[1, 0.2, 0, 0], [0, 1, 0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def secret_case(path, affine, qcode, scode, version=nib.Nifti1Image):
    """Saves a volume whose header carries a name in every text field, and geometry in the given forms only."""
    image = version(volumes()["DWI"], affine)
    image.set_qform(affine if qcode else None, qcode, strip_shears=True)
    image.set_sform(affine if scode else None, scode)
    header = image.header
    for field in ("descrip", "aux_file", "intent_name"):
        header[field] = SECRET
    for field in ("db_name", "data_type"):
        if field in header:
            header[field] = SECRET[:10]
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    assert SECRET in path.read_bytes()


@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 2), (0, 4), (3, 0), (0, 0)])
@pytest.mark.parametrize("affine", [OBLIQUE, LEFT_HANDED, SHEARED], ids=["oblique", "left-handed", "sheared"])
def test_predictions_lie_on_the_input(affine, codes, version, tmp_path):
    source = tmp_path / "a" / "DWI.nii"
    secret_case(source, affine, *codes, version)
    case = layouts.load_images(tmp_path / "a", ("DWI",)).cases[0]
    labels = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    write_labels(tmp_path / "p.nii.gz", labels, case, (7, 255))
    write_volume(tmp_path / "q.nii", labels / 3, case)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "p.nii.gz", "q.nii"]
    before = nib.load(source)
    for name, kind, expected in (("p.nii.gz", np.uint8, np.array([0, 7, 255])[labels]), ("q.nii", "<f4", labels / 3)):
        after = nib.load(tmp_path / name)
        assert after.shape == before.shape
        assert after.get_data_dtype() == np.dtype(kind)
        assert (after.dataobj.slope, after.dataobj.inter) == (1, 0)
        # NIfTI-2 holds its affine in double precision, and NIfTI-1, which is written, in single.
        np.testing.assert_allclose(after.affine, before.affine, rtol=0, atol=0 if version is nib.Nifti1Image else 1e-5)
        for form in ("get_qform", "get_sform"):
            (old, old_code), (new, new_code) = (getattr(image, form)(coded=True) for image in (before, after))
            assert old_code == new_code
            if old_code:
                np.testing.assert_allclose(new, old, atol=1e-5)
        np.testing.assert_allclose(after.header.get_zooms(), before.header.get_zooms(), rtol=1e-6)
        np.testing.assert_allclose(np.asarray(after.dataobj), expected, rtol=1e-6)
        assert nib.aff2axcodes(after.affine) == nib.aff2axcodes(before.affine)


@pytest.mark.parametrize("name", ["p.nii", "p.nii.gz"])
def test_no_text_of_a_header_is_copied(name, tmp_path):
    secret_case(tmp_path / "a" / "DWI.nii", OBLIQUE, 1, 2)
    case = layouts.load_images(tmp_path / "a", ("DWI",)).cases[0]
    assert SECRET[:8] not in case.header.binaryblock
    write_labels(tmp_path / name, np.zeros(SHAPE, np.uint8), case, (1, 2))
    written = nib.load(tmp_path / name)
    assert SECRET[:8] not in written.to_bytes()
    assert not written.header.extensions


def test_the_same_prediction_is_the_same_file(tmp_path):
    case = layouts.load(spes_folder(tmp_path / "d"), penumbra=1, core=2).cases[0]
    for name in ("x.nii.gz", "y.nii.gz"):
        write_labels(tmp_path / name, case.labels, case, (1, 2))
    assert (tmp_path / "x.nii.gz").read_bytes() == (tmp_path / "y.nii.gz").read_bytes()
    with pytest.raises(ValueError, match="shape"):
        write_labels(tmp_path / "z.nii.gz", case.labels[1:], case, (1, 2))
    assert not (tmp_path / "z.nii.gz").exists()


def test_labels_are_read_as_the_classes_and_unknown_ones_refused(tmp_path):
    case = layouts.load(spes_folder(tmp_path / "d"), penumbra=1, core=2).cases[0]
    write_labels(tmp_path / "p.nii.gz", case.labels, case, (9, 4))
    np.testing.assert_array_equal(read_labels(tmp_path / "p.nii.gz", case, (9, 4)), case.labels)
    with pytest.raises(InputError, match=r"p\.nii\.gz: holds the label 4; expected only 0, 9, 5"):
        read_labels(tmp_path / "p.nii.gz", case, (9, 5))


@pytest.mark.parametrize(("value", "expected"), [(1.00002, 1), (0.996, 1), (1.9901, 2), (0.98, None), (-0.5, None)])
def test_labels_within_a_hundredth_of_an_integer_are_rounded(value, expected, tmp_path):
    case = layouts.load(spes_folder(tmp_path / "d"), penumbra=1, core=2).cases[0]
    path = tmp_path / "labels.nii"
    nib.save(nib.Nifti1Image(np.where(case.labels > 0, value, 0).astype(np.float32), case.affine), path)
    if expected is None:
        with pytest.raises(InputError, match=rf"labels\.nii: holds the label {value}\d*; expected whole numbers"):
            read_labels(path, case, (1, 2))
    else:
        np.testing.assert_array_equal(read_labels(path, case, (1, 2)), np.where(case.labels > 0, expected, 0))


def test_a_grid_may_differ_by_a_tenth_of_a_voxel(tmp_path):
    """The size of the matrix does not matter: the corners are compared."""
    case = layouts.load(spes_folder(tmp_path / "d"), penumbra=1, core=2).cases[0]
    side = min(case.spacing_mm)
    for share in (0.09, 0.11):
        affine = case.affine.copy()
        affine[0, 3] += share * side
        nib.save(nib.Nifti1Image(case.labels, affine), tmp_path / f"{share}.nii")
    np.testing.assert_array_equal(read_labels(tmp_path / "0.09.nii", case, (1, 2)), case.labels)
    with pytest.raises(InputError, match=r"0\.11\.nii: its affine lies .* mm away from that of .*; expected one grid"):
        read_labels(tmp_path / "0.11.nii", case, (1, 2))


@pytest.mark.parametrize(("outside", "kind"), [(-1024, np.int16), (-2e-3, np.float32), (7, np.uint8), (0, np.int16)])
def test_the_background_need_not_be_0(outside, kind, tmp_path):
    """What is read is the image with 0 outside; the case says so, and its brain is the brain alone."""
    true = np.zeros((12, 10, 6), bool)
    true[3:9, 2:8, 1:5] = True
    inside = np.random.default_rng(0).integers(20, 80, true.shape)
    save_volume(tmp_path / "a" / "DWI.nii", np.where(true, inside, outside).astype(kind))
    case = layouts.load_images(tmp_path / "a", ("DWI",)).cases[0]
    np.testing.assert_array_equal(case.images[..., 0], np.where(true, inside, 0))
    np.testing.assert_array_equal(case.brain, true)
    assert case.backgrounds == (pytest.approx(outside),)
    assert any("background" in note for note in case.notes) == (outside != 0)


def test_an_image_without_background_is_read_as_it_is(tmp_path):
    """Noise around the head is no background; nor is the one value of a constant image."""
    noise = np.random.default_rng(0).uniform(1, 100, (12, 10, 6)).astype(np.float32)
    constant = np.full((12, 10, 6), 7, np.float32)
    for name, volume in (("a", noise), ("b", constant)):
        save_volume(tmp_path / name / "DWI.nii", volume)
        dataset = layouts.load_images(tmp_path / name, ("DWI",))
        np.testing.assert_array_equal(dataset.cases[0].images[..., 0], volume)
        assert dataset.cases[0].backgrounds == (0.0,)
        note = rf"1 of 1 cases, such as {name}, have a brain of \d+ ml, 100% of the image"
        assert re.search(note, " ".join(dataset.notes))


@pytest.mark.parametrize(("codes", "known"), [((0, 0), False), ((1, 0), True), ((0, 1), True)])
def test_a_header_without_orientation_is_named(codes, known, tmp_path):
    save_volume(tmp_path / "a" / "DWI.nii", volumes()["DWI"], codes=codes)
    case = layouts.load_images(tmp_path / "a", ("DWI",)).cases[0]
    assert any("sides are unknown" in note for note in case.notes) != known


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_stored_type_and_scale_is_read_as_nibabel_says(tmp_path_factory, draw):
    kind = draw.draw(st.sampled_from(["i1", "u1", "<i2", ">i2", "<u2", "<i4", ">u4", "<i8", "<f4", ">f4", "<f8"]))
    shape = tuple(draw.draw(st.lists(st.integers(1, 5), min_size=3, max_size=3)))
    slope = draw.draw(st.sampled_from([1.0, 0.5, -2.0]))
    header = nib.Nifti1Header(endianness=">" if kind[0] == ">" else "<")
    header.set_data_dtype(kind)
    values = np.random.default_rng(len(shape)).integers(0, 100, shape)
    path = tmp_path_factory.mktemp("v") / "v.nii"
    nib.save(nib.Nifti1Image(values * slope, OBLIQUE, header), path)
    read, affine, geometry = read_volume(path)
    assert read.dtype == np.float32
    assert read.shape == shape
    np.testing.assert_allclose(read, nib.load(path).get_fdata(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(affine, OBLIQUE, rtol=1e-6)
    assert geometry.get_data_shape() == shape


@pytest.mark.parametrize(
    ("place", "form", "value", "line"),
    [
        (80, "<f", 0.0, "note: {}: pixdim[1,2,3] should be non-zero; setting 0 dims to 1"),
        (252, "<h", 9, "note: {}: qform_code 9 not valid; setting to 0"),
        (108, "<f", 351.0, ""),  # an error, which names the file itself
    ],
)
def test_a_note_on_a_mended_header_names_the_file(place, form, value, line, tmp_path, capfd):
    path = tmp_path / "a.nii"
    content = bytearray(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)).to_bytes())
    struct.pack_into(form, content, place, value)
    path.write_bytes(content)
    with contextlib.nullcontext() if line else pytest.raises(InputError, match=r"a\.nii: .*vox offset 351"):
        read_volume(path)
    assert capfd.readouterr().err.strip() == line.format(path)
