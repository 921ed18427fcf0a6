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
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from isles_jax.data import patients
from isles_jax.data.case import PHANTOM_MARKER, Case, Dataset, make_dataset
from isles_jax.data.nifti import (
    SUFFIXES,
    is_nifti,
    list_folder,
    read_all,
    read_images,
    read_labels,
    stem,
    volumes_by_name,
    write_labels,
)  # fmt: skip
from isles_jax.runtime import interrupt
from isles_jax.runtime.command import InputError
from isles_jax.runtime.files import refuse_inside, writing

# Spellings of the sequences that the package knows by name.
_KNOWN = {"tmax": "Tmax", "ttp": "TTP", "dwi": "DWI", "adc": "ADC"}
_NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def read(root: Path, wanted: tuple[str, ...] = ()) -> Dataset:
    """Reads a data set in the nnU-Net raw layout; classes are in the order of their integers in dataset.json.

    Args:
      root: holds dataset.json.
      wanted: names of the channels to be read, in this order; none for all of them.

    Raises:
      InputError: dataset.json is damaged or not supported; some cases are bad (one line for each).
    """
    content = _read_json(root / "dataset.json")
    names = _channels(root / "dataset.json", content)
    channels = wanted or names
    _require_channels(root / "dataset.json", names, channels)
    classes, values = _classes(root / "dataset.json", content)
    ending = content.get("file_ending", ".nii.gz")
    if ending not in SUFFIXES:
        raise InputError(f"{root / 'dataset.json'}: file_ending is {ending!r}; expected .nii or .nii.gz")
    training = _find_cases(root / "imagesTr", ending) if (root / "imagesTr").is_dir() else {}
    testing = _find_cases(root / "imagesTs", ending) if (root / "imagesTs").is_dir() else {}
    in_both = sorted(set(training) & set(testing))
    if in_both:
        raise InputError(f"{root}: the case {in_both[0]} is in imagesTr and in imagesTs; expected it in one")
    if not training and not testing:
        raise InputError(f"{root}: no <case>_0000{ending} in imagesTr or imagesTs")
    stray = _stray_labels(root / "labelsTr", ending, training)

    def read_case(item: str | Path) -> Case:
        if isinstance(item, Path):
            raise InputError(f"{item}: a label volume whose images are not in imagesTr")
        folder = root / ("imagesTr" if item in training else "imagesTs")
        files = _in_order(folder / item, (training | testing)[item], len(names))
        case = read_images(item, [files[names.index(channel)] for channel in channels])
        return _with_labels(case, root / "labelsTr" / f"{item}{ending}", values) if item in training else case

    items: list[str | Path] = [*sorted(training | testing), *stray]
    cases = read_all(items, read_case)
    return make_dataset(root, cases, channels, classes, values, layout="nnU-Net")


def is_image_folder(path: Path) -> bool:
    """True for a folder of <case>_0000.nii.gz files, or one with dataset.json, imagesTs or imagesTr."""
    if any((path / name).exists() for name in ("dataset.json", "imagesTs", "imagesTr")):
        return True
    return any(is_nifti(entry) and _NUMBERED.fullmatch(stem(entry)) for entry in list_folder(path))


def read_image_folder(path: Path, channels: tuple[str, ...]) -> tuple[Case, ...]:
    """Reads cases without labels from <case>_0000.nii.gz and so on, with their channels in the order of `channels`.

    The channel of a file follows from a dataset.json in the folder or the one above it. Without one, the file's number
    is an index into `channels`.

    Raises:
      InputError: some cases are bad; one line for each.
    """
    inner = [path / name for name in ("imagesTs", "imagesTr") if (path / name).is_dir()]
    folder = next((each for each in inner if any(map(is_nifti, list_folder(each)))), path)
    names = channels
    description = next((p / "dataset.json" for p in (folder, folder.parent) if (p / "dataset.json").is_file()), None)
    if description is not None:
        names = _channels(description, _read_json(description))
        _require_channels(description, names, channels)
    cases: dict[str, dict[int, Path]] = {}
    for ending in SUFFIXES:
        for name, files in _find_cases(folder, ending).items():
            cases.setdefault(name, {}).update(files)
    if not cases:
        raise InputError(f"{folder}: no <case>_0000.nii.gz; expected one file for each of {', '.join(channels)}")

    def read_case(name: str) -> Case:
        files = _in_order(folder / name, cases[name], len(names))
        return read_images(name, [files[names.index(channel)] for channel in channels])

    return read_all(sorted(cases), read_case)


