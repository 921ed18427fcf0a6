"""What a new run works on: the size of its slices, and what is too large."""

import nibabel as nib
import numpy as np
import pytest

from isles_jax.config import baseline, resolve
from isles_jax.data import layouts
from isles_jax.data.case import Case, make_dataset
from isles_jax.data.slices import largest_sides
from isles_jax.runtime.command import InputError
from isles_jax.training import plan
from isles_jax.training.plan import prepare


def dataset_of(sides, brain, tmp_path):
    """Three cases of sides x sides pixels. Their brains, brain x brain pixels, lie elsewhere in each."""
    cases = []
    for number in range(3):
        images = np.zeros((sides, sides, 4, 2), np.float32)
        labels = np.zeros(images.shape[:3], np.uint8)
        start = number * (sides - brain) // 2
        inside = slice(start, start + brain)
        images[inside, inside] = np.random.default_rng(number).normal(5, 1, (brain, brain, 4, 2))
        labels[start : start + 7, start + 3 : start + 9, 1:3] = 1
        cases.append(Case(f"case_{number}", images, labels, np.eye(4), nib.Nifti1Header()))
    return make_dataset(tmp_path, tuple(cases), ("DWI", "ADC"), ("lesion",), (1,))


def test_slices_are_cut_to_the_brain_where_that_makes_them_smaller(small_config, tmp_path):
    dataset = dataset_of(100, 61, tmp_path)
    made = prepare(small_config(residual=False, adversarial=False), dataset)
    assert made.slices.images.shape == (12, 64, 64, 2)
    assert (made.task.target.crop, made.task.size) == (True, (61, 61))
    # Nothing of a lesion is lost, and no brain.
    for number, case in enumerate(dataset.cases):
        own = made.slices.case == number
        assert (made.slices.labels[own] == 1).sum() == (case.labels == 1).sum() == 84
        assert (made.slices.images[own] != 0).any(axis=-1).sum() == case.brain.sum()


@pytest.mark.parametrize(("sides", "brain"), [(64, 40), (96, 65), (70, 70)])
def test_slices_stay_whole_where_the_networks_need_the_same_size(sides, brain, small_config, tmp_path):
    made = prepare(small_config(residual=False, adversarial=False), dataset_of(sides, brain, tmp_path))
    assert (made.task.target.crop, made.task.size) == (False, (sides, sides))


def test_a_run_that_has_begun_keeps_its_grid(small_config, tmp_path):
    dataset = dataset_of(100, 61, tmp_path)
    config = small_config(residual=False, adversarial=False)
    target = prepare(config, dataset).task.target
    made = prepare(config, dataset, target._replace(crop=False))
    assert made.task.size == largest_sides(dataset.cases) == (100, 100)


def test_a_batch_that_cannot_be_trained_is_refused():
    config = baseline(residual=True, adversarial=True, overlap=True)
    config.model.width = 64
    for batch, words in ((11, "found 11, expected at most the 10"), (10, "which needs")):
        config.train.batch_size = batch
        with pytest.raises(InputError, match=words):
            plan._check_batch(config, 10, 10**10, batch)
    plan._check_batch(config, 10, 96 * 128, 10)


def test_a_grid_that_does_not_fit_the_memory_is_refused(phantom_root, monkeypatch):
    """The slices are measured before they are made: 0.1 mm would take a thousand times the memory of 1 mm."""
    config = baseline(residual=True, adversarial=True, overlap=True)
    config.model.width = 8
    config.data.spacing_mm = "0.1"
    monkeypatch.setattr(plan, "machine_memory", lambda: 10**8)
    with pytest.raises(InputError, match=r"--config.data.spacing_mm: found '0.1', which needs \d+ GB of slices"):
        prepare(resolve(config), layouts.load(phantom_root))
