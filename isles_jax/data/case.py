"""A case holds one patient's co-registered volumes on one grid; a data set holds the cases of a folder.

Arrays keep the axes and the grid of the files: nothing is reoriented or resampled.

The brain is what differs from the background in any channel, with its holes filled: voxels of 0 that the brain
surrounds, such as those of 0 HU in CT, belong to it.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from isles_jax.runtime.command import InputError

# The file that marks a folder as a phantom.
PHANTOM_MARKER = "phantom.json"
# Names that stand beside those of the classes: in the tables of scores, and among the discriminators.
WHOLE_LESION = "whole lesion"
ALL_CLASSES = "all classes"
# A file system's limit is 255 bytes, and a case's files have longer names than the case.
_LONGEST_NAME = 240


@dataclass(frozen=True)
class Case:
    """One patient.

    Attributes:
      name: unique within the data set.
      images: [X, Y, Z, M] float32, finite; 0 outside the brain.
      labels: [X, Y, Z] uint8, 0 background and 1.. the data set's classes; None if the case has no reference.
      affine: [4, 4] float64, voxel to world in mm.
      header: only the fields of the input's header that place the volume in space.
      files: the files that were read, images first.
      notes: what the user should know about this case, one sentence each.
      patient: whose scan it is; "" if each case is a patient of its own.
      site: the centre that scanned it; "" if that is not known.
      backgrounds: of each channel, the value that its file has outside the brain; empty if that is not known.
      absent: names of the channels that this case lacks; their images are 0.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    affine: np.ndarray
    header: nib.Nifti1Header
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    patient: str = ""
    site: str = ""
    backgrounds: tuple[float, ...] = ()
    absent: tuple[str, ...] = ()

    @functools.cached_property
    def brain(self) -> np.ndarray:
        """Bool [X, Y, Z], True where any channel is finite and not 0, and in the holes of this region.

        A hole is what no path without a value connects with the front, the back or a side of the volume. A scan may
        begin and end inside the head. If the header does not say where the top is, it is the end of the third axis.
        """
        shown = np.any(np.isfinite(self.images) & (self.images != 0), axis=-1)
        numbered, count = ndimage.label(~shown)
        inside = np.ones(count + 1, bool)
        codes = nib.aff2axcodes(self.affine) if self.oriented else ("", "", "S")
        for axis, code in enumerate(codes):
            if code not in ("S", "I"):
                inside[np.take(numbered, [0, -1], axis)] = False
        inside[0] = True
        filled: np.ndarray = inside[numbered]
        return filled

    @property
    def oriented(self) -> bool:
        """Whether the header says where the patient's left is: by a qform or an sform, or by both if they agree.

        They agree if no corner of the volume lies more than a voxel apart.
        """
        codes = int(self.header["qform_code"]), int(self.header["sform_code"])
        if 0 in codes:
            return any(codes)
        try:
            qform = self.header.get_qform()
        except (ValueError, nib.spatialimages.HeaderDataError):
            return False  # the quaternion or the voxel sides in the header are damaged
        with np.errstate(all="ignore"):
            apart = corners_apart_mm(qform, self.header.get_sform(), self.images.shape[:3])
        return apart <= min(self.spacing_mm)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The sides of a voxel in mm, along the stored axes."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel in ml: the determinant of the affine, because its axes may be sheared."""
        first, second, third = self.affine[:3, :3].T
        return float(abs(np.cross(first, second) @ third)) / 1000


@dataclass(frozen=True)
class Dataset:
    """All cases of a folder.

    Attributes:
      root: the folder, or the file of a table.
      cases: sorted by name.
      channels: names of the images' channels, ("Tmax", "TTP", "DWI") for SPES.
      classes: names of the foreground classes 1.. of `Case.labels`, in that order.
      label_values: the integer of each class in the label files; predictions use it too.
      phantom: True if the folder holds a phantom.
      notes: what the user should know about the data, one sentence each.
      layout: what the folder was recognised as.
    """

    root: Path
    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    label_values: tuple[int, ...]
    phantom: bool
    notes: tuple[str, ...] = ()
    layout: str = ""

    @property
    def headline(self) -> str:
        """The data set in one line."""
        labelled = sum(case.labels is not None for case in self.cases)
        patients = len({case.patient or case.name for case in self.cases})
        of_patients = f" of {patients} patients" * (patients < len(self.cases))
        return (
            f"{self.root}: {self.layout}, {len(self.cases)} cases{of_patients}, {labelled} with labels; channels "
            f"{', '.join(self.channels)}; classes {', '.join(self.classes)}"
        )


