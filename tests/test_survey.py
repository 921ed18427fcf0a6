"""What is said of a data set: its ranges, what looks odd, and the command that trains on it."""

import dataclasses
import shlex

import numpy as np
import pytest
from helpers import random_case

from isles_jax.data import layouts, oddities, orientation, survey
from isles_jax.data.case import make_dataset
from isles_jax.phantoms.phantom import write_phantom
from isles_jax.runtime import overrides
from isles_jax.runtime.command import InputError

CASES = 6


@pytest.fixture(scope="module", params=["spes", "isles2022"])
def phantom(request, tmp_path_factory):
    """A phantom in one of the two layouts."""
    root = tmp_path_factory.mktemp("phantom") / request.param
    write_phantom(root, cases=CASES, shape=(32, 32, 8), difficulty=1.0, seed=0, layout=request.param)
    return layouts.load(root)


@pytest.fixture(scope="module")
def spes(phantom_root):
    return layouts.load(phantom_root)


def odd(dataset):
    return oddities.oddities(oddities.measure(dataset), dataset)


def planted(dataset, number, **fields):
    """The data set with other fields of one case."""
    cases = list(dataset.cases)
    cases[number] = dataclasses.replace(cases[number], **fields)
    return dataclasses.replace(dataset, cases=tuple(cases))


def with_channel(dataset, number, channel, values):
    """The data set with another image in one channel of one case."""
    images = dataset.cases[number].images.copy()
    images[..., channel] = values
    return planted(dataset, number, images=images)


# --- what looks odd ---------------------------------------------------------------------------------------------------


def test_nothing_looks_odd_in_a_phantom_but_labels_without_a_lesion(phantom):
    empty = [case.name for case in phantom.cases if not case.labels.any()]
    assert odd(phantom) == ([f"the label holds no lesion: {', '.join(empty)}"] if empty else [])


def test_nothing_looks_odd_in_real_cases(real_set):
    assert odd(real_set) == []
    assert [line for line in survey.survey(real_set) if line.startswith("odd")] == ["odd: nothing"]


def test_copied_cases_are_named_once(spes):
    first, second = spes.cases[0], spes.cases[3]
    copied = planted(spes, 3, images=first.images.copy(), labels=first.labels.copy())
    assert odd(copied) == [f"the same voxels in Tmax, TTP, DWI, label: {first.name} = {second.name}"]


def test_a_copied_label_or_image_alone_is_named(spes):
    names = [case.name for case in spes.cases]
    assert odd(planted(spes, 1, labels=spes.cases[0].labels)) == [f"the same voxels in label: {names[0]} = {names[1]}"]
    alike = with_channel(spes, 2, 1, spes.cases[2].images[..., 2])
    assert f"the same voxels in TTP, DWI: {names[2]}" in odd(alike)


@pytest.mark.parametrize("axes", [0, 1, (0, 1), (0, 2), (0, 1, 2)])
def test_a_copy_is_found_however_it_is_mirrored(axes, spes):
    first, second = spes.cases[0], spes.cases[3]
    lines = odd(planted(spes, 3, images=np.flip(first.images, axes), labels=np.flip(first.labels, axes)))
    names = f"{first.name} = {second.name}"
    assert f"the same voxels, once mirrored, in Tmax, TTP, DWI, label: {names}" in lines


def test_a_copy_along_other_axes_is_the_same_case(spes):
    first = spes.cases[0]
    assert orientation.axes_of(first) == "RAS"
    copy = orientation.turned(first, "PIR")
    lines = odd(dataclasses.replace(spes, cases=(*spes.cases[:3], dataclasses.replace(copy, name="copy"))))
    assert lines[0] == f"the same voxels in Tmax, TTP, DWI, label: {first.name} = copy"
    assert "stored along other axes than all others, which are RAS: copy (PIR)" in lines


def test_many_cases_of_one_kind_are_counted(spes):
    empty = np.zeros_like(spes.cases[0].labels)
    cases = tuple(dataclasses.replace(case, labels=empty) for case in spes.cases)
    names = [case.name for case in cases]
    assert odd(dataclasses.replace(spes, cases=cases)) == [
        f"the label holds no lesion: {', '.join(names[:3])} and {CASES - 3} more"
    ]


def test_a_label_outside_the_brain_is_named_with_its_share(spes):
    case = spes.cases[4]
    labels = case.labels.copy()
    inside = int((labels > 0).sum())
    outside = np.argwhere(~case.brain)[:inside]
    labels[tuple(outside.T)] = 1
    assert odd(planted(spes, 4, labels=labels)) == [f"a share of the label lies outside the brain: {case.name} (50%)"]


