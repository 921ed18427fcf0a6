"""The command that converts a data set."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, checksums, nnunet_folder, spes_folder

from isles_jax import convert
from isles_jax.data import layouts
from isles_jax.runtime.command import InputError


def test_a_converted_data_set_holds_the_same_cases(tmp_path, capsys):
    spes_folder(tmp_path / "spes", cases=("a", "b", "c"), OT=None)
    arguments = [f"--input={tmp_path / 'spes'}", f"--output={tmp_path / 'raw' / 'Dataset015_SPES'}"]
    convert.main(arguments)
    assert "3 cases, labels 1 penumbra, 2 core" in capsys.readouterr().out
    folders = (tmp_path / "spes", tmp_path / "raw" / "Dataset015_SPES")
    before, after = (layouts.load(folder, penumbra=1, core=2) for folder in folders)
    assert (before.channels, before.classes, before.label_values) == (after.channels, after.classes, after.label_values)
    for old, new in zip(before.cases, after.cases, strict=True):
        assert old.name == new.name
        np.testing.assert_array_equal(old.images, new.images)
        np.testing.assert_array_equal(old.affine, new.affine)
        assert old.header["qform_code"] == new.header["qform_code"]
        assert (old.labels is None) == (new.labels is None)
        assert old.labels is None or np.array_equal(old.labels, new.labels)
    written = checksums(tmp_path)
    with pytest.raises(InputError, match="Dataset015_SPES: exists"):
        convert.main(arguments)
    with pytest.raises(InputError, match="nowhere: does not exist"):
        convert.main([f"--input={tmp_path / 'nowhere'}", f"--output={tmp_path / 'x'}"])
    with pytest.raises(InputError, match="--channels: found Tmax, Tmax, expected each channel once"):
        convert.main([f"--input={tmp_path / 'spes'}", f"--output={tmp_path / 'x'}", "--channels=Tmax,Tmax"])
    assert checksums(tmp_path) == written


def test_texts_are_utf_8_in_any_locale(tmp_path):
    """A real process whose locale knows ASCII alone reads a file with a byte order mark, as Windows writes it."""
    nnunet_folder(tmp_path / "set", labels={"background": 0, "Läsion": 1, "core": 3})
    path = tmp_path / "set" / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_text().replace("L\\u00e4sion", "Läsion").encode())
    arguments = [f"--input={tmp_path / 'set'}", f"--output={tmp_path / 'new'}"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    subprocess.run(
        [sys.executable, "-m", "isles_jax.convert", *arguments], env=os.environ | locale, cwd=ROOT, check=True
    )
    assert json.loads((tmp_path / "new" / "dataset.json").read_bytes())["labels"] == {
        "background": 0,
        "Läsion": 1,
        "core": 2,
    }
