"""Reads and writes the raw layout of nnU-Net (version 2, and the older dataset.json).

<root>/dataset.json                        channel_names (or modality), labels, file_ending
<root>/imagesTr/<case>_0000.nii.gz …       one file for each channel, numbered in four digits
<root>/labelsTr/<case>.nii.gz
<root>/imagesTs/<case>_0000.nii.gz …       cases without labels, optional
"""

import json
import re
import reprlib
import shutil
from pathlib import Path
from typing import Any

from isles_jax.data import table
from isles_jax.data.case import Case, Dataset, make_dataset, phantom_marker
from isles_jax.data.folder import MISSING, SUFFIXES, hint, is_nifti, list_folder, of_other_format, stem, volumes_by_name
from isles_jax.data.nifti import AS_USUAL, ReadOptions, read_all, read_images, with_labels, write_labels, write_volume
from isles_jax.runtime.command import InputError
from isles_jax.runtime.files import new_folder, read_json, refuse_inside

_NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def read(root: Path, wanted: tuple[str, ...] = (), how: ReadOptions = AS_USUAL) -> Dataset:
    """Reads a data set in the nnU-Net raw layout; classes are in the order of their integers in dataset.json.

    Args:
      root: holds dataset.json.
      wanted: names of the channels to be read, in this order; none for all of them.
      how: the images are read.

    Raises:
      InputError: dataset.json is damaged or not supported; some cases are bad (one line for each).
    """
    description = root / "dataset.json"
    content = _read_json(description)
    names = _channels(description, content, wanted)
    channels = wanted or names
    classes, values = _classes(description, content)
    ending = content.get("file_ending", ".nii.gz")
    if ending not in SUFFIXES:
        found = ", ".join(filter(None, (reprlib.repr(ending), of_other_format(f"x{ending}"))))
        raise InputError(f"{description}: file_ending is {found}; expected .nii or .nii.gz")
    images = root / "imagesTr"
    training = _find_cases(images)
    testing = _find_cases(root / "imagesTs")
    in_both = sorted(set(training) & set(testing))
    if in_both:
        raise InputError(f"{root}: the case {in_both[0]} is in imagesTr and in imagesTs; expected it in one")
    if not training and not testing:
        raise InputError(f"{root}: no <case>_0000.nii.gz in imagesTr or imagesTs{hint(root)}")
    folder = root / "labelsTr"
    labels = volumes_by_name(folder) if folder.is_dir() else {}

    def read_case(item: str | Path) -> Case:
        if isinstance(item, Path):
            raise InputError(
                f"{item}: a label volume whose images are not in imagesTr{hint(images, stem(item).lower())}"
            )
        if item in testing:
            return _read_images(root / "imagesTs" / item, testing[item], names, channels, how)
        case = _read_images(images / item, training[item], names, channels, how)
        if item not in labels:
            path = folder / f"{item}{ending}"
            raise InputError(f"{path}: missing; expected labels for every case of imagesTr{hint(folder, item.lower())}")
        return with_labels(case, labels[item], values, how)

    # A data set that was copied in part has labels without images.
    stray = [path for name, path in labels.items() if name not in training]
    items: list[str | Path] = [*sorted(training | testing), *stray]
    cases = read_all(items, read_case)
    return make_dataset(root, cases, channels, classes, values, layout="nnU-Net")


def is_image_folder(path: Path) -> bool:
    """True for a folder of <case>_0000.nii.gz files, or one with dataset.json, imagesTs or imagesTr."""
    if any((path / name).exists() for name in ("dataset.json", "imagesTs", "imagesTr")):
        return True
    return any(is_nifti(entry) and _NUMBERED.fullmatch(stem(entry)) for entry in list_folder(path))


def read_image_folder(path: Path, channels: tuple[str, ...], how: ReadOptions = AS_USUAL) -> tuple[Case, ...]:
    """Reads cases without labels from <case>_0000.nii.gz and so on, with their channels in the order of `channels`.

    A dataset.json in the folder, or in the one above it, names the channels of the files. Without it, the number of a
    file is an index into `channels`. Errors are those of `read`.
    """
    inner = [path / name for name in ("imagesTs", "imagesTr") if (path / name).is_dir()]
    folder = next((each for each in inner if any(map(is_nifti, list_folder(each)))), path)
    names = channels
    description = next((p / "dataset.json" for p in (folder, folder.parent) if (p / "dataset.json").is_file()), None)
    if description is not None:
        names = _channels(description, _read_json(description), channels)
    cases = _find_cases(folder)
    if not cases:
        raise InputError(
            f"{folder}: no <case>_0000.nii.gz; expected one file for each of {', '.join(channels)}{hint(folder)}"
        )

    def read_case(name: str) -> Case:
        return _read_images(folder / name, cases[name], names, channels, how)

    return read_all(sorted(cases), read_case)


def write(dataset: Dataset, root: Path) -> None:
    """Writes a data set in the nnU-Net raw layout: float32 images, uint8 labels, and headers without texts.

    Raises:
      InputError: `root` exists, lies in the data set or cannot be written.
    """
    refuse_inside(root, dataset.root)
    if root.exists():
        raise InputError(f"{root}: exists; expected a name for a new folder")
    with new_folder(root) as temporary:
        _write_files(dataset, temporary)


