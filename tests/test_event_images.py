"""Pictures of held-out slices."""

import numpy as np
import pytest

from isles_jax.data.layouts import load
from isles_jax.data.slices import Slices
from isles_jax.prediction import inference
from isles_jax.training import event_images


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
    steps, _ = event_images.radiological(case)
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
