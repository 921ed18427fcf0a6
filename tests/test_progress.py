"""Progress on a terminal and elsewhere."""

from isles_jax.runtime import progress
from isles_jax.runtime.progress import Bar, track


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
