"""Real signals to real processes."""

import signal

import pytest
from helpers import run_main

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


def test_an_interruption_that_becomes_another_error_is_no_traceback():
    done = run_main(
        "try:\n    send('SIGTERM')\nexcept BaseException as error:\n    raise SystemError('lost') from error"
    )
    assert done.returncode == 143
    assert done.stderr == "stopped by SIGTERM; to go on, run the same command again\n"


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
