"""The check of the labels against the images."""

import dataclasses

import numpy as np
import pytest
from helpers import save_volume, spes_folder

from isles_jax.data import checks, layouts
from isles_jax.runtime.command import InputError


def test_the_label_check_needs_all_three_facts(tmp_path):
    dataset = layouts.load(spes_folder(tmp_path), penumbra=1, core=2)

    def changed(case, channel, factor, where):
        images = case.images.copy()
        images[where(case), channel] *= factor
        return dataclasses.replace(case, images=images)

    def every(change):
        return dataclasses.replace(dataset, cases=tuple(change(case) for case in dataset.cases))

    checks.verify_labels(every(lambda case: changed(case, 2, 1.5, lambda c: c.labels == 2)))
    for change in (
        lambda case: changed(case, 2, 0.3, lambda c: c.labels == 2),  # core darker than penumbra
        lambda case: changed(case, 0, 0.1, lambda c: c.labels == 1),  # Tmax of penumbra below the healthy brain's
        lambda case: dataclasses.replace(case, labels=np.where(case.labels == 1, 2, case.labels)),  # core the larger
    ):
        with pytest.raises(InputError, match="would not agree either"):
            checks.verify_labels(every(change))
    checks.verify_labels(every(lambda case: dataclasses.replace(case, labels=None)))


def test_a_label_that_fills_most_of_the_brain_is_named_wherever_it_is_read(tmp_path):
    """A mask of the brain may have the name of a lesion's."""
    rng = np.random.default_rng(0)
    for case, filled in (("p1", 1.0), ("p2", 0.2)):
        for word in ("dwi", "adc"):
            volume = np.pad(rng.uniform(0.5, 1.5, (8, 10, 4)).astype(np.float32), 2)
            save_volume(tmp_path / f"{case}_{word}.nii.gz", volume)
        label = (volume > 0) & (np.arange(volume.shape[1])[:, None] < 2 + 10 * filled)
        save_volume(tmp_path / f"{case}_mask.nii.gz", label.astype(np.uint8))
    [note] = [note for note in layouts.load(tmp_path).notes if "label" in note]
    assert note == "the label fills more than half of the brain: p1 (100%); is it a mask of the brain?"
    assert not [note for note in layouts.load_images(tmp_path, ("DWI", "ADC")).notes if "label" in note]


def test_a_label_without_a_brain_is_not_compared_with_one(phantom_root):
    case = layouts.load(phantom_root).cases[0]
    empty = dataclasses.replace(case, images=np.zeros_like(case.images))
    assert not empty.brain.any()
    assert (empty.labels > 0).any()
    assert checks.label_notes([empty]) == ()


def test_swapped_integers_and_nested_files_are_caught_on_the_phantom(phantom_root, tmp_path):
    right = layouts.load(phantom_root, penumbra=1, core=2)
    assert right.phantom
    with pytest.raises(InputError, match=r"--config.data.labels.penumbra=1 --config.data.labels.core=2 would agree"):
        layouts.load(phantom_root, penumbra=2, core=1)
    for case in right.cases:
        folder = tmp_path / case.name
        for index, word in enumerate(right.channels):
            save_volume(folder / f"{word}.nii", case.images[..., index], case.affine)
        save_volume(folder / "penumbralabel.nii", (case.labels > 0).astype(np.uint8), case.affine)
        save_volume(folder / "corelabel.nii", (case.labels == 2).astype(np.uint8), case.affine)
    nested = layouts.load(tmp_path, penumbra=1, core=2)
    assert not nested.phantom
    assert any("the penumbra files contain the core (100% of it)" in note for note in nested.notes)
    for case, expected in zip(nested.cases, right.cases, strict=True):
        np.testing.assert_array_equal(case.labels, expected.labels)
