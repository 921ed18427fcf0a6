"""Every command of the README, in an empty directory, on a tiny data set; and the notebook."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import SYSTEMS, TINY

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
INLINE = re.findall(r"`((?:uv|python|pip) [^`]*)`", README)
# These commands install, or run this test. The checks of a clean checkout (.ci/run) run them.
ELSEWHERE = {
    'python3 -m venv .uv && PATH="$PWD/.uv/bin:$PATH" && pip install uv', "uv run --group dev pytest",
    "python3 -m venv .venv && . .venv/bin/activate",
    "pip install -e . -c constraints.txt",
}  # fmt: skip
COMMANDS = [command for command in dict.fromkeys([*BLOCKS, *INLINE]) if command not in ELSEWHERE]
# These commands train, and --config makes their runs small.
TRAINS = ("isles_jax.main", "experiments.table1", "train")
# A system is trained once on the tiny data: these workdirs get the finished runs that another command has made.
FINISHED = {
    "runs/spes": {"proposed": "runs/spes"},
    "runs/isles2022": {"proposed": "runs/isles2022"},
    "runs/table1": {name: f"runs/table1/seed_0/{name}" for name in ("bl1", "bl5", "proposed")},
}
TOUR = json.loads((ROOT / "docs" / "tour.ipynb").read_text())
# What replaces the notebook's settings.
SMALL_TOUR = {
    "data.phantom.cases": 6, "data.phantom.shape": (32, 32, 8), "model.width": 4, "train.epochs": 1, "fold": 0,
}  # fmt: skip


def arguments(command, root):
    """The command with this environment's Python, the tiny data and a tiny network."""
    words = shlex.split(command)
    if words[0] == "isles-jax":
        program, words = [str(Path(sys.executable).with_name("isles-jax"))], words[1:]
    else:
        assert words[:2] == ["uv", "run"] or words[0] == "python", command
        if words[2] == "isles-jax":
            return arguments(shlex.join(words[2:]), root)
        program, words = [sys.executable, "-m"], words[words.index("-m") + 1 :]
    data = ("CASE_OR_FOLDER", "LABELS", "/data/SPES2015_Training", "/data/ISLES-2022")
    places = dict.fromkeys(data, root) | {"DIR": "predictions"}
    words = [re.sub(r"(?<==)(" + "|".join(places) + ")$", lambda match: str(places[match[0]]), word) for word in words]
    if words[0] in TRAINS:
        words += [f"--config.{key}={value}" for key, value in TINY.items()]
        words += [] if "mydata" in command else [f"--config.data.root={root}"]
    return [*program, *words]


def test_the_checks_of_a_clean_checkout_run_the_other_commands():
    checks = "".join(path.read_text() for path in (ROOT / ".ci").iterdir())
    for command in ELSEWHERE:
        assert command in BLOCKS, command
        # The checks have a folder of their own for uv.
        here = command.replace("venv .uv", 'venv "$work/.uv"').replace("$PWD", "$work")
        assert all(part in checks for part in here.split(" && ")), command


@pytest.mark.slow
def test_every_command_of_the_readme_runs(tmp_path, phantom_root):
    assert len(COMMANDS) >= 11
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    for case in sorted(path for path in phantom_root.iterdir() if path.is_dir()):
        (tmp_path / "mydata" / case.name).mkdir(parents=True)
        for word, name in (("DWI", "dwi"), ("TTP", "adc"), ("OT", "mask")):
            [path] = case.rglob(f"*{word}*.nii")
            volume = nib.load(path)
            binary = nib.Nifti1Image((volume.get_fdata() > 0).astype(np.uint8), volume.affine, volume.header)
            nib.save(volume if name != "mask" else binary, tmp_path / "mydata" / case.name / f"{name}.nii.gz")
    # The report compares proposed with bl1, so bl1 is trained first. Table 1 trains what is left in the end.
    bl1 = "uv run -m isles_jax.main --config=configs/bl1.py"
    for command in sorted([bl1, *COMMANDS], key=lambda command: "experiments.table1" in command):
        workdir = next((flag.partition("=")[2] for flag in command.split() if flag.startswith("--workdir=")), None)
        for name, place in FINISHED.get(workdir, {}).items():
            shutil.copytree(tmp_path / "runs" / name, tmp_path / place)
        done = subprocess.run(
            arguments(command, phantom_root), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stderr == "", command
    for name in (
        "runs/proposed/report.html", "runs/spes/cases.csv", "runs/mine/report.html", "runs/table1/table1.html",
        "report.html", "proposed.safetensors", "proposed.stablehlo",
    ):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 1000, name
    table = (tmp_path / "runs" / "table1" / "table1.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in table[1:]} == {"clinical rule", *SYSTEMS}
    assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 6
    assert list((tmp_path / "runs" / "bl5" / "fold_0").glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    "page",
    [*(path.name for path in ROOT.glob("*.md")), *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))],
)
def test_links_have_targets(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in target or ((ROOT / page).parent / target).exists(), f"{page}: {target}"


@pytest.mark.slow
def test_the_code_cells_of_the_notebook_run_in_order(tmp_path):
    assert "(docs/tour.ipynb)" in README
    cells = [cell for cell in TOUR["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "the notebook is committed without outputs"
    code = []
    for cell in cells:
        code.append("".join(cell["source"]))
        if "parameters" in cell["metadata"].get("tags", ()):
            code.append(f"settings = {SMALL_TOUR}")
    code.append('print("images:", sum(len(axis.images) for axis in figure.axes))')
    # The phantom's first axis points to the right and its second to the front.
    code.append("turned = case.labels[::-1, ::-1, lesion_slice].T")
    code.append('print("turned:", np.array_equal(figure.axes[3].images[0].get_array(), turned))')
    code.append('print("letters:", *(text.get_text() for text in figure.axes[3].texts))')
    script = tmp_path / "tour.py"
    script.write_text("\n\n".join(code))
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"settings = {SMALL_TOUR}" in script.read_text()
    for text in (
        "core of case",
        "Dice",
        "images: 5",
        "turned: True",
        "letters: R L A P",
        "Lovász-softmax",
        "pixels lie on a boundary",
    ):
        assert text in done.stdout
