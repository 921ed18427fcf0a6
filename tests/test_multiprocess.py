"""docs/tpu.md as it is written, on CPUs: two real processes of four devices against one of eight and one of one."""

import re
import shlex
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, environment, free_port, leaves

from isles_jax import config
from isles_jax.cross_validation import cross_validate
from isles_jax.training import checkpoint

pytestmark = pytest.mark.slow
DOCS = (ROOT / "docs" / "tpu.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python ")
]
# The pieces of Gloo's lines. Its threads write them one by one, so that the pieces of two lines may mix.
GLOO = re.compile(r"\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is|[\d: ]")
# The networks' smallest: cross-entropy alone, four channels, twelve steps of eight slices for each of two folds.
SMALL = {
    "folds": 2, "model.width": 4, "model.residual": False, "discriminator.enabled": False, "loss.lovasz": 0.0,
    "loss.boundary": 0.0, "train.epochs": 4, "train.checkpoint_every_steps": 6, "train.checkpoint_every_seconds": 0.0,
    "train.log_every_steps": 1,
}  # fmt: skip


def settings(root, **keys):
    made = config.baseline(residual=True, adversarial=True, overlap=True)
    made.update_from_flattened_dict(SMALL | {"data.root": str(root)} | keys)
    return made


def start(command, workdir, devices, root, *flags, port=None):
    """A command of the documentation as a process: its own flags, a small run's, and then `flags`."""
    given = [flag for flag in shlex.split(command)[1:] if not flag.startswith("--workdir=")]
    given = [flag.replace("127.0.0.1:8476", f"127.0.0.1:{port}") for flag in given]
    small = [f"--config.{key}={value}" for key, value in (SMALL | {"data.root": root}).items()]
    arguments = [sys.executable, *given, *small, f"--workdir={workdir}", *flags]
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def start_two(workdir, root, *flags, second=()):
    port = free_port()
    commands = [command for command in COMMANDS if "--coordinator" in command]
    assert [re.search(r"--process=(\d)", command)[1] for command in commands] == ["0", "1"]
    given = [flags, (*flags, *second)]
    return [start(command, workdir, 4, root, *more, port=port) for command, more in zip(commands, given, strict=True)]


def finish(started):
    """What processes that must succeed print on stdout, without what JAX's Gloo does."""
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    return ["\n".join(line for line in out.splitlines() if GLOO.sub("", line)) for out, _ in outputs]


def parameters(workdir, fold):
    """The segmenter's variables after the last step, by name."""
    directory = workdir / f"fold_{fold}" / "checkpoints"
    assert checkpoint.newest(directory) == 12
    return leaves(checkpoint.load_variables(directory)[0])


def assert_same_run(workdir, other, folds=(0, 1)):
    """Parameters agree to rounding, and predictions to the last voxel."""
    for fold in folds:
        ours, theirs = parameters(workdir, fold), parameters(other, fold)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            # Adam divides by the gradient's size: where that is next to nothing, its rounding is all there is, and
            # single weights differ by up to a hundredth of a step (1e-5). As a whole a layer does not. Offsets began
            # at 0 and are a few steps long: they are measured against a step of 1e-3, by a thousandth of it.
            apart, size = (np.sqrt(np.mean(np.square(x))) for x in (ours[name] - value, value))
            allowed = 1e-6 if name.endswith("['bias']") else 1e-5 * size
            assert apart < allowed, f"{name} of fold {fold} differs by {apart:.2g}"
        for path in (other / f"fold_{fold}" / "predictions").iterdir():
            assert (workdir / f"fold_{fold}" / "predictions" / path.name).read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory, phantom_root):
    """A finished run of one process with eight devices: the command for one host."""
    [command] = [line for line in COMMANDS if "--coordinator" not in line and "isles_jax.main" in line]
    workdir = tmp_path_factory.mktemp("eight") / "run"
    [printed] = finish([start(command, workdir, 8, phantom_root, "--config.train.profile=20")])
    assert "8 x cpu" in printed
    return workdir


