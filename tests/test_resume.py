"""The real command, killed again and again: it ends with the bits of a run that no one disturbed."""

import gzip
import signal
import subprocess
import sys

import pytest
from helpers import ROOT, leaves, task_of, tiny_config

from isles_jax import config
from isles_jax.training import checkpoint
from isles_jax.training.state import init_state

# Fold 0 has lines of metrics for the steps 2, 4, 6 and 8 and saves at 3, 6 and 8, when 3 is deleted. Each save comes
# after the lines before it.
SETTINGS = {
    "data.phantom.cases": 4, "data.phantom.shape": "(32,32,8)", "folds": 2, "model.width": 4, "train.batch_size": 4,
    "train.epochs": 2, "train.log_every_steps": 2, "train.checkpoint_every_steps": 3,
    "train.checkpoint_every_seconds": 0.0,
}  # fmt: skip
# The command, sent a signal by itself at a moment: the NUMBERth time that a file is written (SIGKILL comes when half of
# it is), the NUMBERth call of a function, or when a path appears or vanishes.
WRAPPER = """
import glob, importlib, itertools, os, resource, runpy, signal, sys, threading, time
moment, where, number, name = sys.argv[1:5]
del sys.argv[1:5]

def send():
    os.kill(os.getpid(), signal.Signals[name])

def patch(module, function, act):
    owner, counter = importlib.import_module(module), itertools.count(1)
    original = getattr(owner, function)
    def patched(*arguments, **options):
        act(counter, *arguments)
        return original(*arguments, **options)
    setattr(owner, function, patched)

def at_write(counter, path, content):
    from isles_jax.runtime import files
    if str(path).endswith(where) and next(counter) == int(number):
        if name == "SIGKILL":
            files.part_of(path).write_bytes(content[: len(content) // 2].encode() if isinstance(content, str) else
                                            content[: len(content) // 2])
        send()

def at_call(counter, *arguments):
    if next(counter) == int(number):
        send()

def watch(there):
    while bool(glob.glob(where, include_hidden=True)) != there:
        time.sleep(0.0005)
    send()

if moment == "write":
    patch("isles_jax.runtime.files", "write_atomic", at_write)
elif moment == "call":
    patch(*where.rsplit(".", 1), at_call)
elif moment == "full":
    # No file may grow beyond this: it stands for a disk that is full, which takes a privilege to make.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
elif moment in ("appears", "vanishes"):
    threading.Thread(target=watch, args=[moment == "appears"], daemon=True).start()
runpy.run_module("isles_jax.main", run_name="__main__", alter_sys=True)
"""


def start(workdir, moment="never", where="", number=1, name="SIGKILL"):
    """Runs the real command to the moment when it is sent the signal; returns its exit code and stderr."""
    where = str(workdir / where) if moment in ("appears", "vanishes") else where
    settings = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    done = subprocess.run(
        [sys.executable, "-c", WRAPPER, moment, where, str(number), name, "--config=configs/bl1.py", *settings,
         f"--workdir={workdir}"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stderr


def result(workdir):
    """The numbers of a finished run: files, predictions unpacked, and every number of the checkpoints."""
    files = {name: (workdir / name).read_bytes() for name in ("cases.csv", "clinical_rule.csv", "summary.json")}
    for path in sorted(workdir.glob("fold_*/predictions/*")):
        files[path.name] = gzip.decompress(path.read_bytes())
    settings = config.resolve(tiny_config("bl1", **{"model.width": 4}))
    for fold in (0, 1):
        like = init_state(task_of(settings, ("penumbra", "core")), 8, fold)
        state = leaves(checkpoint.restore(workdir / f"fold_{fold}" / "checkpoints", like)[0])
        files |= {f"fold {fold} {key}": value.tobytes() for key, value in state.items()}
    return files


@pytest.mark.slow
def test_killed_at_many_moments_it_ends_with_the_bits_of_an_undisturbed_run(tmp_path):
    run, folder = tmp_path / "run", "fold_0/checkpoints"
    kills = [
        ("appears", ".*.isles_jax-part/02"),
        ("write", "config.json"),
        ("write", "folds.json"),
        # Fold 0: its second line of metrics; the first save, before its manifest; the second, while Orbax writes; the
        # third, when the first goes.
        ("write", f"{run}/fold_0/metrics.jsonl", 3),
        ("write", "3/manifest.json"),
        ("appears", f"{folder}/6.orbax-checkpoint-tmp"),
        ("vanishes", f"{folder}/3/manifest.json"),
        ("write", ".nii.gz", 2),
    ]
    for moment in kills:
        assert start(run, *moment)[0] == -signal.SIGKILL, moment

    # Fold 1: asked to leave in step 3, which is saved, and again, when there is no room for the next save. The
    # prediction of fold 0 asks twice before.
    code, message = start(run, "call", "isles_jax.runtime.processes.leaving", 5, "SIGTERM")
    assert code == 143
    assert message == "stopped by SIGTERM: fold 1 is saved at step 3 of 8; to go on, run the same command again\n"
    assert checkpoint.steps(run / "fold_1" / "checkpoints") == [3]
    code, message = start(run, "full")
    assert (code, message.count("\n")) == (2, 1)
    assert message.startswith(f"error: {run}/fold_1/checkpoints/6: cannot be written (File too large)")
    assert checkpoint.newest(run / "fold_1" / "checkpoints") == 3

    for moment in [
        ("call", "isles_jax.scoring.scores.score_case", 3),
        ("write", "cases.csv"),
        ("write", "report.html"),
    ]:
        assert start(run, *moment) == (-signal.SIGKILL, ""), moment
    stopped = start(run, "call", "isles_jax.scoring.scores.score_case", 3, "SIGTERM")
    assert stopped == (143, "stopped by SIGTERM; to go on, run the same command again\n")

    assert start(run) == (0, "")
    assert start(tmp_path / "undisturbed") == (0, "")
    found, expected = result(run), result(tmp_path / "undisturbed")
    assert found.keys() == expected.keys()
    assert len(found) > 50
    for key in expected:
        assert found[key] == expected[key], key
    for fold in ("fold_0", "fold_1"):
        for name in ("metrics.jsonl", "held_out.jsonl"):
            lines = [(place / fold / name).read_text() for place in (run, tmp_path / "undisturbed")]
            assert lines[0] == lines[1]
    left = [
        path for path in run.rglob("*") if "isles_jax-part" in path.name or "tmp" in path.name or path.name == ".saving"
    ]
    assert not left
