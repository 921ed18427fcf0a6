"""Reads cases and label volumes from NIfTI files, and writes volumes on the grid of a case.

A bad file raises an `InputError`: one line that names the file, what was found and what was expected.
"""

import gzip
import io
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import nibabel as nib
import numpy as np

from isles_jax.data import resample
from isles_jax.data.adc import in_one_unit
from isles_jax.data.case import Case, corners_apart_mm
from isles_jax.data.dcm2niix import of_series
from isles_jax.data.folder import GUIDE, pointer
from isles_jax.runtime.command import InputError
from isles_jax.runtime.files import write_atomic
from isles_jax.runtime.memory import machine_memory
from isles_jax.runtime.progress import say, track

# The fields that place a volume in space. No other field is ever copied, because texts can name a patient.
_GEOMETRY_FIELDS = (
    *("qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
# The highest compression ratio of deflate (RFC 1951: 258 bytes in 2 bits).
_MAX_DEFLATE_RATIO = 1032
# The images of a data set take at most this share of the memory. Those of further cases lie in temporary files.
KEPT_SHARE = 0.25
# The images of one case may take this share of the memory.
_CASE_SHARE = 0.5
# Bytes that may follow the voxels in a compressed file.
_PADDING = 1 << 20
# Programs that write labels with a scale in the header leave values such as 1.0000153 or 0.996.
LABEL_ROUNDING = 0.01
# Volumes lie on one grid if their corners are closer than this share of a voxel's side. The direction cosines of one
# patient's sequences may differ in the fourth digit.
SAME_GRID = 0.1
# Where so many of the voxels along the edges of a volume have one value, it is the background.
EDGE_SHARE = 0.75
# A value belongs to the background if it is closer to it than this share of the volume's range.
BACKGROUND_TOLERANCE = 1e-3
# Axes whose angles have a larger cosine than this are not taken for right ones. Below it, distances that are measured
# along the axes, as those between surfaces are, are wrong by about a twentieth at most.
SHEARED = 0.05
# The longest side that NIfTI-1, the format of what is written, can hold.
LONGEST_SIDE = 32767

Item = TypeVar("Item")


class ReadOptions(NamedTuple):
    """How images are read.

    Attributes:
      adc_as_stored: do not bring ADC to one unit; see `adc.taken_as_stored`.
      resample: bring a sequence, or labels, on another grid than the first sequence to its grid, by the headers.
      missing: a case may lack sequences; see `Case.absent`.
    """

    adc_as_stored: bool = False
    resample: bool = False
    missing: bool = False


AS_USUAL = ReadOptions()
# What a message about two grids says of it.
RESAMPLE = "--config.data.resample=True (other commands: --resample) brings it there by the headers"


def read_volume(path: Path, channels: int = 1) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    """Reads one 3-D volume in the format NIfTI-1 or NIfTI-2.

    Args:
      path: ends in .nii or .nii.gz.
      channels: the number of such volumes that will be in memory together.

    Returns:
      float32 [X, Y, Z] with the header's scaling applied, the float64 affine [4, 4], and a header that holds only the
      geometry.

    Raises:
      InputError: the file is missing, damaged, too large for the memory, or not a 3-D volume of real numbers in mm.
    """
    try:
        _check_content(path)
        image = _open(path)
        shape = _volume_shape(path, image)
        claimed = _check_size(path, image, channels)
        voxels = _decompress(path, image, claimed) if path.name.lower().endswith(".gz") else image.dataobj
        with np.errstate(over="ignore", invalid="ignore"):
            data = np.asarray(voxels, dtype=np.float32).reshape(shape)
            geometry = _geometry(image.header, shape)
        affine = np.asarray(image.affine, dtype=np.float64)
    except InputError:
        raise
    except Exception as error:  # what nibabel and gzip raise for damaged files has no common class
        raise InputError(f"{path}: not a readable NIfTI volume ({_reason(error)})") from error
    with np.errstate(over="ignore", invalid="ignore"):
        # NIfTI-1 holds the geometry in float32, in which a large number becomes infinite.
        regular = np.isfinite(affine.astype(np.float32)).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-12
        for field in _GEOMETRY_FIELDS:
            regular &= np.all(np.isfinite(geometry[field]) >= np.isfinite(image.header[field]))
    if not regular:
        raise InputError(
            f"{path}: the affine has no inverse or is not finite; expected one that places voxels in space"
        )
    return data, affine, geometry


def _check_content(path: Path) -> None:
    """Raises an InputError if the file cannot be read, or only stands for content that lies elsewhere."""
    try:
        with path.open("rb") as file:
            instead = pointer(file.read(64))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from error
    if instead:
        raise InputError(f"{path}: {instead}")


def _open(path: Path) -> nib.Nifti1Image:
    """Opens a volume. If nibabel mends its header, a note on stderr names the file and says what nibabel did."""

    def note(record: logging.LogRecord) -> bool:
        if record.levelno < nib.imageglobals.error_level:  # from this level on, it also raises an error
            say(f"note: {path}: {record.getMessage()}", sys.stderr)
        return False

    nib.imageglobals.logger.addFilter(note)
    try:
        return cast(nib.Nifti1Image, nib.load(path))
    finally:
        nib.imageglobals.logger.removeFilter(note)


def _geometry(header: nib.Nifti1Header, shape: Sequence[int]) -> nib.Nifti1Header:
    """A new NIfTI-1 header for `shape` with the geometry only: qform, sform, their codes, voxel sides and unit."""
    clean = nib.Nifti1Header()
    clean.set_data_shape(shape)
    for field in _GEOMETRY_FIELDS:
        clean[field] = header[field]
    clean["pixdim"][:4] = header["pixdim"][:4]
    clean["xyzt_units"] = int(header["xyzt_units"]) & 7
    return clean


def read_labels(path: Path, case: Case, values: Sequence[int], *, bring: bool = False) -> np.ndarray:
    """Reads a label volume on the grid of a case.

    Args:
      path: a file of any data type.
      case: the labels must lie on its grid.
      values: the integers, from 1 to 255, that mark the classes in the file; 0 marks background.
      bring: labels on another grid are brought to that of the case, by the headers.

    Returns:
      uint8 [X, Y, Z]: 0 background, 1.. the classes.

    Raises:
      InputError: as for `read_volume`; another grid; a value that is neither 0 nor one of `values`.
    """
    data, affine, header = read_volume(path)
    elsewhere = _elsewhere(path, data.shape, affine, case)
    if elsewhere and not bring:
        raise InputError(elsewhere)
    with np.errstate(invalid="ignore"):
        whole = np.rint(data)
        valid = np.isfinite(data) & (abs(data - whole) <= LABEL_ROUNDING) & (whole >= 0) & (whole <= 255)
    if not valid.all():
        bad = data[~valid].ravel()[0]
        raise InputError(f"{path}: holds the label {bad}; expected whole numbers from 0 to 255")
    labels = whole.astype(np.uint8)
    unknown = sorted(set(np.unique(labels).tolist()) - {0, *values})
    if unknown:
        raise InputError(f"{path}: holds the label {unknown[0]}; expected only {', '.join(map(str, [0, *values]))}")
    table = np.zeros(256, np.uint8)
    table[list(values)] = np.arange(1, len(values) + 1)
    classes: np.ndarray = table[labels]
    if elsewhere:
        _placed(path, data, affine, header, case)
        classes = resample.labels(classes, affine, case.images.shape[:3], case.affine)
    return classes


def with_labels(case: Case, path: Path, values: Sequence[int], how: ReadOptions = AS_USUAL) -> Case:
    """The case with the labels of a file; the other arguments and the errors are those of `read_labels`."""
    labels = read_labels(path, case, values, bring=how.resample)
    return replace(case, labels=labels, files=(*case.files, path))


def _elsewhere(path: Path, shape: tuple[int, ...], affine: np.ndarray, case: Case) -> str:
    """Says where a volume lies; "" if it has the case's shape and no corner lies a tenth of a voxel's side away."""
    other = case.files[0].name if case.files else case.name
    expected = case.images.shape[:3]
    if shape != expected:
        return f"{path}: shape {_times(shape)}; expected {_times(expected)} as in {other}; {RESAMPLE}"
    apart = corners_apart_mm(affine, case.affine, shape)
    if apart <= SAME_GRID * min(case.spacing_mm):
        return ""
    return f"{path}: its affine lies {apart:.3g} mm away from that of {other}; expected one grid; {RESAMPLE}"


def _placed(path: Path, data: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header, case: Case) -> Case:
    """A volume of another grid as a case; an InputError unless its header and the case's say where both lie."""
    volume = Case(path.name, data[..., None], None, affine, header)
    if not (volume.oriented and case.oriented):
        unknown = path if case.oriented else case.files[0]
        raise InputError(
            f"{unknown}: its header says nothing reliable about where it lies (qform, sform); expected that, or all "
            "volumes on one grid"
        )
    return volume


def read_images(name: str, files: Sequence[Path | None], channels: Sequence[str], how: ReadOptions = AS_USUAL) -> Case:
    """Reads one case without labels.

    Voxels of the background become 0, whatever value the file has there; see `find_background`. So do voxels that are
    not finite. Notes say both.

    Args:
      name: of the case.
      files: one for each channel; None for a sequence that the case lacks, but not for all.
      channels: their names.
      how: see `ReadOptions`.

    Raises:
      InputError: as for `read_volume`; the files are not on one grid, or cannot be brought to one; every voxel is 0.
    """
    notes = []
    backgrounds = []
    present = tuple(path for path in files if path)
    absent = tuple(channel for channel, path in zip(channels, files, strict=True) if not path)
    case = None
    for index, path in enumerate(files):
        if path is None:
            backgrounds.append(0.0)
            continue
        data, affine, header = read_volume(path, len(files))
        if case is None:
            images = np.zeros((*data.shape, len(files)), np.float32)
            case = Case(name, images, None, affine, header, present, absent=absent)
        elsewhere = _elsewhere(path, data.shape, affine, case)
        if elsewhere and not how.resample:
            raise InputError(elsewhere)
        broken = ~np.isfinite(data)
        if broken.any():
            notes.append(f"{name}, {path.name}: {int(broken.sum())} voxels are not finite; taken as background")
        data = np.where(broken, np.float32(0), data)
        background, outside = find_background(data)
        backgrounds.append(background)
        data = np.where(outside, np.float32(0), data) if background else data
        if elsewhere:
            inside = _placed(path, data, affine, header, case).brain
            data = resample.image(data, inside, affine, case.images.shape[:3], case.affine)
            if not data.any():
                raise InputError(f"{path}: lies outside of {present[0].name}; expected volumes that overlap")
            # Larger voxels would make the brain larger than that of the sequences before this one.
            data[~replace(case, images=images[..., :index]).brain] = 0
            notes.append(
                f"{channels[index]} lies on another grid; brought to that of the first sequence by the headers"
            )
        images[..., index] = data
    assert case is not None
    if not images.any():
        raise InputError(f"{present[0]}: no voxel of this case differs from 0 in any sequence; expected a brain")
    if any(backgrounds):
        notes.append("the background of some channel is not 0; it is taken as 0")
    if not case.oriented:
        unknown = "sides are unknown, and the axes are taken as stored"
        notes.append(f"the header says nothing reliable about left and right (qform, sform); {unknown}")
    directions = case.affine[:3, :3] / case.spacing_mm
    cosine = float(abs(directions.T @ directions - np.eye(3)).max())
    if cosine > SHEARED:
        angle = math.degrees(math.acos(min(cosine, 1.0)))
        notes.append(f"{case.name}: the axes meet at {angle:.3g} degrees; surface distances are measured as if at 90")
    case = replace(case, notes=tuple(notes), backgrounds=tuple(backgrounds))
    return case if how.adc_as_stored else in_one_unit(case, channels)


def find_background(volume: np.ndarray) -> tuple[float, np.ndarray]:
    """The value of a volume outside the head, and where the volume has it.

    It is the value of three quarters of the voxels along the twelve edges of the box, to a tolerance, unless the whole
    volume has it. Where there is no such value, as in an image that was not skull-stripped, it is 0.

    Args:
      volume: float32 [X, Y, Z], finite.

    Returns:
      The value, and bool [X, Y, Z].
    """
    ends = [sorted({0, side - 1}) for side in volume.shape]
    everywhere = [np.arange(side) for side in volume.shape]
    edges = [
        volume[np.ix_(*(everywhere[axis] if axis == free else ends[axis] for axis in range(3)))].ravel()
        for free in range(3)
    ]
    along = np.concatenate(edges)
    value = float(np.median(along))
    # The difference of two large float32 numbers may exceed float32.
    tolerance = BACKGROUND_TOLERANCE * (float(volume.max()) - float(volume.min()))
    if value == 0 or (abs(along - value) <= tolerance).mean() < EDGE_SHARE:
        return 0.0, volume == 0
    outside = abs(volume - np.float32(value)) <= tolerance
    return (0.0, volume == 0) if outside.all() else (value, outside)


def read_all(items: Sequence[Item], read: Callable[[Item], Case]) -> tuple[Case, ...]:
    """Reads all cases with `read`. An InputError lists the bad ones, one line for each."""
    cases = []
    problems = []
    kept = 0
    for item in track(items, "reading", "case"):
        try:
            case = read(item)
            kept += case.images.nbytes
            cases.append(case if kept < KEPT_SHARE * machine_memory() else replace(case, images=_on_disk(case.images)))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return tuple(cases)


def _on_disk(images: np.ndarray) -> np.ndarray:
    """The images in a temporary file without a name. The system reads them where they are used."""
    with tempfile.TemporaryFile() as file:
        file.write(images.data)
        return np.memmap(file, images.dtype, "r", shape=images.shape)


def _volume_shape(path: Path, image: nib.Nifti1Image) -> tuple[int, int, int]:
    """The shape without trailing axes of length 1; an InputError unless it is a volume of real numbers in mm."""
    if not isinstance(image, nib.Nifti1Image):
        raise InputError(f"{path}: holds a {type(image).__name__}; expected a volume in the format NIfTI")
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 4 and min(shape) > 0:
        raise InputError(f"{path}: {of_series(path, shape[3])}")
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"{path}: shape {_times(shape)}; expected three axes, none of them empty")
    if max(shape) > LONGEST_SIDE:
        raise InputError(f"{path}: shape {_times(shape)}; expected sides of at most {LONGEST_SIDE}")
    if image.get_data_dtype().names:
        raise InputError(
            f"{path}: holds colours; expected integers or real numbers, and not a picture of a map ({GUIDE})"
        )
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: holds {image.get_data_dtype()}; expected integers or real numbers")
    unit = int(image.header["xyzt_units"]) & 7
    if unit in (1, 3):
        raise InputError(f"{path}: its header measures in {'metres' if unit == 1 else 'micrometres'}; expected mm")
    return shape


def _check_size(path: Path, image: nib.Nifti1Image, channels: int) -> int:
    """The bytes of the file that the header claims, without compression.

    Raises:
      InputError: the file cannot hold them, or the memory cannot hold `channels` such volumes.
    """
    voxels = math.prod(int(n) for n in image.shape)
    assert isinstance(image.dataobj, nib.arrayproxy.ArrayProxy)
    claimed: int = image.dataobj.offset + voxels * image.get_data_dtype().itemsize
    held = path.stat().st_size
    if path.name.lower().endswith(".gz"):
        held *= _MAX_DEFLATE_RATIO
    if claimed > held:
        raise InputError(f"{path}: the header claims {claimed} bytes; the file holds at most {held}")
    memory = machine_memory()
    needed = claimed + 4 * voxels * channels
    if needed > _CASE_SHARE * memory:
        raise InputError(
            f"{path}: {voxels} voxels need {needed} bytes; expected at most half of the {memory} of this machine"
        )
    return claimed


def _decompress(path: Path, image: nib.Nifti1Image, claimed: int) -> nib.arrayproxy.ArrayProxy:
    """The voxels of a compressed volume. The file is read to its end, where gzip checks its sum and length."""
    with gzip.open(path) as file:
        content = file.read(claimed + _PADDING + 1)
    if len(content) < claimed:
        raise InputError(f"{path}: the header claims {claimed} bytes; the file holds {len(content)}")
    if len(content) > claimed + _PADDING:
        raise InputError(f"{path}: goes on after the {claimed} bytes that the header claims; expected its end")
    stored = image.dataobj
    assert isinstance(stored, nib.arrayproxy.ArrayProxy)
    layout = (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)
    return nib.arrayproxy.ArrayProxy(io.BytesIO(content), layout, mmap=False)


def _times(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)


def _reason(error: BaseException) -> str:
    """The text of an exception as one line, without the path, which the caller adds."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def write_labels(path: Path, labels: np.ndarray, case: Case, label_values: Sequence[int]) -> None:
    """Writes a label volume on the case's grid, atomically.

    Args:
      path: ends in .nii or .nii.gz.
      labels: [X, Y, Z] integers, 0 background and 1.. the classes.
      case: the file gets its affine, qform and sform with their codes.
      label_values: the integers, from 1 to 255, that the file holds for the classes.
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
    # Without an affine argument, nibabel keeps the header's qform, sform and codes bit by bit.
    content = nib.Nifti1Image(data, None, header).to_bytes()
    if path.name.endswith(".gz"):
        # Without a time stamp, equal predictions give equal files.
        content = gzip.compress(content, compresslevel=4, mtime=0)
    write_atomic(path, content)
