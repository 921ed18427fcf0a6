"""Recognises the layout of a folder of cases, reads the folder, and checks the labels."""

from pathlib import Path

from isles_jax.data import nnunet, spes
from isles_jax.data.case import Dataset, make_dataset
from isles_jax.data.check import verify_labels
from isles_jax.runtime.files import check_folder


def load(root: Path, *, penumbra: int, core: int) -> Dataset:
    """Reads and checks a whole data set.

    Args:
      root: a folder that is in the nnU-Net raw layout if it holds dataset.json, and in the SPES layout otherwise.
      penumbra: the integer that marks penumbra in a SPES label volume.
      core: the integer that marks core in a SPES label volume.

    Returns:
      All cases; the labels of a case without a reference are None.

    Raises:
      InputError: the folder cannot be read; some cases are bad (one line for each); the images contradict the labels.
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
      channels: names of the channels to read, in the order of the network's input.

    Raises:
      InputError: the folder cannot be read; some cases are bad (one line for each).
    """
    check_folder(path)
    if nnunet.is_image_folder(path):
        cases = nnunet.read_image_folder(path, channels)
    else:
        cases = spes.read_image_folders(path, channels)
    return make_dataset(path, cases, channels)
