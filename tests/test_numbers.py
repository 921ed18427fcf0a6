"""The numbers of a case against brute force on the phantom, and the files that hold them."""

import csv
import dataclasses
import io
import json

import nibabel as nib
import numpy as np
import pytest
from helpers import random_case, task_of
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from isles_jax.data import layouts
from isles_jax.phantoms.phantom import write_phantom
from isles_jax.prediction import numbers
from isles_jax.prediction.numbers import Prediction

CHANNELS, CLASSES = ("Tmax", "TTP", "DWI"), ("penumbra", "core")
SETTINGS = {"flips": False, "min_volume_ml": 0.0}


def measure(case, channels, classes, labels, fold_labels, expected=None, warnings=(), defuse3=False):
    """The row of a case."""
    of_classes = numbers.of_classes(case, classes, labels, fold_labels, expected or {})
    agree = numbers.agreement([one > 0 for one in fold_labels])
    found = numbers.of_case(case, channels, labels, of_classes, agree, defuse3=defuse3)
    return numbers.row_of(found + numbers.of_command(SETTINGS, warnings, on_phantom=False))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("numbers") / "phantom"
    write_phantom(root, cases=20, shape=(32, 32, 8), difficulty=1.0, seed=5)
    return layouts.load(root)


def brute_force(case):
    """From the files, voxel by voxel, with coordinates in mm."""
    tmax_file, label_file = (next(f for f in case.files if word in f.name) for word in ("Tmax", "OT"))
    tmax, labels = nib.load(tmax_file).get_fdata(), np.asarray(nib.load(label_file).dataobj)
    brain = np.any([nib.load(f).get_fdata() != 0 for f in case.files if "OT" not in f.name], axis=0)
    ml = float(np.prod(nib.load(tmax_file).header.get_zooms(), dtype=float)) / 1000
    core, penumbra = int((labels == 2).sum()), int((labels == 1).sum())
    places = np.argwhere(labels > 0)
    pairs = KDTree(places).query_pairs(1.5, p=np.inf, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs)), pairs.T), (len(places), len(places)))
    count, of = connected_components(graph, directed=False)
    # The phantom's midline lies at x = 0.
    x = nib.affines.apply_affine(nib.load(label_file).affine, places)[:, 0]
    above = {s: sum(bool(b) and t > s for b, t in zip(brain.flat, tmax.flat, strict=True)) for s in (4, 6, 8, 10)}
    return {
        "voxel_ml": ml, "brain_ml": int(brain.sum()) * ml, "penumbra_ml": penumbra * ml, "core_ml": core * ml,
        "hypoperfused_ml": (core + penumbra) * ml, "mismatch_ml": penumbra * ml,
        "mismatch_ratio": (core + penumbra) / core if core else None, "lesions": count,
        "largest_lesion_ml": int(np.bincount(of).max()) * ml, "side": "right" if (x > 0).mean() > 0.5 else "left",
        **{f"tmax_above_{s}_s_ml": n * ml for s, n in above.items()},
        "hypoperfusion_intensity_ratio": above[10] / above[6],
    }  # fmt: skip


