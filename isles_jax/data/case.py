"""A case: one patient's co-registered volumes on one grid, read from and written to NIfTI without losing the geometry.

Volumes are worked on as stored (no reorientation, no resampling) and written back as stored. Every mistake in a file
ends in an `InputError` of one line that names the file, what was found and what was expected.
"""

import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import nibabel as nib
import numpy as np

from isles_jax.config import InputError
from isles_jax.files import write_atomic

SUFFIXES = (".nii", ".nii.gz")
# What nibabel, gzip and the operating system raise for a file that is damaged or not what its name says.
_READ_ERRORS = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    EOFError,
    MemoryError,
    OSError,
    OverflowError,
    ValueError,
    zlib.error,
)
# The fields that place a volume in space. No other field of a header is ever copied: texts can name a patient.
_GEOMETRY = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
# Deflate cannot shrink anything further than this (RFC 1951: 258 bytes for 2 bits).
_MAX_DEFLATE_RATIO = 1032

Item = TypeVar("Item")


@dataclass(frozen=True)
class Case:
    """One patient.

    Attributes:
      name: unique within the data set.
      images: [X, Y, Z, M] float32, finite; 0 outside the brain.
      labels: [X, Y, Z] uint8, 0 background and 1.. the data set's classes; None where there is no reference.
      affine: [4, 4] float64, voxel to world in mm.
      header: the geometry fields of the input's header and nothing else; its shape is the volume's.
      files: the files read, images first.
      notes: what the user should be told about this case, one sentence each.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    affine: np.ndarray
    header: nib.Nifti1Header
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The voxel's sides in mm, along the stored axes."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True)
class Dataset:
    """All cases of a folder.

    Attributes:
      root: the folder.
      cases: sorted by name.
      channels: the names of the images' last axis, ("Tmax", "TTP", "DWI") for SPES.
      classes: names of the foreground classes, in the order of the integers 1.. inside `Case.labels`.
      label_values: the integers that the files hold for `classes`; predictions are written with them.
      phantom: True if the folder was made by `isles_jax.data.phantom`.
      notes: what the user should be told about the data, one sentence each.
    """

    root: Path
    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    label_values: tuple[int, ...]
    phantom: bool
    notes: tuple[str, ...] = ()


def brain_mask(images: np.ndarray) -> np.ndarray:
    """[X, Y, Z, M] skull-stripped images -> bool [X, Y, Z]: where any channel is finite and not 0."""
    return np.any(np.isfinite(images) & (images != 0), axis=-1)


def radiological(affine: np.ndarray) -> tuple[tuple[int, int], str]:
    """How a slice [X, Y] is shown as radiologists do: the patient's right on the left, the front at the top.

    Returns:
      Steps (+1 or -1) along x, a row of the picture, and along y, its columns; and what then lies at the left, right,
      top and bottom. No flip and "" where the axes are not right-left and front-back.
    """
    codes = nib.aff2axcodes(affine)[:2]
    if codes[0] not in "RL" or codes[1] not in "AP":
        return (1, 1), ""
    return (-1 if codes[0] == "R" else 1, -1 if codes[1] == "A" else 1), "RLAP"


# --- reading ---------------------------------------------------------------------------------------------------------


def list_folder(folder: Path) -> list[Path]:
    """The visible entries of a folder, sorted by name; InputError if it cannot be read."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read as a folder ({_reason(error)})") from error


def is_nifti(path: Path) -> bool:
    """True for a file (or a link to one) that is called .nii or .nii.gz."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def stem(path: Path) -> str:
    """The file's name without .nii or .nii.gz."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return name[:-4]


def read_volume(path: Path) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    """Reads one 3-D NIfTI-1 or NIfTI-2 volume.

    Returns:
      float32 [X, Y, Z] with the header's scaling applied, the [4, 4] float64 affine, and a header that holds the
      geometry only.

    Raises:
      InputError: the file is missing, damaged, not a 3-D volume of real numbers in mm, or too large for the memory.
    """
    try:
        image = cast(nib.Nifti1Image, nib.load(path))
        shape = _volume_shape(path, image)
        _check_size(path, image)
        with np.errstate(over="ignore", invalid="ignore"):
            data = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
        affine = np.asarray(image.affine, dtype=np.float64)
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise InputError(f"{path}: not a readable NIfTI volume ({_reason(error)})") from error
    with np.errstate(over="ignore", invalid="ignore"):
        regular = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-12
    if not regular:
        raise InputError(
            f"{path}: the affine has no inverse or is not finite; expected one that places voxels in space"
        )
    return data, affine, geometry(image.header, shape)


def geometry(header: nib.Nifti1Header, shape: Sequence[int]) -> nib.Nifti1Header:
    """A new NIfTI-1 header for `shape` that carries only where the voxels lie: codes, forms, zooms, spatial unit."""
    clean = nib.Nifti1Header()
    clean.set_data_shape(shape)
    for field in _GEOMETRY:
        clean[field] = header[field]
    clean["pixdim"][:4] = header["pixdim"][:4]
    clean["xyzt_units"] = int(header["xyzt_units"]) & 7
    return clean


