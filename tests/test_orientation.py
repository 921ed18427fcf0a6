"""Cases that are stored along different axes: brought to one orientation without loss, and back to their own."""

import csv
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from helpers import OBLIQUE, TURNED, header_of, random_case, save_volume
from isles_folder import images

from isles_jax import config
from isles_jax.cross_validation import cross_validate
from isles_jax.data import grid, layouts, orientation
from isles_jax.data.grid import Target
from isles_jax.data.slices import make_slices


def labelled(affine, seed=0):
    case = random_case((9, 8, 6), seed=seed, affine=affine)
    labels = np.random.default_rng(seed).integers(0, 3, (9, 8, 6)).astype(np.uint8)
    return replace(case, labels=np.where(case.brain, labels, 0).astype(np.uint8))


def by_place(volume, affine):
    """{place in the world, in mm: value} of every voxel."""
    places = (affine[:3, :3] @ np.indices(volume.shape[:3]).reshape(3, -1) + affine[:3, 3:]).T.round(6)
    return dict(zip(map(tuple, places + 0.0), volume.reshape(len(places), -1).tolist(), strict=True))


@pytest.mark.parametrize("axes", orientation.ALL)
@pytest.mark.parametrize("affine", [OBLIQUE, TURNED], ids=["left-handed", "right-handed"])
def test_every_voxel_keeps_its_place_and_comes_back(affine, axes):
    case = labelled(affine)
    turned = orientation.turned(case, axes)
    assert orientation.axes_of(turned) == axes
    assert by_place(turned.images, turned.affine) == by_place(case.images, case.affine)
    assert by_place(turned.labels, turned.affine) == by_place(case.labels, case.affine)
    np.testing.assert_array_equal(orientation.turned_back(turned.images, case, axes), case.images)
    np.testing.assert_array_equal(orientation.turned_back(turned.labels, case, axes), case.labels)
    # What a case is said to be does not depend on how it is stored.
    assert by_place(turned.brain, turned.affine) == by_place(case.brain, case.affine)
    order = orientation.order(orientation.axes_of(case), axes)
    np.testing.assert_allclose(turned.spacing_mm, np.array(case.spacing_mm)[list(order)])


def test_a_case_without_orientation_is_taken_as_stored():
    case = labelled(OBLIQUE)
    unknown = replace(case, header=header_of(OBLIQUE, (0, 0)))
    assert orientation.axes_of(unknown) == ""
    assert orientation.turned(unknown, "RAS") is unknown
    assert orientation.turned_back(case.images, unknown, "RAS") is case.images
    assert grid.make_grid(unknown, Target(axes="RAS")) is None
    # So is every case of a run that an earlier version began, and one that has the orientation already.
    assert orientation.turned(case, "") is orientation.turned(case, "LAS") is case
    assert grid.make_grid(case, Target()) is grid.make_grid(case, Target(axes="LAS")) is None


def test_the_orientation_of_most_cases():
    cases = [orientation.turned(labelled(OBLIQUE), axes) for axes in ("RAS", "LPS", "LPS", "PIR")]
    assert orientation.most_frequent(cases) == "LPS"
    assert orientation.most_frequent([cases[0], cases[1]]) == "LPS", "the first in the alphabet"
    unknown = replace(cases[0], header=header_of(OBLIQUE, (0, 0)))
    assert orientation.most_frequent([unknown] * 3 + cases[:1]) == "RAS"
    assert orientation.most_frequent([unknown]) == ""
    assert grid.choose("0", cases) == Target(None, False, "LPS")
    assert orientation.notes(cases[1:3]) == orientation.notes([unknown]) == ()
    assert orientation.notes(cases) == (
        "the axes of most cases point to LPS, of some elsewhere (PIR: 1, RAS: 1); the networks see all cases as LPS",
    )


def test_spacing_is_compared_along_the_networks_axes():
    """Equal voxels that are stored along other axes are not resampled."""
    cases = [labelled(OBLIQUE), orientation.turned(labelled(OBLIQUE, 1), "PIR"), labelled(OBLIQUE, 2)]
    target = grid.choose("median", cases)
    assert (target.crop, target.axes) == (False, "LAS")
    np.testing.assert_allclose(target.spacing_mm, cases[0].spacing_mm, atol=1e-4)


