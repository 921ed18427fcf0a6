"""The nnU-Net raw layout: there and back, other channels and classes, and one line for each way it can be broken."""

import json
import re

import numpy as np
import pytest
from helpers import NNUNET_CHANNELS as CHANNELS
from helpers import NNUNET_LABELS as LABELS
from helpers import OBLIQUE, SHAPE, checksums, nnunet_folder, save_volume, volumes

from isles_jax.data import layouts, nnunet
from isles_jax.runtime.command import InputError


def load(root):
    return layouts.load(root, penumbra=1, core=2)


def test_channels_and_classes_come_from_dataset_json(tmp_path):
    dataset = load(nnunet_folder(tmp_path))
    assert dataset.channels == ("DWI", "TTP", "Tmax")
    assert dataset.classes == ("penumbra", "core")
    assert dataset.label_values == (1, 3)
    assert not dataset.phantom
    assert [(case.name, case.labels is None) for case in dataset.cases] == [("p1", False), ("p2", False), ("p3", True)]
    for seed, case in enumerate(dataset.cases):
        there = volumes(seed=seed)
        np.testing.assert_array_equal(case.images, np.stack([there[name] for name in dataset.channels], axis=-1))
        assert case.labels is None or np.array_equal(case.labels, there["OT"])


def test_the_older_dataset_json_and_uncompressed_files(tmp_path):
    labels = {"0": "background", "1": "penumbra", "2": "core"}
    nnunet_folder(tmp_path, ".nii", labels=LABELS | {"core": 2})
    content = {"modality": CHANNELS, "labels": labels, "file_ending": ".nii", "numTraining": 2, "reference": "x"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = load(tmp_path)
    assert (dataset.classes, dataset.label_values) == (("penumbra", "core"), (1, 2))


@pytest.mark.parametrize(
    ("channels", "labels"),
    [
        ({"0": "FLAIR", "1": "DWI"}, {"background": 0, "lesion": 1}),
        ({"0": "T1"}, {"background": 0, "a": 1, "b": 2, "c": 5, "d": 200}),
    ],
)
def test_other_channels_and_class_counts(channels, labels, tmp_path):
    nnunet_folder(tmp_path, channels=channels, labels=labels)
    values = np.random.default_rng(0).choice(list(labels.values()), SHAPE).astype(np.uint8)
    save_volume(tmp_path / "labelsTr" / "p1.nii.gz", values)
    dataset = load(tmp_path)
    assert dataset.channels == tuple(channels.values())
    assert len(dataset.classes) == len(labels) - 1
    inside = np.searchsorted(sorted(labels.values()), values)
    np.testing.assert_array_equal(dataset.cases[0].labels, inside)
    np.testing.assert_array_equal(np.array([0, *dataset.label_values])[dataset.cases[0].labels], values)


def test_the_phantom_marker_is_kept(phantom_root, tmp_path):
    nnunet.write(layouts.load(phantom_root, penumbra=1, core=2), tmp_path / "new")
    dataset = load(tmp_path / "new")
    assert dataset.phantom
    assert len(dataset.cases) == 6


def test_images_for_prediction(tmp_path):
    root = nnunet_folder(tmp_path / "set")
    wanted = ("Tmax", "TTP", "DWI")
    for folder, names in ((root, ["p3"]), (root / "imagesTs", ["p3"]), (root / "imagesTr", ["p1", "p2"])):
        dataset = layouts.load_images(folder, wanted)
        assert [case.name for case in dataset.cases] == names
        for case in dataset.cases:
            there = volumes(seed=int(case.name[1]) - 1)
            np.testing.assert_array_equal(case.images, np.stack([there[name] for name in wanted], axis=-1))
    with pytest.raises(InputError, match="has the channels DWI, TTP, Tmax; expected Tmax, FLAIR"):
        layouts.load_images(root, ("Tmax", "FLAIR"))
    # Without a dataset.json the number of a file is its place.
    bare = tmp_path / "bare"
    (root / "imagesTs").rename(bare)
    there = volumes(seed=2)
    case = layouts.load_images(bare, ("a", "b", "c")).cases[0]
    np.testing.assert_array_equal(case.images, np.stack([there[name] for name in ("DWI", "TTP", "Tmax")], axis=-1))
    with pytest.raises(InputError, match="p3: has the channels 0000, 0001, 0002; expected 0000 to 0001"):
        layouts.load_images(bare, ("a", "b"))


def remove(*parts):
    return lambda root: root.joinpath(*parts).unlink()


def rewrite(text):
    return lambda root: (root / "dataset.json").write_text(text)


def again(**content):
    return lambda root: nnunet_folder(root, **content)


def again_json(**content):
    return lambda root: edit(root, **content)


def swapped(root):
    nnunet_folder(root, labels={"background": 0, "core": 1, "penumbra": 2})
    for number, case in enumerate(("p1", "p2")):
        save_volume(root / "labelsTr" / f"{case}.nii.gz", volumes(seed=number)["OT"])


BAD = {
    "no JSON": (rewrite("{"), "dataset.json: not readable as JSON"),
    "nested deeply": (rewrite("[" * 99999), "dataset.json: not readable as JSON"),
    "a list as a channel's name": (
        again_json(channel_names=CHANNELS | {"0": ["x"]}),
        "expected texts as names",
    ),
    "a digit that is no number": (again_json(labels={"²": "a", "0": "background"}), "the label '²' is 'a'"),
    "a list as a class's name": (again_json(labels={"0": "background", "1": ["a"]}), "the label '0' is 'background'"),
    "a name that no file can have": (
        again_json(labels=LABELS | {"a\n": 5}),
        r"found a class with the name 'a\\n'",
    ),
    "a class called as the foreground": (
        again_json(labels=LABELS | {"whole lesion": 5}),
        "the name is reserved",
    ),
    "no object": (rewrite("[1]"), "dataset.json: holds a list"),
    "no channels": (again(channel_names=None), "channel_names is None"),
    "channels that do not count up": (
        again(channel_names={"0": "a", "2": "b"}),
        "channel_names is .*expected names for 0",
    ),
    "a channel twice": (again(channel_names={"0": "Tmax", "1": "tmax"}), "holds a name twice"),
    "a background that is not 0": (again_json(labels={"lesion": 0, "background": 1}), "expected background 0"),
    "no labels": (lambda r: nnunet_folder(r) and rewrite('{"channel_names": {"0": "a"}}')(r), "labels is None"),
    "regions": (
        lambda r: again(labels=LABELS)(r) and edit(r, labels=LABELS | {"whole": [1, 2]}),
        "no regions",
    ),
    "an ignore label": (lambda r: edit(r, labels=LABELS | {"ignore": 4}), "no ignore label"),
    "no background": (lambda r: edit(r, labels={"a": 1, "b": 2}), "expected background 0"),
    "a label twice": (lambda r: edit(r, labels=LABELS | {"other": 3}), "all different"),
    "an ending of another kind": (lambda r: edit(r, file_ending=".png"), "is '.png'; expected .nii or .nii.gz"),
    "an ending longer than any name": (lambda r: edit(r, file_ending="x" * 5000), "file_ending is 'xxx"),
    "an ending that SimpleITK converts": (lambda r: edit(r, file_ending=".mha"), "is '.mha', .*SimpleITK.*; expected"),
    "files listed elsewhere": (lambda r: edit(r, dataset={}), "lists its files under 'dataset'"),
    "a missing channel": (
        remove("imagesTr", "p1_0001.nii.gz"),
        "p1: has the channels 0000, 0002; expected 0000 to 0002",
    ),
    "missing labels": (remove("labelsTr", "p2.nii.gz"), "p2.nii.gz: missing"),
    "labels without images": (
        lambda r: save_volume(r / "labelsTr" / "p9.nii.gz", volumes()["OT"]),
        "p9.nii.gz: a label volume whose images are not",
    ),
    "a case in both folders": (
        lambda r: save_volume(r / "imagesTs" / "p1_0000.nii.gz", volumes()["DWI"]),
        "the case p1 is in imagesTr and in imagesTs",
    ),
    "an unknown label": (
        lambda r: save_volume(r / "labelsTr" / "p1.nii.gz", np.full(SHAPE, 2, np.uint8)),
        r"p1.nii.gz: holds the label 2; expected only 0, 1, 3",
    ),
    "another grid": (
        lambda r: save_volume(r / "labelsTr" / "p1.nii.gz", volumes()["OT"], OBLIQUE + np.eye(4)),
        "p1.nii.gz: its affine",
    ),
    "names the wrong way round": (swapped, "exchanging the names penumbra and core in dataset.json would agree"),
}


def edit(root, **content):
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))