def test_two_processes_are_killed_resume_and_agree_with_one(on_eight, phantom_root, tmp_path):
    run, one = tmp_path / "run", tmp_path / "one"
    # Fold 1 is begun on one device, and left after six of its steps.
    cross_validate(settings(phantom_root, fold=1), one)
    assert_same_run(one, on_eight, [1])
    shutil.copytree(one, run)
    shutil.rmtree(run / "fold_1" / "checkpoints" / "12")
    shutil.rmtree(run / "fold_1" / "predictions")
    (run / "fold_1" / "DONE").unlink()

    # Two processes of four devices train fold 0, and are killed after their first checkpoint.
    started = start_two(run, phantom_root)
    manifest = run / "fold_0" / "checkpoints" / "6" / checkpoint.MANIFEST
    while not manifest.exists() and all(process.poll() is None for process in started):
        time.sleep(0.05)
    for process in started:
        process.kill()
        process.communicate()
    assert manifest.exists()
    assert not (run / "fold_0" / "DONE").exists()
    begun = checkpoint.newest(run / "fold_0" / "checkpoints")

    # What they saved goes on with one device.
    shutil.copytree(run, tmp_path / "copy")
    cross_validate(settings(phantom_root, fold=0), tmp_path / "copy")
    assert_same_run(tmp_path / "copy", on_eight, [0])

    # And with two processes, in the other way of spreading a step; they share the cases of a fold out.
    first, second = finish(start_two(run, phantom_root, "--config.train.parallel=shard_map"))
    assert f"steps {begun} to 12 of 8 slices on 8 x cpu" in first
    assert "steps 6 to 12" in first, "fold 1 goes on from one device"
    assert second == "", "only process 0 prints"
    assert_same_run(run, on_eight)
    for name in ("cases.csv", "folds.json", "data.json"):
        assert (run / name).read_bytes() == (on_eight / name).read_bytes()
    for fold in (0, 1):
        lines = (run / f"fold_{fold}" / "metrics.jsonl").read_text().splitlines()
        assert [re.search(r'"step": (\d+)', line)[1] for line in lines] == list(map(str, range(1, 13)))
    table = (run / "report.html").read_text()
    assert "proposed" in table


def test_every_command_of_the_documentation_is_run(on_eight):
    [ahead, look, *runs] = COMMANDS
    assert ahead.startswith("python -m experiments.benchmarks.ahead --target=v5e"), "tests/test_ahead.py runs this"
    assert len(runs) == 3, "the two tests above run these"
    inside = re.findall(r"\.venv/bin/(python -m isles_jax[^\"]+)", DOCS)
    assert len(inside) == 1
    assert inside[0].replace("$BUCKET/", "").startswith(runs[0]), "several hosts are given the command of one"
    done = subprocess.run(
        [sys.executable, *shlex.split(look)[1:]], env=environment(8), capture_output=True, text=True, check=True
    )
    assert done.stdout.count("CpuDevice") == 8


def test_a_mistake_that_one_process_finds_ends_both_with_one_line(phantom_root, tmp_path):
    first, second = start_two(tmp_path / "run", phantom_root, second=["--config.data.root=/nowhere"])
    (_, first_error), (_, second_error) = first.communicate(timeout=600), second.communicate(timeout=600)
    assert (first.returncode, second.returncode) == (2, 2)
    assert (
        first_error
        == "error: /nowhere: does not exist; expected a folder of cases or a table (.csv), with NIfTI files\n"
    )
    assert second_error == ""
    assert not (tmp_path / "run").exists()


def test_a_profile_is_left_of_the_steps_after_the_first_ten(on_eight):
    for fold in (0, 1):
        [trace] = (on_eight / f"fold_{fold}" / "profile").rglob("*.xplane.pb")
        assert trace.stat().st_size > 1000
