"""Every layout: recognised, read, trained on in one command, predicted, and written for nnU-Net."""

import json
import re
import shlex
import shutil

import nibabel as nib
import numpy as np
import pytest
from helpers import SHAPE, checksums, save_volume, spes_folder, task_of
from isles_folder import (
    HEALTHY,
    ISLES_2017,
    LAYOUTS,
    bids,
    case_folders,
    flat,
    images,
    isles_2018,
    isles_2022,
    nnunet,
    siss,
)

from isles_jax import config, convert, predict
from isles_jax.cross_validation import cross_validate
from isles_jax.data import folds, layouts, orientation
from isles_jax.data.grid import Target
from isles_jax.data.nifti import ReadOptions
from isles_jax.prediction.inference import predict_case
from isles_jax.runtime.command import InputError

ONES = np.ones(SHAPE, np.uint8)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_folder_is_recognised_and_read(kind, tmp_path):
    name, channels, build = LAYOUTS[kind]
    build(tmp_path)
    dataset = layouts.load(tmp_path)
    assert (dataset.layout, dataset.channels, dataset.classes, dataset.label_values) == (
        name,
        channels,
        ("lesion",),
        (1,),
    )
    assert dataset.headline == (
        f"{tmp_path}: {name}, 3 cases, 3 with labels; channels {', '.join(channels)}; classes lesion"
    )
    seeds = (1, 11, 21) if name == "ISLES-2022" else (1, 2, 3)
    for case, seed in zip(dataset.cases, seeds, strict=True):
        there = {word.upper(): volume for word, volume in images([c.lower() for c in channels], seed).items()}
        # The order in which the test draws its noise is that of the files' names.
        assert case.images.shape == (*SHAPE, len(channels))
        np.testing.assert_array_equal(case.labels, there["OT"])
        np.testing.assert_array_equal(case.brain, there[channels[0].upper()] > 0)
        if set(channels) == {"DWI", "ADC"}:
            np.testing.assert_allclose(case.images[..., 1], there["ADC"], rtol=1e-6)


