"""Geometry and privacy of what is written, what a data set's description says, and what the label check catches."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spes_folder import OBLIQUE, SHAPE, make, save, volumes

from isles_jax.data import check, layouts
from isles_jax.data.case import Case
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
    case = layouts.load(make(tmp_path / "d"), penumbra=1, core=2).cases[0]
    for name in ("x.nii.gz", "y.nii.gz"):
        write_labels(tmp_path / name, case.labels, case, (1, 2))
    assert (tmp_path / "x.nii.gz").read_bytes() == (tmp_path / "y.nii.gz").read_bytes()
    with pytest.raises(ValueError, match="shape"):
        write_labels(tmp_path / "z.nii.gz", case.labels[1:], case, (1, 2))
    assert not (tmp_path / "z.nii.gz").exists()


def test_labels_are_read_as_the_classes_and_unknown_ones_refused(tmp_path):
    case = layouts.load(make(tmp_path / "d"), penumbra=1, core=2).cases[0]
    write_labels(tmp_path / "p.nii.gz", case.labels, case, (9, 4))
    np.testing.assert_array_equal(read_labels(tmp_path / "p.nii.gz", case, (9, 4)), case.labels)
    with pytest.raises(InputError, match=r"p\.nii\.gz: holds the label 4; expected only 0, 9, 5"):
        read_labels(tmp_path / "p.nii.gz", case, (9, 5))


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


def test_brain_mask_and_spacing(tmp_path):
    images = np.zeros((2, 2, 1, 3), np.float32)
    images[0, 0, 0] = (0, np.nan, 0)
    images[0, 1, 0] = (np.nan, 0, -2)
    images[1, 0, 0] = (np.inf, 0, 0)
    np.testing.assert_array_equal(
        Case("a", images, None, np.eye(4), nib.Nifti1Header()).brain[..., 0], [[False, True], [False, False]]
    )
    case = layouts.load(make(tmp_path), penumbra=1, core=2).cases[0]
    np.testing.assert_allclose(case.spacing_mm, np.linalg.norm(OBLIQUE[:3, :3], axis=0), rtol=1e-6)


def test_describe_is_json_and_changes_with_the_data(tmp_path):
    root = make(tmp_path)
    first = check.describe(layouts.load(root, penumbra=1, core=2))
    assert json.loads(json.dumps(first)) == first
    case = first["cases"]["b"]
    labels = volumes(seed=1)["OT"]
    ml = abs(np.linalg.det(OBLIQUE[:3, :3])) / 1000
    expected = {"penumbra": (labels == 1).sum() * ml, "core": (labels == 2).sum() * ml}
    assert case["volume_ml"] == pytest.approx(expected, abs=1e-3)
    assert case["shape"] == list(SHAPE)
    dwi = volumes(seed=1)["DWI"]
    assert case["percentiles"]["DWI"] == pytest.approx(np.percentile(dwi[dwi > 0], [0.5, 50, 99.5]), rel=1e-4)
    assert set(case["sha256"]) == {"Tmax.nii", "TTP.nii", "DWI.nii", "OT.nii"}
    assert check.describe(layouts.load(root, penumbra=1, core=2)) == first
    changed = volumes(seed=1)["Tmax"]
    changed[4, 4, 2] += 1
    save(root / "b" / "Tmax.nii", changed)
    second = check.describe(layouts.load(root, penumbra=1, core=2))
    assert second["cases"]["b"] != case
    assert second["cases"]["a"] == first["cases"]["a"]


def test_the_label_check_needs_all_three_facts(tmp_path):
    dataset = layouts.load(make(tmp_path), penumbra=1, core=2)

    def changed(case, channel, factor, where):
        images = case.images.copy()
        images[where(case), channel] *= factor
        return dataclasses.replace(case, images=images)

    def every(change):
        return dataclasses.replace(dataset, cases=tuple(change(case) for case in dataset.cases))

    check.verify_labels(every(lambda case: changed(case, 2, 1.5, lambda c: c.labels == 2)))
    for change in (
        lambda case: changed(case, 2, 0.3, lambda c: c.labels == 2),  # core darker than penumbra
        lambda case: changed(case, 0, 0.1, lambda c: c.labels == 1),  # Tmax of penumbra below the healthy brain's
        lambda case: dataclasses.replace(case, labels=np.where(case.labels == 1, 2, case.labels)),  # core the larger
    ):
        with pytest.raises(InputError, match="would not agree either"):
            check.verify_labels(every(change))
    check.verify_labels(every(lambda case: dataclasses.replace(case, labels=None)))


def test_swapped_integers_and_nested_files_are_caught_on_the_phantom(phantom_root, tmp_path):
    right = layouts.load(phantom_root, penumbra=1, core=2)
    assert right.phantom
    with pytest.raises(InputError, match=r"--config.data.labels.penumbra=1 --config.data.labels.core=2 would agree"):
        layouts.load(phantom_root, penumbra=2, core=1)
    for case in right.cases:
        folder = tmp_path / case.name
        for index, word in enumerate(right.channels):
            save(folder / f"{word}.nii", case.images[..., index], case.affine)
        save(folder / "penumbralabel.nii", (case.labels > 0).astype(np.uint8), case.affine)
        save(folder / "corelabel.nii", (case.labels == 2).astype(np.uint8), case.affine)
    nested = layouts.load(tmp_path, penumbra=1, core=2)
    assert not nested.phantom
    assert any("the penumbra files contain the core (100% of it)" in note for note in nested.notes)
    for case, expected in zip(nested.cases, right.cases, strict=True):
        np.testing.assert_array_equal(case.labels, expected.labels)
