"""Each warning is raised by an input made for it, and a new phantom patient raises none."""

import dataclasses
import re

import nibabel as nib
import numpy as np
import pytest

from isles_jax.data import layouts, orientation, profile
from isles_jax.data.case import Case
from isles_jax.phantoms import perfusion
from isles_jax.phantoms.phantom import write_phantom
from isles_jax.phantoms.scans import make_patient
from isles_jax.phantoms.tissue import FIELD_OF_VIEW_MM
from isles_jax.prediction import warning

CHANNELS = ("Tmax", "TTP", "DWI")


def phantom(root, cases, seed):
    write_phantom(root, cases=cases, shape=(32, 32, 8), difficulty=1.0, seed=seed)
    return layouts.load(root)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    dataset = phantom(tmp_path_factory.mktemp("trained") / "phantom", 24, 0)
    return {"norms": profile.norms(profile.describe(dataset)), "least_dice": 0.6}


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("new") / "phantom", 24, 1).cases


def of_case(case, expected, dice=0.9, folds_ml=(20.0, 30.0)):
    """All warnings about a case whose prediction is its reference."""
    found = warning.of_images(profile.profile(case, CHANNELS), CHANNELS, expected)
    return found + warning.of_prediction(case.labels, case, dice, folds_ml, expected)


def test_no_new_phantom_patient_raises_a_warning(patients, expected):
    assert warning.notes(expected) == []
    assert {case.name: of_case(case, expected) for case in patients} == {case.name: [] for case in patients}


def with_images(case, change):
    images = case.images.copy()
    change(images, case.brain)
    return dataclasses.replace(case, images=images)


def constant(images, brain):
    images[brain, 0] = 3.0


