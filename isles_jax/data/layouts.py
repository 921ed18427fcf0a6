"""Recognises the layout of a folder of cases, reads the folder, and checks the labels."""

from dataclasses import replace
from pathlib import Path

from isles_jax.data import folder, isles, isles2022, nnunet, orientation, patients
from isles_jax.data.case import Dataset, make_dataset
from isles_jax.data.checks import brain_notes, verify_labels
from isles_jax.runtime.command import InputError
from isles_jax.runtime.files import check_folder


def load(
    root: Path, channels: tuple[str, ...] = (), *, penumbra: int = 1, core: int = 2, adc_as_stored: bool = False
) -> Dataset:
    """Reads and checks a whole data set.

    Args:
      root: a folder in the nnU-Net raw layout if it holds dataset.json, of ISLES-2022 if it holds folders sub-... or
        files NAME_dwi.nii.gz, and of one of the challenges from 2015 to 2018 otherwise.
      channels: to be read, in this order; none for all those of the layout.
      penumbra: its integer in a SPES label volume.
      core: its integer in a SPES label volume.
      adc_as_stored: do not bring ADC of an nnU-Net folder to one unit; see `adc.taken_as_stored`.

    Returns:
      All cases; the labels of a case without a reference are None.

    Raises:
      InputError: the folder cannot be read; some cases are bad (one line for each); the images contradict the labels.
    """
    check_folder(root)
    if len(set(channels)) < len(channels):
        raise InputError(f"--channels: found {', '.join(channels)}, expected each channel once")
    if (root / "dataset.json").is_file():
        dataset = nnunet.read(root, channels, adc_as_stored=adc_as_stored)
    elif _is_named_like_2022(root, channels):
        dataset = isles2022.read(root, channels or isles2022.CHANNELS)
    else:
        dataset = isles.read(root, channels, penumbra=penumbra, core=core)
    verify_labels(dataset)
    return _with_notes(patients.apply(dataset), "or their labels")


def load_images(path: Path, channels: tuple[str, ...], *, adc_as_stored: bool = False) -> Dataset:
    """Reads cases without labels, for prediction.

    Args:
      path: one case folder, a folder of case folders, ISLES-2022 or one of its subjects, a flat folder, or a folder of
        nnU-Net images (CASE_0000.nii.gz and so on, or a data set whose imagesTs holds them).
      channels: names of the channels to read, in the order of the network's input.
      adc_as_stored: as in `load`.

    Raises:
      InputError: the folder cannot be read; some cases are bad (one line for each).
    """
    check_folder(path)
    if nnunet.is_image_folder(path):
        cases = nnunet.read_image_folder(path, channels, adc_as_stored=adc_as_stored)
    elif _is_named_like_2022(path, channels):
        cases = isles2022.read_image_folder(path, channels)
    else:
        cases = isles.read_image_folders(path, channels)
    return _with_notes(make_dataset(path, cases, channels), "")


def _is_named_like_2022(root: Path, channels: tuple[str, ...]) -> bool:
    """Whether the names are those of ISLES-2022. A folder sub-A may also hold the sequences of an earlier challenge."""
    wanted = channels or isles2022.CHANNELS
    if not isles2022.fits(root, wanted):
        return False
    return isles2022.holds_case(root, wanted) or not isles.holds_case(root, channels)


def _with_notes(dataset: Dataset, labels: str) -> Dataset:
    """The data set with notes on its brains, and on what lies in its folders and is not read."""
    root = dataset.root
    folders, cases = [root], []
    if not nnunet.is_image_folder(root):
        of_subjects = _is_named_like_2022(root, dataset.channels)
        cases = isles2022.subjects(root) if of_subjects else isles.case_folders(root)
        folders += isles2022.mask_folders(root)[1:] if of_subjects and labels else []
    folders = [path for path in folders if path == root or not path.is_relative_to(root)]
    wanted = f"the channels {', '.join(dataset.channels)} {labels}".rstrip()
    # In prediction, a case is brought to the orientation of the run, and not to that of most new cases.
    found = orientation.notes(dataset.cases) if labels else ()
    found += brain_notes(dataset.cases) + folder.notes(folders, cases, dataset.cases, wanted)
    return replace(dataset, notes=dataset.notes + found)
