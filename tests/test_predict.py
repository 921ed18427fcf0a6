import nibabel as nib
import numpy as np
import pytest

from isles_jax import checkpoint, parallel, predict
from isles_jax.config import InputError, to_dict
from isles_jax.data import load
from isles_jax.data.case import Case
from isles_jax.state import init_state, make_segmenter

CLASSES = ("penumbra", "core")


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_config):
    """Two folds of untrained networks, saved as a run saves them."""
    states, workdir = [], tmp_path_factory.mktemp("predict") / "run"
    for fold in (0, 1):
        config = small_config(adversarial=False)
        states.append(parallel.replicate(init_state(config, CLASSES, 3, 10, fold)))
        meta = {
            "config": to_dict(config), "fold": fold, "classes": list(CLASSES), "channels": ["Tmax", "TTP", "DWI"],
            "label_values": [5, 9],
        }  # fmt: skip
        checkpoint.save(workdir / f"fold_{fold}" / "checkpoints", states[-1], meta)
    return workdir, config, [state.segmenter.variables for state in states]


def make_case(shape, seed=0):
    rng = np.random.default_rng(seed)
    images = np.zeros((*shape, 3), np.float32)
    images[1:-1, 2:-2, 1:] = rng.gamma(2.0, 3.0, (shape[0] - 2, shape[1] - 4, shape[2] - 1, 3)) + 0.01
    return Case("x", images, None, np.eye(4), nib.Nifti1Header())


def test_probabilities_are_probabilities_and_background_outside_the_brain(run):
    _, config, folds = run
    forward = predict.make_forward(make_segmenter(config, 3))
    case = make_case((30, 41, 5))
    probabilities = predict.predict_case(forward, folds, case)
    assert probabilities.shape == (30, 41, 5, 3)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    outside = (case.images == 0).all(axis=-1)
    assert np.all(probabilities[outside] == [1, 0, 0])
    assert np.ptp(probabilities[~outside][:, 1]) > 0
    one, other = (predict.predict_case(forward, [variables], case) for variables in folds)
    np.testing.assert_allclose(probabilities, (one + other) / 2, atol=1e-6)
    assert np.abs(one - other).max() > 1e-3


def test_slices_do_not_see_each_other_and_one_compilation_serves_a_padded_size(run):
    _, config, folds = run
    forward = predict.make_forward(make_segmenter(config, 3))
    case = make_case((32, 40, 11))
    whole = predict.predict_case(forward, folds[:1], case)
    for shape in ((33, 64, 3), (64, 50, 9)):
        predict.predict_case(forward, folds[:1], make_case(shape))
    assert forward._cache_size() == 2, "32 x 64 and 64 x 64"
    assert whole.shape == (32, 40, 11, 3)
    stack = np.random.default_rng(0).normal(size=(8, 32, 64, 3)).astype(np.float32)
    rolled = forward(folds[0], np.roll(stack, 3, axis=0))
    np.testing.assert_allclose(np.roll(rolled, -3, axis=0), forward(folds[0], stack), atol=1e-6)


def test_the_command_writes_labels_on_the_grid_of_new_cases(run, tmp_path, phantom_root):
    workdir, _, _ = run
    predict.main([f"--workdir={workdir}", f"--input={phantom_root}", f"--output={tmp_path / 'out'}"])
    dataset = load(phantom_root, penumbra=1, core=2)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [f"{case.name}.nii.gz" for case in dataset.cases]
    for case in dataset.cases:
        image = nib.load(tmp_path / "out" / f"{case.name}.nii.gz")
        assert image.shape == case.labels.shape
        np.testing.assert_array_equal(image.affine, case.affine)
        assert set(np.unique(np.asarray(image.dataobj))) <= {0, 5, 9}


def test_no_run_and_no_input_are_named(run, tmp_path, phantom_root):
    with pytest.raises(InputError, match=r"nowhere: found no fold_\*/checkpoints"):
        predict.main([f"--workdir={tmp_path / 'nowhere'}", f"--input={phantom_root}", f"--output={tmp_path}"])
    with pytest.raises(InputError, match="does not exist"):
        predict.main([f"--workdir={run[0]}", f"--input={tmp_path / 'nowhere'}", f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_a_case_without_brain_is_refused(run):
    _, config, folds = run
    empty = Case("empty", np.zeros((32, 32, 2, 3), np.float32), None, np.eye(4), nib.Nifti1Header())
    with pytest.raises(InputError, match="empty: found no voxel of brain"):
        predict.predict_case(predict.make_forward(make_segmenter(config, 3)), folds, empty)
