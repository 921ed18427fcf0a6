"""The container's recipe, part by part: no Docker daemon is needed."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import nibabel as nib
import pytest
from helpers import checksums
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# User 1000 in a namespace of its own: no rights of root over files, and no network but a loopback that is down.
NAMESPACE = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--net"]


def recipe():
    """The Dockerfile's instructions: (name, arguments) in order."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def copy_as_the_recipe_does(root):
    """Copies what the recipe copies, with `root` as the image's root."""
    for name, arguments in recipe():
        if name == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                into = root / target.strip("/")
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, into, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    into.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, into)
    return root / "build"


def can_isolate():
    return shutil.which("unshare") and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


def test_the_image_is_made_of_what_the_package_is_built_from(tmp_path):
    build = copy_as_the_recipe_does(tmp_path)
    project = tomllib.loads((build / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [
        project["project"]["readme"],
        *project["project"]["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    ]
    assert all((build / name).exists() for name in needed)
    assert "export" in project["project"]["optional-dependencies"]
    # What is not copied does not reach the Docker daemon.
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = {source for name, arguments in recipe() if name == "COPY" for source in arguments.split()[:-1]}
    assert "*" in ignored
    assert kept == copied


def test_the_base_has_the_python_of_the_constraints():
    version = re.search(r"on Python ([\d.]+):", (ROOT / "constraints.txt").read_text())[1]
    assert dict(recipe())["FROM"] == f"python:{version}-slim"


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_constraints_give_every_python_one_version_of_each_direct_dependency(python):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    applying = [
        line for line in map(Requirement, lines) if not line.marker or line.marker.evaluate({"python_version": python})
    ]
    versions = {line.name.lower(): str(line.specifier).removeprefix("==") for line in applying}
    assert len(versions) == len(applying)
    assert versions.keys() == {Requirement(line).name.lower() for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"Programming Language :: Python :: {python}" in project["project"]["classifiers"]
    for needed in map(Requirement, [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]):
        assert needed.specifier.contains(versions[needed.name.lower()]), needed


def test_the_image_runs_as_user_1000_and_starts_with_the_command_of_the_package():
    names = [name for name, _ in recipe()]
    assert dict(recipe())["USER"] == "1000:1000"
    assert names.index("USER") > names.index("RUN")
    (command,) = json.loads(dict(recipe())["ENTRYPOINT"])
    assert command in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.skipif(not can_isolate(), reason="needs unshare, and the right to make a user namespace")
@pytest.mark.slow
def test_it_predicts_as_user_1000_without_network_on_what_it_cannot_write(untrained_run, phantom_root, tmp_path):
    build = copy_as_the_recipe_does(tmp_path / "image")
    model, images, output = (tmp_path / name for name in ("model", "input", "output"))
    shutil.copytree(untrained_run[0], model)
    shutil.copytree(sorted(phantom_root.glob("*/"))[0], images / "case")
    output.mkdir()
    before = {path: checksums(path) for path in (model, images)}
    for path in (*model.rglob("*"), model, *images.rglob("*"), images):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (tmp_path / "home").mkdir()
    settings = dict(pair.split("=", 1) for pair in shlex.split(dict(recipe())["ENV"]))
    assert settings["HOME"] == "/tmp"
    environment = settings | {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"], "PYTHONPATH": str(build)}
    # The installed command is this call.
    command = [sys.executable, "-c", "import os; assert os.getuid() == 1000; from isles_jax.cli import run; run()"]
    arguments = ["predict", f"--workdir={model}", f"--input={images}", f"--output={output}"]
    try:
        done = subprocess.run(
            [*NAMESPACE, *command, *arguments], cwd=tmp_path / "home", env=environment, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert {path: checksums(path) for path in before} == before
    finally:
        for path in (model, images, *model.rglob("*"), *images.rglob("*")):
            path.chmod(stat.S_IRWXU)
    assert sorted(path.name for path in output.iterdir()) == [
        ".lock", ".predicted", "case.html", "case.json", "case.nii.gz", "summary.csv",
    ]  # fmt: skip
    assert nib.load(output / "case.nii.gz").shape == (32, 32, 8)