def test_one_case_with_another_grid_is_named_in_each_way(spes):
    case = spes.cases[1]
    finer = case.affine @ np.diag([0.5, 1, 1, 1])
    doubled = {"images": np.repeat(case.images, 2, axis=0), "labels": np.repeat(case.labels, 2, axis=0)}
    header = orientation.header((64, 32, 8), finer, True)
    assert odd(planted(spes, 1, affine=finer, header=header, **doubled)) == [
        f"another shape than all others: {case.name} (64 x 32 x 8)",
        f"another spacing than all others: {case.name} (3 x 6 x 14 mm)",
    ]


def test_one_case_along_other_axes_is_named(spes):
    case = spes.cases[5]
    turned = orientation.turned(case, "LSP")
    cases = (*spes.cases[:5], turned)
    assert odd(dataclasses.replace(spes, cases=cases)) == [
        f"stored along other axes than all others, which are RAS: {case.name} (LSP)"
    ]


def test_mixed_grids_are_not_odd(spes):
    """If the others do not agree either, no case stands out."""
    cases = list(spes.cases)
    for number in (0, 1):
        cases[number] = orientation.turned(cases[number], "LAS")
    for number, factor in ((2, 1.2), (3, 0.7)):
        affine = cases[number].affine * np.array([factor, factor, factor, 1])
        header = orientation.header(cases[number].images.shape[:3], affine, True)
        cases[number] = dataclasses.replace(cases[number], affine=affine, header=header)
    assert odd(dataclasses.replace(spes, cases=tuple(cases))) == []


@pytest.mark.parametrize(
    ("axes", "sides"),
    [((1,), "front and back"), ((2,), "top and bottom"), ((1, 2), "front and back, top and bottom")],
)
def test_a_brain_that_is_back_to_front_or_upside_down_is_named(axes, sides, real_set):
    case = real_set.cases[2]
    lines = odd(planted(real_set, 2, images=np.flip(case.images, axes), labels=np.flip(case.labels, axes)))
    assert lines == [f"the brain looks like those of the others only with its sides exchanged: {case.name} ({sides})"]


def test_left_and_right_of_a_single_brain_are_too_alike_to_tell(real_set):
    case = real_set.cases[2]
    assert odd(planted(real_set, 2, images=case.images[::-1], labels=case.labels[::-1])) == []


@pytest.mark.parametrize("change", [lambda v: v * 20, lambda v: v / 20, lambda v: v + 1e5])
def test_values_far_from_those_of_the_others_are_named(change, spes):
    case = spes.cases[3]
    dwi = case.images[..., 2]
    changed = with_channel(spes, 3, 2, np.where(case.brain & (dwi != 0), change(dwi), 0))
    low, high = np.percentile(changed.cases[3].images[..., 2][case.brain], [0.5, 99.5])
    [line] = odd(changed)
    what, shown = line.removesuffix(")").split(" (")
    assert what == f"the values of DWI are far from those of the others: {case.name}"
    assert [float(number) for number in shown.split(" to ")] == pytest.approx([low, high], rel=1e-3)


@pytest.mark.parametrize(("values", "count"), [("label", 3), ("constant", 2)])
def test_a_label_in_the_place_of_a_channel_is_named(values, count, spes):
    case = spes.cases[0]
    volume = case.labels if values == "label" else case.brain * 7.0
    lines = odd(with_channel(spes, 0, 0, volume))
    assert f"Tmax has hardly any different values, as labels have: {case.name} ({count})" in lines


def test_cases_without_labels_or_alone_are_not_compared(spes):
    bare = dataclasses.replace(spes, cases=(dataclasses.replace(spes.cases[0], labels=None),))
    assert odd(bare) == []
    lines = survey.survey(bare)
    assert not any(line.startswith("core, ml") for line in lines)
    assert "odd: nothing" in lines


def test_cases_without_labels_and_the_sites_are_named(spes):
    assert not [line for line in survey.survey(spes) if line.startswith(("no labels", "sites"))]
    some = planted(planted(spes, 1, labels=None, site="bern"), 3, labels=None, site="bern")
    lines = survey.survey(some)
    assert f"no labels    {spes.cases[1].name}, {spes.cases[3].name}" in lines
    assert f"sites        unknown ({len(spes.cases) - 2} cases), bern (2 cases)" in lines


# --- ranges -----------------------------------------------------------------------------------------------------------


