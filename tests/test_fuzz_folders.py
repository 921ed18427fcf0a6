"""Random folders: files that are not read, files of others where a command writes, two commands at the same time.

FUZZ in the environment makes more of each, as in test_fuzz.py; the seeds are fixed.
"""

import contextlib
import gzip
import json
import os
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from helpers import ROOT, checksums, random_case, result_of, save_case, spes_folder, tiny_config
from isles_folder import LAYOUTS

from isles_jax import check, convert, evaluate, export, phantom, predict, report
from isles_jax.cross_validation import cross_validate
from isles_jax.data import layouts
from isles_jax.data.folder import list_folder, why_unread
from isles_jax.data.nifti import write_labels
from isles_jax.scoring import run_files, statistics

# How many folders of each kind.
COUNT = int(os.environ.get("FUZZ", 150)) // 5

# --- formats that are not read ---------------------------------------------------------------------------------------

ENDINGS = (
    ".mha", ".MHA", ".mhd", ".nrrd", ".hdr", ".img", ".img.gz", ".mgz", ".dcm", ".IMA", ".nii.bz2", ".nii.zst", ".zip",
    ".tar.gz", ".NII", ".NII.GZ", ".Nii.gz", ".nii", ".nii.gz",
)  # fmt: skip
MAKERS = {"SPES": spes_folder} | {name: make for name, (*_, make) in LAYOUTS.items()}


def looks_like_an_image(path):
    return bool(why_unread(path)) or path.name.lower().endswith((".nii", ".nii.gz"))


def images_below(folder):
    """Every file below a folder that looks like an image and is not hidden."""
    for path in list_folder(folder):
        if path.is_dir():
            yield from images_below(path)
        elif looks_like_an_image(path):
            yield path


def disturb(root, rng):
    """Renames, copies, replaces or moves one file that is an image or a label."""
    paths = sorted(path for path in images_below(root) if path.is_file())
    path = paths[rng.integers(len(paths))]
    stem = re.sub(r"(?i)\.nii(\.gz)?$", "", path.name)
    other = path.with_name(stem + str(rng.choice(ENDINGS)))
    kind = rng.choice([0, 1, 1, 2, 3, 4, 4, 5, 5])
    if kind == 0:
        path.rename(other)
    elif kind == 1:
        if not other.exists():
            shutil.copy(path, other)
    elif kind == 2:
        path.unlink()
        path.symlink_to("/nowhere/" + path.name)
    elif kind == 3:
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif kind == 4:
        shutil.copy(path, path.with_name(f"{rng.choice(['extra', 'x y', 'ß'])}_{path.name}"))
    else:
        stray = path.parent / "stray" / other.name
        stray.parent.mkdir(exist_ok=True)
        shutil.copy(path, stray)


def named(notes):
    """How many files the notes name as not read."""
    count = 0
    for note in notes:
        match = re.match(r"not read: (.*?)(?: and (\d+) more)?; ", note)
        if match:
            count += match[1].count(", ") + 1 + int(match[2] or 0)
    return count


