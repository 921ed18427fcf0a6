"""Event files, read by TensorBoard's own reader."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from test_end_to_end import make

from isles_jax import inference
from isles_jax.config import flatten, resolve
from isles_jax.cross_validation import cross_validate
from isles_jax.data.layouts import load
from isles_jax.data.slices import Slices
from isles_jax.runtime.command import InputError
from isles_jax.training import checkpoint, event_images
from isles_jax.training.metric_writer import MetricWriter, require_tensorboard


def read(folder):
    events = EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(events):
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }  # fmt: skip


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_was_cut_off_has_each_event_once(tmp_path, phantom_root):
    """Scalars equal metrics.jsonl, pictures are those of the checkpoints, settings are there; so after a resume."""
    keys = {"data.root": str(phantom_root), "fold": 0, "train.tensorboard": True, "train.checkpoint_every_steps": 1}
    settings = make("bl1", **keys)
    directory = tmp_path / "run" / "fold_0"
    cross_validate(settings, tmp_path / "run")
    last = checkpoint.newest(directory / "checkpoints")
    # As if killed after the step before the last: that one is lost, and done again.
    shutil.rmtree(directory / "checkpoints" / str(last))
    (directory / "DONE").unlink()
    cross_validate(settings, tmp_path / "run")
    assert len(list(directory.glob("events.out.tfevents.*"))) == 2

    events, written = read(directory), lines(directory)
    found = scalars(events)
    assert found.keys() == written[0].keys() - {"step"}
    assert {"loss", "cross_entropy", "learning_rate"} == found.keys()
    for tag, values in found.items():
        assert values == [(line["step"], np.float32(line[tag])) for line in written], tag
    held_out = json.loads((tmp_path / "run" / "folds.json").read_text())[0]
    assert events.Tags()["images"] == [f"held-out/{name}" for name in sorted(held_out)]
    for tag in events.Tags()["images"]:
        images = events.Images(tag)
        assert [image.step for image in images] == list(range(1, last + 1))
        pixels = np.asarray(Image.open(io.BytesIO(images[-1].encoded_image_string)))
        assert pixels.shape == (32 * event_images.ZOOM, 32 * event_images.ZOOM * 5, 3)
        assert (pixels == event_images.COLOURS[0]).all(axis=-1).any()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    told = metadata.parse_session_start_info_plugin_data(content).hparams
    expected = flatten(resolve(settings))
    assert told.keys() == expected.keys()
    assert told["optimizer.learning_rate"].number_value == pytest.approx(expected["optimizer.learning_rate"])
    assert told["augment.enabled"].bool_value is True
    assert told["name"].string_value == "bl1"


def test_events_of_steps_that_are_done_again_are_replaced(tmp_path):
    """By the reader's rule: nothing of a file after the step that the next file begins with."""
    for first, value in ((0, 1.0), (20, 2.0), (20, 3.0), (30, 4.0)):
        with MetricWriter(tmp_path, first, tensorboard=True) as writer:
            for step in range(first + 10, 60, 10):
                writer.write_scalars(step, {"loss": value, "critic/all classes": -value})
                writer.write_images(step, {"x": np.full((4, 5, 3), value, np.uint8)})
    events = read(tmp_path)
    assert scalars(events)["loss"] == [(10, 1.0), (20, 1.0), (30, 3.0), (40, 4.0), (50, 4.0)]
    assert scalars(events)["loss"] == [(line["step"], line["loss"]) for line in lines(tmp_path)]
    # TensorBoard's names have no spaces.
    assert scalars(events)["critic/all_classes"] == [(step, -value) for step, value in scalars(events)["loss"]]
    shades = [np.asarray(Image.open(io.BytesIO(i.encoded_image_string)))[0, 0, 0] for i in events.Images("x")]
    assert shades == [1, 1, 3, 4, 4]