def missing(images, brain):
    left = brain.copy()
    left[: len(left) // 2] = False
    images[left, 0] = 0


def swapped(images, brain):
    images[..., [0, 1]] = images[..., [1, 0]]


def milliseconds(images, brain):
    images[..., 0] *= 1000


def not_stripped(images, brain):
    images[~brain] = 1.0


def whole_head(images, brain):
    images[2:-2, 2:-2] += 1e-3


def coarse(case):
    return dataclasses.replace(case, affine=case.affine @ np.diag([1.2, 1.2, 1, 1]))


def lower_half(images, brain):
    images[:, :, images.shape[2] // 2 :] = 0


def saturated(images, brain):
    """No gain and no offset gives a DWI in which most of the brain is as bright as can be."""
    images[..., 2] = 5 * np.minimum(images[..., 2], np.percentile(images[brain, 2], 20))


def padded(case):
    pad = [(8, 8), (3, 5), (4, 4)]
    images, labels = np.pad(case.images, [*pad, (0, 0)]), np.pad(case.labels, pad)
    return dataclasses.replace(case, images=images, labels=labels)


def brighter(case):
    return with_images(case, lambda images, brain: images.__setitem__((brain, 2), 5 * images[brain, 2] + 7))


def turned(case):
    return orientation.turned(case, "PIR")


def mirrored(case):
    return dataclasses.replace(case, affine=np.diag([-1, 1, 1, 1]) @ case.affine)


def across(case):
    labels = case.labels.copy()
    labels[8:-8, 14:18, 3:5] = 1
    return dataclasses.replace(case, labels=labels)


def filled(case):
    right = profile.right_side(case)
    return dataclasses.replace(case, labels=np.where(case.brain & right, 1, 0).astype(np.uint8))


def empty(case):
    return dataclasses.replace(case, labels=np.zeros_like(case.labels))


TABLE = [
    (coarse, r"^voxels of 7\.2 x 7\.2 x 14 mm; expected 6 x 6 x 14 mm, as in the 24 training cases$"),
    (lower_half, r"^a brain of \S+ x \S+ x \S+ mm; expected \S+ to \S+ x \S+ to \S+ x \S+.* mm, as"),
    (saturated, r"^DWI has the percentiles .* in the brain; expected .*, as in the 24 training cases$"),
    (mirrored, r"^stored axes point to LAS; expected RAS, as"),
    (constant, r"^Tmax is 3 in the whole brain; expected percentiles .*, as"),
    (missing, r"^Tmax covers \d\S*% of the brain; expected at least 100%, as"),
    (swapped, r"^TTP has the percentiles .* in the brain; expected .*; they fit Tmax: are the channels swapped\?$"),
    (milliseconds, r"^Tmax has the percentiles .* in the brain; expected .*, as in the 24 training cases$"),
    (not_stripped, r"^0% of the voxels are 0; expected \d\S* to \d\S*%, as .*: is it skull-stripped\?$"),
    (whole_head, r"^a brain of \d+ ml; expected \d+ to \d+ ml, as"),
    (across, r"^a lesion crosses the midline, with \S+ ml on its smaller side; expected at most 1\.\d+ ml, from"),
    (filled, r"^the lesion fills \d\S* ml; expected at most \d\S* ml, the largest of the 24 training cases$"),
    (empty, r"^no lesion was found; expected one of \S+ ml or more, as in"),
]


@pytest.mark.parametrize(("change", "text"), TABLE, ids=[change.__name__ for change, _ in TABLE])
def test_each_input_raises_its_warning(patients, expected, change, text):
    in_place = change in (
        constant, missing, swapped, milliseconds, not_stripped, whole_head, lower_half, saturated
    )  # fmt: skip
    for case in patients[:4]:
        found = of_case(with_images(case, change) if in_place else change(case), expected)
        assert [line for line in found if re.search(text, line)], found


@pytest.mark.parametrize("change", [padded, brighter, turned])
def test_what_cannot_change_a_prediction_raises_no_warning(patients, expected, change):
    expected = expected | {"norms": expected["norms"] | {"turned_to": "RAS"}}
    assert {case.name: of_case(change(case), expected) for case in patients} == {case.name: [] for case in patients}


@pytest.fixture
def exact_artery(monkeypatch):
    """New phantom patients whose blood is measured where it arrives: no delay of all of the brain."""
    arrivals = []
    arterial_input, tissue_curves = perfusion.arterial_input, perfusion.tissue_curves

    def curves(times, cbf, mtt, delay, arrival, width):
        arrivals.append(arrival)
        return tissue_curves(times, cbf, mtt, delay, arrival, width)

    monkeypatch.setattr(perfusion, "tissue_curves", curves)
    monkeypatch.setattr(perfusion, "arterial_input", lambda times, _, width: arterial_input(times, arrivals[-1], width))


@pytest.mark.usefixtures("exact_artery")
def test_a_delay_on_both_sides_is_seen_and_a_stroke_is_none():
    """Of 100 phantom patients none has the warning, also not the half of them who have a narrow carotid."""
    affine = np.diag([*np.array(FIELD_OF_VIEW_MM) / (32, 32, 8), 1.0])
    header = nib.Nifti1Image(np.zeros((1, 1, 1)), affine).header
    named = dict.fromkeys((0, 3, 4), 0)
    for number in range(100):
        patient = make_patient((32, 32, 8), 1.0, np.random.default_rng([7, number]))
        for seconds in named:
            tmax = np.where(patient.dwi > 0, patient.tmax + np.float32(seconds), 0)
            images = np.stack([tmax, patient.ttp, patient.dwi], -1).astype(np.float32)
            warnings, left_out = warning.of_delay(Case(str(number), images, None, affine, header), CHANNELS)
            assert left_out == []
            named[seconds] += len(warnings)
    assert named[0] == 0
    assert named[3] >= 60
    assert named[4] >= 95


def test_a_delay_is_measured_in_the_better_half(patients):
    case = patients[0]
    right, left = (np.argwhere(case.brain & half) for half in (profile.right_side(case), ~profile.right_side(case)))
    late = with_images(case, lambda images, brain: images.__setitem__((brain, 0), 1.0))
    late.images[..., 0][tuple(right.T)] = 9.0
    assert warning.of_delay(late, CHANNELS) == ([], []), "one whole half is a stroke"
    share = len(left) // 4 / len(left)
    late.images[..., 0][tuple(left[: len(left) // 4].T)] = 6.5
    [text], _ = warning.of_delay(late, CHANNELS)
    assert text.startswith(
        f"Tmax is above 6 s in {100 * share:.3g}% of the better half of the brain; expected at most 10"
    )
    assert warning.of_delay(dataclasses.replace(late, absent=("Tmax",)), CHANNELS) == ([], [])
    assert warning.of_delay(late, ("TTP", "MTT", "DWI")) == ([], [])
    header = late.header.copy()
    header["sform_code"] = header["qform_code"] = 0
    words = "the header does not say where left is; Tmax of the two halves is not compared"
    assert warning.of_delay(dataclasses.replace(late, header=header), CHANNELS) == ([], [words])


def test_folds_whose_volumes_disagree(patients, expected):
    [text] = of_case(patients[0], expected, folds_ml=(30.0, 0.9, 61.9))
    assert text == (
        "the folds' networks alone find 0.9 to 61.9 ml; expected volumes that differ by a factor of 4 at most, "
        "with 1 ml added to each"
    )
    assert of_case(patients[0], expected, folds_ml=(0.0, 3.0)) == of_case(patients[0], expected, folds_ml=(0.5,)) == []
    assert of_case(patients[0], expected, folds_ml=(0.0, 3.01)) != []
    # A run whose data are not known has networks that can disagree, too.
    assert of_case(patients[0], {}, folds_ml=(0.0, 9.0)) != []


def test_folds_that_disagree(patients, expected):
    [text] = of_case(patients[0], expected, 0.59)
    assert text == (
        "the folds' networks agree with a Dice of 0.590; expected at least 0.600, the least Dice of a held-out "
        "prediction with its reference"
    )
    assert of_case(patients[0], expected, 0.6) == of_case(patients[0], expected, None) == []


def test_checks_that_are_left_out_are_named(patients, expected):
    """Runs that are not scored, runs of earlier versions, and weights without a run."""
    unscored = {"norms": expected["norms"]}
    assert warning.notes(unscored) == [
        "the run is not scored; there are no intervals, and the folds' agreement is not compared"
    ]
    for count, words in ((8, ["the run has 8 scored cases; intervals of volumes need 9"]), (9, [])):
        assert warning.notes(expected | {"errors": {"core": [0.1] * count}}) == words
    ranges = {key: limits for key, limits in expected["norms"]["ranges"].items() if "covered" not in key}
    for key in ("brain_ml", "empty", "across_ml", *(f"extent_mm.{axis}" for axis in range(3))):
        del ranges[key]
    earlier = expected | {"norms": expected["norms"] | {"axes": [], "ranges": ranges}}
    assert warning.notes(earlier) == [
        "an earlier version began this run; axes, brain volume and extent, skull-stripping, coverage and the midline "
        "are not compared"
    ]
    ranges = {key: limits for key, limits in expected["norms"]["ranges"].items() if "extent_mm" not in key}
    assert warning.notes(expected | {"norms": expected["norms"] | {"ranges": ranges}}) == [
        "an earlier version began this run; the brain's extent is not compared"
    ]
    for change in (mirrored, across):
        assert of_case(change(patients[0]), earlier) == []
    assert any(line.startswith("TTP has") for line in of_case(with_images(patients[0], swapped), earlier))
    assert warning.notes({}) == ["the run does not describe its training cases, so no image is compared with them"]
    assert of_case(mirrored(patients[0]), {}) == []
