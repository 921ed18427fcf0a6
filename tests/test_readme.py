"""Every command of the README as it stands there, in an empty directory and in its order, on a data set made small."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
INLINE = re.findall(r"`((?:uv|python|pip) [^`]*)`", README)
# These install, or run this test: a clean checkout's checks do them (.ci/run), word for word.
ELSEWHERE = {
    "pip install uv", "uv run pytest", "python -m venv .venv && . .venv/bin/activate",
    "pip install -e . -c constraints.txt",
}  # fmt: skip
COMMANDS = [command for command in dict.fromkeys([*BLOCKS, *INLINE]) if command not in ELSEWHERE]
# Those that take --config, and are made small by it.
TRAINS = ("isles_jax.main", "experiments.table1", "experiments.tour")


def arguments(command, root):
    """What to run for a command of the README: this environment's Python, the tiny data, a tiny network."""
    words = shlex.split(command)
    assert words[:2] == ["uv", "run"] or words[0] == "python", command
    words = words[words.index("-m") :]
    places = {"CASE_OR_FOLDER": root, "/data/SPES2015_Training": root, "DIR": "predictions", "LABELS": root}
    words = [re.sub(r"(?<==)(" + "|".join(places) + ")$", lambda found: str(places[found[0]]), word) for word in words]
    if words[1] in TRAINS:
        words += [f"--config.{key}={value}" for key, value in TINY.items()] + [f"--config.data.root={root}"]
    return [sys.executable, *words]


def test_what_is_not_run_here_is_run_by_the_checks_of_a_clean_checkout():
    checks = "".join(path.read_text() for path in (ROOT / ".ci").iterdir())
    for command in ELSEWHERE:
        assert command in BLOCKS, command
        assert all(part in checks for part in command.split(" && ")), command


def test_every_command_of_the_readme_runs(tmp_path, phantom_root):
    assert len(COMMANDS) >= 11
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    # The commands in their order; what the report compares is trained before it.
    trained = "uv run -m isles_jax.main --config=configs/bl1.py"
    for command in [trained, *COMMANDS]:
        if "experiments.table1" in command:
            # Two of its eight are there already.
            for name in ("bl1", "proposed"):
                shutil.copytree(tmp_path / "runs" / name, tmp_path / "runs" / "table1" / "seed_0" / name)
        done = subprocess.run(
            arguments(command, phantom_root), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stderr == "", command
    for name in (
        "runs/proposed/report.html", "runs/spes/cases.csv", "runs/table1/table1.html", "report.html",
        "proposed.safetensors", "proposed.stablehlo", "runs/tour/tour.png",
    ):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 1000, name
    assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 6
    assert list((tmp_path / "runs" / "bl5" / "fold_0").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in target or ((ROOT / page).parent / target).exists(), f"{page}: {target}"
