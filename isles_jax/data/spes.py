"""Reads a folder in the layout of ISLES-2015 SPES.

    <root>/<case>/VSD.Brain.XX.O.MR_Tmax.<id>/VSD.Brain.XX.O.MR_Tmax.<id>.nii    (so for TTP and DWI)
    <root>/<case>/VSD.Brain.XX.O.OT.<id>/VSD.Brain.XX.O.OT.<id>.nii              labels, absent in test cases
    <root>/<case>/Tmax.nii.gz, TTP.nii.gz, DWI.nii.gz, OT.nii.gz                 the short form

A sequence is recognised by a whole word between the dots of the file's name, so T2, T1c, Tmax, TTP and OT cannot be
mistaken for parts of other words or of folders. Labels are one OT volume, or two binary files whose names hold
`penumbralabel` and `corelabel`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from isles_jax.data.case import Case, Dataset
from isles_jax.data.nifti import is_nifti, list_folder, read_all, read_images, read_labels, stem
from isles_jax.runtime.command import InputError

CHANNELS = ("Tmax", "TTP", "DWI")
CLASSES = ("penumbra", "core")


def read(root: Path, *, penumbra: int, core: int) -> Dataset:
    """Reads all cases of a SPES folder; labels become 1 penumbra, 2 core, whatever the files say.

    Args:
      root: holds one folder for each case.
      penumbra: the integer that marks penumbra in an OT volume.
      core: the integer that marks core in an OT volume.

    Raises:
      InputError: lists every bad case, one line each.
    """
    values = (penumbra, core)
    if penumbra == core or not all(1 <= value <= 255 for value in values):
        found = f"--config.data.labels.penumbra={penumbra} --config.data.labels.core={core}"
        raise InputError(f"{found}: expected two different integers from 1 to 255")
    shared: list[tuple[int, int]] = []
    cases = read_all(case_folders(root), lambda folder: _read_case(folder, values, shared))
    notes = tuple(note for case in cases for note in case.notes) + _nesting_note(shared)
    return Dataset(root, cases, CHANNELS, CLASSES, values, (root / "phantom.json").is_file(), notes)


def case_folders(root: Path) -> list[Path]:
    """The case folders below `root`; InputError if there is none."""
    folders = [path for path in list_folder(root) if path.is_dir()]
    if not folders:
        raise InputError(
            f"{root}: holds no case folder; expected <case>/Tmax.nii and so on, or an nnU-Net dataset.json"
        )
    return folders


def image_files(folder: Path, channels: tuple[str, ...] = CHANNELS) -> list[Path]:
    """The case's file of each channel; InputError if one is missing or there are two."""
    files = _nifti_files(folder)
    return [_only(folder, channel, _named(files, channel)) for channel in channels]


def read_image_folders(path: Path, channels: tuple[str, ...]) -> tuple[Case, ...]:
    """Reads the images of one case folder, or of every case folder in `path`, and no labels.

    Raises:
      InputError: lists every bad case, one line each.
    """
    named = [_named(_nifti_files(path), channel) for channel in channels]
    # A case's own folder holds files, or a folder for each channel; one folder with all of them is a case in a folder.
    apart = len({found[0].parent for found in named if found}) > 1
    alone = (apart and all(len(found) == 1 for found in named)) or any(is_nifti(entry) for entry in list_folder(path))
    folders = [path] if alone else case_folders(path)
    return read_all(folders, lambda folder: read_images(folder.resolve().name, image_files(folder, channels)))


def _read_case(folder: Path, values: tuple[int, int], shared: list[tuple[int, int]]) -> Case:
    """One case with its labels; appends (core voxels, those that the penumbra file marks too) if they are two files."""
    case = read_images(folder.name, image_files(folder))
    files = _nifti_files(folder)
    volume = _named(files, "OT")
    penumbra, core = ([path for path in files if word in stem(path).lower()] for word in ("penumbralabel", "corelabel"))
    if not (volume or penumbra or core):
        return case
    if volume and (penumbra or core):
        raise InputError(
            f"{volume[0]}: stands beside {(penumbra + core)[0].name}; expected one form of labels, not both"
        )
    used: tuple[Path, ...]
    if volume:
        path = _only(folder, "OT", volume)
        labels, used = read_labels(path, case, values), (path,)
    else:
        used = (_only(folder, "penumbralabel", penumbra), _only(folder, "corelabel", core))
        masks = [read_labels(path, case, (1,)) for path in used]
        labels = np.where(masks[1] == 1, np.uint8(2), masks[0])
        shared.append((int(masks[1].sum()), int((masks[0] & masks[1]).sum())))
    return replace(case, labels=labels, files=case.files + used)


def _nifti_files(folder: Path) -> list[Path]:
    """The NIfTI files of a case folder and of the folders in it."""
    entries = list_folder(folder)
    return [p for p in entries if is_nifti(p)] + [
        p for inner in entries if inner.is_dir() for p in list_folder(inner) if is_nifti(p)
    ]


def _named(files: list[Path], word: str) -> list[Path]:
    """The files with `word`, or `MR_word`, between the dots of their name; upper and lower case are the same."""
    wanted = {word.lower(), f"mr_{word}".lower()}
    return [path for path in files if wanted & set(stem(path).lower().split("."))]


def _only(folder: Path, word: str, files: list[Path]) -> Path:
    if len(files) == 1:
        return files[0]
    if files:
        there = [path.relative_to(folder) for path in files]
        raise InputError(f"{folder}: {len(files)} files for {word} ({there[0]}, {there[1]}); expected one")
    others = ", ".join(path.name for path in _nifti_files(folder)) or "no NIfTI file"
    raise InputError(f"{folder}: no {word}.nii, …{word}….nii or .nii.gz; found {others}")


def _nesting_note(shared: list[tuple[int, int]]) -> tuple[str, ...]:
    """Says whether the penumbra files contain the core; the labels are exclusive either way (core wins)."""
    core, both = (sum(counts) for counts in zip(*shared, strict=True)) if shared else (0, 0)
    if not core:
        return ()
    share = 100 * both / core
    word = "contain" if share > 50 else "do not contain"
    return (f"the penumbra files {word} the core ({share:.0f}% of it); penumbra is taken without the core",)
