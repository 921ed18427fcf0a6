"""Progress on a terminal and elsewhere."""

import re
import subprocess
import sys

import pytest
from helpers import ROOT, in_terminal

from isles_jax.runtime import progress
from isles_jax.runtime.progress import Bar, track

TERMINAL = """
import time
from isles_jax.runtime.progress import Bar, say
say("a note that is longer than the line of this terminal, whose words stay whole: /a/path/of-some-length/x")
with Bar("fold 1 (2 of 3)", 30000, "step", 10000, "compiling") as bar:
    for _ in range(3):
        time.sleep(0.02)
        bar.advance(100, "loss 0.4400")
"""


MISTAKE = """
from isles_jax.runtime.command import InputError, run_command
def main():
    raise InputError(MESSAGE)
try:
    run_command(main)
except SystemExit as left:
    assert left.code == 2
"""


def test_mistakes_and_notes_are_broken_between_words_on_a_terminal_alone():
    message = "--config.learning_rate=1: found no such setting, expected --config.optimizer.learning_rate=1\nb: bad"
    code = MISTAKE.replace("MESSAGE", repr(message))
    lines = in_terminal(60, code).splitlines()
    assert lines == [
        "error: --config.learning_rate=1: found no such setting,",
        "  expected --config.optimizer.learning_rate=1",
        "b: bad",
    ]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == f"error: {message}\n"


def test_every_note_goes_the_way_that_breaks_it_between_words():
    printed = [path.name for path in (ROOT / "isles_jax").rglob("*.py") if 'print(f"note: ' in path.read_text()]
    assert printed == []


def test_without_a_terminal_progress_is_plain_lines(capsys):
    with Bar("fold 0", 5, "step") as bar:
        for _ in range(5):
            bar.advance(note="loss 0.5")
    printed = capsys.readouterr().out
    assert printed.startswith("fold 0: 5/5 steps, ")
    assert printed.endswith("0 s left  loss 0.5\n")
    assert "\x1b" not in printed


def test_the_first_piece_is_not_part_of_the_speed(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Bar("fold 0", 30, "step", done=10) as bar:
        clock[0] = 60.0  # compilation
        bar.advance()
        for _ in range(9):
            clock[0] += 2
            bar.advance()
        assert capsys.readouterr().out == "fold 0: 17/30 steps, 2.0 s/step, 26 s left\n"


def test_a_part_is_shown_within_the_whole_with_the_time_left_of_the_whole(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    # The second of three parts of 100 steps, which goes on after its step 10.
    with Bar("fold 1 (2 of 3)", 300, "step", done=110) as bar:
        bar.advance()
        for _ in range(9):
            clock[0] += 2
            bar.advance()
        bar.advance(80)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fold 1 (2 of 3): 117/300 steps, 2.0 s/step, 6 min left"
    assert lines[-1].startswith("fold 1 (2 of 3): 200/300 steps, ")


@pytest.mark.parametrize("columns", [80, 60])
def test_on_a_terminal_a_bar_and_a_long_line_fit_its_columns(columns):
    shown = re.sub("\x1b[^a-zA-Z]*[a-zA-Z]", "", in_terminal(columns, TERMINAL))
    lines = [line.rstrip() for line in re.split("[\r\n]+", shown)]
    assert max(map(len, lines)) <= columns
    sentence = "a note that is longer than the line of this terminal, whose words stay whole: /a/path/of-some-length/x"
    assert sentence in " ".join(shown.split())
    assert "fold 1 (2 of 3) \u2501" in shown
    if columns == 80:
        assert re.search(r" 34% .* step/s .* left loss 0\.4400$", lines[-2])


def test_no_line_is_printed_without_progress_or_after_an_error(capsys):
    with Bar("fold 0", 5, "step", done=5):
        pass
    bar = Bar("fold 0", 5, "step")
    bar.__enter__().advance()
    assert not bar.__exit__(KeyError, KeyError(), None)
    assert capsys.readouterr().out == ""


def test_only_many_items_are_tracked(capsys):
    assert list(track("abc", "reading", "case")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""
    assert list(track(range(60), "reading", "case")) == list(range(60))
    assert capsys.readouterr().out.startswith("reading: 60/60 cases, ")