@pytest.mark.parametrize("target", [
    Target(axes="LAS"), Target((2.0, 2.0, 4.0), False, "LAS"), Target((1.3, 3.1, 2.0), True, "LAS"),
])  # fmt: skip
def test_the_network_sees_the_same_slices_however_a_case_is_stored(target):
    case = labelled(OBLIQUE)
    expected = make_slices((case,), (32, 32), target)
    for axes in orientation.ALL:
        stored = orientation.turned(case, axes)
        seen = make_slices((stored,), (32, 32), target)
        for one, other in zip(seen, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 * (target.spacing_mm is not None))
        # What the network says comes back along the stored axes.
        made = grid.make_grid(stored, target)
        answer = np.stack([grid.to_network(stored, made).labels == value for value in range(3)], axis=-1)
        back = grid.to_case(answer.astype(np.float32), made, stored)
        assert back.shape == (*stored.images.shape[:3], 3)
        if target.spacing_mm is None:
            np.testing.assert_array_equal(back.argmax(axis=-1), stored.labels)


def folder(root, turned):
    """Four cases with DWI and ADC; those of `turned` are stored along these axes."""
    for number in range(4):
        there = images(("dwi", "adc"), number)
        for word, name in (("dwi", "dwi"), ("adc", "adc"), ("OT", "msk")):
            image = nib.Nifti1Image(there[word], OBLIQUE)
            image.set_sform(OBLIQUE, 1)
            start = nib.orientations.io_orientation(OBLIQUE)
            end = nib.orientations.axcodes2ornt(turned.get(number, "LAS"))
            image = image.as_reoriented(nib.orientations.ornt_transform(start, end))
            data = np.asarray(image.dataobj)
            save_volume(root / f"sub-{number}" / f"sub-{number}_{name}.nii.gz", data, image.affine)
    return root


def test_a_run_is_the_same_however_its_cases_are_stored(tmp_path):
    turned = {1: "PIR", 3: "SAR"}
    roots = {"one": folder(tmp_path / "one", {}), "mixed": folder(tmp_path / "mixed", turned)}
    rows = {}
    for name, root in roots.items():
        settings = config.baseline(residual=True, adversarial=False, overlap=False)
        settings.update_from_flattened_dict({
            "data.root": str(root), "folds": 2, "model.width": 2, "train.epochs": 2, "train.batch_size": 2,
        })  # fmt: skip
        cross_validate(settings, tmp_path / "runs" / name)
        with (tmp_path / "runs" / name / "cases.csv").open(newline="") as file:
            rows[name] = list(csv.DictReader(file))
    for one, other in zip(rows["one"], rows["mixed"], strict=True):
        for column in ("case", "fold", "dice", "volume_pred_ml", "volume_true_ml"):
            assert one[column] == other[column]
    for fold in range(2):
        losses = [
            [json.loads(line)["loss"] for line in (run / f"fold_{fold}/metrics.jsonl").read_text().splitlines()]
            for run in (tmp_path / "runs/one", tmp_path / "runs/mixed")
        ]
        assert losses[0] == losses[1] != []
        for path in sorted((tmp_path / "runs/one" / f"fold_{fold}/predictions").iterdir()):
            one, other = nib.load(path), nib.load(tmp_path / "runs/mixed" / f"fold_{fold}/predictions" / path.name)
            number = int(path.name[4])
            stored = nib.load(roots["mixed"] / f"sub-{number}" / f"sub-{number}_dwi.nii.gz")
            assert other.shape == stored.shape
            np.testing.assert_array_equal(other.affine, stored.affine)
            for code in ("qform_code", "sform_code"):
                assert other.header[code] == stored.header[code]
            assert "".join(nib.aff2axcodes(other.affine)) == turned.get(number, "LAS")
            places = [by_place(np.asarray(image.dataobj), np.round(image.affine, 3)) for image in (one, other)]
            assert {tuple(np.round(place, 2)): value for place, value in places[0].items()} == {
                tuple(np.round(place, 2)): value for place, value in places[1].items()
            }
    dataset = layouts.load(roots["mixed"])
    assert any("the networks see all cases as LAS" in note for note in dataset.notes)