@pytest.mark.parametrize("kind", BAD)
def test_broken_folders_end_in_one_line(kind, tmp_path):
    prepare, words = BAD[kind]
    root = nnunet_folder(tmp_path / "set")
    prepare(root)
    before = checksums(tmp_path)
    with pytest.raises(InputError) as caught:
        load(root)
    message = str(caught.value)
    assert re.search(words, message), message
    assert "\n" not in message
    assert checksums(tmp_path) == before


@pytest.mark.parametrize("folder", ["imagesTr", "imagesTs"])
def test_one_channel_in_two_files_is_refused(tmp_path, folder):
    root, name = nnunet_folder(tmp_path / "set"), "p1" if folder == "imagesTr" else "p3"
    save_volume(root / folder / f"{name}_0002.nii", volumes()["DWI"])
    for read in (load, lambda path: layouts.load_images(path / folder, ("Tmax", "TTP", "DWI"))):
        with pytest.raises(InputError, match=rf"{name}_0002\.nii.*: found beside {name}_0002\.nii"):
            read(root)


def test_a_data_set_without_test_cases_is_read_for_prediction(phantom_root, tmp_path):
    nnunet.write(layouts.load(phantom_root, penumbra=1, core=2), tmp_path / "new")
    assert not (tmp_path / "new" / "imagesTs").exists()
    (tmp_path / "new" / "imagesTs").mkdir()
    assert len(layouts.load_images(tmp_path / "new", ("Tmax", "TTP", "DWI")).cases) == 6


def test_an_output_that_cannot_be_written_or_lies_inside_the_input_is_one_line(phantom_root, tmp_path):
    dataset = layouts.load(phantom_root, penumbra=1, core=2)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/new: cannot be written"):
        nnunet.write(dataset, tmp_path / "file" / "new")
    with pytest.raises(InputError, match="lies inside"):
        nnunet.write(dataset, phantom_root / "new")
    assert not (phantom_root / "new").exists()