def test_event_files_are_written_only_if_asked_for(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        writer.write_hparams({"a": 1})
        writer.write_images(1, {"x": np.zeros((4, 5, 3), np.uint8)})
        writer.write_scalars(1, {"loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("missing", ["tensorboardX", "PIL"])
def test_a_missing_package_is_named_before_anything_is_written(tmp_path, phantom_root, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    settings = make("bl1", **{"data.root": str(phantom_root), "train.tensorboard": True})
    with pytest.raises(InputError, match=rf"train\.tensorboard: {missing} is not installed.* --extra tensorboard"):
        cross_validate(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_bucket_is_refused():
    with pytest.raises(InputError, match=r"cannot be written to gs://bucket/run, expected a local --workdir"):
        require_tensorboard("gs://bucket/run")


# --- the pictures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(phantom_root):
    return load(phantom_root, penumbra=1, core=2)


def test_a_picture_shows_the_inputs_and_both_contours(dataset):
    """Of a network that says core in a square, whatever it is given."""
    case = dataset.cases[1]
    labels = np.full((2, 32, 64), -1, np.int8)
    labels[:, :, 8:56] = 0
    labels[1, 10:20, 20:40] = 1
    images = np.zeros((2, 32, 64, 3), np.float32)
    images[:, 2:30, 10:50] = np.random.default_rng(0).normal(size=(2, 28, 40, 3))
    slices = Slices(images, labels, np.array([1, 1]), (labels > 0).any(axis=(1, 2)))
    assert event_images.choose(slices, dataset.cases, [case.name]) == [1]

    def forward(variables, batch):
        assert batch.shape == (inference.BATCH, 32, 64, 3)
        probabilities = np.zeros((*batch.shape[:3], 3))
        probabilities[..., 0] = 1
        probabilities[0, 4:9, :30, 2] = 2
        return probabilities

    [(tag, picture)] = event_images.draw(forward, {}, slices, dataset.cases, [1]).items()
    assert tag == f"held-out/{case.name}"
    zoom = event_images.ZOOM
    assert picture.shape == (64 * zoom, 5 * 32 * zoom, 3)
    *channels, truth, prediction = np.split(picture, 5, axis=1)
    for number, channel in enumerate(channels):
        assert (channel[..., 0] == channel[..., 1]).all()
        brain = channel[channel[..., 0] > 0]
        assert 0 < len(brain) <= 28 * 40 * zoom**2
        assert len(np.unique(brain)) > 50, number
    amber, sky = event_images.COLOURS[:2]
    assert not (truth == sky).all(axis=-1).any()
    # A rectangle of 10 x 20 voxels has this many pixels on its edge.
    assert (truth == amber).all(axis=-1).sum() == 2 * (10 * zoom + 20 * zoom) - 4
    # Columns 10 and above of the square lie in the brain; what lies outside is not drawn.
    assert (prediction == sky).all(axis=-1).sum() == 2 * (5 * zoom + 20 * zoom) - 4
    assert not (prediction == amber).all(axis=-1).any()
    rows, columns = np.nonzero((truth == amber).all(axis=-1))
    steps, _ = event_images.radiological(case.affine)
    x = np.sort((columns // zoom)[:: steps[0]] if steps[0] > 0 else 31 - columns // zoom)
    y = np.sort(rows // zoom if steps[1] > 0 else 63 - rows // zoom)
    assert (x[0], x[-1], y[0], y[-1]) == (10, 19, 20, 39)


def test_one_slice_of_each_held_out_case_is_shown_with_the_most_lesion():
    class Named:
        def __init__(self, name):
            self.name = name

    cases = [Named(letter) for letter in "abcdefg"]
    labels = np.zeros((14, 32, 32), np.int8)
    for number in range(14):
        labels[number, 0, : (number * 5) % 14] = 1
    slices = Slices(np.zeros((14, 32, 32, 1)), labels, np.repeat(np.arange(7), 2), labels.any(axis=(1, 2)))
    chosen = event_images.choose(slices, cases, ["g", "a", "b", "d", "f", "e"])
    assert [int(slices.case[index]) for index in chosen] == [0, 1, 3, 4]
    for index in chosen:
        assert (labels[index] > 0).sum() >= (labels[index ^ 1] > 0).sum()
    labels[:] = 0
    assert len(event_images.choose(slices, cases, ["c"])) == 1, "a case without lesion"