def write(dataset: Dataset, root: Path) -> None:
    """Writes a data set in the nnU-Net raw layout, with float32 images and uint8 labels, and without headers' texts.

    Raises:
      InputError: `root` exists already.
    """
    refuse_inside(root, dataset.root)
    with writing(root):
        if root.exists():
            raise InputError(f"{root}: exists; expected a name for a new folder")
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{root.name[:100]}.", dir=root.parent))
        interrupt.remove_at_exit(temporary)
        try:
            _write_files(dataset, temporary)
            temporary.chmod(0o755)
            temporary.rename(root)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _write_files(dataset: Dataset, temporary: Path) -> None:
    for case in dataset.cases:
        folder = temporary / ("imagesTs" if case.labels is None else "imagesTr")
        folder.mkdir(exist_ok=True)
        for index in range(len(dataset.channels)):
            _write_image(folder / f"{case.name}_{index:04d}.nii.gz", case, index)
        if case.labels is not None:
            path = temporary / "labelsTr" / f"{case.name}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            write_labels(path, case.labels, case, range(1, len(dataset.classes) + 1))
    if dataset.phantom:
        shutil.copyfile(dataset.root / PHANTOM_MARKER, temporary / PHANTOM_MARKER)
    if table := patients.text(dataset.cases):
        (temporary / patients.NAME).write_text(table)
    content = {
        "channel_names": {str(index): name for index, name in enumerate(dataset.channels)},
        "labels": {"background": 0} | {name: value for value, name in enumerate(dataset.classes, 1)},
        "numTraining": sum(case.labels is not None for case in dataset.cases),
        "file_ending": ".nii.gz",
    }
    (temporary / "dataset.json").write_text(json.dumps(content, indent=1) + "\n")


def _write_image(path: Path, case: Case, index: int) -> None:
    header = case.header.copy()
    header.set_data_dtype(np.float32)
    nib.save(nib.Nifti1Image(case.images[..., index], None, header), path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; expected an object with channel_names and labels")
    if "dataset" in content:
        raise InputError(f"{path}: lists its files under 'dataset'; expected them in imagesTr and labelsTr")
    return content


def _channels(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    """The channels' names in the order of their numbers; Tmax, TTP and DWI get the package's spelling."""
    named = content.get("channel_names", content.get("modality"))
    if not isinstance(named, dict) or set(named) != {str(index) for index in range(len(named))} or not named:
        raise InputError(f"{path}: channel_names is {reprlib.repr(named)}; expected names for 0, 1, …")
    if not all(isinstance(name, str) for name in named.values()):
        raise InputError(f"{path}: channel_names is {reprlib.repr(named)}; expected texts as names")
    names = tuple(named[str(index)] for index in range(len(named)))
    names = tuple(_KNOWN.get(name.lower(), name) for name in names)
    if len(set(names)) < len(names):
        raise InputError(f"{path}: channel_names holds a name twice ({', '.join(names)}); expected each once")
    return names


def _require_channels(path: Path, names: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """InputError unless dataset.json has the channels that are wanted."""
    if not set(wanted) <= set(names):
        raise InputError(f"{path}: has the channels {', '.join(names)}; expected {', '.join(wanted)}")


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
    if len(set(labels.values())) < len(labels) or 0 not in labels.values() or len(labels) < 2:
        found = reprlib.repr(labels)
        raise InputError(f"{path}: labels is {found}; expected background 0 and at least one other, all different")
    ordered = sorted((value, str(name)) for name, value in labels.items() if value)
    return tuple(name for _, name in ordered), tuple(value for value, _ in ordered)


def _find_cases(folder: Path, ending: str) -> dict[str, dict[int, Path]]:
    """{case: {channel number: file}} of a folder."""
    cases: dict[str, dict[int, Path]] = {}
    for name, path in volumes_by_name(folder).items():
        match = _NUMBERED.fullmatch(name)
        if match and path.name == name + ending:
            cases.setdefault(match["case"], {})[int(match["channel"])] = path
    return cases


def _in_order(case: Path, files: dict[int, Path], channels: int) -> list[Path]:
    """The files in the order of their channel numbers; an InputError unless these are 0 to `channels` - 1."""
    if set(files) != set(range(channels)):
        numbers = ", ".join(f"{number:04d}" for number in sorted(files))
        raise InputError(f"{case}: has the channels {numbers}; expected 0000 to {channels - 1:04d}")
    return [files[index] for index in range(channels)]


def _with_labels(case: Case, path: Path, values: tuple[int, ...]) -> Case:
    if not path.is_file():
        raise InputError(f"{path}: missing; expected labels for every case of imagesTr")
    return replace(case, labels=read_labels(path, case, values), files=(*case.files, path))


def _stray_labels(folder: Path, ending: str, training: dict[str, dict[int, Path]]) -> list[Path]:
    """Label volumes that have no images, which happens in a data set that was copied in part."""
    if not folder.is_dir():
        return []
    labels = volumes_by_name(folder).items()
    return [path for name, path in labels if path.name == name + ending and name not in training]