def test_whatever_is_not_read_is_named(tmp_path):
    """A folder is refused in lines that begin with a path, or each of its files is in a case or counted in a note."""
    rng, read, refused = np.random.default_rng(0), 0, 0
    for name, make in MAKERS.items():
        make(tmp_path / "original")
        for _ in range(-(-COUNT // len(MAKERS))):
            root = shutil.copytree(tmp_path / "original", tmp_path / "root", symlinks=True)
            for _ in range(rng.integers(1, 3)):
                disturb(root, rng)
            dataset = result_of(lambda: layouts.load(root))  # noqa: B023
            if dataset is not None:
                read += 1
                used = {os.path.abspath(path) for case in dataset.cases for path in case.files}
                unused = [path for path in images_below(root) if os.path.abspath(path) not in used]
                assert named(dataset.notes) >= len(unused), (name, unused, dataset.notes)
            refused += dataset is None
            shutil.rmtree(root)
        shutil.rmtree(tmp_path / "original")
    print(f"{read} folders read, {refused} refused")
    assert read
    assert refused


# --- files of others -------------------------------------------------------------------------------------------------


def foreign(rng):
    """The content of a file that none of the commands wrote."""
    volume = nib.Nifti1Image(rng.integers(0, 3, (4, 4, 2)).astype(np.uint8), np.eye(4)).to_bytes()
    contents = (
        b"", b"mine", b"{}", b"[]", b"null", b'{"case": 1, "summary": {}}', b"case,patient\na,1\n", b"row,mine\n",
        b"<!DOCTYPE html><title>mine</title>", b"\xff\xfe", volume, gzip.compress(volume), bytes(rng.bytes(50)),
        json.dumps({"cases": 1, "folds": 2}).encode(), json.dumps({"name": "mine", "seed": 0}).encode(),
    )  # fmt: skip
    return contents[rng.integers(len(contents))]


def put(path, elsewhere, rng):
    """Puts a foreign file, folder or link in the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = rng.integers(4)
    if kind < 2:
        path.write_bytes(foreign(rng))
    elif kind == 2:
        path.mkdir()
        (path / "mine").write_bytes(foreign(rng))
    else:
        # To a file, or to nowhere.
        target = elsewhere / f"target{rng.integers(2)}"
        (elsewhere / "target0").write_bytes(foreign(rng))
        path.symlink_to(target)


def bytes_below(root):
    """{path: what it is}; a link is what it says, so that one that was replaced shows."""
    return checksums(root) | {
        str(path.relative_to(root)): os.readlink(path) for path in root.rglob("*") if path.is_symlink()
    }


@pytest.fixture
def commands(phantom_root, finished_workdirs, untrained_run, tmp_path_factory, monkeypatch):
    """{name: (the command with its output, the names that it writes there)}."""
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    folder = tmp_path_factory.mktemp("inputs")
    dataset = layouts.load(phantom_root)
    (folder / "predictions").mkdir()
    for case in dataset.cases:
        write_labels(folder / "predictions" / f"{case.name}.nii.gz", case.labels, case, dataset.label_values)
    save_case(folder / "a", random_case((32, 32, 2)))
    run = str(finished_workdirs["bl1"])
    given = f"--input={phantom_root}"
    table = [
        str(phantom_root),
        "--images",
        "DWI={case}/*DWI*/*",
        "--label={case}/*OT*/*",
        "--classes=penumbra=1,core=2",
    ]
    scoring = [f"--predictions={folder / 'predictions'}", f"--labels={phantom_root}"]
    new = [f"--workdir={untrained_run[0]}", f"--input={folder / 'a'}", "--folds=0", "--probabilities"]
    of_case = ("a.nii.gz", "a.json", "a.html", "summary.csv", "probabilities/a.nii.gz", ".predicted")
    settings = tiny_config("bl1", **{"data.root": str(phantom_root)})
    on_phantom = tiny_config("bl1", **{"data.phantom.cases": 4, "data.phantom.shape": (16, 16, 4)})
    of_run = (*sorted(run_files.WRITTEN), "fold_0/metrics.jsonl", "fold_1/DONE")
    return {
        "evaluate": (
            lambda out: evaluate.main([*scoring, f"--output={out}"]),
            ("cases.csv", "lesions.csv", "summary.json"),
        ),
        "predict": (lambda out: predict.main([*new, f"--output={out}"]), of_case),
        "predict anew": (lambda out: predict.main([*new, "--overwrite", f"--output={out}"]), of_case),
        "report": (lambda out: report.main([run, f"--output={out / 'x.html'}"]), ("x.html",)),
        "export": (
            lambda out: export.main([f"--workdir={untrained_run[0]}", f"--output={out / 'x.safetensors'}"]),
            ("x.safetensors",),
        ),
        "phantom": (
            lambda out: phantom.main([f"--output={out / 'set'}", "--cases=1", "--shape=16x16x4"]),
            ("set", "set/01", "set/mine", "set/phantom.json"),
        ),
        "convert": (
            lambda out: convert.main([given, f"--output={out / 'set'}"]),
            ("set", "set/dataset.json", "set/imagesTr", "set/imagesTr/01_0000.nii.gz"),
        ),
        "check": (
            lambda out: check.main([*table, f"--output={out / 'x.csv'}"]),
            ("x.csv",),
        ),
        "train": (lambda out: cross_validate(settings, out), of_run),
        "train on the phantom": (lambda out: cross_validate(on_phantom, out), ("phantom", "phantom/mine")),
    }


def test_no_file_of_others_changes(commands, tmp_path):
    """A command ends in one line, or writes beside what lies in its output."""
    rng = np.random.default_rng(1)
    # These take longer; each of the others has equal shares.
    rare = {"predict", "predict anew", "convert", "export", "report"}
    ended, written = 0, 0
    for name, (work, names) in commands.items():
        for _ in range(-(-COUNT // (20 if name in rare else 5))):
            place = tmp_path / "place"
            out = place / "out"
            out.mkdir(parents=True)
            for path in rng.choice([*names, "mine.txt", ".hidden.part"], rng.integers(1, 3), replace=False):
                if name.startswith("train") and path in ("mine.txt", ".hidden.part"):
                    continue  # a training would begin
                with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
                    put(out / path, place, rng)
            before = bytes_below(place)
            if name.startswith("train") and before == {"out": ""}:
                shutil.rmtree(place)
                continue
            if result_of(lambda: (work(out), "done")) is None:  # noqa: B023
                ended += 1
                assert bytes_below(place) == before, name
            else:
                written += 1
                after = bytes_below(place)
                assert {path: after.get(path) for path in before} == before, name
            shutil.rmtree(place)
    print(f"{ended} commands refused, {written} wrote beside")
    assert ended
    assert written


# --- two commands at the same time -----------------------------------------------------------------------------------

TWO_COMMANDS = """
import json, os, random, sys, time, types
from etils import epath
from isles_jax.prediction import folder
from isles_jax.runtime import files, lock
from isles_jax.runtime.command import InputError

root, count = epath.Path(sys.argv[1]), int(sys.argv[2])
lock.time = types.SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 100))

