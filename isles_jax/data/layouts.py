"""A folder of cases, whatever its layout: recognised, read and checked."""

from pathlib import Path

from isles_jax.data import nnunet, spes
from isles_jax.data.case import Dataset
from isles_jax.data.check import verify_labels
from isles_jax.runtime.files import check_folder


def load(root: Path, *, penumbra: int, core: int) -> Dataset:
    """Reads and checks a whole data set.

    Args:
      root: a folder in the nnU-Net raw layout if it holds dataset.json, else in the SPES layout.
      penumbra: the integer that marks penumbra in a SPES label volume.
      core: the integer that marks core in a SPES label volume.

    Returns:
      Every case; those without a reference have labels None.

    Raises:
      InputError: the folder, or cases (all bad ones, one line each), or labels that the images contradict.
    """
    check_folder(root)
    described = (root / "dataset.json").is_file()
    dataset = nnunet.read(root) if described else spes.read(root, penumbra=penumbra, core=core)
    verify_labels(dataset)
    return dataset


def load_images(path: Path, channels: tuple[str, ...]) -> Dataset:
    """Reads cases without labels, for prediction.

    Args:
      path: one case folder, a folder of case folders, or a folder of nnU-Net images (CASE_0000.nii.gz and so on, or
        a data set whose imagesTs holds them).
      channels: the names that the images' last axis shall have, in this order.

    Raises:
      InputError: the folder, or cases (all bad ones, one line each).
    """
    check_folder(path)
    if nnunet.is_image_folder(path):
        cases = nnunet.read_image_folder(path, channels)
    else:
        cases = spes.read_image_folders(path, channels)
    notes = tuple(note for case in cases for note in case.notes)
    return Dataset(path, cases, channels, (), (), (path / "phantom.json").is_file(), notes)
