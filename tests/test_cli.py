"""The commands as a user types them: real processes, one line for each mistake."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from isles_jax import __version__, cli
from isles_jax.config import baseline, comments, flatten, resolve
from isles_jax.runtime import overrides
from isles_jax.runtime.command import InputError

ROOT = Path(__file__).parents[1]
# What the installed script `isles-jax` does; the last line lists the libraries that take long to load and were loaded.
SCRIPT = """import sys
from isles_jax.cli import run
sys.argv[0] = "isles-jax"
try:
    run()
finally:
    print([name for name in ("jax", "numpy", "scipy", "nibabel") if name in sys.modules])"""


def call(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "isles_jax.main", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def test_help_explains_every_flag():
    done = call("--help")
    assert done.returncode == 0
    for text in ("--config", "--workdir", "--config.data.root=", "configs/proposed.py", "To resume a run"):
        assert text in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.modl.width=3"], ["no such setting, expected --config.model.width=3?"]),
        (["--config.model.widht=3"], ["no such setting, expected --config.model.width=3?"]),
        (
            ["--config.learning_rate=1"],
            ["--config.optimizer.learning_rate=1 or --config.discriminator.learning_rate=1?"],
        ),
        (["--epochs=3"], ["--epochs=3: found no such flag, expected --config.train.epochs=3?"]),
        (["--train.epochs=3"], ["expected --config.train.epochs=3?"]),
        (["--config.train.epochs.x=3"], ["--config.train.epochs.x=3: found no such setting"]),
        (["--config.data.phantom.shape[0]=3"], ["expected --config.data.phantom.shape=3?"]),
        (["--config.=3"], ["--config.=3: found no such setting; isles-jax settings lists the settings"]),
        (["--config.sed\n=3"], ["--config.sed =3: found no such setting, expected --config.seed=3?"]),
        (["--noconfig.predict.flips", "--config.sed=1"], ["--config.sed=1: found no such setting"]),
        (["--noconfig.seed"], ["--noconfig.seed: found no such flag, expected --config.seed?"]),
        (["--lr=x"], ["--lr=x: found no such flag; --help lists the flags, isles-jax settings the settings"]),
        (["--workdr=x"], ["--workdr=x: found no such flag, expected --workdir=x?"]),
        (["--config.train.epochs=three"], ["--config.train.epochs=three: expected a whole number"]),
        (["--config.train.epochs=3=4"], ["--config.train.epochs=3=4: expected a whole number"]),
        (["--config.loss.dice=: 1"], ["--config.loss.dice=: 1: expected a number"]),
        (["--config.predict.flips=maybe"], ["--config.predict.flips=maybe: expected True or False"]),
        (["--config.model=3"], ["--config.model=3: found a section, expected one of its settings"]),
        (["--config.train.epochs"], ["Missing value", "--config.train.epochs"]),
        (["--processes=two"], ["argument --processes: found 'two', expected a whole number"]),
        (["--config.model.width=wide"], ["--config.model.width=wide"]),
        (["--config.model.width=-3"], ["--config.model.width", "-3", "above 0"]),
        (["--config.data.phantom.shape=(32,32)"], ["data.phantom.shape", "(32, 32)", "three"]),
        (["--config.data.phantom.shape=()"], ["data.phantom.shape", "found ()", "three"]),
        (["--config.data.phantom.shape=('a',2,3)"], ["data.phantom.shape", "'a'", "whole numbers"]),
        (["--config.data={}"], ["--config.data", "no such key"]),
        (["--config.fold=3"], ["--config.fold", "0 to 2"]),
        (["--config=configs/bl9.py"], ["configs/bl9.py", "no such file"]),
        (["--confg=configs/bl1.py"], ["confg"]),
        (["--config.seed=-1"], ["--config.seed", "-1", "0 or more"]),
        (["--workdir="], ["''", "expected a folder"]),
        (["--workdir=s3://bucket/run"], ["s3://bucket/run", "expected a folder"]),
        (["configs/bl1.py"], ["configs/bl1.py", "--help"]),
        (["--config.data.root=/nowhere/SPES"], ["/nowhere/SPES", "does not exist"]),
        (["--config.data.root=README.md"], ["README.md", "is a file"]),
        (["--processes=2", "--process=0"], ["no --coordinator", "together"]),
        (["--coordinator=here", "--processes=2", "--process=0"], ["--coordinator=here", "HOST:PORT"]),
        (["--coordinator=a:1", "--processes=2", "--process=2"], ["--process=2", "0 to 1"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, tmp_path):
    done = call(f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "run").exists(), "nothing half-written"


@pytest.mark.parametrize("flags", [["--config=configs/bl3.py"], ["--config", "configs/bl3.py"], []])
def test_the_configs_are_found_from_any_folder(flags, tmp_path):
    done = call(*flags, "--config.modl.width=1", cwd=tmp_path)
    assert done.stderr == "error: --config.modl.width=1: found no such setting, expected --config.model.width=1?\n"
    assert call(*flags, "--config.data.root=nowhere", cwd=tmp_path).stderr.startswith("error: nowhere")


MISTAKES = {
    "def get_config(:": "found a mistake, line 1 (SyntaxError: invalid syntax)",
    "\nimport nonsense_module": "found a mistake, line 2 (ModuleNotFoundError: No module named 'nonsense_module')",
    "x = 1\nx = undefined": "found a mistake, line 2 (NameError: name 'undefined' is not defined)",
    "raise ValueError('mine\\nand yours')": "found a mistake, line 1 (ValueError: mine. and yours)",
    "def get_config():\n    return {}['a']": "found a mistake, line 2 (KeyError: a)",
    "import sys\nsys.exit('no')": "found a mistake, line 2 (SystemExit: no)",
    "class Mine(Exception): pass\nraise Mine": "found a mistake, line 2 (Mine: Mine)",
    "from isles_jax.config import *\ndef get_config():\n    config = data_section().lock()\n    config.rot = ''": (
        'found a mistake, line 4 (AttributeError: Key "rot" does not exist and cannot be added since the config is '
        'locked. Did you mean "root" instead of "rot"?)'
    ),
    "": "found no function get_config, expected one",
    "def get_config():\n    return 3": "get_config returns a value of type int, expected a ConfigDict",
}


@pytest.mark.parametrize("content", MISTAKES)
def test_a_mistake_in_a_configuration_file_is_one_line(content, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(content)
    with pytest.raises(InputError) as caught:
        overrides.read(str(file), [])
    assert str(caught.value) == f"--config={file}: {MISTAKES[content]}"


@pytest.mark.parametrize("content", ["{'name': 'x'}", "{'data': {}}"])
def test_a_configuration_that_lacks_a_key_is_one_line(content, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({content})\n")
    done = call(f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "found no such key in the configuration" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_missing_sequence_is_named_before_anything_is_done(tmp_path, phantom_root):
    shutil.copytree(phantom_root, tmp_path / "data")
    [removed] = sorted((tmp_path / "data").rglob("*MR_TTP*.nii"))[:1]
    removed.unlink()
    done = call(f"--config.data.root={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "TTP" in done.stderr
    assert removed.parts[len(tmp_path.parts) + 1] in done.stderr
    assert not (tmp_path / "run").exists()


def isles_jax(*arguments):
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_the_script_is_declared_in_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"isles-jax": "isles_jax.cli:run"}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_script_lists_its_commands(arguments):
    done = isles_jax(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    for name in cli.COMMANDS:
        assert f"\n  {name} " in done.stdout
    assert done.stdout.endswith("\n[]\n"), "no library is loaded"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_explains_its_flags_without_loading_a_library(name):
    done = isles_jax(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    flag = {"train": "--config", "settings": "--config", "evaluate": "--labels"}.get(name, "--output")
    assert flag in done.stdout
    assert max(map(len, done.stdout.split("\n\n")[1].splitlines())) <= 80
    assert done.stdout.endswith("\n[]\n")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_mistake_in_the_flags_of_each_command_is_one_line(name):
    # argparse complains of a missing flag before it complains of an unknown one.
    values = {"predict": ["--workdir=w", "--input=i"], "evaluate": ["--predictions=p", "--labels=l"],
              "report": ["run"], "export": ["--workdir=w"], "convert": ["--input=i"],
              "check": ["data"]}.get(name, [])  # fmt: skip
    output = [] if name in ("train", "settings") else ["--output=o.safetensors"]
    done = isles_jax(name, *values, *output, "--nonsense=1")
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "nonsense" in done.stderr
    assert "--help lists the flags" in done.stderr


@pytest.mark.parametrize("name", sorted(cli.COMMANDS.keys() - {"train", "settings"}))
def test_a_missing_flag_of_a_command_is_named(name):
    with pytest.raises(InputError, match=r"required: .*; --help lists the flags$"):
        cli.main([name])


def test_an_unknown_command_is_one_line():
    done = isles_jax("segment", "--output=o")
    assert (done.returncode, done.stdout) == (2, "[]\n")
    expected = "train, predict, evaluate, report, export, phantom, convert, check, settings"
    assert done.stderr == f"error: isles-jax segment: found no such command, expected one of {expected}\n"
    assert isles_jax("trian").stderr == "error: isles-jax trian: found no such command, expected train?\n"


def test_the_version_is_printed():
    done = isles_jax("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"isles-jax {__version__}\n[]\n", "")


@pytest.mark.parametrize("flag", ["--workdr=w", "-workdir=w", "--wokrdir"])
def test_a_misspelt_flag_is_named_before_the_one_that_is_then_missing(flag):
    meant = flag.replace(flag.split("=")[0], "--workdir")
    with pytest.raises(InputError, match=f"^{flag}: found no such flag, expected {meant}[?]$"):
        cli.main(["predict", flag, "--input=i", "--output=o"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "--workdir=w", "--input=i", "--output=o", "--folds=0,x"], "found '0,x', expected whole numbers"),
        (["predict", "--workdir=w", "--input=i", "--output=o", "--min-volume-ml=x"], "found 'x', expected a number"),
        (["phantom", "--output=o", "--cases=1.5"], "argument --cases: found '1.5', expected a whole number"),
    ],
)
def test_a_value_of_another_type_says_what_was_expected(arguments, words):
    with pytest.raises(InputError, match=re.escape(words)):
        cli.main(arguments)


def listed(capsys, *arguments):
    """What `isles-jax settings` prints, as {key: (value, text)}."""
    cli.main(["settings", *arguments])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    parts = re.split(r"^--config\.", out, flags=re.MULTILINE)[1:]
    pairs = [part.split("\n", 1) for part in parts]
    return {line.split("=", 1)[0]: (line.split("=", 1)[1], " ".join(text.split())) for line, text in pairs}


def test_settings_lists_every_key_with_its_meaning_value_and_default(capsys):
    found = listed(capsys, "--config=configs/bl1.py", "--config.data.channels=DWI,ADC", "--config.data.root=/a b")
    defaults = flatten(baseline(residual=True, adversarial=True, overlap=True))
    texts = comments()
    assert found.keys() == defaults.keys()
    for key, (_, text) in found.items():
        assert text.endswith(texts[key])
    assert found["model.residual"] == ("False", f"default: True {texts['model.residual']}")
    assert found["train.epochs"] == ("50", f"default: None {texts['train.epochs']}")
    assert found["folds"] == ("3", texts["folds"])
    assert found["data.root"][0] == "'/a b'"
    flags = [shlex.split(f"--config.{key}={value}")[0] for key, (value, _) in found.items() if value != "None"]
    again = overrides.read("configs/proposed.py", flags)
    expected = overrides.read("configs/bl1.py", ["--config.data.channels=DWI,ADC", "--config.data.root=/a b"])
    assert flatten(resolve(again)) == flatten(resolve(expected)), "what is printed can be given again"


def test_a_word_chooses_among_the_names_and_the_meanings(capsys):
    assert listed(capsys, "LOVASZ").keys() == {"loss.lovasz", "loss.lovasz_per_image"}
    found = listed(capsys, "learning rate")
    assert "optimizer.learning_rate" in found
    assert "optimizer.weight_decay" in found
    for arguments, words in ((["nonsense"], "nonsense: found no setting"), (["--config.train.epochs=-1"], "found -1")):
        with pytest.raises(InputError, match=words):
            cli.main(["settings", *arguments])


def test_the_flags_reach_the_command(tmp_path, capsys):
    cli.main(["phantom", f"--output={tmp_path / 'data'}", "--cases=1", "--shape=16x16x4"])
    assert capsys.readouterr().out == f"{tmp_path / 'data'}: 1 phantom patients\n"
    assert (tmp_path / "data" / "phantom.json").exists()


def test_the_package_imports_nothing_until_asked():
    code = "import sys, isles_jax, isles_jax.config; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "--input=.", "--output=s3://a"], "argument --output: found 's3://a', expected a path on this"),
        (["phantom", "--output="], "argument --output: found '', expected a path on this machine"),
        (["phantom", "--output=x", "--seed=-1"], "a seed of 0 or more"),
        (["evaluate", "--predictions=http://a", "--labels=b"], "argument --predictions: found 'http://a'"),
        (["evaluate", "--predictions=a", "--labels=b", "--output=http://a"], "'http://a': found no path of a kind"),
        (["report", "s3://a", "--output=x.html"], "'s3://a': found no path of a kind"),
        (["export", "--workdir=http://a/x.safetensors", "--output=x.safetensors"], "found no path of a kind"),
        (["export", "--workdir=", "--output=x.safetensors"], "does not exist; expected a run"),
        (["predict", "--workdir=w", "--input=s3://a", "--output=o"], "'s3://a': found no path of a kind"),
    ],
)
def test_paths_of_another_kind_are_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        cli.main(arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_output_inside_the_input_is_refused(phantom_root, tmp_path):
    from isles_jax import predict

    (tmp_path / "run").mkdir()
    for output in (phantom_root, phantom_root / "out"):
        with pytest.raises(InputError, match="lies inside"):
            predict.main([f"--workdir={tmp_path / 'run'}", f"--input={phantom_root}", f"--output={output}"])
    done = call(f"--config.data.root={phantom_root}", f"--workdir={phantom_root / 'run'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "lies inside" in done.stderr
    assert not (phantom_root / "run").exists()
