"""The phantom: its data set against its documentation."""

import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from helpers import ROOT, checksums

from isles_jax.config import baseline
from isles_jax.data import folds, layouts, profile
from isles_jax.phantom import main as command
from isles_jax.phantoms import phantom
from isles_jax.phantoms.tissue import grid_mm
from isles_jax.runtime.command import InputError
from isles_jax.scoring import clinical


def write(root, cases=2, shape=(16, 16, 8), difficulty=1.0, seed=0):
    phantom.write_phantom(root, cases=cases, shape=shape, difficulty=difficulty, seed=seed)
    return root


def test_the_seed_fixes_every_patient(tmp_path):
    first = checksums(write(tmp_path / "a"))
    assert checksums(write(tmp_path / "b")) == first
    other = checksums(write(tmp_path / "c", seed=1))
    more = checksums(write(tmp_path / "d", cases=3))
    files = [name for name in first if name.endswith(".nii")]
    assert len(files) == 8
    assert set(other) == set(first)
    assert not any(other[name] == first[name] for name in files)
    assert all(more[name] == first[name] for name in files)
    scans = [first[name] for name in files if "Tmax" in name]
    assert len(set(scans)) == len(scans)
    settings = json.loads((tmp_path / "a" / "phantom.json").read_text())
    assert settings == {
        "digital perfusion phantom": {"cases": 2, "shape": [16, 16, 8], "difficulty": 1.0, "seed": 0, "layout": "spes"}
    }


def test_the_phantom_of_spes_stays_what_it_is(tmp_path):
    """The labels' voxels, and the sums of Tmax, TTP and DWI, of version 0.2.0."""
    dataset = layouts.load(write(tmp_path / "a", 4, (40, 40, 10)), penumbra=1, core=2)
    voxels = [[int((case.labels == value).sum()) for value in (1, 2)] for case in dataset.cases]
    assert voxels == [[568, 336], [322, 73], [465, 173], [760, 192]]
    sums = [case.images.sum(axis=(0, 1, 2), dtype=np.float64) for case in dataset.cases]
    expected = (
        (20285.5, 111880.7, 1813073),
        (9952.2, 100643.2, 799155),
        (23113.9, 87996.1, 1020959),
        (39564.0, 116442.9, 949529),
    )
    # Other machines round differently in the last digit.
    np.testing.assert_allclose(sums, expected, rtol=1e-4)


def test_files_lie_in_the_scanner(tmp_path):
    image = nib.load(next(write(tmp_path / "a", cases=1, shape=(16, 24, 8)).rglob("*DWI*.nii")))
    assert image.header.get_zooms() == (12.0, 8.0, 14.0)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (image.get_sform(coded=True)[1], image.get_qform(coded=True)[1]) == (1, 1)
    np.testing.assert_allclose(image.affine @ [7.5, 11.5, 3.5, 1], [0, 0, 0, 1])
    np.testing.assert_allclose(image.affine @ [1, 2, 3, 1], [*grid_mm((16, 24, 8))[:, 1, 2, 3], 1])


def test_nothing_is_left_behind_by_a_failure(tmp_path, monkeypatch):
    root = write(tmp_path / "a")
    before = checksums(tmp_path)
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        write(root)
    for wrong in ({"cases": 0}, {"shape": (16, 16)}, {"shape": (2, 16, 8)}, {"difficulty": -1.0}):
        with pytest.raises(InputError, match=r"phantom: .*expected at least one case"):
            write(tmp_path / "b", **wrong)
    real = phantom.make_patient
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("no more")
        return real(*arguments)

    monkeypatch.setattr(phantom, "make_patient", failing)
    with pytest.raises(RuntimeError, match="no more"):
        write(tmp_path / "b")
    assert checksums(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--shape=40000x4x4"], "a side of 40000 voxels; expected at most 32767"),
        (["--shape=4x4x32768"], "a side of 32768 voxels; expected at most 32767"),
        (["--shape=30000x4x4", "--layout=isles2022"], "a side of 30000 voxels; expected at most 21845"),
        (
            ["--shape=500x500x300"],
            r"shape=\(500, 500, 300\) needs about 150 GB, of 3 GB of memory",
        ),
        (["--shape=500x500x300", "--layout=isles2022", "--cases=1"], "needs about 34 GB, of 3 GB"),
    ],
)
def test_volumes_that_files_or_memory_cannot_hold_are_refused(tmp_path, monkeypatch, flags, words):
    monkeypatch.setattr(phantom, "machine_memory", lambda: 3_000_000_000)
    with pytest.raises(InputError, match=words):
        command([f"--output={tmp_path / 'new'}", *flags])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["spes", "isles2022"])
