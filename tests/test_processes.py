"""Two real processes that work together: what they exchange and how they end."""

import re
import signal
import subprocess
import sys

import pytest
from helpers import ROOT, environment, free_port, run_main, slurm_variables

from isles_jax.runtime import processes

TOGETHER = """
import os, signal, sys, time
from isles_jax.runtime import interrupt, processes
from isles_jax.runtime.command import InputError, run_command

def fail():
    if number:
        raise InputError("process 1 alone found this")

def main():
    processes.start() if "SLURM_PROCID" in os.environ else processes.start(sys.argv[1], 2, number)
    assert (processes.count(), processes.index(), processes.first()) == (2, number, number == 0)
    assert processes.share("abcde") == list("bd" if number else "ace")
    for long in (1, 1000):
        assert processes.on_first(lambda: [f"of {number}"] * long) == ["of 0"] * long
    try:
        processes.on_all(fail)
    except processes.SharedError as error:
        assert str(error) == "process 1 alone found this"
    else:
        raise AssertionError
    turns = 0
    with interrupt.postponed():
        print("ready", file=sys.stderr, flush=True)
        while not processes.leaving():
            turns += 1
            time.sleep(0.01)
        interrupt.leave_if_requested(f"turn {turns}")

number = int(sys.argv[2])
# Tests may run in a background job, whose children do not hear SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
run_command(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cluster"), [("SIGTERM", False), ("SIGINT", True)])
def test_a_signal_to_one_process_makes_all_leave_at_the_same_place(name, cluster):
    """The processes find each other by flags, or by Slurm's variables."""
    port = free_port()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, f"127.0.0.1:{port}", str(number)], cwd=ROOT, text=True,
            env=environment(1) | (slurm_variables(port, number) if cluster else {}),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for number in (0, 1)
    ]  # fmt: skip
    for process in both:
        while (line := process.stderr.readline()) != "ready\n":
            assert line, "it ended"
    both[1].send_signal(signal.Signals[name])
    errors = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [143, 143]
    last_line = r"stopped by SIGTERM: turn (\d+); to go on, run the same command again\n$"
    turns = [re.search(last_line, text)[1] for text in errors]
    assert turns[0] == turns[1]


def test_one_task_of_a_cluster_is_one_process(monkeypatch):
    for name, value in (slurm_variables(61440, 0) | {"SLURM_NTASKS": "1"}).items():
        monkeypatch.setenv(name, value)
    processes.start()
    processes.start("127.0.0.1:1", 1, 0)
    assert (processes.count(), processes.index(), processes.first()) == (1, 0, True)
    assert processes.share("abc") == list("abc")
    assert processes.on_first(lambda: (1, "as it is")) == (1, "as it is")
    assert not processes.leaving()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [("MemoryError()", 2, "error: out of memory"), ("InputError('a mistake')", 2, "error: a mistake"),
     ("OSError(28, 'No space left on device', 'x')", 2, "error: x: cannot be written"), ("SystemError()", 1, "Trace")],
)  # fmt: skip
def test_a_process_that_fails_alone_says_why_in_one_line(error, code, words):
    """As one of two; it ends at once, so that the other notices."""
    body = (
        "from isles_jax.runtime import processes\nfrom isles_jax.runtime.command import InputError\n"
        "processes.count = lambda: 2\n"
        f"def work():\n    raise {error}\nprocesses.run(work)"
    )
    done = run_main(body)
    assert done.returncode == code
    assert done.stderr.startswith(words)
    assert (done.stderr.count("\n") == 1) == (code == 2)
