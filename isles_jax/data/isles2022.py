"""Reads ISLES-2022, as its archive holds it and as its organisers' repository does.

    <root>/sub-A/ses-1/dwi/sub-A_ses-1_dwi.nii.gz and ..._adc.nii.gz, anat/..._FLAIR.nii.gz      the archive
    <root>/rawdata/sub-A/ses-1/sub-A_ses-1_dwi.nii.gz and ..._adc.nii.gz, ..._flair.nii.gz       the repository
    <root>/derivatives/sub-A/ses-1/sub-A_ses-1_msk.nii.gz                                        labels of both

A case is what shares a name up to the last underscore; its patient is the folder sub-A.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from isles_jax.data.adc import in_one_unit
from isles_jax.data.case import Case, Dataset, make_dataset
from isles_jax.data.nifti import is_nifti, list_folder, read_all, read_images, read_labels, stem
from isles_jax.runtime.command import InputError

CHANNELS = ("DWI", "ADC")
CLASSES = ("lesion",)

Files = dict[str, list[Path]]


def fits(root: Path) -> bool:
    """True for a folder of subjects (sub-...), with or without rawdata between, and for a subject or a session."""
    return bool(_subjects(root))


def read(root: Path, channels: tuple[str, ...] = CHANNELS) -> Dataset:
    """Reads all cases; those without a mask have labels None.

    Raises:
      InputError: lists every bad case, one line each.
    """
    found = _cases(root, channels)
    masks = _masks(root)

    def read_case(name: str) -> Case:
        if name not in found:
            raise InputError(f"{masks[name][0]}: a mask whose images are not in {root}")
        case = _read_images(root, name, found[name], channels)
        if name not in masks:
            return case
        path = _only(root, name, "mask (msk)", masks[name], {})
        return replace(case, labels=read_labels(path, case, (1,)), files=(*case.files, path))

    cases = read_all(sorted(found.keys() | masks.keys()), read_case)
    return make_dataset(root, cases, channels, CLASSES, (1,), layout="ISLES-2022")


def read_image_folder(path: Path, channels: tuple[str, ...]) -> tuple[Case, ...]:
    """Reads the images of all cases, or of one subject or session, and no labels.

    Raises:
      InputError: lists every bad case, one line each.
    """
    found = _cases(path, channels)
    return read_all(sorted(found), lambda name: _read_images(path, name, found[name], channels))


def _read_images(root: Path, name: str, files: Files, channels: tuple[str, ...]) -> Case:
    paths = [_only(root, name, channel, files.get(channel.lower(), []), files) for channel in channels]
    case = replace(in_one_unit(read_images(name, paths), channels), patient=name.split("_")[0])
    if "flair" not in files or "FLAIR" in {channel.upper() for channel in channels}:
        return case
    return replace(case, notes=(*case.notes, "FLAIR is left out: in ISLES-2022 it lies on another grid than DWI"))


def _subjects(root: Path) -> list[Path]:
    """The folders of the subjects; of a subject's or session's own folder that folder alone."""
    if root.resolve().name.startswith(("sub-", "ses-")):
        return [root]
    base = root / "rawdata" if (root / "rawdata").is_dir() else root
    return [path for path in list_folder(base) if path.is_dir() and path.name.startswith("sub-")]


def _cases(root: Path, channels: tuple[str, ...]) -> dict[str, Files]:
    """{case: {sequence in lower case: files}} of every case that has one of the channels.

    Raises:
      InputError: a subject has none of them.
    """
    wanted, empty = {channel.lower() for channel in channels}, []
    found: dict[str, Files] = {}
    for subject in _subjects(root):
        here = {name: files for name, files in _grouped(subject).items() if wanted & files.keys()}
        found |= here
        if not here:
            names = f"{subject.name}_…_{channels[0].lower()}.nii.gz"
            empty.append(f"{subject}: no {names} in it; expected one file for each of {', '.join(channels)}")
    if empty:
        raise InputError("\n".join(empty))
    return found


def _masks(root: Path) -> dict[str, list[Path]]:
    folder = next((path for path in (root / "derivatives", root.parent / "derivatives") if path.is_dir()), None)
    groups = _grouped(folder) if folder else {}
    return {name: files["msk"] for name, files in groups.items() if "msk" in files}


def _grouped(folder: Path, depth: int = 3) -> dict[str, Files]:
    """{name up to the last underscore: {what follows it, in lower case: files}} of a folder and the folders in it."""
    groups: dict[str, Files] = {}
    for path in list_folder(folder):
        if path.is_dir() and depth:
            for name, files in _grouped(path, depth - 1).items():
                for word, more in files.items():
                    groups.setdefault(name, {}).setdefault(word, []).extend(more)
        elif is_nifti(path):
            name, _, word = stem(path).rpartition("_")
            groups.setdefault(name, {}).setdefault(word.lower(), []).append(path)
    return groups


def _only(root: Path, name: str, word: str, files: list[Path], others: Mapping[str, list[Path]]) -> Path:
    if len(files) == 1:
        return files[0]
    if files:
        there = [path.relative_to(root) if path.is_relative_to(root) else path for path in files]
        raise InputError(f"{root}: {len(files)} files for {word} of {name} ({there[0]}, {there[1]}); expected one")
    have = ", ".join(sorted(path.name for paths in others.values() for path in paths))
    raise InputError(f"{root}: no {name}_{word.lower()}.nii or .nii.gz; found {have}")
