"""The commands of the pages: the shell runs them with stand-ins for the programs, and every flag exists."""

import importlib
import itertools
import json
import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT, SYSTEMS

from isles_jax.config import baseline, flatten

PAGES = sorted(
    str(path.relative_to(ROOT)) for folder in (".", "docs", "experiments") for path in (ROOT / folder).glob("*.md")
)
TEXT = {page: (ROOT / page).read_text().replace("\\\n", " ") for page in PAGES}
BLOCKS = {page: re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for page, text in TEXT.items()}
# The flags that some page gives to a module of ours, by module; also in `code`, and within a quoted argument.
FLAGS: dict[str, set[str]] = {}
# The history of changes also names modules that have gone.
TODAY = "\n".join(text for page, text in TEXT.items() if page != "CHANGELOG.md")
for words in re.findall(r"-m ((?:isles_jax|experiments)\.[^`\n]*)", TODAY):
    FLAGS.setdefault(words.split()[0].rstrip("'\"."), set()).update(re.findall(r"--([\w.-]+)", words))
# What a page leaves to its reader, or another page sets.
VARIABLES = {"ROW": "bl1", "TPU": "isles", "ZONE": "zone", "TYPE": "type", "RUNTIME": "runtime", "BUCKET": "gs://b"}
STAND_IN = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
print(7)
"""


@pytest.fixture
def shell(tmp_path):
    """Runs a script in which programs only note their arguments; returns the calls."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for name in ("python", "python3", "pip", "uv", "isles-jax", "docker", "apptainer", "gcloud", "sbatch"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)

    def run(script, **variables):
        calls.write_text("")
        environment = os.environ | VARIABLES | variables
        environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(calls)}
        command = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), script
        return [json.loads(line) for line in calls.read_text().splitlines()]

    return run


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page] and page != "README.md"])
def test_the_shell_understands_every_block(page, shell):
    for block in BLOCKS[page]:
        assert shell(block) or re.fullmatch(r"export .*\n", block), block


def test_table1_as_a_slurm_array_trains_every_fold_of_every_row(shell):
    script = next(block for block in BLOCKS["docs/table1.md"] if "sbatch" in block)
    array, collect = shell(script)
    assert array == ["sbatch", "--parsable", "table1.sh"]
    assert collect[1] == "--dependency=afterok:7"
    trained = set()
    for task in range(24):
        (call,) = shell("bash table1.sh", SLURM_ARRAY_TASK_ID=str(task))
        trained |= {tuple(call[-2:])}
    assert trained == {(f"--rows={row}", f"--folds={fold}") for row, fold in itertools.product(SYSTEMS, range(3))}


def test_table1_on_tpus_has_a_machine_for_every_row(shell):
    calls = shell(next(block for block in BLOCKS["docs/table1.md"] if "gcloud" in block))
    assert [call[5] for call in calls] == [f"table1-{row}" for row in SYSTEMS]


@pytest.mark.parametrize("module", FLAGS)
def test_every_flag_of_a_page_exists(module, capsys):
    keys = {flag for flag in FLAGS[module] if flag.startswith("config.")}
    known = flatten(baseline(residual=True, adversarial=True, overlap=True)).keys()
    assert {key.removeprefix("config.") for key in keys} <= known | {"KEY"}
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for flag in FLAGS[module] - keys:
        assert re.search(rf"--{flag}\b", shown), flag
