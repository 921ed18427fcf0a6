"""Digital phantoms of acute ischaemic stroke, written in the layout of SPES or of ISLES-2022.

Each patient of SPES (`tissue.py`) has a brain of grey matter, white matter and ventricles, and an occlusion of one
middle cerebral artery with collaterals. The scans are a DWI and a perfusion series, from which Tmax and TTP are
computed as clinical software does (`perfusion.py`). Each patient of ISLES-2022 (`isles2022.py`) has a folded brain
(`head.py`) with infarcts by emboli (`emboli.py`), and the scans are DWI and ADC (`diffusion.py`). docs/phantom.md gives
the equations, the numbers and their sources.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from isles_jax.data import isles
from isles_jax.data.case import PHANTOM_MARKER
from isles_jax.data.nifti import LONGEST_SIDE
from isles_jax.phantoms import isles2022 as isles2022_phantom
from isles_jax.phantoms.scans import make_patient, save
from isles_jax.phantoms.tissue import FIELD_OF_VIEW_MM
from isles_jax.runtime.command import InputError
from isles_jax.runtime.files import copy, is_bucket, new_folder
from isles_jax.runtime.memory import machine_memory
from isles_jax.runtime.progress import track

# So many patients are made at once.
_AT_ONCE = 2
# The memory that a patient takes, in bytes for each voxel of the shape that is asked for; measured, and rounded up.
_VOXEL_BYTES = {"spes": 1000, "isles2022": 450}
# The least that its files take, in bytes for each voxel of the shape. Those of ISLES-2022 are compressed.
_FILE_BYTES = {"spes": 11, "isles2022": 1}


def provide(root: epath.Path, *, begun: bool, **settings: Any) -> bool:
    """Writes the phantom of a run to a folder or bucket, unless it is there; returns whether it was written.

    The settings and errors are those of `write_phantom`. Unless the run has `begun`, a phantom of other settings is an
    error, too. So is any other file in a bucket's folder.
    """
    marker = root / PHANTOM_MARKER
    if marker.exists():
        if not begun and marker.read_bytes() != _marker(**settings).encode():
            raise InputError(
                f"{root}: found another phantom, expected none or one of the same settings; choose another --workdir"
            )
        return False
    if not is_bucket(root):
        write_phantom(Path(root), **settings)
        return True
    with tempfile.TemporaryDirectory() as temporary:
        local = epath.Path(temporary) / "phantom"
        write_phantom(Path(local), **settings)
        _refuse_foreign(root, local)
        # The marker is copied last. Without it, what is in the bucket is an incomplete copy.
        copy(local, root)
    return True


def _refuse_foreign(root: epath.Path, local: epath.Path) -> None:
    """Raises an InputError if `root` holds anything that an interrupted copy of `local` would not have left."""
    for path in root.iterdir() if root.is_dir() else ():
        original = local / path.name
        if path.is_dir() and original.is_dir():
            _refuse_foreign(path, original)
        elif not original.is_file() or path.read_bytes() != original.read_bytes():
            raise InputError(f"{path}: found in the place of the phantom, expected none; choose another --workdir")


def write_phantom(
    root: Path, *, cases: int, shape: Sequence[int], difficulty: float, seed: int, layout: str = "spes"
) -> None:
    """Writes a data set in the layout of SPES or of ISLES-2022, and the marker, phantom.json.

    Args:
      root: a new or empty folder.
      cases: number of cases.
      shape: voxels of a volume, which covers 192 x 192 x 112 mm as SPES and 224 x 224 x 146 mm as ISLES-2022.
      difficulty: 0 for clean images; at 1 thresholds make the same mistakes as on patients; above 1 is harder.
      seed: equal arguments give equal files.
      layout: "spes" or "isles2022".

    Raises:
      InputError: a number is out of range, or a volume too large for the memory, or all of them for the disk; `root`
        is not empty or cannot be written.
    """
    if cases < 1 or len(shape) != 3 or min(shape) < 4 or not 0 <= difficulty <= 10 or seed < 0:
        found = f"cases={cases}, shape={tuple(shape)}, difficulty={difficulty}, seed={seed}"
        raise InputError(
            f"phantom: {found}; expected at least one case, three sides of 4 or more, difficulty 0 to 10, "
            "a seed of 0 or more"
        )
    _check_size(shape, min(cases, _AT_ONCE), layout)
    _check_disk(root, cases * math.prod(shape) * _FILE_BYTES[layout])
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: exists and is not an empty folder; expected a new name")
    write = _write_case if layout == "spes" else isles2022_phantom.write_case
    with new_folder(root) as temporary, ThreadPoolExecutor(_AT_ONCE) as pool:
        written = pool.map(lambda index: write(temporary, index, shape, difficulty, seed), range(cases))
        for _ in zip(track(range(cases), "writing the phantom", "case"), written, strict=True):
            pass
        content = _marker(cases, shape, difficulty, seed, layout)
        (temporary / PHANTOM_MARKER).write_text(content, encoding="utf-8")


def _check_size(shape: Sequence[int], at_once: int, layout: str) -> None:
    """Raises an InputError if a side is too long for the files, or if the volumes cannot fit the memory."""
    largest = 1.0 if layout == "spes" else max(in_plane for in_plane, _ in isles2022_phantom.GRIDS)
    if largest * max(shape) > LONGEST_SIDE:
        found = f"phantom: a side of {max(shape)} voxels"
        raise InputError(f"{found}; expected at most {LONGEST_SIDE / largest:.0f}, because NIfTI holds no more")
    needed = at_once * math.prod(shape) * _VOXEL_BYTES[layout]
    memory = machine_memory()
    if needed > memory:
        sizes = f"about {needed / 1e9:.0f} GB, of {memory / 1e9:.0f} GB"
        raise InputError(f"phantom: shape={tuple(shape)} needs {sizes} of memory; expected a smaller one")


def _check_disk(root: Path, needed: int) -> None:
    """Raises an InputError if the disk of a folder that may not exist yet has too little room for so many bytes."""
    whole = Path(os.path.abspath(root))
    there = next(path for path in (whole, *whole.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        sizes = f"found {free / 1e9:,.1f} GB of free disk, expected at least {needed / 1e9:,.1f} GB"
        raise InputError(f"{root}: {sizes} for this phantom; choose fewer cases or a smaller shape")


def _marker(cases: int, shape: Sequence[int], difficulty: float, seed: int, layout: str = "spes") -> str:
    """The content of phantom.json: equal phantoms have equal ones."""
    settings: dict[str, Any] = {"cases": cases, "shape": list(shape), "difficulty": difficulty, "seed": seed}
    settings["layout"] = layout
    if layout == "isles2022":
        # Version 0.2.0 made other patients of the same settings.
        settings["edition"] = 2
    return json.dumps({"digital perfusion phantom": settings}, indent=1) + "\n"


def _write_case(root: Path, index: int, shape: Sequence[int], difficulty: float, seed: int) -> None:
    patient = make_patient(tuple(shape), difficulty, np.random.default_rng([seed, index]))
    spacing = np.array(FIELD_OF_VIEW_MM) / shape
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
    volumes = (("MR_Tmax", patient.tmax), ("MR_TTP", patient.ttp), ("MR_DWI", patient.dwi), ("OT", patient.labels))
    for number, (sequence, volume) in enumerate(volumes):
        name = f"VSD.Brain.XX.O.{sequence}.{10 * (index + 1) + number}"
        save(root / f"{index + 1:02d}" / name / f"{name}.nii", volume, affine)


def write_figure(root: Path, path: Path) -> None:
    """Draws up to six patients of a SPES folder: Tmax, TTP, DWI, and the labels as contours on the DWI."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = isles.read(root, penumbra=1, core=2).cases[:6]
    figure, axes = plt.subplots(4, len(cases), figsize=(2.3 * len(cases), 9.4), squeeze=False, layout="constrained")
    for column, case in enumerate(cases):
        assert case.labels is not None
        lesion = (case.labels == 2).sum(axis=(0, 1)) + (case.labels > 0).sum(axis=(0, 1))
        level = int(lesion.argmax())
        tmax, ttp, dwi = np.moveaxis(case.images[:, :, level], -1, 0)
        labels = case.labels[:, :, level]
        earliest = np.percentile(ttp[ttp > 0], 2) if (ttp > 0).any() else 0
        brightest = np.percentile(dwi, 99.7)
        rows = (
            ("Tmax, 0 to 12 s", tmax, 0, 12, "turbo"),
            ("TTP, 15 s from the earliest", ttp, earliest, earliest + 15, "turbo"),
            ("DWI", dwi, 0, brightest, "gray"),
            ("penumbra, core", dwi, 0, brightest, "gray"),
        )
        for axis, (title, image, low, high, colours) in zip(axes[:, column], rows, strict=True):
            axis.imshow(image.T, origin="lower", vmin=low, vmax=high, cmap=colours, interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=f"case {case.name}" if axis is axes[0, column] else "")
            if column == 0:
                axis.set_ylabel(title)
        for value, colour in ((1, "tab:green"), (2, "tab:red")):
            inside = labels >= value
            if inside.any():
                axes[3, column].contour(inside.T.astype(float), levels=[0.5], colors=[colour], linewidths=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
