"""The notes below a table that the runs themselves give rise to."""

import dataclasses

import pytest

from isles_jax.scoring import notes


def with_accuracy(run, values):
    """The run with the critics' accuracy in eight lines of each fold; the last two are in the last quarter."""
    curve = [
        {"step": 10 * number, "critic_accuracy/core": value, "critic/core": 0.7}
        for number, value in enumerate(values, 1)
    ]
    return dataclasses.replace(run, curves=[curve, curve])


@pytest.mark.parametrize(
    ("last", "text"),
    [
        ((0.5, 0.56), "the critic of core ranks 53% of the pairs rightly at the end, about as by chance"),
        ((1.0, 1.0), "the critic of core ranks 100% of the pairs rightly at the end, so that its"),
        ((0.6, 0.9), None),
        ((None, 0.7), None),
    ],
)
def test_critics_that_cannot_teach_are_named(finished_runs, last, text):
    found = notes.critics(with_accuracy(finished_runs[0], [1.0] * 6 + list(last)))
    assert len(found) == (text is not None)
    assert not found or found[0].startswith(text)


@pytest.mark.parametrize(("share", "text"), [(0.0042, "0.42% of that of the other losses at the end"), (0.2, None)])
def test_critics_with_little_gradient_are_named(finished_runs, share, text):
    curve = [{"step": step, "critic_gradient": 1.0 if step < 80 else share} for step in range(10, 110, 10)]
    found = notes.critics(dataclasses.replace(finished_runs[0], curves=[curve]))
    assert len(found) == (text is not None)
    assert not found or text in found[0]


def test_runs_without_accuracy_have_no_such_note(finished_runs):
    assert notes.critics(finished_runs[0]) == []
    assert notes.critics(dataclasses.replace(finished_runs[0], curves=[[]])) == []
