"""A case: one patient's co-registered volumes on one grid; and a data set: the cases of a folder.

Volumes are worked on as stored (no reorientation, no resampling) and written back as stored.
"""

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np


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
      patient: whose scan it is, where that is known; "" where each case is a patient of its own.
      site: the centre that scanned it, "" where that is not known.
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

    @functools.cached_property
    def brain(self) -> np.ndarray:
        """Bool [X, Y, Z]: where any channel is finite and not 0."""
        return np.any(np.isfinite(self.images) & (self.images != 0), axis=-1)

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
    def summary(self) -> str:
        """The data set in one line."""
        labelled = sum(case.labels is not None for case in self.cases)
        patients = len({case.patient or case.name for case in self.cases})
        of_patients = f" of {patients} patients" * (patients < len(self.cases))
        return (
            f"{self.root}: {self.layout}, {len(self.cases)} cases{of_patients}, {labelled} with labels; channels "
            f"{', '.join(self.channels)}; classes {', '.join(self.classes)}"
        )


def notes_of(cases: Iterable[Case]) -> tuple[str, ...]:
    """The notes of all cases; what is said of several is said once, with their number."""
    counts = Counter(note for case in cases for note in case.notes)
    return tuple(note if count == 1 else f"{count} cases: {note}" for note, count in counts.items())


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