def _write_files(dataset: Dataset, temporary: Path) -> None:
    for case in dataset.cases:
        folder = temporary / ("imagesTs" if case.labels is None else "imagesTr")
        folder.mkdir(exist_ok=True)
        for index in range(len(dataset.channels)):
            write_volume(folder / f"{case.name}_{index:04d}.nii.gz", case.images[..., index], case)
        if case.labels is not None:
            path = temporary / "labelsTr" / f"{case.name}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            write_labels(path, case.labels, case, range(1, len(dataset.classes) + 1))
    marker = phantom_marker(dataset.root, dataset.cases)
    if marker:
        shutil.copyfile(marker, temporary / marker.name)
    known = table.text_of_patients(dataset.cases)
    if known:
        (temporary / table.NAME).write_text(known, encoding="utf-8")
    content = {
        "channel_names": {str(index): name for index, name in enumerate(dataset.channels)},
        "labels": {"background": 0} | {name: value for value, name in enumerate(dataset.classes, 1)},
        "numTraining": sum(case.labels is not None for case in dataset.cases),
        "file_ending": ".nii.gz",
    }
    (temporary / "dataset.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; expected an object with channel_names and labels")
    if "dataset" in content:
        raise InputError(f"{path}: lists its files under 'dataset'; expected them in imagesTr and labelsTr")
    return content


def _channels(path: Path, content: dict[str, Any], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The channels' names in the order of their numbers, in the package's spelling; an InputError if one is missing."""
    named = content.get("channel_names", content.get("modality"))
    if not isinstance(named, dict) or set(named) != {str(index) for index in range(len(named))} or not named:
        raise InputError(f"{path}: channel_names is {reprlib.repr(named)}; expected names for 0, 1, …")
    if not all(isinstance(name, str) for name in named.values()):
        raise InputError(f"{path}: channel_names is {reprlib.repr(named)}; expected texts as names")
    names = tuple(named[str(index)] for index in range(len(named)))
    names = tuple(map(table.spelled, names))
    if len(set(names)) < len(names):
        raise InputError(f"{path}: channel_names holds a name twice ({', '.join(names)}); expected each once")
    if not set(wanted) <= set(names):
        raise InputError(f"{path}: has the channels {', '.join(names)}; expected {', '.join(wanted)}")
    return names


def classes_beside(folder: Path) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    """The classes of a folder of label volumes and their integers, by the dataset.json in it or above it, if any.

    Raises:
      InputError: the file is damaged or not supported.
    """
    for path in (folder / "dataset.json", folder.absolute().parent / "dataset.json"):
        if path.is_file():
            return _classes(path, _read_json(path))
    return None


def _classes(path: Path, content: dict[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names and integers of the foreground classes, in ascending order; also reads the old form {"1": "name"}."""
    labels = content.get("labels")
    if not isinstance(labels, dict):
        raise InputError(f"{path}: labels is {reprlib.repr(labels)}; expected names with their integers")
    if labels and all(key.isdecimal() and len(key) <= 3 and isinstance(name, str) for key, name in labels.items()):
        labels = {name: int(key) for key, name in labels.items()}
    for name, value in labels.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255 or name == "ignore":
            raise InputError(
                f"{path}: the label {name!r} is {reprlib.repr(value)}; expected one integer (no regions, "
                "no ignore label)"
            )
    swapped = any(value for name, value in labels.items() if name.lower() == "background")
    if swapped or len(set(labels.values())) < len(labels) or 0 not in labels.values() or len(labels) < 2:
        found = reprlib.repr(labels)
        raise InputError(f"{path}: labels is {found}; expected background 0 and at least one other, all different")
    ordered = sorted((value, str(name)) for name, value in labels.items() if value)
    return tuple(name for _, name in ordered), tuple(value for value, _ in ordered)


def _find_cases(folder: Path) -> dict[str, dict[int, Path]]:
    """{case: {channel number: file}} of a folder; empty if there is no such folder."""
    cases: dict[str, dict[int, Path]] = {}
    for name, path in volumes_by_name(folder).items() if folder.is_dir() else ():
        match = _NUMBERED.fullmatch(name)
        if match:
            cases.setdefault(match["case"], {})[int(match["channel"])] = path
    return cases


def _read_images(
    path: Path, files: dict[int, Path], names: tuple[str, ...], channels: tuple[str, ...], how: ReadOptions
) -> Case:
    """Reads the images of a case, `path` without numbers.

    Raises:
      InputError: there is not one for each of `names`; with `how.missing`, there is none for any of `channels`.
    """
    found = [files.get(names.index(channel)) for channel in channels]
    expected = set(range(len(names)))
    if set(files) != expected:
        unread = hint(path.parent, path.name.lower())
        lacks_some = set(files) < expected and any(found) and not unread
        if not (lacks_some and how.missing):
            numbers = ", ".join(f"{number:04d}" for number in sorted(files))
            remedy = unread or f"; {MISSING}" * lacks_some
            raise InputError(f"{path}: has the channels {numbers}; expected 0000 to {len(names) - 1:04d}{remedy}")
    return read_images(path.name, found, channels, how)