def test_spes_is_recognised_as_before(tmp_path):
    dataset = layouts.load(spes_folder(tmp_path))
    assert (dataset.layout, dataset.channels, dataset.classes) == (
        "ISLES-2015 SPES", ("Tmax", "TTP", "DWI"), ("penumbra", "core")
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "wanted"), [
    ("SISS", ("DWI", "T2")), ("2016 and 2017", ("Tmax", "ADC")), ("2018", ("MTT",)), ("nnU-Net", ("ADC",)),
    ("2022, the archive", ("ADC",)), ("2022, the repository", ("ADC", "DWI")),
])  # fmt: skip
def test_channels_of_ones_own(kind, wanted, tmp_path):
    _, channels, build = LAYOUTS[kind]
    build(tmp_path)
    whole, some = layouts.load(tmp_path), layouts.load(tmp_path, wanted)
    assert some.channels == wanted
    for one, other in zip(whole.cases, some.cases, strict=True):
        np.testing.assert_array_equal(other.images, one.images[..., [channels.index(name) for name in wanted]])


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYOUTS)
def test_one_command_trains_predicts_and_converts(kind, tmp_path, capsys):
    name, channels, build = LAYOUTS[kind]
    build(tmp_path / "set")
    settings = config.baseline(residual=True, adversarial=False, overlap=False)
    settings.update_from_flattened_dict({
        "data.root": str(tmp_path / "set"), "folds": 2, "model.width": 2, "train.epochs": 1, "train.batch_size": 2,
    })  # fmt: skip
    cross_validate(settings, tmp_path / "run")
    assert f"{name}, 3 cases, 3 with labels" in capsys.readouterr().out
    arguments = [f"--workdir={tmp_path / 'run'}", f"--input={tmp_path / 'set'}", f"--output={tmp_path / 'out'}"]
    predict.main(arguments)
    cases = layouts.load(tmp_path / "set").cases
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [f"{c.name}.nii.gz" for c in cases]
    for case in cases:
        image = nib.load(tmp_path / "out" / f"{case.name}.nii.gz")
        assert image.shape == case.labels.shape
        np.testing.assert_allclose(image.affine, case.affine, atol=1e-4)
    convert.main([f"--input={tmp_path / 'set'}", f"--output={tmp_path / 'raw'}"])
    back = layouts.load(tmp_path / "raw")
    assert back.channels == channels
    for one, other in zip(cases, back.cases, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


# --- ISLES-2022 ------------------------------------------------------------------------------------------------------


def test_scans_of_a_patient_are_known_and_flair_is_left_out(tmp_path):
    root = tmp_path / "in"
    isles_2022(root, subjects=(("0001", 2), ("0002", 1)))
    dataset = layouts.load(root)
    assert [(case.name, case.patient) for case in dataset.cases] == [
        ("sub-strokecase0001_ses-0001", "sub-strokecase0001"),
        ("sub-strokecase0001_ses-0002", "sub-strokecase0001"),
        ("sub-strokecase0002_ses-0001", "sub-strokecase0002"),
    ]
    assert "3 cases of 2 patients" in dataset.headline
    [note] = dataset.notes
    assert re.fullmatch(r"not read: \S+_ses-0001_FLAIR.nii.gz, .*; each of them .* none of the channels .*", note)
    convert.main([f"--input={root}", f"--output={tmp_path / 'raw'}"])
    assert [case.patient for case in layouts.load(tmp_path / "raw").cases] == [case.patient for case in dataset.cases]


@pytest.mark.parametrize(("factor", "unit"), [(1, None), (1e-3, "mm2/s"), (1e3, "1e-6 mm2/s")])
def test_adc_is_brought_to_one_unit(factor, unit, tmp_path):
    isles_2022(tmp_path, flair=False)
    path = tmp_path / "sub-strokecase0002/ses-0001/dwi/sub-strokecase0002_ses-0001_adc.nii.gz"
    adc = nib.load(path)
    save_volume(path, adc.get_fdata() * factor)
    dataset = layouts.load(tmp_path)
    for case in dataset.cases:
        healthy = case.images[..., 1][case.brain & (case.labels == 0)]
        assert np.median(healthy) == pytest.approx(HEALTHY, rel=0.02)
    assert dataset.notes == (() if unit is None else (f"ADC in {unit}, brought to 1e-3 mm2/s",))


def test_adc_in_no_known_unit_is_left_with_a_note(tmp_path):
    isles_2022(tmp_path, flair=False, subjects=(("0001", 1),))
    path = tmp_path / "sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_adc.nii.gz"
    adc = nib.load(path).get_fdata()
    save_volume(path, adc * 25)
    dataset = layouts.load(tmp_path)
    np.testing.assert_allclose(dataset.cases[0].images[..., 1], adc * 25, rtol=1e-6)
    assert "the median of ADC is 19" in dataset.notes[0]
    assert "left as it is" in dataset.notes[0]


def test_any_part_of_it_can_be_predicted(tmp_path):
    isles_2022(tmp_path, subjects=(("0001", 2), ("0002", 1)))
    for path, count in (
        (tmp_path, 3),
        (tmp_path / "sub-strokecase0001", 2),
        (tmp_path / "sub-strokecase0001/ses-0002", 1),
    ):
        dataset = layouts.load_images(path, ("ADC", "DWI"))
        assert len(dataset.cases) == count
        assert all(case.labels is None for case in dataset.cases)
        assert np.median(dataset.cases[0].images[..., 0][dataset.cases[0].brain]) == pytest.approx(HEALTHY, rel=0.05)


def test_a_flat_folder_of_new_cases_is_predicted_by_case(tmp_path):
    flat(tmp_path)
    dataset = layouts.load_images(tmp_path, ("ADC", "DWI"))
    assert [case.name for case in dataset.cases] == [f"strokecase000{number}_0001" for number in (1, 2, 3)]
    for case, other in zip(dataset.cases, layouts.load(tmp_path).cases, strict=True):
        np.testing.assert_array_equal(case.images, other.images[..., ::-1])


def test_a_mask_of_something_else_is_named_and_not_taken(tmp_path):
    """It may lie beside that of the lesion, or have a name that is no case's."""
    isles_2022(tmp_path, flair=False)
    lesions = sorted(tmp_path.rglob("*_msk.nii.gz"))
    others = ("strokecase0001_ses-0001_mask.nii.gz", "strokecase0001_ses-0001_brain_mask.nii.gz")
    for name in others:
        save_volume(lesions[0].with_name(f"sub-{name}"), ONES)
    dataset = layouts.load(tmp_path)
    assert [case.files[-1] for case in dataset.cases] == lesions
    [note] = dataset.notes
    assert note.startswith("not read: ")
    assert all(name in note for name in others)


def test_two_subjects_whose_files_have_one_name_are_refused(tmp_path):
    isles_2022(tmp_path, flair=False)
    shutil.copytree(tmp_path / "sub-strokecase0001", tmp_path / "sub-strokecase0009")
    with pytest.raises(InputError, match=r"2 files for DWI of sub-strokecase0001_ses-0001 \(sub-.*0001/.*sub-.*0009/"):
        layouts.load(tmp_path)


@pytest.mark.parametrize("prefix", ["", "sub-{}_"])
def test_folders_of_subjects_with_the_sequences_of_an_earlier_challenge(prefix, tmp_path):
    spes_folder(tmp_path / "spes", cases=("sub-a", "sub-b"))
    for path in sorted((tmp_path / "spes").rglob("*.nii")):
        path.rename(path.with_name(prefix.format(path.parent.name[-1]) + path.name))
    dataset = layouts.load(tmp_path / "spes")
    assert (dataset.layout, dataset.notes) == ("ISLES-2015 SPES", ())
    assert [case.name for case in dataset.cases] == ["sub-a", "sub-b"]
    assert all(case.labels.max() == 2 for case in dataset.cases)
    for path, names in ((tmp_path / "spes", ["sub-a", "sub-b"]), (tmp_path / "spes" / "sub-b", ["sub-b"])):
        images = layouts.load_images(path, dataset.channels)
        assert [case.name for case in images.cases] == names
        np.testing.assert_array_equal(images.cases[-1].images, dataset.cases[-1].images)


def test_a_mask_of_the_brain_is_no_lesion_and_is_named(tmp_path):
    dataset = layouts.load(bids(tmp_path))
    assert [int(case.labels.sum()) for case in dataset.cases] == [60] * 3
    [note] = dataset.notes
    assert note.count("_desc-brain_mask.nii.gz") == 3


def reoriented(image, axes):
    start, end = nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    return image.as_reoriented(nib.orientations.ornt_transform(start, end))


def network(variables, slices):
    """As if trained, and different for a slice that is turned or flipped."""
    edge = slices[..., 0] - np.roll(slices[..., 0], (1, 2), axis=(1, 2))
    lesion = 1 / (1 + np.exp(-slices[..., 0] - edge))
    return np.stack([1 - lesion, lesion], axis=-1).astype(np.float32)


def beside(subject, session, word):
    return f"{subject}/{subject}_{session}_{word}"


def bids_place(subject, session, word):
    if word == "msk":
        return f"derivatives/manual/{subject}/{session}/anat/{subject}_{session}_space-orig_label-lesion_mask"
    return f"{subject}/{session}/dwi/{subject}_{session}_{word}"


# How a real case is stored, and where.
STORED = {
    "RAS": (lambda image: reoriented(image, "RAS"), beside),
    "PIR": (lambda image: reoriented(image, "PIR"), beside),
    "NIfTI-2": (lambda image: nib.Nifti2Image(np.asarray(image.dataobj), image.affine), beside),
    "BIDS": (lambda image: image, bids_place),
    "a flat folder": (lambda image: image, lambda *words: "_".join(words)),
}


@pytest.mark.parametrize("kind", STORED)
def test_a_real_case_is_the_same_however_it_is_stored(kind, real_set, small_config, tmp_path):
    change, place = STORED[kind]
    expected = next(case for case in real_set.cases if case.patient == "sub-strokecase0009")
    for path in sorted(real_set.root.rglob("sub-strokecase0009*.nii.gz")):
        if "flair" not in path.name:
            target = tmp_path / f"{place(*path.name.removesuffix('.nii.gz').split('_'))}.nii"
            target.parent.mkdir(parents=True, exist_ok=True)
            nib.save(change(nib.load(path)), target)
    [case] = layouts.load(tmp_path).cases
    turned = orientation.turned(case, "LAS")
    for one, other in ((turned.images, expected.images), (turned.labels, expected.labels)):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(turned.brain, expected.brain)
    np.testing.assert_allclose(turned.affine, expected.affine, atol=1e-4)
    # The answer comes back along the axes of the file.
    task = task_of(small_config(), ("lesion",), channels=("DWI", "ADC"), target=Target(axes="LAS"))
    answers = [predict_case(network, [None], each, task).argmax(axis=-1) for each in (case, expected)]
    assert answers[0].shape == case.images.shape[:3]
    assert 1000 < answers[1].sum() < 0.9 * expected.brain.sum()
    np.testing.assert_array_equal(answers[0], orientation.turned_back(answers[1], case, "LAS"))


def test_real_cases_are_read(real_set, tmp_path):
    cases = {case.patient: case for case in real_set.cases}
    # Files of real scanners: all say where left is, and have a background of 0 around a brain of a brain's size.
    assert all(case.oriented and case.backgrounds == (0.0, 0.0) for case in cases.values())
    assert all(1000 < case.brain.sum() * case.voxel_ml < 1800 for case in cases.values())
    case = cases["sub-strokecase0009"]
    assert case.images.shape == (112, 112, 73, 2)
    assert (case.labels == 1).sum() == 523
    assert 0.7 < np.median(case.images[..., 1][case.brain]) < 1.1
    convert.main([f"--input={real_set.root}", f"--output={tmp_path / 'raw'}"])
    for old, new in zip(cases.values(), layouts.load(tmp_path / "raw").cases, strict=True):
        np.testing.assert_array_equal(new.images, old.images)
        np.testing.assert_array_equal(new.labels, old.labels)
        np.testing.assert_array_equal(new.affine, old.affine)
        assert [new.header[code] for code in ("qform_code", "sform_code")] == [
            old.header[code] for code in ("qform_code", "sform_code")
        ]


# --- what is refused -------------------------------------------------------------------------------------------------

DWI = "sub-strokecase0002/ses-0001/dwi/sub-strokecase0002_ses-0001_dwi.nii.gz"
ADC = DWI.replace("dwi.nii", "adc.nii")
MASK = "derivatives/sub-strokecase0002/ses-0001/sub-strokecase0002_ses-0001_msk.nii.gz"
OT = "case_2/VSD.Brain.XX.O.OT.204/VSD.Brain.XX.O.OT.204.nii"


def changed(path, change, build=isles_2022):
    """A folder in which one file is changed: content, volume or name, whatever `change` makes of (root, path)."""

    def prepare(root):
        build(root)
        change(root / path)

    return prepare


def removed(path):
    path.unlink()


def halved(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def copied(target):
    return lambda path: (path.parent / target).write_bytes(path.read_bytes())


def copied_up(path):
    (path.parents[1] / path.name).write_bytes(path.read_bytes())


def volume(change):
    """Replaces the volume by what `change` makes of it."""

    def apply(path):
        save_volume(path, change(nib.load(path).get_fdata()))

    return apply


def moved(path):
    image = nib.load(path)
    affine = image.affine.copy()
    affine[1, 3] += 2
    save_volume(path, image.get_fdata(), affine)


def table(content, build=isles_2022):
    def prepare(root):
        build(root)
        (root / "cases.csv").write_text(content)

    return prepare


NAMES = [f"sub-strokecase000{number}_ses-0001" for number in (1, 2, 3)]
ROWS = "".join(f"{name},p{number}\n" for number, name in enumerate(NAMES))
OT_2017 = "case_2/VSD.Brain.XX.O.OT.206/VSD.Brain.XX.O.OT.206.nii"
MTT = "case_2/VSD.Brain.XX.O.MR_MTT.201/VSD.Brain.XX.O.MR_MTT.201.nii"
CT = "TRAINING/case_2/SMIR.Brain.XX.O.CT_MTT.202/SMIR.Brain.XX.O.CT_MTT.202.nii"
BAD = {
    "2022: no DWI": (changed(DWI, removed), "no sub-strokecase0002_ses-0001_dwi.nii.*found .*adc.nii.gz"),
    "2022: no ADC": (changed(ADC, removed), "no sub-strokecase0002_ses-0001_adc.nii.*found .*dwi.nii.gz"),
    "2022: neither": (lambda r: (changed(DWI, removed)(r), removed(r / ADC)), "0002: no sub-.*expected one"),
    "2022: a subject with FLAIR alone": (
        lambda r: (isles_2022(r), save_volume(r / "sub-x" / "sub-x_FLAIR.nii.gz", ONES)), "sub-x: no sub-x_…_dwi"),
    "2022: subjects and no files": (lambda r: (r / "sub-1" / "ses-1").mkdir(parents=True), "sub-1: no sub-1_…_dwi"),
    "2022: DWI twice": (changed(DWI, copied(f"{NAMES[1]}_dwi.nii")), "2 files for DWI of sub-"),
    "2022: DWI in two folders": (
        changed(DWI, copied_up), "2 files for DWI of sub-"),
    "2022: two masks": (
        changed(MASK, copied_up), r"2 files for mask \(msk\) of sub-"),
    "2022: a mask without images": (
        changed(MASK, copied("sub-strokecase0009_ses-0001_msk.nii.gz")), "0009_ses-0001_msk.nii.gz: a mask whose"),
    "2022: a mask with twos": (changed(MASK, volume(lambda v: 2 * v)), "holds the label 2; expected only 0, 1"),
    "2022: a mask of another shape": (changed(MASK, volume(lambda v: v[:3])), "shape 3x8x5; expected 9x8x5"),
    "2022: a mask that lies elsewhere": (changed(MASK, moved), "msk.nii.gz: its affine lies 2 mm away"),
    "2022: an ADC that lies elsewhere": (changed(ADC, moved), "adc.nii.gz: its affine lies 2 mm away"),
    "2022: an ADC of another shape": (changed(ADC, volume(lambda v: v[:-1])), "adc.nii.gz: shape 8x8x5; expected 9x8"),
    "2022: a DWI of zeros and an ADC of zeros": (
        lambda r: (changed(DWI, volume(np.zeros_like))(r), volume(np.zeros_like)(r / ADC)), "no voxel of this case"),
    "2022: half a DWI": (changed(DWI, halved), "dwi.nii.gz: not a readable NIfTI"),
    "2022: half a mask": (changed(MASK, halved), "msk.nii.gz: not a readable NIfTI"),
    "2022: subject folders below another": (
        lambda r: isles_2022(r / "ISLES-2022"), "expected the folder of a data set, such as .*/ISLES-2022$"),
    "2022: channels that it lacks": (isles_2022, "no sub-strokecase0001_ses-0001_pwi.nii", ("DWI", "PWI")),
    "2022: FLAIR, which lies on another grid": (isles_2022, "FLAIR.nii.gz: shape 20x20x3", ("DWI", "FLAIR")),
    "SISS: no T1 in a case": (
        changed("case_2/VSD.Brain.XX.O.MR_T1.201/VSD.Brain.XX.O.MR_T1.201.nii", removed, siss), "case_2: no T1.nii"),
    "SISS: no T1 in any case": (
        lambda r: (siss(r), [p.unlink() for p in r.rglob("*T1*.nii")]), "case_1 holds .*: isles-jax check "),
    "SISS: FLAIR twice": (
        changed("case_2/VSD.Brain.XX.O.MR_FLAIR.200/VSD.Brain.XX.O.MR_Flair.200.nii", copied("FLAIR.nii"), siss),
        "case_2: 2 files for FLAIR"),
    "SISS: two label files": (changed(OT, copied("OT.nii"), siss), "case_2: 2 files for OT"),
    "SISS: three labels": (changed(OT, volume(lambda v: 3 * v), siss), "holds the label 3; expected only 0, 1"),
    "SISS: channels that it lacks": (siss, "case_1: no Tmax.nii", ("DWI", "Tmax")),
    "2017: a label on another grid": (
        changed(OT_2017, volume(lambda v: v[:, :-1]), lambda r: case_folders(r, ISLES_2017)), "shape 9x7x5"),
    "2017: half a file": (changed(MTT, halved, lambda r: case_folders(r, ISLES_2017)), "MTT.*the header claims"),
    "2018: no MTT in a case": (changed(CT, removed, isles_2018), "case_2: no MTT.nii"),
    "2018: MTT on another grid": (changed(CT, moved, isles_2018), "MTT.*its affine lies 2 mm away"),
    "2018: an empty TRAINING": (lambda r: (r / "TRAINING").mkdir(), "TRAINING: holds no case folder; expected a lay"),
    "2018: a folder above": (lambda r: isles_2018(r / "ISLES2018"), "the folder of a data set, such as .*/ISLES2018$"),
    "folders of something else": (lambda r: save_volume(r / "a" / "CT.nii", ONES), "a holds CT.nii, .*isles-jax ch"),
    "nnU-Net: channels that it lacks": (nnunet, "dataset.json: has the channels DWI, ADC; expected T2", ("T2",)),
    "cases.csv: no columns": (table(""), "cases.csv: is empty; expected a header"),
    "cases.csv: case alone": (table("case\na\n"), "cases.csv: has the columns case; expected case, and"),
    "cases.csv: another column": (table("case,age\na,4\n"), "cases.csv: has the columns case, age"),
    "cases.csv: a case without a row": (table(f"case,patient\n{ROWS.splitlines()[0]}\n"), "does not hold the case"),
    "cases.csv: a case that is not there": (table(f"case,patient\n{ROWS}x,y\n"), "a case that the data lack, x"),
    "cases.csv: a case twice": (table(f"case,patient\n{ROWS}{ROWS}"), "found the case 'sub.* twice"),
    "cases.csv: an empty field": (table(f"case,patient\n{ROWS.replace('p1', '')}"), "a row has an empty field"),
    "cases.csv: a field too many": (table(f"case,patient\n{ROWS.replace('p1', 'p1,x')}"), "line 3: found 3 cells; ex"),
    "cases.csv: bytes": (
        lambda r: (isles_2022(r), (r / "cases.csv").write_bytes(b"\xff\x80")), "cases.csv: not readable as a table"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_damaged_folders_are_refused_in_one_line(kind, tmp_path):
    prepare, words, *channels = BAD[kind]
    prepare(tmp_path)
    before = checksums(tmp_path)
    with pytest.raises(InputError) as caught:
        layouts.load(tmp_path, *channels)
    message = str(caught.value)
    # A channel that no case has is missed in each of them.
    lines = message.splitlines()
    assert len(lines) == 1 + 2 * bool(channels) * (kind != "nnU-Net: channels that it lacks"), message
    assert re.search(words, lines[0]), message
    assert all(str(tmp_path) in line for line in lines)
    assert checksums(tmp_path) == before


def test_a_folder_that_fits_nothing_ends_with_the_command_that_makes_a_table_of_it(tmp_path):
    """What is sure is proposed at once; what is not is left to the check."""
    for case in ("p1", "p2", "p3"):
        for word, volume in images(("dwi", "adc"), 1).items():
            name = "mask" if word == "OT" else word
            save_volume(tmp_path / case / f"{name}.nii.gz", volume if name != "mask" else few(volume))
    with pytest.raises(InputError) as caught:
        layouts.load(tmp_path)
    first, command = str(caught.value).splitlines()
    assert first.endswith("expected a layout of docs/data.md, or a table of its files, which this command makes:")
    assert "'DWI={case}/dwi.nii.gz'" in command
    assert command.startswith(f"isles-jax check {tmp_path} --images ")
    assert command.endswith(f"--label '{{case}}/mask.nii.gz' --output {tmp_path}/cases.csv")
    for case in ("p1", "p2", "p3"):
        save_volume(tmp_path / case / "roi.nii.gz", few(images((), 1)["OT"]))
    with pytest.raises(InputError, match=r"for which this command makes a proposal: isles-jax check [^ ]*$"):
        layouts.load(tmp_path)


@pytest.mark.parametrize("doubtful", [False, True])
def test_commands_in_a_message_can_be_copied_for_any_path(doubtful, tmp_path):
    root = tmp_path / "it's $HOME"
    for case in ("p1", "p2") if doubtful else ("p1",):
        for word in ("b1000", "trace"):
            save_volume(root / case / f"{word}.nii.gz", images((word,), 1)[word])
    with pytest.raises(InputError) as caught:
        layouts.load(root)
    message = str(caught.value)
    words = shlex.split(message[message.index("isles-jax check") :])
    example = [] if doubtful else ["--images", "DWI={case}/dwi.nii.gz", "--output", str(root / "cases.csv")]
    assert words == ["isles-jax", "check", str(root), *example]


def few(labels):
    """Labels with one voxel of lesion, too few to be a brain."""
    made = np.zeros_like(labels)
    made[tuple(np.argwhere(labels)[0])] = 1
    return made


def last_case_without(root, channel, kind):
    """Removes the file of a channel of the last case; returns the path that it had."""
    word = "_0001" if kind == "nnU-Net" else channel.lower()
    path = [path for path in sorted(root.rglob("*.nii*")) if re.search(rf"(?<![a-z]){word}[._]", path.name.lower())][-1]
    path.unlink()
    return path


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_case_of_a_folder_may_lack_a_sequence_if_that_is_asked_for(kind, tmp_path):
    _, channels, build = LAYOUTS[kind]
    build(tmp_path)
    whole = layouts.load(tmp_path)
    lost = last_case_without(tmp_path, channels[1], kind)
    with pytest.raises(
        InputError, match=r"; --config.data.missing=zero \(check: --missing=zero\) trains without some$"
    ):
        layouts.load(tmp_path)
    how = ReadOptions(missing=True)
    dataset = layouts.load(tmp_path, how=how)
    new = layouts.load_images(tmp_path, dataset.channels, how)
    assert dataset.channels == channels
    assert [case.name for case in dataset.cases] == [case.name for case in whole.cases]
    assert [case.absent for case in dataset.cases] == [(), (), (channels[1],)]
    for case, before, image in zip(dataset.cases, whole.cases, new.cases, strict=True):
        np.testing.assert_array_equal(case.labels, before.labels)
        assert image.absent == case.absent
        for index, channel in enumerate(channels):
            expected = np.zeros_like(before.images[..., 0]) if channel in case.absent else before.images[..., index]
            np.testing.assert_array_equal(case.images[..., index], expected)
            np.testing.assert_array_equal(image.images[..., index], expected)
    # What cannot be read is not missing.
    lost.symlink_to("nowhere.nii.gz")
    with pytest.raises(InputError, match="a link to nowhere; 'git annex get'"):
        layouts.load(tmp_path, how=how)


def test_a_case_without_any_sequence_is_refused_whatever_is_asked_for(tmp_path):
    siss(tmp_path / "siss")
    for path in sorted((tmp_path / "siss" / "case_2").rglob("*MR_*.nii")):
        path.unlink()
    with pytest.raises(InputError, match=r"case_2: no FLAIR.nii or .nii.gz, alone .*; found [^;]*OT[^;]*$"):
        layouts.load(tmp_path / "siss", how=ReadOptions(missing=True))


def test_sites_come_from_the_table(tmp_path):
    isles_2022(tmp_path)
    (tmp_path / "cases.csv").write_text("case,site\n" + "".join(f"{name},s{len(name) % 2}\n" for name in NAMES))
    dataset = layouts.load(tmp_path)
    assert [case.site for case in dataset.cases] == ["s1"] * 3
    assert [case.patient for case in dataset.cases] == [name.split("_")[0] for name in NAMES]


@pytest.mark.parametrize("folder", ["", "rawdata"])
def test_sites_of_bids_come_from_participants_tsv(folder, tmp_path):
    isles_2022(tmp_path, repository=bool(folder))
    subjects = [name.split("_")[0] for name in NAMES]
    rows = "\n".join(f"{subject}\t70\t{site}" for subject, site in zip(subjects, ("bern", "n/a", "graz"), strict=True))
    (tmp_path / folder / "participants.tsv").write_text(f"participant_id\tage\tsite\n{rows}\n")
    dataset = layouts.load(tmp_path)
    assert [case.site for case in dataset.cases] == ["bern", "", "graz"]
    with pytest.raises(InputError, match="no site of the case sub-strokecase0002_ses-0001, expected it in the column"):
        folds.group(dataset.cases, "site")
    (tmp_path / "cases.csv").write_text("case,site\n" + "".join(f"{name},x\n" for name in NAMES))
    assert [case.site for case in layouts.load(tmp_path).cases] == ["x"] * 3


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"participant_id\tage\nsub-strokecase0001\t70\n", ""), (b"", ""), (b"site\nbern\n", ""), (b"\xff", "UTF-8")],
)
def test_without_sites_in_participants_tsv_they_are_not_known(content, words, tmp_path):
    isles_2022(tmp_path, flair=False)
    (tmp_path / "participants.tsv").write_bytes(content)
    dataset = layouts.load(tmp_path)
    assert [case.site for case in dataset.cases] == [""] * 3
    assert len(dataset.notes) == bool(words)
    assert all("participants.tsv: not readable as a table in UTF-8" in note for note in dataset.notes)


def test_the_images_of_a_large_set_lie_on_the_disk(tmp_path, monkeypatch):
    isles_2022(tmp_path)
    kept = layouts.load(tmp_path)
    monkeypatch.setattr("isles_jax.data.nifti.KEPT_SHARE", 0.0)
    spilled = layouts.load(tmp_path)
    for one, other in zip(kept.cases, spilled.cases, strict=True):
        assert isinstance(other.images, np.memmap)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.brain, other.brain)
    assert json.dumps([case.spacing_mm for case in kept.cases]) == json.dumps(
        [case.spacing_mm for case in spilled.cases]
    )


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        layouts.load(tmp_path / "nowhere", penumbra=1, core=2)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        layouts.load(tmp_path / "file", penumbra=1, core=2)
