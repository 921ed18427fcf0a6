"""Other tools on the data and folds of our finished runs, with stand-ins for their networks and programs."""

import csv
import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
from helpers import spes_folder, tiny_config

from experiments import critics, first_weights, nnunet, peers, rows
from isles_jax.config import complete, resolve, to_dict
from isles_jax.data import layouts, profile
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.scoring import run_files
from isles_jax.training.optimizers import learning_rate
from isles_jax.training.plan import feed, prepare, training_slices
from isles_jax.training.state import init_state
from isles_jax.training.task import Task

FOLDS = [["a", "b"], ["c", "d"]]
# What a finished row may have had, other than the defaults.
SETTINGS = {
    "as stored": {"data.spacing_mm": "0"},
    "another grid": {"data.spacing_mm": "1.5,1.5,4", "data.dtype": "float16"},
    "two channels": {"data.channels": ("DWI", "Tmax")},
}


class Stub:
    """A network that keeps the batches it sees; `answer` gives the probabilities of images."""

    def __init__(self, answer=None):
        self.batches, self.asked, self.answer = [], [], answer

    def update(self, images, labels, rate):
        self.batches.append((images, labels, rate))

    def predict(self, images):
        self.asked.append(images)
        return self.answer(images)


def threshold(images):
    """Penumbra where Tmax is high, and core where the DWI is: these are right on `spes_folder`."""
    tmax, dwi = images[..., 0], images[..., 2]
    lesion = tmax > 0.7
    core = lesion & (dwi > 2)
    return np.stack([~lesion, lesion & ~core, core], axis=-1).astype(np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return spes_folder(tmp_path_factory.mktemp("spes") / "data", cases=("a", "b", "c", "d"))


@pytest.fixture
def finish(root, tmp_path):
    """A function that gives the plan of a row with some settings, and the row as it is read once it is finished."""

    def make(**keys):
        keys = {"data.spacing_mm": "0", "train.epochs": 2, "train.batch_size": 4} | keys
        config = resolve(tiny_config("bl1", **{"data.root": str(root)} | keys))
        dataset = layouts.load(root, tuple(config.data.channels))
        plan = prepare(config, dataset)
        data = profile.describe(dataset) | {"grid": plan.task.target._asdict()}
        stored, data = json.loads(json.dumps([to_dict(config), data]))
        curves = [[{"step": plan.steps}]] * len(FOLDS)
        return plan, run_files.Run(tmp_path / "run", "bl1", complete(stored), data, FOLDS, [], [], curves)

    return make


@pytest.mark.parametrize("keys", SETTINGS.values(), ids=SETTINGS)
def test_a_job_is_that_of_the_finished_row(finish, keys):
    plan, run = finish(**keys)
    job = peers.read_job(run)
    assert json.dumps(job.task.record()) == json.dumps(plan.task.record())
    assert (job.steps, job.folds) == (plan.steps, FOLDS)
    for ours, theirs in zip(plan.slices, job.slices, strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("keys", SETTINGS.values(), ids=SETTINGS)
def test_a_peer_is_trained_on_our_batches_at_our_rates(finish, keys):
    plan, run = finish(**keys, **{"augment.enabled": False})
    network = Stub()
    peers.train(peers.read_job(run), 1, network)
    assert len(network.batches) == plan.steps
    schedule = learning_rate(run.config, plan.steps)
    pool = training_slices(plan, FOLDS[1])
    ours = feed(plan, pool, 1, range(0, plan.steps, 1))
    for step, ((images, labels, rate), (_, indices)) in enumerate(zip(network.batches, ours, strict=True)):
        chosen = indices.ravel()
        assert images.dtype == np.float32
        np.testing.assert_array_equal(images, plan.slices.images[chosen].astype(np.float32))
        np.testing.assert_array_equal(labels, plan.slices.labels[chosen])
        assert rate == float(schedule(step))


@pytest.mark.parametrize(("flips", "turns"), [("left-right", 2), ("both", 4)])
def test_a_peer_sees_the_mirror_images_of_the_row(finish, flips, turns):
    still = {"augment.rotation_degrees": 0.0, "augment.scale": 0.0, "augment.intensity": 0.0}
    plan, run = finish(**still, **{"augment.flips": flips})
    network = Stub()
    peers.train(peers.read_job(run), 0, network)
    ours = feed(plan, training_slices(plan, FOLDS[0]), 0, range(0, plan.steps, 1))
    seen = set()
    for (images, labels, _), (_, indices) in zip(network.batches, ours, strict=True):
        for image, label, number in zip(images, labels, indices.ravel(), strict=True):
            for turn in [(1, 1), (-1, 1), (1, -1), (-1, -1)]:
                mirrored = plan.slices.images[number][:: turn[0], :: turn[1]]
                if np.allclose(image, mirrored, atol=1e-5):
                    seen.add(turn)
                    np.testing.assert_array_equal(label, plan.slices.labels[number][:: turn[0], :: turn[1]])
    assert seen == set([(1, 1), (-1, 1), (1, -1), (-1, -1)][:turns])


def quadrant(images):
    """A class is certain in the first quadrant of a slice; the background has a little more than a quarter of 1."""
    _, height, width, _ = images.shape
    maps = np.zeros((*images.shape[:3], 3), np.float32)
    maps[..., 0] = 0.24
    maps[:, : height // 2, : width // 2, 1] = 1
    return maps


@pytest.mark.parametrize(
    ("keys", "low", "high"),
    [
        ({}, 0.1, 0.4),
        ({"predict.flips": True}, 0.4, 0.6),
        ({"predict.flips": True, "augment.flips": "both"}, 1, 1),
        ({"predict.flips": True, "augment.flips": "both", "data.spacing_mm": "1.5,1.5,4"}, 1, 1),
        ({"predict.min_volume_ml": 1e3}, 0, 0),
    ],
)
def test_a_peer_segments_with_the_mirror_images_and_the_least_lesion_of_the_row(finish, keys, low, high):
    _, run = finish(**keys)
    job = peers.read_job(run)
    case = job.dataset.cases[0]
    labels = peers.segment(Stub(quadrant), case, job)
    assert labels.shape == case.labels.shape
    assert not labels[~case.brain].any()
    assert low <= (labels[case.brain] == 1).mean() <= high


def test_a_peer_sees_the_channels_of_the_row_in_their_order(finish):
    _, run = finish(**SETTINGS["two channels"], **{"augment.enabled": False})
    job = peers.read_job(run)
    network = Stub(quadrant)
    case = job.dataset.cases[0]
    peers.segment(network, case, job)
    assert {images.shape[-1] for images in network.asked} == {2}
    # The DWI is bright in the core alone, which has fewer voxels than the penumbra that Tmax shows.
    bright = [(np.concatenate(network.asked)[..., channel] > 1).sum() for channel in (0, 1)]
    assert 0 < bright[0] < bright[1]


def test_a_peer_is_scored_by_fold_and_its_finished_folds_are_kept(finish, tmp_path):
    _, run = finish()
    started = []

    def start(config, channels, outputs, seed):
        started.append((channels, outputs, seed))
        return Stub(threshold)

    for _ in range(2):
        [found], [seconds] = peers.run_seeds("Stub, CE", start, [run], tmp_path)
        assert started == [(3, 3, run.config.seed), (3, 3, run.config.seed + 1)], "the second time, nothing is trained"
        assert (found.name, found.workdir) == ("Stub, CE", tmp_path / "peers" / "seed_0" / "Stub")
        assert {(row["case"], row["fold"]) for row in found.rows} == {("a", 0), ("b", 0), ("c", 1), ("d", 1)}
        assert {row["dice"] for row in found.rows} == {1.0}
        assert seconds >= 0


@pytest.fixture
def table1(tmp_path, finished_workdirs):
    """The workdir of a finished Table 1 with the rows bl1 and proposed, as if after few steps."""
    for name, workdir in finished_workdirs.items():
        shutil.copytree(workdir, tmp_path / "seed_0" / name)
    for path in tmp_path.rglob("metrics.jsonl"):
        path.write_text(json.dumps({"step": 2, "loss": 1.0}) + "\n")
    return tmp_path


@pytest.fixture
def installed(monkeypatch):
    """As if the libraries of the extra `peers` were there."""
    monkeypatch.setattr(peers, "version", lambda name: "1.0")
    monkeypatch.setattr(nnunet, "torch_threads", lambda: 2)


def background(images):
    maps = np.zeros((*images.shape[:3], 3), np.float32)
    maps[..., 0] = 1
    return maps


def start_blind(config, channels, outputs, seed):
    """Starts a network that finds nothing."""
    return Stub(background)


def dice_of(path):
    """{row: Dice of the core} in a table of a study."""
    with path.open(newline="") as file:
        return {line["row"]: float(line["dice"]) for line in csv.DictReader(file) if line["class"] == "core"}


@pytest.mark.usefixtures("installed", "few_resamples")
def test_the_table_of_peers(table1, monkeypatch, capsys):
    monkeypatch.setattr(peers, "PEERS", {"Stub, CE": start_blind})
    files.write_json(rows.seconds_file(table1 / "seed_0" / "bl1"), 12.0)
    peers.main([f"--workdir={table1}"])
    assert "seconds for all folds, mean over seeds: bl1 12, Stub, CE " in capsys.readouterr().out
    dice = dice_of(table1 / "peers.csv")
    assert {"bl1", "proposed", "Stub, CE"} <= dice.keys()
    assert dice["Stub, CE"] == 0 < dice["bl1"]


def first_bias(config):
    """With what the pre-convolution of a new network starts."""
    [value] = set(init_state(Task(config, ("DWI",), ("core",)), 1, 0).segmenter.params["preconv"]["bias"].tolist())
    return value


@pytest.mark.usefixtures("installed", "few_resamples")
def test_the_table_of_first_weights(table1, monkeypatch):
    trained = []

    def run_rows(configs, workdir, seeds):
        config = configs[first_weights.HIDDEN]
        trained.append((list(configs), config.name, first_bias(config), workdir, seeds))
        [run] = rows.read_seeds(table1, ["bl1"], 1)["bl1"]
        return {first_weights.HIDDEN: [dataclasses.replace(run, name=first_weights.HIDDEN, workdir=table1 / "hidden")]}

    monkeypatch.setattr(first_weights, "run_rows", run_rows)
    monkeypatch.setattr(first_weights, "STARTERS", dict.fromkeys(first_weights.STARTERS, start_blind))
    first_weights.main([f"--workdir={table1}"])
    assert trained == [([first_weights.HIDDEN], first_weights.HIDDEN, 0.0, table1, 1)]
    dice = dice_of(table1 / "first_weights.csv")
    assert {name for name in dice if dice[name] == 0} == set(first_weights.STARTERS)
    assert dice[first_weights.HIDDEN] == dice["bl1"] > 0
    [run] = rows.read_seeds(table1, ["bl1"], 1)["bl1"]
    assert first_bias(run.config) == 1.0, "afterwards all is as before"


@pytest.fixture
def nnunet_calls(monkeypatch):
    """The calls of nnU-Net's commands. They write what nnU-Net would; its predictions are the labels."""
    calls = []

    def call(place, command, *arguments):
        calls.append((command, arguments))
        if command == "nnUNetv2_plan_and_preprocess":
            plan = {"batch_size": 2, "patch_size": [32, 32], "spacing": [6.0, 6.0], "more": 1}
            files.write_json(place.preprocessed / "nnUNetPlans.json", {"configurations": {"2d": plan}})
        if command == "nnUNetv2_find_best_configuration":
            folder = place.trained("nnUNetTrainer_5epochs") / "crossval_results_folds_0_1_2" / "postprocessed"
            shutil.copytree(place.raw / "labelsTr", folder)
            files.write_json(folder / "summary.json", {})

    monkeypatch.setattr(nnunet.Workplace, "call", call)
    return calls


@pytest.mark.usefixtures("installed", "few_resamples")
def test_nnunet_trains_each_fold_once_and_is_scored_as_ours(table1, nnunet_calls):
    for _ in range(2):
        nnunet.main([f"--workdir={table1}", "--rows=proposed,bl1"])
        assert [command for command, _ in nnunet_calls] == [
            "nnUNetv2_plan_and_preprocess",
            *["nnUNetv2_train"] * 3,
            "nnUNetv2_find_best_configuration",
        ]
    assert [arguments[2] for command, arguments in nnunet_calls if command == "nnUNetv2_train"] == [0, 1, 2]
    run = run_files.read_run(table1 / "seed_0" / "proposed")
    place = nnunet.Workplace(table1 / "nnunet", 0)
    assert json.loads((place.preprocessed / "splits_final.json").read_text()) == nnunet.splits(run.folds)
    scored = nnunet.score(run, place, "nnUNetTrainer_5epochs")
    assert scored.name == "nnU-Net 5epochs"
    assert {row["dice"] for row in scored.rows} == {1.0}
    assert [(row["case"], row["fold"]) for row in scored.rows] == [(row["case"], row["fold"]) for row in run.rows]
    dice = dice_of(table1 / "nnunet_5epochs.csv")
    assert dice["nnU-Net 5epochs"] == 1 > dice["proposed"]
    record = json.loads((table1 / "nnunet_5epochs.json").read_text())
    assert record["plan"] == {"batch_size": 2, "patch_size": [32, 32], "spacing": [6.0, 6.0]}
    assert record["seeds"][0]["threads"] == {"0": 2, "1": 2, "2": 2}


def test_a_failed_command_of_nnunet_is_one_line_that_names_its_log(tmp_path, monkeypatch):
    command = tmp_path / "nnUNetv2_train"
    command.write_text('#!/bin/sh\necho "$1 of $nnUNet_results"\nexit 1\n')
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    place = nnunet.Workplace(tmp_path / "work", 3)
    log = tmp_path / "work" / "seed_3" / "nnUNetv2_train.log"
    with pytest.raises(InputError, match=f"nnUNetv2_train failed; its last lines are in {log}"):
        place.call("nnUNetv2_train", 1)
    assert log.read_text() == f"1 of {tmp_path / 'work' / 'seed_3'}\n"


def test_rows_without_critics_are_not_among_them(table1):
    critics.write(table1 / "critics.csv", rows.read_seeds(table1, ["bl1", "proposed"], 1))
    assert (table1 / "critics.csv").read_text() == "row,until_step,accuracy,gradient\n"
