"""Real signals to real processes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isles_jax.runtime import interrupt

ROOT = Path(__file__).parents[1]
BEGIN = """
import os, signal, sys, time
from isles_jax.runtime import interrupt
from isles_jax.runtime.command import run_command

# Tests may run in a background job, whose children do not hear SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

def send(name):
    os.kill(os.getpid(), signal.Signals[name])
"""


def run(main):
    """What a command does whose main function has this body."""
    code = f"{BEGIN}\ndef main():\n" + "".join(f"    {line}\n" for line in main.splitlines()) + "run_command(main)\n"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_is_one_line_and_its_exit_code(name, code):
    done = run(f"send('{name}')\nprint('not reached')")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"stopped by {name}; to go on, run the same command again\n"


def test_where_it_is_postponed_the_code_says_when_and_what_was_saved():
    done = run(
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
    done = run(f"with interrupt.postponed():\n    send('SIGTERM')\n    send('{second}')\n    print('not reached')")
    assert (done.returncode, done.stdout) == (-signal.Signals[second], "")


def test_an_interruption_that_becomes_another_error_is_no_traceback():
    done = run("try:\n    send('SIGTERM')\nexcept BaseException as error:\n    raise SystemError('lost') from error")
    assert done.returncode == 143
    assert done.stderr == "stopped by SIGTERM; to go on, run the same command again\n"


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_ends_the_command_without_a_word(lines):
    """Whether the output breaks off while it is written or only at the end."""
    main = f"def main():\n    input()\n    for _ in range({lines}):\n        print('a line')\nrun_command(main)\n"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", BEGIN + main], cwd=ROOT, text=True, **pipes) as process:
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_another_broken_connection_is_no_silent_end():
    done = run("raise BrokenPipeError(32, 'Broken pipe')")
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


def test_a_full_disk_is_one_line_and_exit_code_2():
    done = run("raise OSError(28, 'No space left on device', 'figure.png')")
    assert (done.returncode, done.stderr) == (2, "error: figure.png: cannot be written (No space left on device)\n")


def test_an_error_of_the_program_is_still_a_traceback():
    done = run("raise SystemError('a mistake of ours')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_afterwards_the_handlers_before_are_back_and_nothing_is_asked():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with interrupt.listening(), interrupt.postponed():
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert not interrupt.requested(), "what this process does next is not asked to leave"


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.listening():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            with interrupt.postponed():
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
