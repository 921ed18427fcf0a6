"""The facts of a case, and their ranges over the training cases."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import OBLIQUE, SHAPE, TURNED, header_of, random_case, save_volume, spes_folder, volumes

from isles_jax.data import layouts, orientation, profile
from isles_jax.data.case import Case


@pytest.mark.parametrize(("affine", "axes"), [(OBLIQUE, "LAS"), (TURNED, "RAS"), (np.eye(4)[[1, 0, 2, 3]], "ARS")])
def test_the_facts_of_a_case(affine, axes):
    case = random_case((12, 11, 6), affine=affine)
    case.images[3, 4, 2, 1] = 0
    case.images[:, :, :4, 2] = 0
    facts = profile.profile(case, ("Tmax", "TTP", "DWI"))
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["shape"], facts["axes"]) == ([12, 11, 6], axes)
    brain = 10 * 7 * 5
    assert facts["brain_ml"] == pytest.approx(brain * abs(np.linalg.det(affine[:3, :3])) / 1000, abs=1e-3)
    assert facts["empty"] == pytest.approx(1 - brain / (12 * 11 * 6), abs=1e-5)
    assert facts["extent_mm"] == pytest.approx([10, 7, 5] * np.linalg.norm(affine[:3, :3], axis=0), abs=1e-3)
    assert facts["covered"] == {"Tmax": 1.0, "TTP": 1.0, "DWI": 0.4}, "DWI lacks three of five slices"
    case.images[..., 0] = 0
    assert profile.profile(case, ("Tmax", "TTP", "DWI"))["covered"]["Tmax"] == 0


def test_sides_are_compared_along_the_axes_of_the_run():
    """Two cases that are stored along other axes have the same facts once both are given in one order."""
    case = random_case((12, 11, 6), affine=TURNED)
    other = orientation.turned(case, "PIR")
    facts = [profile.profile(each, ("a", "b", "c")) for each in (case, other)]
    assert [each["axes"] for each in facts] == ["RAS", "PIR"]
    assert facts[0]["spacing_mm"] != facts[1]["spacing_mm"]
    assert facts[0]["extent_mm"] == [facts[1]["extent_mm"][axis] for axis in (2, 0, 1)]
    one, two = (profile.numbers(each, ("a", "b", "c"), "RAS") for each in facts)
    assert one == two
    description = {"channels": ["a", "b", "c"], "grid": {"axes": "RAS"}, "units": {}, "cases": {
        str(number): each | {"volume_ml": {"lesion": 1.0}} for number, each in enumerate(facts)
    }}  # fmt: skip
    norms = profile.norms(description)
    assert (norms["turned_to"], norms["axes"], norms["units"]) == ("RAS", ["PIR", "RAS"], {})
    assert all(low == high for low, high in norms["ranges"].values())


def test_axes_are_not_known_without_a_code_in_the_header():
    case = random_case((12, 11, 6), affine=TURNED)
    unknown = dataclasses.replace(case, header=header_of(TURNED, (0, 0)))
    assert profile.profile(unknown, ("a", "b", "c"))["axes"] == ""


def test_right_is_where_the_world_coordinate_is_larger():
    """The mirrored affine exchanges the sides; a shift of the scanner's origin does not matter."""
    images = np.zeros((9, 8, 7, 1), np.float32)
    images[1:8, 1:7, 1:6] = 1
    for first, right in ((1.0, slice(5, None)), (-1.0, slice(0, 4))):
        affine = np.diag([first, 1, 1, 1])
        affine[0, 3] = 83
        expected = np.zeros((9, 8, 7), bool)
        expected[right] = True
        np.testing.assert_array_equal(profile.right_side(Case("x", images, None, affine, header_of(affine))), expected)


def test_how_far_a_lesion_crosses_the_midline():
    """Two lesions, one on each side, do not cross; one that does counts with its smaller side."""
    affine = np.diag([1, 2, 5, 1.0])
    case = Case("x", np.ones((10, 6, 6, 1), np.float32), None, affine, header_of(affine))
    labels = np.zeros((10, 6, 6), np.uint8)
    labels[1:4, 1, 1], labels[6:9, 4, 4] = 1, 2
    assert profile.across_ml(labels, case) == 0
    labels[3:9, 1, 1] = 2
    # Voxels 1 to 4 lie on one side, and 5 to 8 on the other.
    assert profile.across_ml(labels, case) == pytest.approx(4 * 0.01)
    labels[8, 1, 1] = 0
    assert profile.across_ml(labels, case) == pytest.approx(3 * 0.01)


def test_norms_are_the_ranges_over_labelled_cases(phantom_root):
    dataset = layouts.load(phantom_root)
    description = json.loads(json.dumps(profile.describe(dataset)))
    norms = profile.norms(description)
    assert (norms["cases"], norms["axes"]) == (6, ["RAS"])
    volumes = [float((case.labels > 0).sum() * case.voxel_ml) for case in dataset.cases]
    np.testing.assert_allclose(norms["ranges"]["lesion_ml"], [min(volumes), max(volumes)], atol=2e-3)
    medians = [float(np.median(case.images[case.brain][:, 2])) for case in dataset.cases]
    np.testing.assert_allclose(norms["ranges"]["percentile.1.DWI"], [min(medians), max(medians)], rtol=1e-4)

    # Of a run of an earlier version, fewer facts are known; a case without labels was not trained on.
    del description["profiles"]
    first = next(iter(description["cases"]))
    description["cases"][first]["volume_ml"] = None
    norms = profile.norms(description)
    assert (norms["cases"], norms["axes"]) == (5, [])
    assert not {"brain_ml", "empty", "across_ml", "covered.DWI"} & norms["ranges"].keys()
    assert profile.norms({"cases": {}, "channels": ["DWI"]}) == {
        "cases": 0, "ranges": {}, "axes": [], "turned_to": ""
    }  # fmt: skip


def test_describe_is_json_and_changes_with_the_data(tmp_path):
    root = spes_folder(tmp_path)
    first = profile.describe(layouts.load(root, penumbra=1, core=2))
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
    assert profile.describe(layouts.load(root, penumbra=1, core=2)) == first
    changed = volumes(seed=1)["Tmax"]
    changed[4, 4, 2] += 1
    save_volume(root / "b" / "Tmax.nii", changed)
    second = profile.describe(layouts.load(root, penumbra=1, core=2))
    assert second["cases"]["b"] != case
    assert second["cases"]["a"] == first["cases"]["a"]
