import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from helpers import random_case, task_of
from scipy import ndimage

from isles_jax.data.case import Case
from isles_jax.data.grid import Target
from isles_jax.data.layouts import load
from isles_jax.prediction import inference
from isles_jax.runtime.command import InputError
from isles_jax.training import checkpoint, networks, parallel
from isles_jax.training.state import init_state

pytestmark = pytest.mark.device

# --- volumes ---------------------------------------------------------------------------------------------------------


def test_probabilities_are_probabilities_and_background_outside_the_brain(untrained_run, forward):
    folds = untrained_run[2][:2]
    case = random_case((30, 41, 5))
    probabilities = inference.predict_case(forward, folds, case, untrained_run[1])
    assert probabilities.shape == (30, 41, 5, 3)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    outside = (case.images == 0).all(axis=-1)
    assert np.all(probabilities[outside] == [1, 0, 0])
    assert np.ptp(probabilities[~outside][:, 1]) > 0
    one, other = (inference.predict_case(forward, [variables], case, untrained_run[1]) for variables in folds)
    np.testing.assert_allclose(probabilities, (one + other) / 2, atol=1e-6)
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.1, 6.0)])
def test_a_prediction_on_another_grid_lies_where_the_lesion_lies(spacing, small_config):
    shape = (70, 64, 20)
    points = np.moveaxis(np.indices(shape), 0, -1) * spacing
    centre = np.array([33.3, 30.1, 9.4]) * spacing
    bright = 2 / (1 + np.exp((np.linalg.norm(points - centre, axis=-1) - 9) / 2))
    brain = np.linalg.norm((points / spacing - [35, 32, 9.5]) / [33, 30, 9], axis=-1) < 1
    images = np.where(brain, 1 + bright, 0).astype(np.float32)[..., None]
    turned = np.array([[1.9, -0.6, 0.1, 5], [0.6, 1.9, -0.2, -70], [0, 0.2, 3.0, 9], [0, 0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turned[:3, :3] / np.linalg.norm(turned[:3, :3], axis=0) * spacing * [-1, 1, 1]
    case = Case("x", images, None, affine, nib.Nifti1Header())

    def network(variables, slices):
        # As if trained: the brighter, the likelier.
        lesion = 1 / (1 + np.exp(-4 * (slices[..., 0] - 1)))
        return np.stack([1 - lesion, lesion], axis=-1).astype(np.float32)

    task = task_of(small_config(), ("lesion",))
    plain = inference.predict_case(network, [None], case, task)[..., 1]
    target = Target((2.0, 2.0, 2.0), True)
    found = inference.predict_case(network, [None], case, replace(task, target=target))
    assert found.shape == (*shape, 2)
    assert np.all(found[~brain] == [1, 0])
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    masks = plain > 0.5, found.argmax(axis=-1) == 1
    apart = np.subtract(*map(ndimage.center_of_mass, masks))
    assert np.abs(apart).max() < 0.1
    assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) > 0.95
    same = inference.predict_case(network, [None], case, replace(task, target=Target(spacing)))
    np.testing.assert_array_equal(same[..., 1], plain)


def test_flips_average_with_the_mirror_image(untrained_run, forward):
    # Sides that need no padding, or the same on both sides, have exactly the same mirror image.
    case = random_case((30, 64, 5))
    mirrored = Case("x", case.images[::-1], None, case.affine, case.header)
    plain, mirror = (
        inference.predict_case(forward, untrained_run[2][:2], one, untrained_run[1]) for one in (case, mirrored)
    )
    flipped = inference.predict_case(forward, untrained_run[2][:2], case, untrained_run[1], mirror=(1,))
    np.testing.assert_allclose(flipped, (plain + mirror[::-1]) / 2, atol=1e-6)
    assert np.abs(flipped - plain).max() > 1e-3
    np.testing.assert_allclose(
        inference.predict_case(forward, untrained_run[2][:2], mirrored, untrained_run[1], mirror=(1,)),
        flipped[::-1],
        atol=1e-6,
    )


def test_mirroring_along_two_axes_averages_four_images(untrained_run, forward):
    folds, images = untrained_run[2][:2], np.random.default_rng(2).normal(size=(2, 32, 32, 3)).astype(np.float32)
    turns = [np.s_[:, ::a, ::b] for a in (1, -1) for b in (1, -1)]
    expected = np.mean([[forward(fold, images[turn])[turn] for turn in turns] for fold in folds], axis=(0, 1))
    np.testing.assert_allclose(inference.average(forward, folds, images, (1, 2)), expected, atol=1e-6)


@pytest.mark.parametrize(("trained", "flips", "axes"),
                         [("both", True, (1, 2)), ("both", False, ()), ("left-right", True, (1,))])  # fmt: skip
def test_prediction_mirrors_along_the_axes_that_training_flips(small_config, trained, flips, axes):
    assert task_of(small_config(**{"augment.flips": trained})).mirror_axes(flips) == axes


def test_slices_are_independent_and_one_compilation_serves_a_padded_size(untrained_run):
    _, task, folds = untrained_run
    forward = networks.make_forward.__wrapped__(task.segmenter())
    case = random_case((32, 40, 11))
    whole = inference.predict_case(forward, folds[:1], case, untrained_run[1])
    for shape in ((33, 64, 3), (64, 50, 9)):
        inference.predict_case(forward, folds[:1], random_case(shape), untrained_run[1])
    assert forward._cache_size() == 2, "32 x 64 and 64 x 64"
    inference.predict_case(forward, folds, case, untrained_run[1], mirror=(1,))
    assert forward._cache_size() == 2, "other folds and flips"
    assert whole.shape == (32, 40, 11, 3)
    stack = np.random.default_rng(0).normal(size=(8, 32, 64, 3)).astype(np.float32)
    rolled = forward(folds[0], np.roll(stack, 3, axis=0))
    np.testing.assert_allclose(np.roll(rolled, -3, axis=0), forward(folds[0], stack), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_small_lesions_are_removed_whole(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (12, 11, 10)).astype(np.uint8) * (rng.random((12, 11, 10)) < 0.12)
    voxel_ml = 0.015
    lesions, count = ndimage.label(labels > 0, np.ones((3, 3, 3)))
    sizes = [int((lesions == number).sum()) for number in range(1, count + 1)]
    bound = max(sizes) * 0.015
    found = inference.remove_small(labels, bound, voxel_ml)
    for number, size in enumerate(sizes, start=1):
        inside = lesions == number
        np.testing.assert_array_equal(found[inside], labels[inside] if size * 0.015 >= bound - 1e-9 else 0)
    assert 0 < (found > 0).sum() < (labels > 0).sum()
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(inference.remove_small(labels, 0, voxel_ml), labels)
    assert not inference.remove_small(labels, 1e3, voxel_ml).any()


def test_a_small_core_stays_with_its_penumbra():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[3, 3, 3] = 2
    labels[8, 8, 8] = 2
    found = inference.remove_small(labels, 0.01, 0.001)
    assert (found[3, 3, 3], found[8, 8, 8]) == (2, 0)
    assert (found == 1).sum() == 124


def test_a_fold_is_predicted_with_the_settings_of_its_run(tmp_path, small_config, phantom_root):
    dataset = load(phantom_root, penumbra=1, core=2)
    names = [case.name for case in dataset.cases[:2]]
    found = []
    for keys in ({}, {"predict.flips": True}, {"predict.min_volume_ml": 1e5}):
        task = task_of(small_config(adversarial=False, **keys), label_values=(1, 2))
        folder = tmp_path / str(len(found))
        state = parallel.replicate(init_state(task, 10, 0))
        checkpoint.save(folder / "checkpoints", state, task.record() | {"fold": 0})
        inference.predict_fold(dataset, names, folder)
        assert sorted(path.name for path in (folder / "predictions").iterdir()) == [f"{n}.nii.gz" for n in names]
        found.append([np.asarray(nib.load(folder / "predictions" / f"{n}.nii.gz").dataobj) for n in names])
    plain, flipped, large = np.array(found)
    assert plain.any()
    assert (plain != flipped).any()
    assert not large.any()


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_case_without_brain_is_refused(untrained_run, forward):
    empty = Case("empty", np.zeros((32, 32, 2, 3), np.float32), None, np.eye(4), nib.Nifti1Header())
    with pytest.raises(InputError, match="empty: found no voxel of brain"):
        inference.predict_case(forward, untrained_run[2], empty, untrained_run[1])


def test_a_fold_that_is_predicted_from_an_older_checkpoint_says_so(untrained_run, phantom_root, tmp_path, capsys):
    dataset = load(phantom_root, penumbra=1, core=2)
    folder = shutil.copytree(untrained_run[0] / "fold_0", tmp_path / "fold_0")
    shutil.copytree(folder / "checkpoints" / "0", folder / "checkpoints" / "2")
    (folder / "checkpoints" / "2" / "manifest.json").write_text("{}")
    inference.predict_fold(dataset, [dataset.cases[0].name], folder)
    line = f"{folder}/checkpoints/2 is skipped: "
    assert capsys.readouterr().err.startswith(f"note: {line}")
    assert (folder / "notes.txt").read_text().startswith(f"fold 0 is predicted from step 0: {line}")


def test_slices_that_memory_cannot_hold_are_refused_before_they_are_predicted(untrained_run, forward, monkeypatch):
    case = random_case((30, 41, 5))
    monkeypatch.setattr(inference, "machine_memory", lambda: 8 * networks.BATCH * 32 * 64 * 4 - 1)
    with pytest.raises(InputError, match="x: found slices of 32x64 pixels, which need 0 GB at the least"):
        inference.predict_case(forward, untrained_run[2][:1], case, untrained_run[1])
    monkeypatch.setattr(inference, "machine_memory", lambda: 8 * networks.BATCH * 32 * 64 * 4)
    inference.predict_case(forward, untrained_run[2][:1], case, untrained_run[1])
