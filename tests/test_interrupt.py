"""Real signals to real processes."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT, run_main

from isles_jax.runtime import interrupt


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_is_one_line_and_its_exit_code(name, code):
    done = run_main(f"send('{name}')\nprint('not reached')")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"stopped by {name}; to go on, run the same command again\n"


def test_where_it_is_postponed_the_code_says_when_and_what_was_saved():
    done = run_main(
        "with interrupt.postponed():\n"
        "    assert not interrupt.requested()\n"
        "    interrupt.leave_if_requested('not reached')\n"
        "    send('SIGTERM')\n"
        "    print('requested' if interrupt.requested() else 'not requested')\n"
        "    interrupt.leave_if_requested('step 7 is saved')\n"
        "    print('not reached')"
    )
    assert (done.returncode, done.stdout) == (143, "requested\n")
    assert done.stderr == "stopped by SIGTERM: step 7 is saved; to go on, run the same command again\n"


@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_the_process(second):
    done = run_main(f"with interrupt.postponed():\n    send('SIGTERM')\n    send('{second}')\n    print('not reached')")
    assert (done.returncode, done.stdout) == (-signal.Signals[second], "")


@pytest.mark.parametrize(
    "place",
    [
        "try:\n    send('SIGTERM')\nexcept BaseException as error:\n    raise SystemError('lost') from error",
        # Python prints an exception of such a callback, and goes on.
        "import gc\ngc.callbacks.append(lambda *_: send('SIGTERM'))\ngc.collect()",
        "class Deleted:\n    def __del__(self):\n        send('SIGTERM')\nDeleted()\nprint('went on')",
    ],
)
def test_a_signal_cannot_be_swallowed(place):
    done = run_main(place)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == "stopped by SIGTERM; to go on, run the same command again\n"


def test_what_was_printed_is_kept_and_a_temporary_folder_is_not(tmp_path):
    folder = tmp_path / "copy"
    done = run_main(
        f"import pathlib\nfolder = pathlib.Path({str(folder)!r})\nfolder.mkdir()\n(folder / 'x').touch()\n"
        "interrupt.remove_at_exit(folder)\nprint('line')\ninterrupt.advise('do this')\nsend('SIGINT')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "line\n", "stopped by SIGINT; to go on, do this\n")
    assert not folder.exists()


def test_a_file_is_whole_before_the_process_leaves(tmp_path):
    done = run_main(
        "from isles_jax.runtime import files\nfrom etils import epath\nreplace = epath.Path.replace\n"
        "import pathlib, os\n"
        "os.fsync = lambda _: send('SIGTERM')\n"
        f"files.write_atomic({str(tmp_path / 'file')!r}, 'all of it')\nprint('not reached')"
    )
    assert (done.returncode, done.stdout) == (143, "")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "all of it"


def test_signals_are_handled_while_a_command_is_imported(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        # A shell that starts the tests in the background has SIGINT ignored.
        "import builtins, os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import_of = builtins.__import__\n"
        "def slow(name, *rest, **more):\n    if name == 'isles_jax.runtime.command':\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n    return import_of(name, *rest, **more)\n"
        "builtins.__import__ = slow\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    script = tmp_path / "isles-jax"
    script.write_text("from isles_jax.cli import run\nrun()\n")
    names = ("main", "predict", "evaluate", "report", "export", "phantom", "convert", "check")
    for command in (*(["-m", f"isles_jax.{name}"] for name in names), [str(script), "convert"]):
        run = [sys.executable, *command, "--help"]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (130, ""), command
        assert done.stderr == "stopped by SIGINT; to go on, run the same command again\n"


def test_a_library_that_imports_the_package_keeps_its_own_process(tmp_path):
    """As a program that its user starts with python -m, whose package imports ours."""
    (tmp_path / "mytool").mkdir()
    (tmp_path / "mytool" / "__init__.py").write_text(LIBRARY)
    (tmp_path / "mytool" / "train.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n"
        "    print('its own')\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    run = [sys.executable, "-m", "mytool.train"]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "its own\n", "")


# Imports every module of the package; then nothing of the process may have changed.
LIBRARY = """
import importlib, os, pkgutil, signal, sys, threading, warnings
import jax, logging
signal.signal(signal.SIGINT, signal.default_int_handler)

def process():
    handlers = [signal.getsignal(number) for number in signal.valid_signals() if number not in (9, 19)]
    config = {name: getattr(jax.config, name, None) for name in sorted(jax.config.values)}
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    return handlers, dict(os.environ), config, hooks, os.getcwd(), logging.root.level, sys.stdout, sys.stderr

import flax, optax, orbax.checkpoint, ml_collections, clu.parameter_overview  # these have habits of their own
before = process()
import isles_jax
names = [module.name for module in pkgutil.walk_packages(isles_jax.__path__, "isles_jax.")]
for name in names:
    importlib.import_module(name)
assert len(names) > 60
assert process() == before
"""


def leave_after_a_signal():
    with interrupt.postponed():
        signal.raise_signal(signal.SIGTERM)
        interrupt.leave_if_requested()


def test_afterwards_the_handlers_before_are_back_and_nothing_is_asked():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(interrupt.Interrupted), interrupt.listening():
        leave_after_a_signal()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert not interrupt.requested(), "what this process does next is not asked to leave"


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.listening():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            with pytest.raises(interrupt.Interrupted):
                leave_after_a_signal()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
