"""Reads the ISLES challenges of 2015 to 2018: one folder for each case.

    <root>/<case>/VSD.Brain.XX.O.MR_Tmax.<id>/VSD.Brain.XX.O.MR_Tmax.<id>.nii    likewise the other sequences
    <root>/<case>/VSD.Brain.XX.O.OT.<id>/VSD.Brain.XX.O.OT.<id>.nii              labels; test cases have none
    <root>/<case>/Tmax.nii.gz, TTP.nii.gz, DWI.nii.gz, OT.nii.gz                 the short form
    <root>/TRAINING/case_1/SMIR.Brain.XX.O.CT_Tmax.<id>/SMIR.Brain.XX.O.CT_Tmax.<id>.nii    ISLES-2018

A sequence is recognised by its name, as a whole word between the dots, underscores and hyphens of the file's name.
Longer words and the names of folders do not count. Labels are one OT volume; those of SPES may also be two binary files
with `penumbralabel` and `corelabel` in their names. The year is recognised by the sequences.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from isles_jax.data.case import Case, Dataset, make_dataset
from isles_jax.data.folder import hint, holds_images, is_nifti, list_folder, only, only_if_there, stem
from isles_jax.data.nifti import AS_USUAL, ReadOptions, read_all, read_images, read_labels, with_labels
from isles_jax.runtime.command import InputError


class Layout(NamedTuple):
    """A challenge: its name, the channels that a case must have, and the classes of its labels."""

    name: str
    channels: tuple[str, ...]
    classes: tuple[str, ...] = ("lesion",)


CHANNELS = ("Tmax", "TTP", "DWI")
CLASSES = ("penumbra", "core")
# No set of channels is part of what another challenge has. ISLES-2016 and ISLES-2017 have the same ones.
LAYOUTS = (
    Layout("ISLES-2015 SPES", CHANNELS, CLASSES),
    Layout("ISLES-2015 SISS", ("FLAIR", "T1", "T2", "DWI")),
    Layout("ISLES-2016 or 2017", ("ADC", "MTT", "rCBF", "rCBV", "Tmax", "TTP")),
    Layout("ISLES-2018", ("CBF", "CBV", "MTT", "Tmax")),
)


class UnknownLayoutError(InputError):
    """The files of a folder are not named as in any challenge."""


def read(
    root: Path, channels: tuple[str, ...] = (), *, penumbra: int, core: int, how: ReadOptions = AS_USUAL
) -> Dataset:
    """Reads all cases of a folder; the labels of SPES become 1 for penumbra and 2 for core.

    Args:
      root: a folder that holds one folder for each case.
      channels: to be read; none for those of the challenge.
      penumbra: the integer that marks penumbra in an OT volume of SPES.
      core: the integer that marks core in an OT volume of SPES.
      how: the images are read; ADC is always brought to one unit.

    Raises:
      UnknownLayoutError: the folder fits no challenge.
      InputError: some cases are bad, one line for each.
    """
    folders = _with_images(root)
    layout = _recognise(root, folders)
    channels = channels or layout.channels
    if layout.classes != CLASSES:
        cases = read_all(folders, lambda folder: _with_lesion(folder, _read_images(folder, channels, how), how))
        return make_dataset(root, cases, channels, layout.classes, (1,), _label_note(root, cases, "OT"), layout.name)
    values = (penumbra, core)
    if penumbra == core or not all(1 <= value <= 255 for value in values):
        settings = f"--config.data.labels.penumbra={penumbra} --config.data.labels.core={core}"
        raise InputError(f"{settings}: expected two different integers from 1 to 255")
    overlaps: list[tuple[int, int]] = []

    def read_case(folder: Path) -> Case:
        return _with_labels(folder, _read_images(folder, channels, how), values, how, overlaps)

    cases = read_all(folders, read_case)
    notes = _nesting_note(overlaps) + _label_note(root, cases, "OT, or penumbralabel and corelabel")
    return make_dataset(root, cases, channels, CLASSES, values, notes, layout.name)


def _cases_in(root: Path) -> Path:
    return root / "TRAINING" if (root / "TRAINING").is_dir() else root


def holds_case(root: Path, channels: tuple[str, ...]) -> bool:
    """Whether the folder, or one in it, has a file for each channel; without channels, for those of a challenge."""
    every = [_nifti_files(folder) for folder in (root, *case_folders(root))]
    sets = [channels] if channels else [layout.channels for layout in LAYOUTS]
    return any(all(_named(files, name) for name in names) for files in every for names in sets)


def fits(root: Path) -> bool:
    """Whether a folder in `root` has one file for each sequence of a challenge."""
    every = map(_nifti_files, case_folders(root))
    return any(all(len(_named(files, name)) == 1 for name in layout.channels) for files in every for layout in LAYOUTS)


def case_folders(root: Path) -> list[Path]:
    """The folders in `root`, or in its folder TRAINING."""
    return [path for path in list_folder(_cases_in(root)) if path.is_dir()]


def _with_images(root: Path) -> list[Path]:
    """The case folders with an image in them; an UnknownLayoutError if there is none."""
    folders = [path for path in case_folders(root) if holds_images(path)]
    if not folders:
        raise UnknownLayoutError(f"{_cases_in(root)}: holds no case folder{hint(root)}")
    return folders


def _recognise(root: Path, folders: list[Path]) -> Layout:
    """The challenge of which some case folder has all sequences; an UnknownLayoutError if there is none."""
    files = {folder: _nifti_files(folder) for folder in folders}
    for layout in LAYOUTS:
        for found in files.values():
            if all(_named(found, channel) for channel in layout.channels):
                return layout
    folder, found = max(files.items(), key=lambda item: len(item[1]))
    names = ", ".join(path.name for path in found[:4]) or "no NIfTI file"
    names += f" and {len(found) - 4} more" if len(found) > 4 else ""
    raise UnknownLayoutError(f"{root}: {folder.name} holds {names}, not all sequences of a challenge{hint(folder)}")


def _read_images(folder: Path, channels: tuple[str, ...], how: ReadOptions) -> Case:
    """Reads a case without labels; an InputError unless each channel has one file (with `how.missing`, or none)."""
    files = _nifti_files(folder)
    found = {channel: _named(files, channel) for channel in channels}
    if not any(found.values()):
        _only(folder, channels[0], [], files)  # raises
    paths = [
        only_if_there(folder, channel, found[channel], _expected(channel), files, missing=how.missing)
        for channel in channels
    ]
    _check_one_patient(folder, channels, paths)
    return read_images(_name(folder), paths, channels, how._replace(adc_as_stored=False))


def _name(folder: Path) -> str:
    """The name of a case: that of its folder or link. Two links may lead to folders with equal names."""
    return Path(os.path.abspath(folder)).name


def _check_one_patient(folder: Path, channels: tuple[str, ...], paths: list[Path | None]) -> None:
    """Raises an InputError if the images lie in several folders that are not named after their sequences."""
    inner = [(channel, path) for channel, path in zip(channels, paths, strict=True) if path and path.parent != folder]
    unnamed = [path for channel, path in inner if not _named([Path(f"{path.parent.name}.nii")], channel)]
    if unnamed and len({path.parent for _, path in inner}) > 1:
        names = " and ".join(str(path.relative_to(folder)) for _, path in inner)
        raise InputError(f"{folder}: found {names}, expected the images of one patient in one folder")


def read_image_folders(path: Path, channels: tuple[str, ...], how: ReadOptions = AS_USUAL) -> tuple[Case, ...]:
    """Reads cases without labels; `path` is one case folder or a folder of them. Errors are those of `read`."""
    files = _nifti_files(path)
    by_channel = [_named(files, channel) for channel in channels]
    # A case folder holds the files, or one folder for each channel. If all channels are in one inner folder, that is
    # the case folder.
    several_folders = len({matches[0].parent for matches in by_channel if matches}) > 1
    one_each = all(len(matches) == 1 or (how.missing and not matches) for matches in by_channel)
    is_case = (several_folders and one_each) or any(file.parent == path for file in files)
    folders = [path] if is_case else _with_images(path)
    return read_all(folders, lambda folder: _read_images(folder, channels, how))


def _with_lesion(folder: Path, case: Case, how: ReadOptions) -> Case:
    """The case with its binary labels, if it has any."""
    files = _nifti_files(folder)
    volume = _named(files, "OT")
    return with_labels(case, _only(folder, "OT", volume, files), (1,), how) if volume else case


def _with_labels(
    folder: Path, case: Case, values: tuple[int, int], how: ReadOptions, overlaps: list[tuple[int, int]]
) -> Case:
    """The case with its labels of penumbra and core, if it has any.

    If the labels are two files, appends to `overlaps` the voxels of core, and how many of them the penumbra file marks.
    """
    files = _nifti_files(folder)
    volume = _named(files, "OT")
    penumbra, core = ([path for path in files if part in stem(path).lower()] for part in ("penumbralabel", "corelabel"))
    if not (volume or penumbra or core):
        return case
    if volume and (penumbra or core):
        raise InputError(
            f"{volume[0]}: stands beside {(penumbra + core)[0].name}; expected one form of labels, not both"
        )
    if volume:
        return with_labels(case, _only(folder, "OT", volume, files), values, how)
    paths = (_only(folder, "penumbralabel", penumbra, files), _only(folder, "corelabel", core, files))
    penumbra_mask, core_mask = (read_labels(path, case, (1,), bring=how.resample) for path in paths)
    overlaps.append((int(core_mask.sum()), int((penumbra_mask & core_mask).sum())))
    labels = np.where(core_mask == 1, np.uint8(2), penumbra_mask)
    return replace(case, labels=labels, files=case.files + paths)


def _nifti_files(folder: Path) -> list[Path]:
    """The NIfTI files of a case folder and of the folders in it."""
    entries = list_folder(folder)
    inner = [path for entry in entries if entry.is_dir() for path in list_folder(entry)]
    return list(filter(is_nifti, entries + inner))


def _named(files: list[Path], sequence: str) -> list[Path]:
    """The files with `sequence` as a word of their names, in upper or lower case."""
    return [path for path in files if sequence.lower() in re.split(r"[._-]", stem(path).lower())]


def _only(folder: Path, sequence: str, found: list[Path], files: list[Path]) -> Path:
    return only(folder, sequence, found, _expected(sequence), files)


def _expected(sequence: str) -> str:
    return f"{sequence}.nii or .nii.gz, alone or within a longer name"


def _label_note(root: Path, cases: Sequence[Case], names: str) -> tuple[str, ...]:
    """A note on where labels were looked for, if no case has any."""
    if any(case.labels is not None for case in cases):
        return ()
    return (f"no labels: no file with {names} in its name in the case folders of {root}",)


def _nesting_note(overlaps: list[tuple[int, int]]) -> tuple[str, ...]:
    """A note on whether the penumbra files contain the core. A voxel that both files mark becomes core."""
    core = sum(marked for marked, _ in overlaps)
    if not core:
        return ()
    share = 100 * sum(both for _, both in overlaps) / core
    verb = "contain" if share > 50 else "do not contain"
    return (f"the penumbra files {verb} the core ({share:.0f}% of it); voxels that both mark are taken as core",)