def test_what_the_disk_cannot_hold_is_refused_before_anything_is_written(tmp_path, monkeypatch, layout):
    flags = [f"--layout={layout}", "--shape=16x16x8"]
    with pytest.raises(
        InputError, match=r"^\S+/new/data: found [\d,.]+ GB of free disk, expected at least [\d,.]+ GB "
    ):
        command([f"--output={tmp_path / 'new' / 'data'}", *flags, "--cases=1000000000000"])
    assert not list(tmp_path.iterdir())
    command([f"--output={tmp_path / 'data'}", *flags, "--cases=6"])
    written = sum(path.stat().st_size for path in (tmp_path / "data").rglob("*.nii*"))
    estimate = 6 * 16 * 16 * 8 * phantom._FILE_BYTES[layout]
    assert estimate <= written
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(phantom.shutil, "disk_usage", lambda path: usage._replace(free=estimate))
    command([f"--output={tmp_path / 'again'}", *flags, "--cases=6"])
    with pytest.raises(InputError, match="choose fewer cases or a smaller shape"):
        command([f"--output={tmp_path / 'more'}", *flags, "--cases=7"])


@pytest.mark.slow
def test_the_memory_of_a_phantom_is_estimated_from_above(tmp_path):
    """In a process of its own, whose peak nothing else has raised."""
    code = """
import sys
from pathlib import Path
from isles_jax.phantoms import phantom
def peak():
    # `getrusage` would begin with the peak of the process that started this one.
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])
before = peak()
settings = {"shape": (128, 96, 48), "difficulty": 1, "seed": 0, "layout": sys.argv[2]}
phantom.write_phantom(Path(sys.argv[1]), cases=int(sys.argv[3]), **settings)
print(peak() - before)
"""
    for layout, cases in (("spes", 2), ("isles2022", 6)):
        words = [sys.executable, "-c", code, str(tmp_path / layout), layout, str(cases)]
        used = int(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        estimate = 2 * 128 * 96 * 48 * phantom._VOXEL_BYTES[layout]
        assert estimate / 10 < used < 1.1 * estimate, layout


def test_the_command(tmp_path, capsys):
    arguments = [
        f"--output={tmp_path / 'a'}",
        "--cases=2",
        "--shape=(16, 16, 8)",
        "--difficulty=0.5",
        "--seed=3",
        "--figure",
    ]
    command(arguments)
    assert "2 phantom patients" in capsys.readouterr().out
    there = checksums(tmp_path / "a")
    picture = (tmp_path / "a" / "phantom.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    del there["phantom.png"]
    assert there == checksums(write(tmp_path / "b", difficulty=0.5, seed=3))
    with pytest.raises(InputError, match="expected a new name"):
        command(arguments)
    with pytest.raises(InputError, match="--shape=much: expected three numbers"):
        command([f"--output={tmp_path / 'c'}", "--shape=much"])


def test_without_matplotlib_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = [f"--output={tmp_path / 'a'}", "--cases=1", "--shape=16x16x4"]
    with pytest.raises(InputError, match="matplotlib is not installed, expected it for --figure: pip install"):
        command([*arguments, "--figure"])
    assert not list(tmp_path.iterdir())
    command(arguments)


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The phantom of the main job."""
    config = baseline(residual=True, adversarial=True, overlap=True)
    root = tmp_path_factory.mktemp("default") / "phantom"
    settings = config.data.phantom
    write(root, settings.cases, tuple(settings.shape), settings.difficulty, config.seed)
    return layouts.load(root, penumbra=1, core=2)


def dice(found, truth):
    return 2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1)


def rule_scores(dataset):
    """Dice of the clinical rule, [cases, 2], thresholds fitted on the other folds as in a run."""
    scores = []
    for held_out in folds.make_folds([case.name for case in dataset.cases], 3, 0):
        threshold = clinical.fit_core_threshold([case for case in dataset.cases if case.name not in held_out])
        for case in dataset.cases:
            if case.name in held_out:
                found = clinical.clinical_rule(case, threshold)
                scores.append([dice(found == value, case.labels == value) for value in (1, 2)])
    return np.array(scores)


@pytest.mark.slow
def test_thresholds_fail_on_the_default_phantom_and_work_on_a_clean_one(default, tmp_path):
    scores = rule_scores(default).mean(axis=0)
    assert (scores > 0.4).all(), scores
    assert (scores < 0.75).all(), scores
    clean = layouts.load(write(tmp_path / "clean", 9, (48, 48, 16), 0.0), penumbra=1, core=2)
    assert (rule_scores(clean).mean(axis=0) > scores + 0.1).all()


@pytest.mark.slow
def test_the_default_lesions_are_of_a_size_to_be_measured(default):
    assert default.phantom
    assert len(default.cases) == 24
    volumes = np.array([[profile.volume_ml(case, value) for value in (1, 2)] for case in default.cases])
    assert volumes.min(axis=0)[0] > 20
    assert volumes.min(axis=0)[1] > 5
    assert volumes.max(axis=0)[1] < 150
    assert (volumes.std(axis=0) / volumes.mean(axis=0) > 0.25).all(), "patients differ"
    left = [np.flatnonzero((case.labels > 0).any(axis=(1, 2))).mean() < 31.5 for case in default.cases]
    assert 0.2 < np.mean(left) < 0.8