def check_names(where: Path | str, cases: Sequence[str], classes: Sequence[str] = ()) -> None:
    """Checks that names can stand in file names and tables, and that each one occurs once.

    Raises:
      InputError: a name is empty, too long, not printable or not unique; a class has a reserved name.
    """
    for kind, names in (("case", cases), ("class", classes)):
        for name in names:
            if not name or not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
                raise InputError(
                    f"{where}: found a {kind} with the name {name!r}, expected 1 to {_LONGEST_NAME} bytes of printable "
                    "characters"
                )
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise InputError(f"{where}: found the {kind} {twice[0]!r} twice, expected each name once")
    reserved = sorted({WHOLE_LESION, ALL_CLASSES} & set(classes))
    if reserved and len(classes) > 1:
        raise InputError(
            f"{where}: found a class with the name {reserved[0]!r}, expected another: the name is reserved"
        )


def check_complete(where: Path, found: Sequence[str], cases: Iterable[str], expected: str) -> None:
    """Raises an InputError unless the names that a file holds are those of the cases, each once."""
    for problem, names in (
        ("does not hold the case", set(cases) - set(found)),
        ("holds a case that the data lack,", set(found) - set(cases)),
        ("holds twice the case", {name for name in found if found.count(name) > 1}),
    ):
        if names:
            raise InputError(f"{where}: {problem} {min(names)}; expected {expected}")


def make_dataset(
    root: Path,
    cases: tuple[Case, ...],
    channels: tuple[str, ...],
    classes: tuple[str, ...] = (),
    label_values: tuple[int, ...] = (),
    notes: tuple[str, ...] = (),
    layout: str = "",
) -> Dataset:
    """The data set of a folder. Its notes are those of its cases, one on each channel that some lack, and then `notes`.

    A note that several cases share appears once, with the number of these cases.

    Raises:
      InputError: see `check_names`.
    """
    check_names(root, [case.name for case in cases], classes)
    counts = Counter(note for case in cases for note in case.notes)
    shared = tuple(note if count == 1 else f"{count} cases: {note}" for note, count in counts.items())
    phantom = phantom_marker(root, cases) is not None
    notes = shared + _absent(cases, channels) + notes
    return Dataset(root, cases, channels, classes, label_values, phantom, notes, layout)


def _absent(cases: Sequence[Case], channels: Sequence[str]) -> tuple[str, ...]:
    """A note on each channel that some cases lack."""
    found = []
    for channel in channels:
        names = [case.name for case in cases if channel in case.absent]
        if names:
            listed = ", ".join(names[:3]) + " …" * (len(names) > 3)
            found.append(f"no {channel} in {len(names)} of {len(cases)} cases ({listed}); zeros stand for it")
    return tuple(found)


def phantom_marker(root: Path, cases: Sequence[Case]) -> Path | None:
    """The file that marks a folder as a phantom; None for other data. A table may name the files of a phantom."""
    folders = [root] if root.is_dir() else [folder for case in cases for folder in _above(case)]
    return next((folder / PHANTOM_MARKER for folder in folders if (folder / PHANTOM_MARKER).is_file()), None)


def of_phantom(case: Case) -> bool:
    """Whether a case was read from the folder of a phantom."""
    return any((folder / PHANTOM_MARKER).is_file() for folder in _above(case))


def _above(case: Case) -> Sequence[Path]:
    """The folders above the first file of a case, so many as the layouts of the phantoms have."""
    return case.files[0].absolute().parents[:5] if case.files else ()


def corners_apart_mm(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """How far two affines [4, 4] place the corners of one volume apart: the largest of the eight distances."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij")).reshape(4, -1)
    return float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max())


def radiological(case: Case) -> tuple[tuple[int, int], str]:
    """How to show a slice [X, Y] in radiological convention: the patient's right on the left, the front at the top.

    Returns:
      The steps (+1 or -1) in x from a picture's left to its right, and in y from its top to its bottom. Then the
      letters of the picture's left, right, top and bottom. (1, 1) and "" if the slice's axes are not right-left and
      front-back, or if the header does not say.
    """
    codes = nib.aff2axcodes(case.affine)[:2]
    if not case.oriented or codes[0] not in "RL" or codes[1] not in "AP":
        return (1, 1), ""
    return (-1 if codes[0] == "R" else 1, -1 if codes[1] == "A" else 1), "RLAP"
