"""Event files, read by TensorBoard's own reader."""

import contextlib
import io
import json
import shutil
import sys

import numpy as np
import pytest
from helpers import tiny_config
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from isles_jax.config import flatten, resolve
from isles_jax.cross_validation import cross_validate
from isles_jax.runtime.command import InputError
from isles_jax.training import checkpoint, event_images
from isles_jax.training.metric_writer import MetricWriter, require_tensorboard


def read_events(folder):
    events = EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(events):
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_that_was_cut_off_has_each_event_once(tmp_path, phantom_root):
    """Scalars equal metrics.jsonl, pictures are those of the checkpoints, settings are there; so after a resume."""
    keys = {"data.root": str(phantom_root), "fold": 0, "train.tensorboard": True, "train.checkpoint_every_steps": 1}
    settings = tiny_config("bl1", **keys)
    directory = tmp_path / "run" / "fold_0"
    cross_validate(settings, tmp_path / "run")
    last = checkpoint.newest(directory / "checkpoints")
    # As if killed after the step before the last: that one is lost, and done again.
    shutil.rmtree(directory / "checkpoints" / str(last))
    (directory / "DONE").unlink()
    cross_validate(settings, tmp_path / "run")
    assert len(list(directory.glob("events.out.tfevents.*"))) == 2

    events, written = read_events(directory), lines(directory)
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
    hparams = metadata.parse_session_start_info_plugin_data(content).hparams
    expected = flatten(resolve(settings))
    assert hparams.keys() == expected.keys()
    assert hparams["optimizer.learning_rate"].number_value == pytest.approx(expected["optimizer.learning_rate"])
    assert hparams["augment.enabled"].bool_value is True
    assert hparams["name"].string_value == "bl1"


def test_events_of_steps_that_are_done_again_are_replaced(tmp_path):
    """By the reader's rule: nothing of a file after the step that the next file begins with."""
    for first, value in ((0, 1.0), (20, 2.0), (20, 3.0), (30, 4.0)):
        with contextlib.closing(MetricWriter(tmp_path, first, tensorboard=True)) as writer:
            for step in range(first + 10, 60, 10):
                writer.write_scalars(step, {"loss": value, "critic/all classes": -value})
                writer.write_images(step, {"x": np.full((4, 5, 3), value, np.uint8)})
    events = read_events(tmp_path)
    assert scalars(events)["loss"] == [(10, 1.0), (20, 1.0), (30, 3.0), (40, 4.0), (50, 4.0)]
    assert scalars(events)["loss"] == [(line["step"], line["loss"]) for line in lines(tmp_path)]
    # TensorBoard's names have no spaces.
    assert scalars(events)["critic/all_classes"] == [(step, -value) for step, value in scalars(events)["loss"]]
    shades = [np.asarray(Image.open(io.BytesIO(i.encoded_image_string)))[0, 0, 0] for i in events.Images("x")]
    assert shades == [1, 1, 3, 4, 4]


def test_event_files_are_written_only_if_asked_for(tmp_path):
    with contextlib.closing(MetricWriter(tmp_path, 0)) as writer:
        writer.write_hparams({"a": 1})
        writer.write_images(1, {"x": np.zeros((4, 5, 3), np.uint8)})
        writer.write_scalars(1, {"loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("missing", ["tensorboardX", "PIL"])
def test_a_missing_package_is_named_before_anything_is_written(tmp_path, phantom_root, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    settings = tiny_config("bl1", **{"data.root": str(phantom_root), "train.tensorboard": True})
    with pytest.raises(InputError, match=rf"train\.tensorboard: {missing} is not installed.* --extra tensorboard"):
        cross_validate(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_bucket_is_refused():
    with pytest.raises(InputError, match=r"cannot be written to gs://bucket/run, expected a local --workdir"):
        require_tensorboard("gs://bucket/run")


def test_scalars_are_json_lines(tmp_path):
    writer = MetricWriter(tmp_path / "fold_0", 0)
    writer.write_scalars(10, {"loss": 0.5, "lovasz": float("nan")})
    writer.write_scalars(20, {"loss": 0.25})
    writer.flush()
    assert lines(tmp_path / "fold_0") == [{"step": 10, "loss": 0.5, "lovasz": None}, {"step": 20, "loss": 0.25}]


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    for step in (10, 20, 30):
        writer.write_scalars(step, {"loss": 1.0 / step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    resumed = MetricWriter(tmp_path, 20)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]
    resumed.write_scalars(30, {"loss": 0.0})
    resumed.close()
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30]