def test_twenty_phantom_cases_equal_brute_force(phantom):
    assert {case.name for case in phantom.cases} == {f"{number:02d}" for number in range(1, 21)}
    sides = set()
    for case in phantom.cases:
        row = measure(case, CHANNELS, CLASSES, case.labels, [case.labels])
        expected = brute_force(case)
        assert list(row)[1 : len(expected) + 1] == list(expected)
        for name, value in expected.items():
            assert row[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name
        sides.add(row["side"])
    assert sides == {"left", "right"}


def test_the_ratios_are_empty_where_they_have_no_bound(phantom):
    case = phantom.cases[0]
    labels = np.minimum(case.labels, 1)
    images = case.images.copy()
    images[..., 0] = np.minimum(images[..., 0], 5)
    row = measure(dataclasses.replace(case, images=images), CHANNELS, CLASSES, labels, [labels])
    assert row["core_ml"] == row["tmax_above_6_s_ml"] == 0
    assert row["mismatch_ratio"] is row["hypoperfusion_intensity_ratio"] is None
    nothing = measure(case, CHANNELS, CLASSES, np.zeros_like(labels), [labels])
    assert (nothing["lesions"], nothing["largest_lesion_ml"], nothing["side"]) == (0, 0.0, "")


def test_the_side_follows_the_affine():
    case = random_case((20, 20, 8), affine=np.eye(4))
    labels = np.zeros((20, 20, 8), np.uint8)
    labels[12:18, 5:9, 3] = 1
    assert numbers.side(labels, case) == "right"
    assert numbers.side(labels, dataclasses.replace(case, affine=np.diag([-1, 1, 1, 1.0]))) == "left"
    # Stored with the left-right axis last.
    turned = dataclasses.replace(case, images=np.moveaxis(case.images, 0, 2), affine=np.eye(4)[[2, 0, 1, 3]])
    assert numbers.side(np.moveaxis(labels, 0, 2), turned) == "right"
    labels[2:4, 5, 3] = 2
    assert numbers.side(labels, case) == "right"  # 2 of 26 voxels
    labels[2:4, 6, 3] = 2
    assert numbers.side(labels, case) == "both"  # 4 of 28


def test_the_folds_spread_and_agreement():
    case = random_case((6, 6, 4))
    folds = [np.zeros((6, 6, 4), np.uint8) for _ in range(3)]
    folds[0][2, 2:4, 2], folds[1][2, 2:5, 2] = 1, 1
    row = measure(case, CHANNELS, ("lesion",), folds[0], folds)
    assert (row["lesion_least_ml"], row["lesion_most_ml"]) == (0, pytest.approx(3 * case.voxel_ml))
    assert row["folds_dice"] == row["lesion_folds_dice"] == pytest.approx((2 * 2 / 5 + 0 + 0) / 3, abs=1e-6)
    assert measure(case, CHANNELS, ("lesion",), folds[0], folds[:1])["folds_dice"] is None
    assert numbers.agreement([folds[2] > 0, folds[2] > 0]) == 1
    assert "hypoperfused_ml" not in row
    assert "tmax_above_6_s_ml" not in measure(case, ("a", "b", "c"), ("lesion",), folds[0], folds)


@pytest.mark.parametrize(
    ("core", "penumbra", "met"),
    [(69, 100, "yes yes yes"), (70, 100, "no yes yes"), (20, 16, "yes yes yes"), (20, 15.9, "yes no yes"),
     (0, 14, "yes yes no"), (0, 0, "yes no no")],
)  # fmt: skip
def test_the_thresholds_of_defuse_3_on_request(core, penumbra, met):
    case = dataclasses.replace(random_case((6, 6, 4)), affine=np.diag([10.0, 10, 10, 1]))
    labels = np.zeros((6, 6, 4), np.uint8)
    of_classes = [
        numbers.ClassNumbers(name, float(ml), ml, ml, None, None, None, None)
        for name, ml in (("penumbra", penumbra), ("core", core))
    ]
    with_thresholds, without = (
        numbers.row_of(numbers.of_case(case, CHANNELS, labels, of_classes, None, defuse3=wanted))
        for wanted in (True, False)
    )
    added = with_thresholds.keys() - without.keys()
    assert added == {
        "defuse3_core_below_70_ml", "defuse3_ratio_at_least_1.8", "defuse3_mismatch_at_least_15_ml"
    }  # fmt: skip
    assert [value for name, value in with_thresholds.items() if name in added] == met.split()


def test_what_the_run_adds_to_a_row():
    case, labels = random_case((5, 6, 4)), np.zeros((5, 6, 4), np.uint8)
    case = dataclasses.replace(case, affine=np.diag([10.0, 10, 10, 1]))
    labels.ravel()[:9] = 1  # 9 ml
    expected = {"dice": {"core": 0.75}, "errors": {"core": [0.1] * 9 + [0.5]}, "coverage": {"core": 0.9}}
    row = measure(case, CHANNELS, ("core",), labels, [labels], expected, ["one", "two"])
    assert {name: row[name] for name in list(row)[-8:]} == {
        "core_low_ml": pytest.approx(10 * np.exp(-0.5) - 1, abs=1e-6),
        "core_high_ml": pytest.approx(10 * np.exp(0.5) - 1, abs=1e-6), "core_coverage": 0.9,
        "core_cross_validation_dice": 0.75, "trained_on": "patients", "flips": "no",
        "min_volume_ml": 0.0, "warnings": "one; two",
    }  # fmt: skip
    # An interval ends where the brain ends.
    row = measure(case, CHANNELS, ("core",), labels, [labels], expected | {"errors": {"core": [9.0] * 9}}, [])
    assert (row["core_low_ml"], row["core_high_ml"]) == (0.0, row["brain_ml"])
    row = measure(case, CHANNELS, ("core",), labels, [labels])
    assert [row[name] for name in ("core_low_ml", "core_high_ml", "core_coverage")] == [None] * 3


NASTY = ("=cmd|calc", "@a", "+1", "-1", "'x", 'quote"s, and, commas', "<script>alert(1)</script>", "a b/c")


def test_texts_are_safe_in_a_spreadsheet_and_json_holds_them_as_they_are(tmp_path):
    rows = []
    for number, name in enumerate(NASTY):
        case = dataclasses.replace(random_case((5, 6, 4)), name=name)
        labels = np.ones((5, 6, 4), np.uint8)
        rows.append(measure(case, CHANNELS, ("=sum(A1)",), labels, [labels], warnings=["=1", "-2"]))
        of_class = numbers.ClassNumbers("a", 1.5, 1.0, 2.0, None, (1, 2), None, None)
        prediction = Prediction(
            case,
            task_of(None, ("a",)),
            labels,
            (labels,),
            (of_class,),
            (numbers.Number("case", "case", name),),
            ("=1",),
            ("none",),
            {"k": "v"},
        )
        numbers.write_json(tmp_path / f"{number}.json", prediction)
        content = json.loads((tmp_path / f"{number}.json").read_text())
        assert (content["summary"]["case"], content["warnings"], content["intervals"]) == (name, ["=1"], {"a": [1, 2]})
        assert content["not_checked"] == ["none"]
        assert content["use"] == "research software, not for clinical use"
    numbers.write_csv(tmp_path / "summary.csv", rows)
    table = list(csv.reader(io.StringIO((tmp_path / "summary.csv").read_text())))
    for line in table:
        assert not [cell for cell in line if cell.startswith(("=", "+", "-", "@"))]
    assert [line[0].removeprefix("'") for line in table[1:]] == list(NASTY)
    assert table[1][-1] == "'=1; -2"
    assert len({len(line) for line in table}) == 1


def test_a_class_may_have_the_name_of_a_column():
    case, labels = random_case((5, 6, 4)), np.ones((5, 6, 4), np.uint8)
    row = measure(case, CHANNELS, ("brain",), labels, [labels])
    assert row["brain_ml_"] == pytest.approx(120 * case.voxel_ml)
    assert row["brain_ml"] == pytest.approx(case.brain.sum() * case.voxel_ml)
