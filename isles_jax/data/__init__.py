"""From a folder of NIfTI volumes to cases, folds and slices."""

from pathlib import Path

from isles_jax.config import InputError
from isles_jax.data.case import Dataset
from isles_jax.data.check import describe, verify_labels

__all__ = ["describe", "load", "load_images", "verify_labels"]


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
    # Imported here, so that `python -m isles_jax.data.nnunet` is not imported twice.
    from isles_jax.data import nnunet, spes

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
    from isles_jax.data import nnunet, spes

    check_folder(path)
    if nnunet.is_image_folder(path):
        cases = nnunet.read_image_folder(path, channels)
    else:
        cases = spes.read_image_folders(path, channels)
    notes = tuple(note for case in cases for note in case.notes)
    return Dataset(path, cases, channels, (), (), (path / "phantom.json").is_file(), notes)


def check_folder(path: Path) -> None:
    """InputError unless `path` is a folder."""
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{path}: {found}; expected a folder of cases")
