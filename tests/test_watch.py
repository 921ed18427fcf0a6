"""The Dice of held-out slices during a training."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from etils import epath
from helpers import tiny_config

from isles_jax.cross_validation import cross_validate
from isles_jax.data import layouts
from isles_jax.data.slices import Slices
from isles_jax.training import checkpoint, fold, networks, parallel, plan, watch
from isles_jax.training.plan import prepare

AXES = (1, 2)


@pytest.fixture(scope="module")
def dataset(phantom_root):
    return layouts.load(phantom_root, penumbra=1, core=2)


@pytest.fixture(scope="module")
def planned(small_config, dataset):
    return prepare(small_config(False, False, False, **{"train.epochs": 20}), dataset)


def dice_of(found, true):
    return 2 * np.sum(found & true) / (np.sum(found) + np.sum(true))


def lines_of(directory):
    return [json.loads(line) for line in (directory / "held_out.jsonl").read_text().splitlines()]


def test_mean_dice_is_that_of_the_cases_slices_together():
    rng = np.random.default_rng(0)
    case = np.array([3, 3, 5, 5, 5, 8])
    truth, found = rng.integers(0, 3, (2, 6, 4, 5))
    truth[:2][truth[:2] == 2] = 0  # case 3 has no second class
    counts = np.array(
        [
            [[np.sum((f == c) & (t == c)), np.sum(f == c), np.sum(t == c)] for c in (1, 2)]
            for f, t in zip(found, truth, strict=True)
        ]
    ).transpose(0, 2, 1)
    for column, cases in ((0, (3, 5, 8)), (1, (5, 8))):
        dice = [dice_of(found[case == n] == column + 1, truth[case == n] == column + 1) for n in cases]
        assert watch.mean_dice(counts, case)[column] == pytest.approx(np.mean(dice), abs=1e-12)
    nowhere = counts * np.array([1, 0])
    assert math.isnan(watch.mean_dice(nowhere, case)[1])


def test_slices_with_the_largest_lesions_of_each_held_out_case_are_chosen():
    labels = np.zeros((8, 4, 4), np.int8)
    for index, area in enumerate([1, 5, 3, 0, 9, 9, 2, 2]):
        labels[index].flat[:area] = 1
    slices = Slices(np.zeros((8, 4, 4, 1)), labels, np.array([0, 0, 0, 1, 2, 2, 2, 2]), labels.any(axis=AXES))
    for most, expected in ((8, [0, 1, 2, 4, 5, 6, 7]), (5, [1, 2, 4, 5]), (2, [1, 4]), (1, [1])):
        assert watch.choose(slices, [True, False, True], most).tolist() == expected


@pytest.mark.parametrize(
    ("steps", "per_call", "times"), [(320, 1, 10), (7, 1, 10), (320, 10, 10), (95, 10, 3), (3, 10, 4)]
)
def test_moments_are_evenly_spaced_ends_of_calls(planned, steps, per_call, times):
    made = dataclasses.replace(planned, steps=steps, per_call=per_call)
    found = watch.moments(made, times)
    calls = made.calls(0)
    assert found <= {min(step + calls.step, steps) for step in calls}
    assert max(found) == steps
    assert len(found) <= times
    for number in range(1, times + 1):
        assert any(0 <= step - steps * number / times < per_call for step in found)


@pytest.mark.parametrize("epochs", [1, 3, 20, 200])
@pytest.mark.parametrize("times", [1, 10, 1000])
def test_all_moments_together_segment_few_slices(small_config, dataset, planned, tmp_path, epochs, times):
    config = small_config(False, False, False, **{"train.epochs": epochs, "train.held_out_times": times})
    made = dataclasses.replace(
        planned, task=dataclasses.replace(planned.task, config=config), steps=planned.steps // 20 * epochs
    )
    names = [case.name for case in dataset.cases[:2]]
    watched = watch.Watch(made, names, epath.Path(tmp_path), 0)
    segmented = len(watched._moments) * len(watched._batches) * watch.BATCH
    assert segmented <= max(watch.BATCH, watch.SHARE * made.steps * config.train.batch_size)
    assert made.steps in watched._moments


def test_a_line_holds_the_dice_of_the_slices_as_they_are_segmented(planned, dataset, tmp_path):
    """Against the network's probabilities, in NumPy."""
    state = parallel.replicate(fold.init_state(planned.task, planned.steps, 0))
    names = [case.name for case in dataset.cases[2:4]]
    watched = watch.Watch(planned, names, epath.Path(tmp_path), 0)
    watched.look(planned.steps - 1, state.segmenter.variables)
    watched.flush()
    assert lines_of(tmp_path) == []
    watched.look(planned.steps, state.segmenter.variables)
    watched.flush()
    [line] = lines_of(tmp_path)
    chosen = np.concatenate(watched._batches)
    slices = planned.slices
    assert set(slices.case[chosen]) == {2, 3}
    forward = watch.make_forward(planned.task.predictor())
    images = slices.images[chosen]
    filled = np.pad(images, [(0, -len(images) % watch.BATCH)] + [(0, 0)] * 3)
    variables = jax.device_get(state.segmenter.variables)
    parts = [np.asarray(forward(variables, part)) for part in np.split(filled, len(filled) // watch.BATCH)]
    predicted = np.concatenate(parts)[: len(chosen)].argmax(axis=-1) * (images != 0).any(axis=-1)
    for value, name in enumerate(dataset.classes, 1):
        dice = [
            dice_of(predicted[own] == value, slices.labels[chosen][own] == value)
            for own in (slices.case[chosen] == 2, slices.case[chosen] == 3)
            if (slices.labels[chosen][own] == value).any()
        ]
        assert line[f"dice/{name}"] == pytest.approx(np.mean(dice), abs=1e-12)
    assert line.keys() == {"step", "dice/penumbra", "dice/core"}


def test_a_stopped_run_writes_the_lines_of_an_undisturbed_one_and_0_writes_none(tmp_path, phantom_root, monkeypatch):
    """With a step that changes the weights by the step's number alone."""

    def step(state, data, indices):
        moved = jax.tree.map(lambda x: x * (1 + 0.5 * np.sin(int(state.step))), state.segmenter.params)
        segmenter = state.segmenter.replace(params=moved)
        return state.replace(step=state.step + 1, segmenter=segmenter), {"loss": np.ones(1, np.float32)}

    monkeypatch.setattr(plan, "_parallel_step", lambda *_: step)
    networks.make_forward.cache_clear()
    keys = {"data.root": str(phantom_root), "train.epochs": 40, "train.batch_size": 8, "fold": 0}
    config = tiny_config("bl1", **keys, **{"train.checkpoint_every_steps": 25})
    cross_validate(config, tmp_path / "whole")
    whole = lines_of(tmp_path / "whole" / "fold_0")
    assert len(whole) > 4
    assert len({line["dice/penumbra"] for line in whole}) > 1

    second = whole[1]["step"]
    leaving = iter([False] * second + [True] + [False] * 1000)
    monkeypatch.setattr(fold.processes, "leaving", lambda: next(leaving))
    monkeypatch.setattr(fold.interrupt, "leave_if_requested", lambda saved="": (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cross_validate(config, tmp_path / "stopped")
    # Lines that a killed process wrote after its last checkpoint.
    with (tmp_path / "stopped" / "fold_0" / "held_out.jsonl").open("a") as file:
        file.write('{"step": 10000, "dice/core": 1.0}\n{"st')
    monkeypatch.setattr(fold.interrupt, "leave_if_requested", lambda saved="": None)
    cross_validate(config, tmp_path / "stopped")
    assert lines_of(tmp_path / "stopped" / "fold_0") == whole

    # The fold's predictions need no compilation of their own.
    _, task, _ = checkpoint.load_variables(tmp_path / "whole" / "fold_0" / "checkpoints")
    assert networks.make_forward(task.predictor())._cache_size() == 1
    assert networks.make_forward.cache_info().currsize == 1

    config.train.held_out_times = 0
    cross_validate(config, tmp_path / "none")
    assert not (tmp_path / "none" / "fold_0" / "held_out.jsonl").exists()
    metrics_of = [(tmp_path / name / "fold_0" / "metrics.jsonl").read_text() for name in ("whole", "none")]
    assert metrics_of[0] == metrics_of[1]
