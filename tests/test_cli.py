"""The main command as a user types it: real processes, one line for each mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "isles_jax.main", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_help_explains_every_flag():
    done = call("--help")
    assert done.returncode == 0
    for word in ("--config", "--workdir", "--config.data.root=", "configs/proposed.py", "resumes"):
        assert word in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.modl.width=3"], ["modl", "model"]),
        (["--config.model.widht=3"], ["widht", "width"]),
        (["--config.model.width=wide"], ["--config.model.width=wide"]),
        (["--config.model.width=-3"], ["--config.model.width", "-3", "above 0"]),
        (["--config.data.phantom.shape=(32,32)"], ["data.phantom.shape", "(32, 32)", "three"]),
        (["--config.fold=3"], ["--config.fold", "0 to 2"]),
        (["--config=configs/bl9.py"], ["configs/bl9.py", "no such file"]),
        (["--confg=configs/bl1.py"], ["confg"]),
        (["configs/bl1.py"], ["configs/bl1.py", "--help"]),
        (["--config.data.root=/nowhere/SPES"], ["/nowhere/SPES", "does not exist"]),
        (["--config.data.root=README.md"], ["README.md", "is a file"]),
        (["--processes=2", "--process=0"], ["no --coordinator", "together"]),
        (["--coordinator=here", "--processes=2", "--process=0"], ["--coordinator=here", "HOST:PORT"]),
        (["--coordinator=a:1", "--processes=2", "--process=2"], ["--process=2", "0 to 1"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, tmp_path):
    done = call(*arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "run").exists(), "nothing half-written"


@pytest.mark.parametrize("flags", [["--config=configs/bl3.py"], ["--config", "configs/bl3.py"], []])
def test_the_configs_are_found_from_any_folder(flags, tmp_path):
    done = call(*flags, "--config.modl=1", cwd=tmp_path)
    assert done.stderr == 'error: --config: found no key \'modl\'. Did you mean "model" instead of "modl"?\n'
    assert call(*flags, "--config.data.root=nowhere", cwd=tmp_path).stderr.startswith("error: nowhere")


def test_a_missing_sequence_is_named_before_anything_is_done(tmp_path, phantom_root):
    import shutil

    shutil.copytree(phantom_root, tmp_path / "data")
    [removed] = sorted((tmp_path / "data").rglob("*MR_TTP*.nii"))[:1]
    removed.unlink()
    done = call(f"--config.data.root={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "TTP" in done.stderr
    assert removed.parts[len(tmp_path.parts) + 1] in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_package_imports_nothing_until_asked():
    code = "import sys, isles_jax, isles_jax.config; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