def test_ranges_are_those_of_the_arrays(spes):
    lines = survey.survey(spes)
    assert lines[0] == spes.headline
    assert max(map(len, lines[1:])) <= 80
    rows = {title: line for line in lines if (title := line.partition(",")[0])}
    assert "labels       penumbra = 1, core = 2" in lines
    assert "shape        32 x 32 x 8" in lines
    assert "orientation  RAS" in lines
    assert "units        Tmax in seconds, by its values" in lines
    assert "background   Tmax 0; TTP 0; DWI 0" in lines
    brains = [case.brain.sum() * case.voxel_ml for case in spes.cases]
    cores = [(case.labels == 2).sum() * case.voxel_ml for case in spes.cases]
    for title, numbers in (("brain", brains), ("core", cores)):
        shown = [float(word) for word in rows[title].split()[2:5]]
        assert shown == pytest.approx([min(numbers), np.median(numbers), max(numbers)], rel=1e-3)
    dwi = [np.percentile(case.images[..., 2][case.brain], 50) for case in spes.cases]
    [row] = [line for line in lines if line.startswith("DWI, 50th percentile")]
    assert [float(word) for word in row.split()[3:]] == pytest.approx([min(dwi), np.median(dwi), max(dwi)], rel=1e-3)


def test_tmax_in_tenths_does_not_look_like_seconds(spes):
    tenths = dataclasses.replace(
        spes, cases=tuple(dataclasses.replace(case, images=case.images * np.float32(10)) for case in spes.cases)
    )
    [line] = [line for line in survey.survey(tenths) if line.startswith("units")]
    assert line.startswith("units        Tmax not in seconds, by its values (up to 1")


def test_the_unit_of_adc_is_told_where_adc_has_values(tmp_path):
    """An ADC map may cover a small part of what DWI shows."""
    cases = []
    for name, unit in (("a", 1.0), ("b", 1.0), ("c", 25.0)):
        case = random_case((12, 11, 6))
        adc = np.where(case.brain & (np.arange(12) < 4)[:, None, None], 0.8 * unit, 0)
        images = np.stack([case.images[..., 2], adc], axis=-1).astype(np.float32)
        cases.append(dataclasses.replace(case, name=name, images=images))
    for count, text in ((2, ""), (3, ", in another unit in 1 cases")):
        dataset = make_dataset(tmp_path, tuple(cases[:count]), ("DWI", "ADC"), ("lesion",), (1,))
        assert f"units        ADC in 1e-3 mm2/s{text}" in survey.survey(dataset)


def test_kinds_are_counted_and_many_kinds_are_a_range(phantom):
    lines = survey.survey(phantom)
    [shape] = [line for line in lines if line.startswith("shape")]
    kinds, counts = np.unique([case.images.shape[:3] for case in phantom.cases], axis=0, return_counts=True)
    for kind, count in zip(kinds, counts, strict=True):
        words = " x ".join(map(str, kind))
        assert (f"{words} ({count} case" if len(kinds) > 1 else words) in shape
    assert ("(" in shape) == (len(kinds) > 1)
    cases = tuple(
        dataclasses.replace(case, images=case.images[:, number:], labels=case.labels[:, number:])
        for number, case in enumerate(phantom.cases)
    )
    [shape] = [line for line in survey.survey(dataclasses.replace(phantom, cases=cases)) if line.startswith("shape")]
    sides = [case.images.shape[1] for case in cases]
    assert f" x {min(sides)} to {max(sides)} x " in shape


# --- the command that trains ------------------------------------------------------------------------------------------

USUAL = {"data.channels": (), "data.labels.penumbra": 1, "data.labels.core": 2}


def test_the_command_says_what_is_not_the_default(spes):
    assert survey.training_command(spes, "my data/x", USUAL) == "isles-jax train '--config.data.root=my data/x'"
    settings = USUAL | {"data.channels": ("DWI", "T1 'post'"), "data.labels.core": 3}
    command = survey.training_command(spes, "x", settings)
    config = overrides.read("configs/proposed.py", shlex.split(command)[2:])
    assert (config.data.root, config.data.channels, config.data.labels.core) == ("x", ("DWI", "T1 'post'"), 3)


def test_the_workdir_lies_outside_of_the_data(spes, monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    command = survey.training_command(spes, ".", USUAL)
    assert command == "isles-jax train --config.data.root=. --workdir=../runs/proposed"


def test_few_patients_have_fewer_folds(spes):
    two = dataclasses.replace(spes, cases=spes.cases[:2])
    assert survey.training_command(two, "x", USUAL).endswith("--config.folds=2")
    with pytest.raises(InputError, match="labels of 1 patients, expected 2 or more"):
        survey.training_command(dataclasses.replace(spes, cases=spes.cases[:1]), "x", USUAL)


def test_without_lesions_there_is_no_command(spes):
    cases = [dataclasses.replace(case, labels=np.zeros_like(case.labels)) for case in spes.cases]
    cases[0] = spes.cases[0]
    with pytest.raises(InputError, match="found no lesion in the 4 training cases of one of 3 folds"):
        survey.training_command(dataclasses.replace(spes, cases=tuple(cases)), "x", USUAL)
