"""What dcm2niix writes, and the page on the way from DICOM to a case: its commands that need only isles_jax."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import OBLIQUE, ROOT, save_volume
from isles_folder import images

from isles_jax.data import layouts, proposal
from isles_jax.data.dcm2niix import channel_of, of_series
from isles_jax.data.nifti import read_volume
from isles_jax.runtime.command import InputError

PAGE = (ROOT / "docs" / "dicom.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


def run(command, folder):
    """Runs a shell command with the programs of this environment."""
    programs = f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    subprocess.run(["bash", "-ec", f"{programs}\n{command}"], cwd=folder, check=True)


def series(folder, name, volumes, b_values):
    """A file of several volumes with its b-values, as dcm2niix writes them."""
    save_volume(folder / f"{name}.nii.gz", np.stack(volumes, -1), OBLIQUE)
    (folder / f"{name}.bval").write_text(" ".join(map(str, b_values)) + "\n")
    return folder / f"{name}.nii.gz"


@pytest.fixture
def raw(tmp_path):
    """The raw volumes of two patients: b = 0 and 1000 in one file, and one with two directions."""
    there = images(("dwi", "adc"), 1)
    b0 = there["dwi"] * 2
    series(tmp_path / "raw" / "p01", "3_trace", (b0, there["dwi"]), (0, 1000))
    series(tmp_path / "raw" / "p02", "3_diff", (b0, there["dwi"], there["dwi"] * 3), (0, 1000, 995))
    save_volume(tmp_path / "raw" / "p01" / "4_ADC.nii.gz", there["adc"] * 1000, OBLIQUE)
    return there


def test_a_series_is_refused_with_the_command_that_takes_its_volume(raw, tmp_path):
    patient = tmp_path / "O'Brien Tom"
    (tmp_path / "raw" / "p01").rename(patient)
    path = patient / "3_trace.nii.gz"
    with pytest.raises(InputError) as caught:
        read_volume(path)
    message, command = str(caught.value).split(" is taken by ")
    assert message == f"{path}: holds 2 volumes, of b = 0, 1000; expected one; that of b = 1000"
    run(command, tmp_path)
    data, affine, _ = read_volume(tmp_path / "NEW.nii.gz")
    np.testing.assert_array_equal(data, raw["dwi"])
    np.testing.assert_allclose(affine, OBLIQUE, atol=1e-6)
    assert nib.load(tmp_path / "NEW.nii.gz").shape == raw["dwi"].shape


@pytest.mark.parametrize(("b_values", "words"), [
    ("0 1000 1000", "holds 3 volumes, of b = 0, 1000; expected one, such as the mean of those of b = 1000"),
    ("0 1000 995", "holds 3 volumes, of b = 0, 995, 1000; expected one, such as the mean of those of b = 1000"),
    ("0 500 1000", "holds 3 volumes, of b = 0, 500, 1000; expected one; that of b = 1000 is taken by python"),
    ("0 500 1000", "x y.nii.gz"), ("0 500 1000", ".slicer[..., 2]"), ("1000 0 0", ".slicer[..., 0]"),
    ("0 1000", "holds 3 volumes; expected one (docs/dicom.md)"),
    ("b zero", "holds 3 volumes; expected one (docs/dicom.md)"),
    (None, "holds 3 volumes; expected one (docs/dicom.md)"),
])  # fmt: skip
def test_the_b_values_say_which_volume_it_is(b_values, words, tmp_path):
    if b_values is not None:
        (tmp_path / "x y.bval").write_text(b_values)
    assert words in of_series(tmp_path / "x y.nii.gz", 3)


@pytest.mark.parametrize(("content", "channel"), [
    ('{"ImageType": ["DERIVED", "PRIMARY", "ADC", "UNSPECIFIED"]}', "ADC"),
    ('{"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW", "ND"]}', "DWI"),
    ('{"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]}', ""),
    ('{"ImageType": 3}', ""), ("{}", ""), ("[]", ""), ("no json", ""), (None, ""),
])  # fmt: skip
def test_the_kind_of_an_image_tells_its_channel(content, channel, tmp_path):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    assert channel_of(tmp_path / "x.nii.gz") == channel


def test_adc_of_a_series_named_dwi_is_not_proposed_as_dwi(tmp_path):
    """Some scanners put ADC into the series of DWI. dcm2niix then writes DWI_301.nii.gz and DWI_301a.nii.gz."""
    for number in range(1, 5):
        folder, there = tmp_path / f"p{number:02d}", images(("dwi", "adc"), number)
        series(folder, "DWI_301", (there["dwi"], there["dwi"]), (0, 1000))
        save_volume(folder / "DWI_301a.nii.gz", there["adc"], OBLIQUE)
        (folder / "DWI_301a.json").write_text(json.dumps({"ImageType": ["DERIVED", "PRIMARY", "ADC", "UNSPECIFIED"]}))
        save_volume(folder / "localizer_1.nii.gz", there["dwi"] + 1, OBLIQUE)
        save_volume(folder / "flair_InverseWarped.nii.gz", there["dwi"] + 1, OBLIQUE)
    found = proposal.propose(tmp_path)
    assert found.images == {"ADC": "{case}/DWI_301a.nii.gz"}
    for name, words in (("DWI_301.", "holds 2 volumes, of b = 0, 1000"), ("localizer_1", "no channel"),
                        ("flair_InverseWarped", "no channel")):  # fmt: skip
        [doubt] = [doubt for doubt in found.doubts if f"{{case}}/{name}" in doubt]
        assert words in doubt


def test_the_page_makes_a_case_of_raw_volumes(raw, tmp_path):
    """The commands of the page that need no other program, in their order."""
    [one] = [block for block in BLOCKS if "cp raw/p01" in block]
    [mean] = [block for block in BLOCKS if "mean(-1)" in block]
    [strip] = [block for block in BLOCKS if "mask = " in block]
    brain = (raw["dwi"] > 1.5).astype(np.uint8)
    assert 0 < brain.sum() < (raw["dwi"] > 0).sum()
    save_volume(tmp_path / "work" / "p01_bet.nii.gz", brain, OBLIQUE)
    for block in (one, mean, strip):
        run(block, tmp_path)
    np.testing.assert_allclose(nib.load(tmp_path / "raw/p02/mean.nii.gz").get_fdata(), raw["dwi"] * 2, rtol=1e-6)
    [case] = layouts.load_images(tmp_path / "cases", ("DWI", "ADC")).cases
    assert case.name == "p01"
    np.testing.assert_array_equal(case.images[..., 0], raw["dwi"] * brain)
    np.testing.assert_allclose(case.images[..., 1], raw["adc"] * brain, rtol=1e-5)
    np.testing.assert_allclose(case.affine, OBLIQUE, atol=1e-5)
