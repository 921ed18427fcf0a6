"""What the pages, the docstrings and --help name: commands, flags, settings and files. The shell runs the blocks."""

import argparse
import importlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT, SYSTEMS

from isles_jax import cli
from isles_jax.config import baseline, flatten
from isles_jax.runtime import overrides

PAGES = sorted(
    str(path.relative_to(ROOT)) for folder in (".", "docs", "experiments") for path in (ROOT / folder).glob("*.md")
)
TEXT = {page: (ROOT / page).read_text().replace("\\\n", " ") for page in PAGES}
BLOCKS = {page: re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for page, text in TEXT.items()}
CODE = ("isles_jax", "experiments", "configs")
# The history of changes also names what has gone.
TODAY = [page for page in PAGES if page != "CHANGELOG.md"]
# The code within the lines of a page.
SPANS = {
    (page, " ".join(span.split()))
    for page in TODAY
    for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", TEXT[page], flags=re.DOTALL))
}


def commands():
    """Every command of ours that a reader is shown, as (module, argument, ...)."""
    lines = [line for page in TODAY for block in BLOCKS[page] for line in block.splitlines()]
    lines += [span for _, span in SPANS]
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.py"):
            # Docstrings, and the examples at the end of --help.
            texts = re.findall(r'"""(.*?)"""', path.read_text(), re.DOTALL)
            lines += "\n".join(texts).replace("\\\\\n", " ").splitlines()
    found = set()
    for line in lines:
        # What the shell computes is a number here.
        line = re.sub(r"\$\{.*?\}|\$\(\(.*?\)\)", "1", line)
        # In quotes for another machine, a command ends with the quotes.
        for program, name, rest in re.findall(r"(-m (?=isles_jax|experiments)|isles-jax )([\w.]+)([^`]*)", line):
            rest = rest.rstrip("\"'") if rest.count('"') % 2 else rest
            module = name if program.startswith("-m") else f"isles_jax.{cli.COMMANDS[name][0]}"
            found.add((module, *shlex.split(rest)))
    return sorted(found)


# What a page leaves to its reader, or another page sets.
VARIABLES = {"ROW": "bl1", "TPU": "isles", "ZONE": "zone", "TYPE": "type", "RUNTIME": "runtime", "BUCKET": "gs://b"}
# The programs that the pages call. In the tests, a script stands in for each.
PROGRAMS_OF_PAGES = (
    "python", "python3", "pip", "uv", "isles-jax", "docker", "apptainer", "gcloud", "sbatch", "rsync", "cp",
    # From the scanner to a case.
    "dcm2niix", "antsRegistrationSyNQuick.sh", "antsApplyTransforms", "flirt", "hd-bet", "mri_synthstrip",
    "segimage2itkimage", "plastimatch",
)  # fmt: skip
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
    for name in PROGRAMS_OF_PAGES:
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


class StoppedError(Exception):
    """A command has come to the parsing of its flags."""


def parser_of(module):
    """The parser of a command, and whether the command also takes settings, --config.KEY=VALUE."""

    def stop(takes_settings):
        def parse(parser, *_):
            raise StoppedError(parser, takes_settings)

        return parse

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop(False))
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop(True))
        with pytest.raises(StoppedError) as stopped:
            importlib.import_module(module).main([])
    return stopped.value.args


COMMANDS = commands()
PROGRAMS = [str(path) for folder in (*CODE, "docs", "tests") for path in (ROOT / folder).rglob("*.py")]
SETTINGS = {f"--config.{key}" for key in flatten(baseline(residual=True, adversarial=True, overlap=True))}
# Flags of Docker, Apptainer and XLA, and a file of other authors.
THEIRS = {"lovasz_losses.py", "--containall", "--net", "--signal", "--user", "--volume", "--xla_gpu_autotune_level"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_understood(command):
    module, *words = command
    settings = [word for word in words if word.startswith("--config.")]
    parser, takes_settings = parser_of(module)
    assert takes_settings or not settings
    if not words or words[-1].endswith("="):
        # The page names a part of a command.
        for action in parser._actions:
            action.required = False
    options = parser.parse_args([word for word in words if word not in settings])
    # The file exists, and has these keys with values of these types.
    overrides.read(getattr(options, "config", None) or overrides.DEFAULT, settings)


def test_every_flag_that_a_page_names_is_one():
    modules = {module for module, *_ in COMMANDS}
    assert modules >= {f"isles_jax.{name}" for name, _ in cli.COMMANDS.values()}
    known = SETTINGS.union(THEIRS, *(parser_of(module)[0]._option_string_actions for module in modules))
    named = {re.match(r"--[\w.-]+", span)[0] for _, span in SPANS if span.startswith("--")}
    assert named > {"--config.folds_by", "--minutes"}
    assert named <= known


@pytest.mark.parametrize("page", TODAY)
def test_every_program_that_a_page_names_is_there(page):
    for name in re.findall(r"(?<=[`=\s])[a-z][a-z0-9_/]*\.py\b", TEXT[page]):
        assert any(path.endswith(f"/{name}") for path in PROGRAMS) or name in THEIRS, name