def predict(out, cases, run, overwrite, rng):
    # The steps of new_cases.predict_folder, with the run's name in place of a label volume.
    pause = lambda: time.sleep(rng.choice((0, 0, 0.002, 0.01)))
    origin = {"run": run, "weights_sha256": 64 * run}
    pause()
    with lock.hold(out, folder.parts(cases), "--output") as held:
        pause()
        with held():
            folder.begin(out, cases, origin, held, overwrite=overwrite)
        for case in cases:
            pause()
            if rng.random() < 0.1:
                os._exit(9)
            files.write_atomic(out / f"{case}.nii.gz", run)
            files.write_json(out / f"{case}.json", {"summary": {"case": case, "run": run}, "origin": origin})
        with held():
            folder.write_table(out)

def child(*arguments):
    pid = os.fork()
    if pid:
        return pid
    code, text = 0, ""
    try:
        predict(*arguments)
    except InputError as error:
        code = 2
        if not str(error).startswith("/") or "\\n" in str(error):
            code = 3
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    os._exit(code)

for seed in range(count):
    rng = random.Random(seed)
    out = root / str(seed)
    commands = []
    for _ in range(rng.choice((2, 2, 3))):
        cases = sorted(rng.sample("abcd", rng.randint(1, 3)))
        commands.append((cases, rng.choice("xxy"), rng.random() < 0.3))
    pids = [child(out, *command, random.Random(rng.random())) for command in commands]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps([commands, codes]), flush=True)
"""


def test_two_commands_at_once_leave_one_run_and_the_row_of_every_case(tmp_path):
    """Whatever their order, also where one of them is killed: none fails otherwise than in one line."""
    count = -(-COUNT // 4)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TWO_COMMANDS, str(tmp_path), str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    ends = {0: 0, 2: 0, 9: 0}
    for seed, line in enumerate(done.stdout.splitlines()):
        commands, codes = json.loads(line)
        out = tmp_path / str(seed)
        for code in codes:
            ends[code] += 1
        files = {path.name[0]: path.read_text() for path in out.glob("*.nii.gz")}
        finished = {path.stem: json.loads(path.read_text())["summary"]["run"] for path in out.glob("*.json")}
        assert len(set(files.values())) <= 1, "the folder holds one run"
        assert finished.items() <= files.items(), "labels and numbers are of one run"
        for (cases, _, _), code in zip(commands, codes, strict=True):
            if code == 0:
                assert set(cases) <= finished.keys()
        if 9 not in codes and 0 in codes:
            table = (out / "summary.csv").read_text().splitlines()
            assert table == ["case,run", *(f"{case},{run}" for case, run in sorted(finished.items()))]
    print(f"{count} pairs: {ends}")
    assert ends[0]
    assert ends[2]
