"""A tiny SPES folder with known contents, for the tests of the readers."""

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (9, 8, 5)
# Oblique, left-handed and anisotropic.
OBLIQUE = np.array([[-1.9, 0.3, 0.2, 31.0], [0.25, 2.4, -0.5, -12.5], [0.1, 0.4, 3.9, 7.25], [0, 0, 0, 1]])


def volumes(shape=SHAPE, seed=0):
    """Tmax, TTP, DWI (float32) and labels (uint8): a brain with a penumbra of raised Tmax and a bright core in it."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    labels[2:7, 2:6, 1:4] = 1
    labels[3:5, 3:5, 2] = 2
    brain = np.zeros(shape, bool)
    brain[1:-1, 1:-1] = True
    noise = rng.uniform(0.9, 1.1, (3, *shape))
    tmax = np.where(labels > 0, 9.0, 2.0) * noise[0]
    ttp = np.where(labels > 0, 25.0, 16.0) * noise[1]
    dwi = np.where(labels == 2, 300.0, 150.0) * noise[2]
    images = {"Tmax": tmax, "TTP": ttp, "DWI": dwi}
    return {name: np.where(brain, image, 0).astype(np.float32) for name, image in images.items()} | {"OT": labels}


def save(path, data, affine=OBLIQUE, header=None):
    """Saves one NIfTI volume with qform and sform codes 1 and 2; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine, header)
    image.set_qform(affine, 1)
    image.set_sform(affine, 2)
    nib.save(image, path)


def make(root: Path, cases=("a", "b"), suffix=".nii", **contents):
    """Writes the short form, <case>/Tmax.nii and so on; `contents` replace volumes of the last case (None: no file)."""
    for number, case in enumerate(cases):
        there = volumes(seed=number)
        if case == cases[-1]:
            there |= contents
        for word, data in there.items():
            if data is not None:
                save(root / case / f"{word}{suffix}", data)
    return root


def tree(root: Path):
    """{relative path: checksum} of everything below a folder."""
    paths = sorted(root.rglob("*"))
    return {str(p.relative_to(root)): hashlib.md5(p.read_bytes()).hexdigest() if p.is_file() else "" for p in paths}
