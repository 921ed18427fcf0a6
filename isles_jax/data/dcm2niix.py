"""What dcm2niix writes beside a volume: a file .bval with the b-values of a series, and a file .json with its kind."""

import json
import shlex
from pathlib import Path

from isles_jax.data.folder import GUIDE, stem

# A word of the kind of an image (0008,0008), and the channel that it means.
_CHANNELS = {"ADC": "ADC", "TRACEW": "DWI"}
# The b-values of one image's directions differ by less than this, in s/mm2.
_SAME_B = 50


def of_series(path: Path, count: int) -> str:
    """What is wrong with a file of several volumes, and how to take one of them.

    Args:
      path: of a NIfTI file. Beside a series of diffusion, dcm2niix writes a file .bval with its b-values.
      count: the number of volumes.
    """
    try:
        b_values = [float(text) for text in path.with_name(f"{stem(path)}.bval").read_text("utf-8").split()]
    except (OSError, ValueError):
        b_values = []
    if len(b_values) != count:
        return f"holds {count} volumes; expected one ({GUIDE})"
    highest = max(b_values)
    found = f"holds {count} volumes, of b = {', '.join(f'{b:g}' for b in sorted(set(b_values)))}; expected one"
    if sum(b > highest - _SAME_B for b in b_values) > 1:
        return f"{found}, such as the mean of those of b = {highest:g} ({GUIDE})"
    number = b_values.index(highest)
    program = f"import nibabel as n; n.save(n.load({str(path)!r}).slicer[..., {number}], 'NEW.nii.gz')"
    return f"{found}; that of b = {highest:g} is taken by {shlex.join(['python', '-c', program])}"


def channel_of(path: Path) -> str:
    """The channel that the file .json of dcm2niix beside a volume tells; "" if it tells none."""
    try:
        told = json.loads(path.with_name(f"{stem(path)}.json").read_bytes())
        words = set(told["ImageType"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return next((channel for word, channel in _CHANNELS.items() if word in words), "")
