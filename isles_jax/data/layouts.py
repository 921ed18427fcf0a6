"""Recognises the layout of a folder of cases, reads the folder, and checks the labels."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath

from isles_jax.data import adc, folder, isles, isles2022, nnunet, orientation, proposal, table
from isles_jax.data.case import Dataset, make_dataset
from isles_jax.data.checks import brain_notes, label_notes, verify_labels
from isles_jax.data.nifti import AS_USUAL, ReadOptions
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError


def load(
    root: epath.PathLike,
    channels: tuple[str, ...] = (),
    *,
    penumbra: int = 1,
    core: int = 2,
    how: ReadOptions = AS_USUAL,
) -> Dataset:
    """Reads and checks a whole data set.

    Args:
      root: a folder or bucket. It is a table if it is a .csv file, or holds a cases.csv with the paths of files; it has
        the raw layout of nnU-Net if it holds dataset.json, that of ISLES-2022 if it holds folders sub-... or files
        NAME_dwi.nii.gz, and otherwise that of one of the challenges from 2015 to 2018.
      channels: to be read, in this order; none for all those of the layout.
      penumbra: its integer in a SPES label volume.
      core: its integer in a SPES label volume.
      how: the images are read. Only in a table or an nnU-Net folder can ADC be read as it is stored.

    Returns:
      All cases; the labels of a case without a reference are None.

    Raises:
      InputError: the folder cannot be read; some cases are bad (one line for each); the images contradict the labels.
    """
    if len(set(channels)) < len(channels):
        raise InputError(f"--channels: found {', '.join(channels)}, expected each channel once")
    # A table in a bucket names files beside it, so it is not fetched alone.
    root = root if table.is_table(root) else files.fetch(root)
    if table.is_table(root):
        dataset = table.read(root, channels, how)
        verify_labels(dataset)
        return _with_notes(dataset, labels=True)
    files.check_folder(root)
    folder.check_format(root)
    if (root / "dataset.json").is_file():
        dataset = nnunet.read(root, channels, how)
    elif _is_named_like_2022(root, channels):
        dataset = isles2022.read(root, channels or isles2022.CHANNELS, how)
    else:
        dataset = _read_challenge(root, channels, penumbra, core, how)
    verify_labels(dataset)
    return _with_notes(table.apply(dataset), labels=True)


def _read_challenge(root: Path, channels: tuple[str, ...], penumbra: int, core: int, how: ReadOptions) -> Dataset:
    """As `isles.read`; for a folder of no challenge, the InputError says what could be read instead."""
    try:
        return isles.read(root, channels, penumbra=penumbra, core=core, how=how)
    except isles.UnknownLayoutError as error:
        raise InputError(f"{error}; {_instead(root, channels)}") from error


def _instead(root: Path, channels: tuple[str, ...]) -> str:
    """What could be read instead of a folder that fits no layout: a table of its files, or a folder in it."""
    wanted = "expected a layout of docs/data.md, or a table of its files"
    found = proposal.propose(root)
    if found and not found.doubts:
        return f"{wanted}, which this command makes:\n{proposal.command(root, found)}"
    below = next((path for path in folder.list_folder(root) if path.is_dir() and is_known(path, channels)), None)
    if below:
        return f"expected the folder of a data set, such as {below}"
    if found:
        return f"{wanted}, for which this command makes a proposal: {shlex.join(['isles-jax', 'check', str(root)])}"
    return f"{wanted}: {proposal.command(root, proposal.EXAMPLE)}"


def is_known(root: epath.PathLike, channels: tuple[str, ...] = ()) -> bool:
    """Whether at least one case of a data set lies as in a layout that `load` reads. A bucket is not looked into.

    Args:
      root: as for `load`.
      channels: as for `load`.
    """
    if files.is_bucket(root) or table.is_table(root):
        return True
    path = Path(root)
    wanted = channels or isles2022.CHANNELS
    of_2022 = isles2022.fits(path, wanted) and isles2022.holds_case(path, wanted)
    return (path / "dataset.json").is_file() or of_2022 or isles.fits(path)


def load_images(path: epath.PathLike, channels: tuple[str, ...], how: ReadOptions = AS_USUAL) -> Dataset:
    """Reads cases without labels, for prediction.

    Args:
      path: a folder or bucket: one case folder, a folder of case folders, ISLES-2022 or one of its subjects, a flat
        folder, a folder of nnU-Net images (CASE_0000.nii.gz and so on, or a data set whose imagesTs holds them), or a
        table.
      channels: names of the channels to read, in the order of the network's input.
      how: as in `load`.

    Raises:
      InputError: the folder cannot be read; some cases are bad (one line for each).
    """
    path = path if table.is_table(path) else files.fetch(path)
    if table.is_table(path):
        return _with_notes(table.read_image_table(path, channels, how), labels=False)
    files.check_folder(path)
    folder.check_format(path)
    if nnunet.is_image_folder(path):
        cases = nnunet.read_image_folder(path, channels, how)
    elif _is_named_like_2022(path, channels):
        cases = isles2022.read_image_folder(path, channels, how)
    else:
        cases = isles.read_image_folders(path, channels, how)
    return _with_notes(make_dataset(path, cases, channels), labels=False)


def read_options(config: ml_collections.ConfigDict, description: Mapping[str, Any] | None) -> ReadOptions:
    """How a run reads images.

    Args:
      config: its whole configuration.
      description: its data.json, or `profile.norms` of it; None for a new run.
    """
    as_stored = description is not None and adc.taken_as_stored(description)
    return ReadOptions(as_stored, config.data.resample, config.data.missing == "zero")


def _is_named_like_2022(root: Path, channels: tuple[str, ...]) -> bool:
    """Whether the names are those of ISLES-2022. A folder sub-A may also hold the sequences of an earlier challenge."""
    wanted = channels or isles2022.CHANNELS
    if not isles2022.fits(root, wanted):
        return False
    return isles2022.holds_case(root, wanted) or not isles.holds_case(root, channels)


def _with_notes(dataset: Dataset, *, labels: bool) -> Dataset:
    """The data set with notes on its brains, and on what lies in its folders and is not read."""
    # In prediction, a case is brought to the orientation of the run, and not to that of most new cases.
    found = orientation.notes(dataset.cases) if labels else ()
    found += brain_notes(dataset.cases) + label_notes(dataset.cases)
    # A table says itself what is read.
    if dataset.layout != table.LAYOUT:
        found += _notes_of_folder(dataset, labels=labels)
    return replace(dataset, notes=dataset.notes + found)


def _notes_of_folder(dataset: Dataset, *, labels: bool) -> tuple[str, ...]:
    root = dataset.root
    folders = [root]
    cases: list[Path] = []
    if not nnunet.is_image_folder(root):
        of_subjects = _is_named_like_2022(root, dataset.channels)
        cases = isles2022.subjects(root) if of_subjects else isles.case_folders(root)
        folders += isles2022.mask_folders(root)[1:] if of_subjects and labels else []
    folders = [path for path in folders if path == root or not path.is_relative_to(root)]
    wanted = f"the channels {', '.join(dataset.channels)}" + " or their labels" * labels
    return folder.notes(folders, cases, dataset.cases, wanted)
