"""How a command ends: one line and an exit code."""

import subprocess
import sys

import pytest
from helpers import COMMAND, ROOT, run_main


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_ends_the_command_without_a_word(lines):
    """Whether the output breaks off while it is written or only at the end."""
    main = f"def main():\n    input()\n    for _ in range({lines}):\n        print('a line')\nrun_command(main)\n"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", COMMAND + main], cwd=ROOT, text=True, **pipes) as process:
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_another_broken_connection_is_no_silent_end():
    done = run_main("raise BrokenPipeError(32, 'Broken pipe')")
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


def test_a_full_disk_is_one_line_and_exit_code_2():
    done = run_main("raise OSError(28, 'No space left on device', 'figure.png')")
    assert (done.returncode, done.stderr) == (2, "error: figure.png: cannot be written (No space left on device)\n")


@pytest.mark.slow
def test_a_device_whose_memory_is_full_is_one_line_and_exit_code_2():
    done = run_main("import jax.numpy as jnp\njnp.zeros(1 << 46)")
    assert done.returncode == 2
    assert done.stderr.startswith("error: RESOURCE_EXHAUSTED: Out of memory")
    assert done.stderr.endswith("a smaller --config.train.batch_size or --config.dtype=bfloat16 needs less\n")
    assert done.stderr.count("\n") == 1


def test_an_error_of_the_program_is_still_a_traceback():
    done = run_main("raise SystemError('a mistake of ours')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_path_that_the_system_refuses_is_one_line():
    done = run_main("open('/proc/self/mem/x')")
    assert (done.returncode, done.stderr) == (
        2,
        "error: /proc/self/mem/x: cannot be read or written (Not a directory)\n",
    )


def test_an_output_that_lacks_a_character_gets_the_rest(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run_main("print('0.8 \u00b1 0.1')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.8 ? 0.1\n", "")