def read_label_values(path: Path, like: Case) -> np.ndarray:
    """Reads a label volume on the grid of `like`: [X, Y, Z] int32, whatever type the file stores.

    Raises:
      InputError: as `read_volume`; another grid; values that are not whole numbers from 0 to 255.
    """
    data, affine, _ = read_volume(path)
    other = like.files[0] if like.files else Path(like.name)
    check_grid(path, data.shape, affine, other, like.images.shape[:3], like.affine)
    with np.errstate(invalid="ignore"):
        whole = np.isfinite(data) & (data == np.rint(data)) & (data >= 0) & (data <= 255)
    if not whole.all():
        bad = data[~whole].ravel()[0]
        raise InputError(f"{path}: holds the label {bad:g}; expected whole numbers from 0 to 255")
    return data.astype(np.int32)


def check_grid(
    path: Path,
    shape: tuple[int, ...],
    affine: np.ndarray,
    other: Path,
    other_shape: tuple[int, ...],
    other_affine: np.ndarray,
) -> None:
    """InputError unless two volumes have one shape and their corners coincide to 5% of the smallest voxel side."""
    if shape != other_shape:
        raise InputError(f"{path}: shape {_times(shape)}; expected {_times(other_shape)} as in {other.name}")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij")).reshape(4, -1)
    apart = np.linalg.norm(((affine - other_affine) @ corners)[:3], axis=0).max()
    if apart > 0.05 * np.linalg.norm(other_affine[:3, :3], axis=0).min():
        raise InputError(f"{path}: its affine lies {apart:.3g} mm away from that of {other.name}; expected one grid")


def read_images(name: str, files: Sequence[Path]) -> Case:
    """Reads one case without labels, one file for each channel.

    Voxels that are not finite become 0 (background), and a note says how many.

    Raises:
      InputError: as `read_volume`; shapes or affines differ between the files; no voxel differs from 0.
    """
    notes = []
    for index, path in enumerate(files):
        data, this_affine, this_header = read_volume(path)
        if index == 0:
            images = np.empty((*data.shape, len(files)), np.float32)
            affine, header = this_affine, this_header
        check_grid(path, data.shape, this_affine, files[0], images.shape[:3], affine)
        broken = ~np.isfinite(data)
        if broken.any():
            notes.append(f"{path}: {int(broken.sum())} voxels are not finite; taken as background")
        images[..., index] = np.where(broken, np.float32(0), data)
    if not images.any():
        raise InputError(f"{files[0]}: no voxel of this case differs from 0 in any sequence; expected a brain")
    return Case(name, images, None, affine, header, tuple(files), tuple(notes))


def read_all(items: Iterable[Item], read: Callable[[Item], Case]) -> tuple[Case, ...]:
    """Reads every case, then reports all bad ones together, one line each."""
    cases, problems = [], []
    for item in items:
        try:
            cases.append(read(item))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return tuple(cases)


def _volume_shape(path: Path, image: nib.Nifti1Image) -> tuple[int, int, int]:
    """The shape without trailing axes of length 1; InputError unless it is a volume of real numbers in mm."""
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"{path}: shape {_times(shape)}; expected three axes, none of them empty")
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: holds {image.get_data_dtype()}; expected integers or real numbers")
    unit = int(image.header["xyzt_units"]) & 7
    if unit in (1, 3):
        raise InputError(f"{path}: its header measures in {'metres' if unit == 1 else 'micrometres'}; expected mm")
    return shape


def _check_size(path: Path, image: nib.Nifti1Image) -> None:
    """InputError if the header claims more voxels than the file or the memory can hold; reads no voxel."""
    voxels = math.prod(int(n) for n in image.shape)
    assert isinstance(image.dataobj, nib.arrayproxy.ArrayProxy)
    claimed = image.dataobj.offset + voxels * image.get_data_dtype().itemsize
    held = path.stat().st_size
    if path.name.lower().endswith(".gz"):
        held *= _MAX_DEFLATE_RATIO
    if claimed > held:
        raise InputError(f"{path}: the header claims {claimed} bytes; the file holds at most {held}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if 4 * voxels > memory:
        raise InputError(f"{path}: {voxels} voxels need {4 * voxels} bytes; this machine has {memory}")


def _times(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)


def _reason(error: BaseException) -> str:
    """An exception in one line, without the path that the caller names already."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


# --- writing ---------------------------------------------------------------------------------------------------------


def write_labels(path: Path, labels: np.ndarray, case: Case, label_values: Sequence[int]) -> None:
    """Writes a label volume on the case's grid, atomically.

    Args:
      path: .nii or .nii.gz; its folder exists.
      labels: [X, Y, Z] integers, 0 background and 1..len(label_values) the classes.
      case: gives shape, affine, qform and sform with their codes.
      label_values: the integers to write for the classes 1.., each from 1 to 255.
    """
    table = np.array([0, *label_values], np.uint8)
    _write(path, table[labels], case)


def write_volume(path: Path, volume: np.ndarray, case: Case) -> None:
    """Writes a float32 volume [X, Y, Z], or [X, Y, Z, C] (class probabilities), on the case's grid, atomically."""
    _write(path, np.asarray(volume, np.float32), case)


def _write(path: Path, data: np.ndarray, case: Case) -> None:
    if data.shape[:3] != case.images.shape[:3]:
        raise ValueError(f"{case.name}: a volume of shape {data.shape} for a grid of shape {case.images.shape[:3]}")
    header = case.header.copy()
    header.set_data_dtype(data.dtype)
    # No affine of ours: the header's own qform, sform and codes are kept to the last bit.
    content = nib.Nifti1Image(data, None, header).to_bytes()
    if path.name.endswith(".gz"):
        # Without a time stamp the same prediction is the same file.
        content = gzip.compress(content, compresslevel=4, mtime=0)
    write_atomic(path, content)
