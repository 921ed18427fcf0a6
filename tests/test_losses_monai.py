"""The losses against MONAI's on the same logits: values and gradients. Skipped where MONAI is not installed."""

import warnings

import jax
import numpy as np
import pytest
from helpers import segmentation_case as case

from isles_jax import losses

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.losses")

SHAPES = {"2D": ((3, 10, 11), 3), "3D": ((2, 5, 6, 7), 4)}


def check(ours, theirs, shape, num_classes, factor=1.0):
    """Values and gradients of ours(logits, labels) and factor * theirs(logits, labels), channels first."""
    logits, labels, _ = case(shape, num_classes)
    value, gradient = jax.value_and_grad(ours)(logits, labels)
    x = torch.from_numpy(np.moveaxis(logits, -1, 1).copy()).requires_grad_()
    other = factor * theirs(x, torch.from_numpy(labels[:, None]))
    other.backward()
    np.testing.assert_allclose(value, other.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.moveaxis(x.grad.numpy(), 1, -1), atol=1e-7, rtol=1e-4)


def classes_of(background, num_classes):
    return "all" if background else tuple(range(1, num_classes))


@pytest.mark.parametrize(("shape", "num_classes"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_soft_dice_is_dice_loss(shape, num_classes, background, batch, squared):
    theirs = monai.DiceLoss(
        include_background=background, to_onehot_y=True, softmax=True, squared_pred=squared, batch=batch,
        smooth_nr=0.1, smooth_dr=0.1,
    )  # fmt: skip

    def ours(x, y):
        classes = classes_of(background, num_classes)
        return losses.soft_dice(x, y, classes=classes, per_image=not batch, squared=squared, smooth=0.1)

    check(ours, theirs, shape, num_classes)


@pytest.mark.parametrize(("shape", "num_classes"), SHAPES.values(), ids=SHAPES)
def test_weights_of_dice_loss_are_not_divided_by_their_sum(shape, num_classes):
    weights = np.linspace(0.5, 2.0, num_classes, dtype=np.float32)
    theirs = monai.DiceLoss(to_onehot_y=True, softmax=True, weight=torch.from_numpy(weights), smooth_nr=0, smooth_dr=0)

    def ours(x, y):
        return losses.soft_dice(x, y, classes="all", per_image=True, class_weights=weights)

    check(ours, theirs, shape, num_classes, 1 / weights.mean())


def test_tversky_with_one_and_one_is_dice_loss_with_jaccard():
    theirs = monai.DiceLoss(to_onehot_y=True, softmax=True, jaccard=True, batch=True, smooth_nr=0, smooth_dr=0)
    check(lambda x, y: losses.tversky(x, y, alpha=1.0, beta=1.0), theirs, (3, 10, 11), 3)


@pytest.mark.parametrize(("shape", "num_classes"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("batch", [False, True])
def test_tversky_is_tversky_loss(shape, num_classes, background, batch):
    theirs = monai.TverskyLoss(
        include_background=background, to_onehot_y=True, softmax=True, batch=batch, alpha=0.3, beta=0.7,
        smooth_nr=0.1, smooth_dr=0.1,
    )  # fmt: skip

    def ours(x, y):
        classes = classes_of(background, num_classes)
        return losses.tversky(x, y, classes=classes, per_image=not batch, alpha=0.3, beta=0.7, smooth=0.1)

    check(ours, theirs, shape, num_classes)


@pytest.mark.parametrize(("shape", "num_classes"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_focal_loss_times_the_number_of_classes(shape, num_classes, gamma):
    theirs = monai.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=gamma)
    check(lambda x, y: losses.focal(x, y, gamma=gamma), theirs, shape, num_classes, num_classes)
