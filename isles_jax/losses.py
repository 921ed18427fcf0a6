"""Losses for segmentation in JAX: cross-entropy, focal, Dice, Tversky, Lovasz, boundary and relativistic losses.

This file imports jax and nothing else, so it can be copied into another project as it is.

Conventions. Channels come last, after any number of spatial axes. `logits` are unnormalised scores [..., C], where C is
2 or more, background included (for probabilities give `jnp.log(p)`). Only `lovasz_hinge` takes one logit for each
pixel. `labels` are integers [...] in 0..C-1. `where` is a bool mask that broadcasts to `labels`. A pixel where it is
False has no influence at all (its logits may be NaN, its label may be 255), and its gradient is exactly zero. A loss
with no pixel left is 0.0. A label outside 0..C-1 that is not masked makes the loss NaN, so that the error cannot hide.
Every loss is computed in float32, whatever type comes in. In bfloat16 the Lovasz losses would silently lose most of
their gradient. `reduction="mean"` gives one float32 scalar. `reduction="none"` gives float32 [B]: the loss of each
image of the first axis alone, which is 0.0 for an image with no pixel left. Shapes and types that do not fit raise
ValueError or TypeError when the function is traced. Every function works under `jit`, `grad`, `vmap`, `pmap` and
`shard_map`, with x64 on or off, and has a Hessian (`jax.hessian`). `jvp` and `jacfwd` raise TypeError for the Lovasz
losses, and with up to eight classes for `soft_dice`, `tversky` and `boundary_distance`. Under `pmap` and `shard_map` a
function sees the pixels of its own device only.
"""

# This module is longer than the others, because users copy it as one file. Two fifths of it are documentation.

from collections.abc import Callable
from functools import partial, reduce
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

__all__ = [
    "boundary_distance",
    "boundary_mask",
    "boundary_weighted_nll",
    "cross_entropy",
    "focal",
    "lovasz_hinge",
    "lovasz_softmax",
    "relativistic_discriminator_loss",
    "relativistic_generator_loss",
    "signed_distances",
    "soft_dice",
    "tversky",
]

# The bits of float32 infinity. The bits of non-negative floats, read as integers, have the order of the floats.
_INFINITY = 0x7F800000
# The number of pixels whose flags fill one uint32.
_WORD = 32
# A sum over up to this many classes is written out term by term.
_FEW = 32
# With more classes than this, the softmax is taken while the classes are the last axis.
_MANY = 8
# The smallest normal float32.
_TINY = 2.0**-126
# The largest number of independent sorts in one program.
_GROUPS = 8

_Result = TypeVar("_Result")


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    reduction: str = "mean",
) -> Array:
    """Mean negative log-likelihood over the unmasked pixels.

        sum_i w[y_i] * -log softmax(x_i)[y_i]  /  sum_i w[y_i]

    Args:
      logits: [..., C].
      labels: integers [...].
      where: bool mask that broadcasts to labels; False: ignore the pixel.
      class_weights: [C], not negative; None: all 1. The mean is the weighted mean, as in PyTorch.
      reduction: "mean": over all pixels. "none": over the pixels of each image.

    Returns:
      float32 scalar or [B], in nats.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
      >>> print(f"{cross_entropy(logits, jnp.array([0, 1])):.4f}")
      0.4100
      >>> print(f"{cross_entropy(logits, jnp.array([0, 255]), where=jnp.array([True, False])):.4f}")
      0.1269
    """
    name = "cross_entropy"
    logits, labels, mask = _segmentation(name, logits, labels, where)
    return _mean_of_pixels(name, _nll(logits, labels), logits, labels, mask, class_weights, reduction)


def focal(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: float = 2.0,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    reduction: str = "mean",
) -> Array:
    """Focal loss: cross-entropy in which a well predicted pixel counts less.

        sum_i w[y_i] * (1 - p_i)^gamma * -log p_i  /  sum_i w[y_i],   p_i = softmax(x_i)[y_i]

    (Lin, Goyal, Girshick, He and Dollar 2017, arXiv 1708.02002, equation 5, with a softmax in place of the sigmoid; the
    class weights are the paper's alpha.)

    Args:
      logits: [..., C].
      labels: integers [...].
      gamma: not negative; 0 is cross-entropy.
      where: bool mask that broadcasts to labels; False: ignore the pixel.
      class_weights: [C], not negative; None: all 1. The mean is the weighted mean, as in `cross_entropy`.
      reduction: "mean": over all pixels. "none": over the pixels of each image.

    Returns:
      float32 scalar or [B], in nats.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
      >>> print(f"{focal(logits, jnp.array([0, 1])):.4f}")  # (0.1192^2 * 0.1269 + 0.5^2 * 0.6931) / 2
      0.0875
    """
    name = "focal"
    logits, labels, mask = _segmentation(name, logits, labels, where)
    nll = _nll(logits, labels)
    # 1 - p is kept above 0, because a power below 1 has no finite derivative at 0.
    wrong = jnp.maximum(-jnp.expm1(-nll), _TINY)
    return _mean_of_pixels(name, wrong**gamma * nll, logits, labels, mask, class_weights, reduction)


def soft_dice(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    classes: str | tuple[int, ...] = "present",
    per_image: bool = False,
    squared: bool = False,
    smooth: float = 0.0,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    reduction: str = "mean",
) -> Array:
    """Soft Dice loss: 1 - Dice with probabilities in place of hard predictions.

    With p = softmax(logits)[c] and t = 1 where the label is c and 0 elsewhere, the loss of class c is

        1 - (2 sum p t + smooth) / (sum p + sum t + smooth)

    (Sudre et al. 2017, arXiv 1707.03237; with `squared`, p^2 takes the place of p in the denominator: Milletari, Navab
    and Ahmadi 2016, arXiv 1606.04797). On hard predictions it is 1 - Dice.

    Args:
      logits: [..., C].
      labels: integers [...].
      classes: "present": mean over the classes that occur in labels; "all": over all of them; a tuple of ints: over
        these, present or not. An absent class costs sum p / (sum p + smooth): without `smooth` that is 1 and has no
        gradient.
      per_image: False: all pixels together. True: the first axis is the batch; mean of the losses of those images that
        have a pixel left.
      squared: sum p^2 in the denominator, not sum p.
      smooth: in pixels, not negative.
      where: bool mask that broadcasts to labels; False: ignore the pixel.
      class_weights: [C], not negative; None: all 1. Weighted mean over the classes chosen by `classes`.
      reduction: "mean"; "none": the loss of each image, with per_image=True.

    Returns:
      float32 scalar or [B], in 0..1.

    Example:
      >>> labels = jnp.array([0, 0, 1, 1])
      >>> hard = 100.0 * jax.nn.one_hot(jnp.array([0, 1, 1, 1]), 2)  # Dice 2/3 and 4/5
      >>> print(f"{soft_dice(hard, labels):.4f}")
      0.2667
    """
    loss = partial(_overlap, 0.5, 0.5, 1.0, smooth / 2, squared)
    return _mean_of_classes("soft_dice", loss, logits, labels, classes, per_image, where, class_weights, reduction)


def tversky(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    classes: str | tuple[int, ...] = "present",
    per_image: bool = False,
    smooth: float = 0.0,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    reduction: str = "mean",
) -> Array:
    """Tversky loss: soft Dice in which false positives and false negatives have weights of their own.

    With p and t as in `soft_dice`, TP = sum p t, FP = sum p (1 - t) and FN = sum (1 - p) t, the loss of class c is

        (1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth))^gamma

    (Salehi, Erdogmus and Gholipour 2017, arXiv 1706.05721; the exponent: Abraham and Khan 2018, arXiv 1810.07842, who
    write it as 1/gamma with gamma 4/3, which is gamma=0.75 here and in their code). alpha = beta = 0.5 is `soft_dice`
    (with half of its `smooth`), and alpha = beta = 1 is the soft Jaccard loss. With beta above alpha, misses cost more.

    Args:
      logits: [..., C].
      labels: integers [...].
      alpha: weight of false positives, not negative.
      beta: weight of false negatives, not negative.
      gamma: exponent, above 0. Classes that are already good count less with gamma above 1, and more below 1.
      classes: as in `soft_dice`.
      per_image: as in `soft_dice`.
      smooth: in pixels, not negative.
      where: bool mask that broadcasts to labels; False: ignore the pixel.
      class_weights: [C], not negative; None: all 1. Weighted mean over the classes chosen by `classes`.
      reduction: "mean"; "none": the loss of each image, with per_image=True.

    Returns:
      float32 scalar or [B], in 0..1.

    Example:
      >>> labels = jnp.array([0, 0, 1, 1])
      >>> hard = 100.0 * jax.nn.one_hot(jnp.array([0, 1, 1, 1]), 2)  # 1 / (1 + 0.7) and 2 / (2 + 0.3)
      >>> print(f"{tversky(hard, labels, alpha=0.3, beta=0.7):.4f}")
      0.2711
    """
    loss = partial(_overlap, alpha, beta, gamma, smooth, False)
    return _mean_of_classes("tversky", loss, logits, labels, classes, per_image, where, class_weights, reduction)


def lovasz_softmax(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    classes: str | tuple[int, ...] = "present",
    per_image: bool = False,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    bins: int | None = None,
    reduction: str = "mean",
) -> Array:
    """Lovasz-softmax: the tight convex surrogate of 1 - mean IoU.

    With p = softmax(logits), the errors of class c are m_i = 1 - p_i[c] where the label is c and p_i[c] elsewhere. The
    loss of c is the Lovasz extension of its Jaccard loss D_c at m: with m_(1) >= m_(2) >= ... in descending order,

        L_c = sum_k m_(k) * g_k,   g_k = D_c({(1)..(k)}) - D_c({(1)..(k-1)})

    (Berman, Rannen Triki and Blaschko 2018, arXiv 1705.08790, equations 8, 9 and 11). On hard predictions L_c is
    1 - IoU. The gradient of L_c at m is g. The steps g_k are computed in closed form from integer counts, because
    differencing the index in float32 loses three digits. The gradient is written by hand and sorts nothing again.

    Args:
      logits: [..., C].
      labels: integers [...].
      classes: "present": mean over the classes that occur in labels; "all": over all of them (an absent one costs its
        largest probability); a tuple of ints: over these, present or not.
      per_image: False: all pixels together. True: the first axis is the batch; mean of the losses of those images that
        have a pixel left.
      where: bool mask that broadcasts to labels; False: ignore the pixel.
      class_weights: [C], not negative; None: all 1. Weighted mean over the classes chosen by `classes`.
      bins: None: exact. An int, 2 or more: errors are rounded to this many levels from 0 to 1 and counted, not sorted.
        The value is then off by at most 0.5 / (bins - 1) and exact on hard predictions; the gradient is a subgradient
        at the rounded errors. 16384 is a good choice.
      reduction: "mean"; "none": the loss of each image, with per_image=True.

    Returns:
      float32 scalar or [B], in 0..1.

    Example:
      >>> labels = jnp.array([0, 0, 1, 1])
      >>> hard = 100.0 * jax.nn.one_hot(jnp.array([0, 1, 1, 1]), 2)  # IoU 1/2 and 2/3
      >>> print(f"{lovasz_softmax(hard, labels):.4f}")
      0.4167
      >>> print(f"{lovasz_softmax(hard, labels, classes=(1,), bins=1024):.4f}")
      0.3333
    """
    name = "lovasz_softmax"
    if bins is not None and (type(bins) is not int or not 2 <= bins <= 2**24):
        raise ValueError(f"{name}: bins must be None or an int in 2..2**24, got {bins!r}")

    def loss(logits: Array, labels: Array, mask: Array, chosen: tuple[int, ...]) -> tuple[Array, Array]:
        return _lovasz_classes(logits, labels, mask, chosen, bins)

    return _mean_of_classes(name, loss, logits, labels, classes, per_image, where, class_weights, reduction)


def lovasz_hinge(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    per_image: bool = True,
    where: ArrayLike | None = None,
    reduction: str = "mean",
) -> Array:
    """Binary Lovasz hinge: the convex surrogate of 1 - IoU of the foreground, on one logit for each pixel.

    With s_i = +1 on the foreground and -1 elsewhere, the errors are m_i = max(0, 1 - s_i x_i) and the loss is the
    Lovasz extension of the Jaccard loss at m, as in `lovasz_softmax` (Berman et al. 2018, arXiv 1705.08790, equation 8
    at the hinge's errors).

    Args:
      logits: [...], positive: foreground.
      labels: integers 0 and 1, or bools, of the same shape.
      per_image: True: the first axis is the batch; mean of the losses of those images that have a pixel left. False:
        all pixels together.
      where: bool mask that broadcasts to labels; False: ignore the pixel.
      reduction: "mean"; "none": the loss of each image, with per_image=True.

    Returns:
      float32 scalar or [B], 0 or more.

    Example:
      >>> logits = jnp.array([[3.0, -3.0, 0.5]])
      >>> print(f"{lovasz_hinge(logits, jnp.array([[1, 0, 1]])):.4f}")
      0.2500
    """
    name = "lovasz_hinge"
    logits = _float(name, "logits", logits)
    labels = jnp.asarray(labels)
    if labels.dtype == jnp.bool_:
        labels = labels.astype(jnp.int8)
    labels = _integer(name, labels, 2)
    if logits.shape != labels.shape:
        raise ValueError(f"{name}: logits and labels have one shape, got {logits.shape} and {labels.shape}")
    shape = _images_by_pixels(name, labels, per_image, reduction)
    mask = _mask(name, where, labels.shape).reshape(shape)
    labels = labels.reshape(shape)
    foreground = (labels == 1) & mask
    logits = jnp.where(mask, logits.reshape(shape), 0.0)
    errors = jax.nn.relu(1.0 - jnp.where(foreground, logits, -logits))
    return _of_images(_lovasz_binary(errors, foreground, mask), labels, mask, 2, reduction)


def boundary_mask(labels: ArrayLike, num_classes: int, *, size: int = 3, spatial_ndim: int = 2) -> Array:
    """The pixels near a change of class: the union over classes of dilation minus erosion.

    The structuring element is a square (or cube) of side `size`. Nothing is known outside the image, so the image's
    border is no boundary. On straight edges the band is size - 1 pixels wide.

    Args:
      labels: integers [..., spatial axes]; a label outside 0..num_classes-1 belongs to no class.
      num_classes: number of classes C.
      size: side of the element in pixels, odd.
      spatial_ndim: how many trailing axes are spatial.

    Returns:
      bool, of labels' shape.

    Example:
      >>> print(boundary_mask(jnp.array([[0, 0, 0, 1, 1, 1]]), 2).astype(int))
      [[0 0 1 1 0 0]]
    """
    labels = _integer("boundary_mask", labels, _class_count("boundary_mask", num_classes))
    _check_window("boundary_mask", size, spatial_ndim, labels.ndim)
    return _boundary(labels, None, num_classes, size, spatial_ndim)


def boundary_weighted_nll(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    weight: float = 10.0,
    size: int = 3,
    spatial_ndim: int = 2,
    where: ArrayLike | None = None,
    reduction: str = "mean",
) -> Array:
    """Cross-entropy in which pixels at a boundary between classes count `weight` times.

        1/N * sum_i w_i * -log softmax(x_i)[y_i],   w_i = weight on boundary_mask(labels) and 1 elsewhere

    N is the number of unmasked pixels, not the sum of the weights (Rajan, Sathish and Sheet, section 2). Masked pixels
    make no boundary. The "boundary loss" of Kervadec et al. is another loss, `boundary_distance`.

    Args:
      logits: [..., C].
      labels: integers [...], spatial axes last.
      weight: the weight of a boundary pixel.
      size: side of the structuring element in pixels, odd; see `boundary_mask`.
      spatial_ndim: how many trailing axes of labels are spatial.
      where: bool mask that broadcasts to labels; False: ignore the pixel.
      reduction: "mean": over all pixels. "none": over the pixels of each image.

    Returns:
      float32 scalar or [B], in nats.

    Example:
      >>> labels = jnp.array([[0, 0, 0, 1, 1, 1]])
      >>> print(f"{boundary_weighted_nll(jnp.zeros((1, 6, 2)), labels):.4f}")  # (2 * 10 + 4) / 6 * log(2)
      2.7726
    """
    name = "boundary_weighted_nll"
    logits, labels, mask = _segmentation(name, logits, labels, where)
    _check_window(name, size, spatial_ndim, labels.ndim)
    axes = _pixel_axes(name, labels, reduction)
    boundary = _boundary(labels, None if where is None else mask, logits.shape[-1], size, spatial_ndim)
    total = jnp.sum(jnp.where(boundary, jnp.float32(weight), 1.0) * mask * _nll(logits, labels), axis=axes)
    return _ratio(total, jnp.sum(mask, axis=axes, dtype=jnp.float32)) + _nan_if_invalid(
        labels, logits.shape[-1], mask, axes
    )


def signed_distances(labels: ArrayLike, num_classes: int, spacing: tuple[float, ...]) -> Array:
    """The Euclidean distance of each pixel to the edge of each class: negative inside, positive outside.

    The distance ends at the centre of the nearest pixel on the other side, half a pixel beyond the edge itself. It is
    exact up to float32's rounding. A class that has no pixel of the image, or all of them, has distance 0 everywhere. A
    pixel whose label is outside 0..num_classes-1 lies on neither side, and its own distance is 0.

    Each axis of n pixels takes n passes over the image: 96 x 128 pixels take 224. If the labels do not change while
    training, compute the distances once.

    Args:
      labels: integers [..., spatial axes].
      num_classes: number of classes C.
      spacing: distance between pixels along each spatial axis, these being the last len(spacing) axes of labels.

    Returns:
      float32 [..., spatial axes, C], in the unit of spacing.

    Example:
      >>> print(signed_distances(jnp.array([0, 0, 1, 1]), 2, (2.0,))[:, 1])
      [ 4.  2. -2. -4.]
    """
    name = "signed_distances"
    labels = _integer(name, labels, _class_count(name, num_classes))
    axes = len(spacing)
    if not 1 <= axes <= labels.ndim:
        raise ValueError(f"{name}: spacing needs 1 to {labels.ndim} numbers for labels {labels.shape}, got {spacing}")
    known = ((labels >= 0) & (labels < num_classes))[..., None]
    inside = _one_hot(labels, num_classes)
    out, into = (_distance(side, spacing) for side in (inside, known & ~inside))
    return jnp.where(known & jnp.isfinite(out) & jnp.isfinite(into), jnp.where(inside, -into, out), 0.0)


def boundary_distance(
    logits: ArrayLike, distances: ArrayLike, *, where: ArrayLike | None = None, reduction: str = "mean"
) -> Array:
    """The boundary loss of Kervadec et al.: each pixel's probability times its signed distance to the true edge.

        1/N * sum_i sum_c softmax(x_i)[c] * distances[i, c]

    N is the number of unmasked pixels (Kervadec et al. 2019, arXiv 1812.07032, equation 5; the authors' code divides by
    the number of classes as well). It is lowest, and negative, at the true segmentation. The authors add it to an
    overlap loss with a weight that grows from 0.01 while training. A class whose distances are 0 has no part in it, so
    `distances.at[..., 0].set(0.0)` leaves the background out.

    Args:
      logits: [..., C].
      distances: [..., C], as `signed_distances` returns them.
      where: bool mask that broadcasts to logits.shape[:-1]; False: ignore the pixel.
      reduction: "mean": over all pixels. "none": over the pixels of each image.

    Returns:
      float32 scalar or [B], in the unit of the distances.

    Example:
      >>> distances = signed_distances(jnp.array([0, 0, 1, 1]), 2, (1.0,))
      >>> print(f"{boundary_distance(jnp.zeros((4, 2)), distances):.4f}")
      0.0000
      >>> print(f"{boundary_distance(jnp.array([[9.0, 0.0]] * 2 + [[0.0, 9.0]] * 2), distances):.4f}")
      -1.4996
    """
    name = "boundary_distance"
    distances = _float(name, "distances", distances)
    # Any labels will do: only the logits and the mask are used.
    logits, labels, mask = _segmentation(name, logits, jnp.zeros(jnp.shape(logits)[:-1], jnp.int32), where)
    if distances.shape != logits.shape:
        raise ValueError(f"{name}: logits {logits.shape} need distances of that shape, got {distances.shape}")
    shape = _images_by_pixels(name, labels, reduction == "none", reduction)
    distances = distances if where is None else jnp.where(mask[..., None], distances, 0.0)
    logits, distances = (_padded(x.reshape(*shape, x.shape[-1]), x.shape[-1]) for x in (logits, distances))
    total = _expected_sums(logits, distances)
    losses = _ratio(total, jnp.sum(mask.reshape(shape), axis=1, dtype=jnp.float32))
    return losses if reduction == "none" else losses[0]


def relativistic_discriminator_loss(real: ArrayLike, fake: ArrayLike, *, average: bool = False) -> Array:
    """The critic's loss of a relativistic GAN: real should look more real than fake.

    With l(x) = log(1 + exp(-x)), r = real and f = fake (Jolicoeur-Martineau 2018, arXiv 1807.00734; halved, as in the
    author's code, where the paper writes the sum for RaSGAN):

        RSGAN  (average=False)  mean l(r - f)
        RaSGAN (average=True)   (mean l(r - mean f) + mean l(mean r - f)) / 2

    Args:
      real: critic logits of the real examples [B], no sigmoid.
      fake: those of the fakes [B]; with average=False, fake[i] belongs to real[i].
      average: compare with the other kind's mean over the batch, not with the partner.

    Returns:
      float32 scalar, in nats.

    Example:
      >>> print(f"{relativistic_discriminator_loss(jnp.array([2.0]), jnp.array([0.0])):.4f}")
      0.1269
    """
    real, fake = _critics("relativistic_discriminator_loss", real, fake)
    return _relativistic(real, fake, average)


def relativistic_generator_loss(real: ArrayLike, fake: ArrayLike, *, average: bool = False) -> Array:
    """The generator's loss of a relativistic GAN: fake should look more real than real.

    The discriminator's loss with real and fake exchanged (Jolicoeur-Martineau 2018, arXiv 1807.00734):

        RSGAN  (average=False)  mean l(f - r)
        RaSGAN (average=True)   (mean l(f - mean r) + mean l(mean f - r)) / 2

    The gradient flows through both arguments, as in the author's code.

    Args:
      real: critic logits [B], as the discriminator's loss takes them.
      fake: critic logits [B], likewise.
      average: the same as for the discriminator's loss.

    Returns:
      float32 scalar, in nats.

    Example:
      >>> print(f"{relativistic_generator_loss(jnp.array([2.0]), jnp.array([0.0])):.4f}")
      2.1269
    """
    real, fake = _critics("relativistic_generator_loss", real, fake)
    return _relativistic(fake, real, average)


# Sums of probabilities over pixels.


def _overlap(
    alpha: float,
    beta: float,
    gamma: float,
    smooth: float,
    squared: bool,
    logits: Array,
    labels: Array,
    mask: Array,
    chosen: tuple[int, ...],
) -> tuple[Array, Array]:
    """The Tversky loss of each chosen class in each image, and whether the class has a pixel; see `_lovasz_classes`."""
    # The sums of the other classes are few numbers, so they may be computed for nothing.
    hits, extra, missed = (x[:, jnp.array(chosen)] for x in _soft_counts(logits, labels, mask, squared))
    # 1 - index is one fraction. So no digit is lost where the loss is small, and the loss is 0 where there is nothing.
    wrong = alpha * extra + beta * missed
    losses = _ratio(wrong, hits + wrong + smooth)
    # A power below 1 has no finite derivative at 0.
    losses = jnp.where(losses < _TINY, 0.0, jnp.maximum(losses, _TINY) ** gamma)
    # A pixel of the class adds at least 3/4 to hits + missed. NaN counts as present, so that it shows in the loss.
    return losses, hits + missed != 0


def _soft_counts(logits: Array, labels: Array, mask: Array, squared: bool) -> tuple[Array, Array, Array]:
    """True positives, false positives and false negatives of each class in each image, [B, C].

    Args:
      logits: [B, N, C], N as `_padded` makes it.
      labels: [B, N].
      mask: [B, N].
      squared: a false positive counts p^2 and a false negative (1 - p)^2, not p and 1 - p.
    """
    images, count = len(labels), logits.shape[-1]
    if count <= _MANY:
        probabilities = _probabilities(logits)
        foreground = jnp.moveaxis(_one_hot(labels, count), -1, 0) & mask
    else:
        probabilities = jax.nn.softmax(_words(logits), axis=-1)
        mask = _words(mask)[..., None]
        foreground = _one_hot(_words(labels), count) & mask
    power = 2 if squared else 1
    hits = jnp.where(foreground, probabilities, 0.0)
    extra = jnp.where(~foreground & mask, probabilities**power, 0.0)
    missed = jnp.where(foreground, (1.0 - probabilities) ** power, 0.0)
    if count <= _MANY:
        return _row_sums(hits).T, _row_sums(extra).T, _row_sums(missed).T
    # The sums of words come first: one sum over millions of pixels may lose digits.
    hits, extra, missed = (jnp.sum(x, axis=1).reshape(images, -1, count) for x in (hits, extra, missed))
    return jnp.sum(hits, axis=1), jnp.sum(extra, axis=1), jnp.sum(missed, axis=1)


def _expected_sums(logits: Array, values: Array) -> Array:
    """Sums over pixels and classes of softmax(logits) * values, both [B, N, C] as `_padded` makes them: [B]."""
    if logits.shape[-1] <= _MANY:
        return _expected_sums_of_few(logits, values)
    expected = jnp.sum(jax.nn.softmax(_words(logits), axis=-1) * _words(values), axis=-1)
    return _sum_of_pixels(expected.reshape(len(logits), -1))


def _words(x: Array) -> Array:
    """[B, N, ...] as [B * N / _WORD, _WORD, ...]: XLA's CPU divides the first axis among the cores."""
    return x.reshape(-1, _WORD, *x.shape[2:])


# The derivatives below are written by hand because autodiff would store more arrays of the size of the logits.


@jax.custom_vjp
def _expected_sums_of_few(logits: Array, values: Array) -> Array:
    return _expected_sums_forward(logits, values)[0]


def _expected_sums_forward(logits: Array, values: Array) -> tuple[Array, tuple[Array, Array]]:
    probabilities = lax.optimization_barrier(_softmax(logits))
    sums = _sum_of_pixels(_sum_of_classes(probabilities * jnp.moveaxis(values, -1, 0)))
    return sums, (probabilities, values)


def _expected_sums_backward(residuals: tuple[Array, Array], cotangents: Array) -> tuple[Array, Array]:
    probabilities, values = residuals
    slopes = cotangents[:, None] * jnp.moveaxis(values, -1, 0)
    by_values = jnp.moveaxis(cotangents[:, None] * probabilities, 0, -1)
    return _softmax_gradient(probabilities, slopes), by_values


_expected_sums_of_few.defvjp(_expected_sums_forward, _expected_sums_backward)


@jax.custom_vjp
def _probabilities(logits: Array) -> Array:
    """Softmax of [B, N, C] as [C, B, N]."""
    return _softmax(logits)


def _probabilities_forward(logits: Array) -> tuple[Array, Array]:
    probabilities = lax.optimization_barrier(_softmax(logits))
    return probabilities, probabilities


_probabilities.defvjp(_probabilities_forward, lambda probabilities, slopes: (_softmax_gradient(probabilities, slopes),))


@jax.custom_vjp
def _row_sums(x: Array) -> Array:
    """The same as `_sum_of_pixels`, whose slices autodiff would differentiate one by one."""
    return _sum_of_pixels(x)


_row_sums.defvjp(
    lambda x: (_sum_of_pixels(x), x),
    lambda like, slopes: (jnp.broadcast_to(slopes[..., None], like.shape),),
)


# The Lovasz extension of the Jaccard loss.


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _lovasz_classes(
    logits: Array, labels: Array, mask: Array, chosen: tuple[int, ...], bins: int | None
) -> tuple[Array, Array]:
    """The Lovasz loss of each chosen class in each image.

    Args:
      logits: float32 [B, N, C], finite where masked.
      labels: int32 [B, N].
      mask: bool [B, N].
      chosen: K classes.
      bins: None, or the number of levels.

    Returns:
      Losses, float32 [B, K], and whether the class has a pixel, bool [B, K].
    """
    result: tuple[Array, Array] = _classes(logits, labels, mask, chosen, bins, False)[0]
    return result


def _classes_forward(
    logits: Array, labels: Array, mask: Array, chosen: tuple[int, ...], bins: int | None
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    both: tuple[tuple[Array, Array], tuple[Array, Array]] = _classes(logits, labels, mask, chosen, bins, True)
    return both


@partial(jax.jit, static_argnums=(3, 4, 5))
def _classes(
    logits: Array, labels: Array, mask: Array, chosen: tuple[int, ...], bins: int | None, gradient: bool
) -> tuple[tuple[Array, Array], tuple[Array, Array] | None]:
    """The result of `_lovasz_classes` and, if wanted, what backward needs: probabilities and slopes, pixels last."""
    probabilities = _softmax(logits)
    picked = probabilities if chosen == tuple(range(len(probabilities))) else probabilities[jnp.array(chosen)]
    foreground = (labels == jnp.array(chosen, jnp.int32)[:, None, None]) & mask
    # A softmax may round to a little more than 1.
    errors = jnp.maximum(jnp.where(foreground, 1.0 - picked, picked), 0.0)
    losses, steps = _extension(errors, foreground, jnp.broadcast_to(mask, errors.shape), bins, gradient)
    result = losses.T, jnp.any(foreground, axis=-1).T
    return result, (probabilities, jnp.where(foreground, -steps, steps)) if gradient else None


@partial(jax.jit, static_argnums=(0, 1))
def _classes_backward(
    chosen: tuple[int, ...], _: int | None, residuals: tuple[Array, Array], cotangents: tuple[Array, Array]
) -> tuple[Array, None, None]:
    probabilities, slopes = residuals
    slopes = slopes * cotangents[0].T[..., None]
    if chosen != tuple(range(len(probabilities))):
        slopes = jnp.zeros_like(probabilities).at[jnp.array(chosen)].set(slopes)
    return _softmax_gradient(probabilities, slopes), None, None


_lovasz_classes.defvjp(_classes_forward, _classes_backward)


@jax.custom_vjp
def _lovasz_binary(errors: Array, foreground: Array, mask: Array) -> Array:
    """Lovasz extension of the Jaccard loss over the last axis: errors [B, N], 0 or more, to losses [B]."""
    losses: Array = _extension(errors, foreground, mask, None, False)[0]
    return losses


def _binary_forward(errors: Array, foreground: Array, mask: Array) -> tuple[Array, Array]:
    both: tuple[Array, Array] = _extension(errors, foreground, mask, None, True)
    return both


_lovasz_binary.defvjp(_binary_forward, lambda steps, cotangent: (steps * cotangent[:, None], None, None))


@partial(jax.jit, static_argnums=(3, 4))
def _extension(errors: Array, foreground: Array, mask: Array, bins: int | None, gradient: bool) -> tuple[Array, Array]:
    """Lovasz extension of the Jaccard loss over the last axis.

    Args:
      errors: float32 [..., N], 0 or more; with bins also at most 1.
      foreground: bool [..., N], False where masked.
      mask: bool [..., N].
      bins: None, or the number of levels.
      gradient: whether the gradient is wanted.

    Returns:
      The values [...] and, if wanted, the gradients [..., N]; else something empty.
    """
    shape = errors.shape
    if not errors.size:
        return jnp.zeros(shape[:-1], jnp.float32), jnp.zeros(shape, jnp.float32)
    errors, foreground, mask = lax.optimization_barrier((errors, foreground, mask))
    # `_running_count` takes whole words of pixels.
    errors, foreground, mask = (
        jnp.pad(x.reshape(-1, shape[-1]), ((0, 0), (0, -shape[-1] % _WORD))) for x in (errors, foreground, mask)
    )
    if bins is None:
        values, steps = _exact(errors, foreground, mask, gradient)
    else:
        values, steps = _bucketed(errors, foreground, mask, bins, gradient)
    steps = steps[:, : shape[-1]]
    return values.reshape(shape[:-1]), steps.reshape(shape) if gradient else steps


def _in_groups(function: Callable[..., _Result], *rows: Array) -> _Result:
    """function(*rows), rows [R, ...], computed by groups of rows.

    XLA's CPU sorts each array on one thread, but it sorts several arrays at once. The barriers give each group memory
    of its own: groups that share memory have to wait for each other.
    """
    step = -(-len(rows[0]) // _GROUPS)
    groups = [[x[i : i + step] for x in rows] for i in range(0, len(rows[0]), step)]
    results = lax.optimization_barrier([function(*group) for group in lax.optimization_barrier(groups)])
    joined: _Result = jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)
    return joined


def _exact(errors: Array, foreground: Array, mask: Array, gradient: bool) -> tuple[Array, Array]:
    """The exact form on rows [R, N], N a multiple of _WORD."""
    # One unsigned key sorts the errors in descending order, the foreground first among equals, masked pixels last.
    bits = jnp.uint32(_INFINITY) - lax.bitcast_convert_type(errors, jnp.uint32)
    keys = jnp.where(mask, bits << 1 | (~foreground).astype(jnp.uint32), jnp.uint32(0xFFFFFFFF))
    left = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.int32)
    total = jnp.sum(foreground, axis=1, keepdims=True, dtype=jnp.int32)
    keys, index = lax.platform_dependent(keys, cpu=partial(_in_groups, _sort_cpu), default=_sort)
    place = lax.broadcasted_iota(jnp.int32, keys.shape, 1)
    errors = lax.bitcast_convert_type(jnp.uint32(_INFINITY) - (keys >> 1), jnp.float32)
    valid = place < left
    steps = jnp.where(valid, _steps((keys & 1) == 0, place, total), 0.0)
    values = _sum_of_pixels(jnp.where(valid, errors, 0.0) * steps)
    if not gradient:
        return values, steps[:, :0]
    by_scatter = partial(_in_groups, jax.vmap(_unsort))
    return values, lax.platform_dependent(steps, index, tpu=_unsort_by_sort, default=by_scatter)


def _unsort(steps: Array, index: Array) -> Array:
    return jnp.zeros_like(steps).at[index].set(steps, unique_indices=True, mode="promise_in_bounds")


def _unsort_by_sort(steps: Array, index: Array) -> Array:
    """The same as `_unsort` for rows, because a TPU scatters single numbers slowly."""
    return lax.sort((index, steps), num_keys=1, is_stable=False)[1]


def _bucketed(errors: Array, foreground: Array, mask: Array, bins: int, gradient: bool) -> tuple[Array, Array]:
    """The bucketed form on rows [R, N]: pixels whose errors round to one level join together.

    A pixel's step is the mean of two steps: the one if the level's foreground joins first, and the one if its
    background does. The steps of a level add up to exactly what the level adds to the Jaccard loss.
    """
    # Level 0 holds the largest errors. The last slot holds the masked pixels and is not used. The clip is for NaN.
    level = (bins - 1) - jnp.clip(jnp.round(errors * (bins - 1)).astype(jnp.int32), 0, bins - 1)
    slot = jnp.where(mask, 2 * level + foreground.astype(jnp.int32), 2 * bins)
    count = jax.vmap(lambda s: jnp.zeros(2 * bins + 1, jnp.int32).at[s].add(1, mode="promise_in_bounds"))
    counts = _in_groups(count, slot)
    counts = counts[:, :-1].reshape(-1, bins, 2)
    after = jnp.cumsum(counts, axis=1, dtype=jnp.int32)
    before = after - counts
    total = after[:, -1:, 1]
    counts = counts.astype(jnp.float32)
    one = jnp.float32(1.0)
    # The union u and the missed foreground h are those of `_steps`, before and after the level.
    union = (total + before[..., 0]).astype(jnp.float32), (total + after[..., 0]).astype(jnp.float32)
    missed = ((total - before[..., 1]).astype(jnp.float32) + (total - after[..., 1]).astype(jnp.float32)) / 2
    inverse = [one / jnp.maximum(u, one) for u in union]
    on = (inverse[0] + inverse[1]) / 2
    off = jnp.where(union[0] == 0, inverse[1], missed * inverse[0] * inverse[1])
    height = jnp.arange(bins - 1, -1, -1, dtype=jnp.float32) / (bins - 1)
    values = jnp.sum(height * (counts[..., 0] * off + counts[..., 1] * on), axis=1)
    values = jnp.where(jnp.any(jnp.isnan(errors), axis=1), jnp.float32(jnp.nan), values)
    if not gradient:
        return values, off[:, :0]
    table = jnp.pad(jnp.stack([off, on], axis=-1).reshape(-1, 2 * bins), ((0, 0), (0, 1)))
    return values, _in_groups(jax.vmap(lambda t, s: t.at[s].get(mode="promise_in_bounds")), table, slot)


def _sort(keys: Array) -> tuple[Array, Array]:
    """Sorted uint32 keys and where each came from, int32."""
    places = lax.broadcasted_iota(jnp.int32, keys.shape, keys.ndim - 1)
    keys, index = lax.sort((keys, places), num_keys=1, is_stable=False)
    return keys, index


def _sort_cpu(keys: Array) -> tuple[Array, Array]:
    """The same as `_sort`, because XLA's CPU sorts one integer operand several times as fast as two.

    The pair becomes the two halves of one 64-bit integer. Bitcasts do this without arithmetic, so that only they and
    the sort need x64. The sort is stable because XLA's stable sort is faster here.
    """
    index = lax.broadcasted_iota(jnp.uint32, keys.shape, keys.ndim - 1)
    with jax.enable_x64(True):
        pairs = lax.bitcast_convert_type(jnp.stack([index, keys], axis=-1), jnp.uint64)
        pairs = lax.bitcast_convert_type(lax.sort(pairs), jnp.uint32)
    return pairs[..., 1], pairs[..., 0].astype(jnp.int32)


def _steps(foreground: Array, place: Array, total: Array) -> Array:
    """Increments of the Jaccard loss when pixels join the errors one by one, in closed form.

    Let u be the union after the pixel joined, and h the foreground that is not yet among the errors. The loss is
    1 - h / u. A foreground pixel adds 1 / u to it, and a background pixel h / (u (u - 1)).
    """
    seen = _running_count(foreground)
    union = (total + place + 1 - seen).astype(jnp.float32)
    hits = (total - seen).astype(jnp.float32)
    background = hits / (union * jnp.maximum(union - 1.0, 1.0))
    # Without any foreground the first pixel adds the whole loss. A background pixel has a union of 1 only then.
    return jnp.where(foreground | (union <= 1.0), 1.0 / union, background)


def _running_count(flags: Array) -> Array:
    """Cumulative sum of bools [R, N] along the last axis, int32.

    It counts the bits of whole words, because XLA's own cumulative sum takes many passes.
    """
    rows, length = flags.shape
    bit = lax.broadcasted_iota(jnp.uint32, (1, 1, _WORD), 2)
    words = jnp.sum(flags.reshape(rows, -1, _WORD).astype(jnp.uint32) << bit, axis=-1, dtype=jnp.uint32)
    counts = lax.population_count(words).astype(jnp.int32)
    before = jnp.cumsum(counts, axis=1, dtype=jnp.int32) - counts
    inside = lax.population_count(words[..., None] & (jnp.uint32(0xFFFFFFFF) >> (_WORD - 1 - bit)))
    return (before[..., None] + inside.astype(jnp.int32)).reshape(rows, length)


# Euclidean distances.


def _distance(targets: Array, spacing: tuple[float, ...]) -> Array:
    """Distance of each pixel to the nearest target; targets bool [..., spatial axes, C]; infinite where there is none.

    The squared distance is computed along one axis after another, by brute force along each: the nearest target of a
    pixel lies in some row, and the distance to the nearest target within that row is already known (Felzenszwalb and
    Huttenlocher 2012).
    """
    squared = jnp.where(targets, jnp.float32(0.0), jnp.float32(jnp.inf))
    for axis, step in zip(range(targets.ndim - 1 - len(spacing), targets.ndim - 1), spacing, strict=True):
        squared = jnp.moveaxis(squared, axis, 0)
        places = jnp.arange(len(squared), dtype=jnp.int32)

        def nearest(place: Array, squared: Array = squared, step: float = step, places: Array = places) -> Array:
            along = (places - place).astype(jnp.float32) * step
            return jnp.min(squared + (along**2).reshape(-1, *[1] * (squared.ndim - 1)), axis=0)

        squared = jnp.moveaxis(lax.map(nearest, places), 0, axis)
    return jnp.sqrt(squared)


# Shared parts.


def _softmax(logits: Array) -> Array:
    """Probabilities, classes first: [B, N, C] to [C, B, N].

    The barriers make XLA compute each part once, where it would repeat it for every class.
    """
    if logits.shape[-1] > _MANY:
        # XLA's CPU would take the exponentials of the turned array one by one.
        return jnp.moveaxis(lax.optimization_barrier(jax.nn.softmax(logits, axis=-1)), -1, 0)
    logits = lax.optimization_barrier(jnp.moveaxis(logits, -1, 0))
    largest = reduce(jnp.maximum, logits)
    powers: Array = lax.optimization_barrier(jnp.exp(logits - lax.optimization_barrier(largest)))
    return powers / _sum_of_classes(powers)


def _softmax_gradient(probabilities: Array, slopes: Array) -> Array:
    """Gradient by the logits [B, N, C] from that by the probabilities, `slopes` [C, B, N]."""
    gradient = probabilities * (slopes - _sum_of_classes(probabilities * slopes))
    return jnp.moveaxis(lax.optimization_barrier(gradient), 0, -1)


def _sum_of_classes(x: Array) -> Array:
    """Sum over the first axis, because XLA's own sum is slow on CPUs if that axis is short.

    The barrier makes XLA compute the sum once, where it would repeat it for every class.
    """
    total: Array = lax.optimization_barrier(reduce(jnp.add, x) if len(x) <= _FEW else jnp.sum(x, axis=0))
    return total


def _sum_of_pixels(x: Array) -> Array:
    """Sum over the last axis, a multiple of 8. It first adds eight parts, which is faster on CPUs and more accurate."""
    return jnp.sum(reduce(jnp.add, jnp.moveaxis(x.reshape(*x.shape[:-1], 8, -1), -2, 0)), axis=-1)


def _one_hot(labels: Array, num_classes: int) -> Array:
    return labels[..., None] == jnp.arange(num_classes, dtype=labels.dtype)


def _nll(logits: Array, labels: Array) -> Array:
    """Negative log-likelihood of each pixel, [...]."""
    scores = jnp.sum(jnp.where(_one_hot(labels, logits.shape[-1]), logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - scores


def _mean_of_pixels(
    name: str, values: Array, logits: Array, labels: Array, mask: Array, class_weights: ArrayLike | None, reduction: str
) -> Array:
    """Mean of values [...] over the unmasked pixels, each weighted by its class."""
    axes = _pixel_axes(name, labels, reduction)
    count = logits.shape[-1]
    weights = mask.astype(jnp.float32)
    if class_weights is not None:
        table = _class_weights(name, class_weights, count)
        weights = weights * jnp.sum(jnp.where(_one_hot(labels, count), table, 0.0), axis=-1)
    mean = _ratio(jnp.sum(weights * values, axis=axes), jnp.sum(weights, axis=axes))
    return mean + _nan_if_invalid(labels, count, mask, axes)


def _mean_of_classes(
    name: str,
    loss: Callable[..., tuple[Array, Array]],
    logits: ArrayLike,
    labels: ArrayLike,
    classes: str | tuple[int, ...],
    per_image: bool,
    where: ArrayLike | None,
    class_weights: ArrayLike | None,
    reduction: str,
) -> Array:
    """Mean over classes, then over images, of what loss(logits [B, N, C], labels, mask, chosen) gives as [B, K]."""
    logits, labels, mask = _segmentation(name, logits, labels, where)
    count = logits.shape[-1]
    chosen = _chosen_classes(name, classes, count)
    table = jnp.ones(count, jnp.float32) if class_weights is None else _class_weights(name, class_weights, count)
    shape = _images_by_pixels(name, labels, per_image, reduction)
    labels = labels.reshape(shape)
    # Without the barrier XLA would spend many seconds of compilation on what depends on a constant mask.
    mask = lax.optimization_barrier(mask.reshape(shape))
    losses, present = loss(*(_padded(x, count) for x in (logits.reshape(*shape, count), labels, mask)), chosen)
    weights = jnp.broadcast_to(table[jnp.array(chosen)], losses.shape)
    if classes == "present":
        weights = jnp.where(present, weights, 0.0)
    losses = _ratio(jnp.sum(weights * losses, axis=1), jnp.sum(weights, axis=1))
    return _of_images(losses, labels, mask, count, reduction)


def _of_images(losses: Array, labels: Array, mask: Array, num_classes: int, reduction: str) -> Array:
    """The losses [B] of images, or their mean over those that have a pixel left; labels and mask [B, N]."""
    if reduction == "none":
        return jnp.where(jnp.any(mask, axis=-1), losses, 0.0) + _nan_if_invalid(labels, num_classes, mask, -1)
    left = jnp.any(mask, axis=-1).astype(jnp.float32)
    return _ratio(jnp.sum(losses * left), jnp.sum(left)) + _nan_if_invalid(labels, num_classes, mask)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, 0 (with a gradient of 0) where the denominator is 0."""
    empty = denominator == 0
    return jnp.where(empty, 0.0, numerator) / jnp.where(empty, 1.0, denominator)


def _boundary(labels: Array, mask: Array | None, num_classes: int, size: int, spatial_ndim: int) -> Array:
    # A pixel is in some class's dilation and not in its erosion exactly when its window holds more than one class. Then
    # the largest label in the window is not the smallest. Pixels that are masked or outside the image do not count.
    dtype = jnp.int8 if num_classes <= 126 else jnp.int32
    least, most = jnp.iinfo(dtype).min, jnp.iinfo(dtype).max
    labels = jnp.where((labels < 0) | (labels >= num_classes), -1, labels).astype(dtype)
    low = labels if mask is None else jnp.where(mask, labels, jnp.array(most, dtype))
    high = labels if mask is None else jnp.where(mask, labels, jnp.array(least, dtype))
    for axis in range(labels.ndim - spatial_ndim, labels.ndim):
        low = _running(jnp.minimum, low, axis, size, most)
        high = _running(jnp.maximum, high, axis, size, least)
    return low < high


def _running(extremum: Callable[[Array, Array], Array], x: Array, axis: int, size: int, outside: int) -> Array:
    """Minimum or maximum along one axis, over a window of `size` places around each place."""
    margin = [(size // 2, size // 2) if i == axis else (0, 0) for i in range(x.ndim)]
    padded = jnp.pad(x, margin, constant_values=outside)
    return reduce(extremum, [lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(size)])


def _relativistic(winner: Array, loser: Array, average: bool) -> Array:
    if not average:
        return jnp.mean(jax.nn.softplus(loser - winner))
    first = jnp.mean(jax.nn.softplus(jnp.mean(loser) - winner))
    return (first + jnp.mean(jax.nn.softplus(loser - jnp.mean(winner)))) / 2


# Checks of the arguments. All of them happen while tracing.


def _float(name: str, what: str, x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: {what} must be floating point, got {x.dtype}")
    return x.astype(jnp.float32)


def _integer(name: str, labels: ArrayLike, num_classes: int) -> Array:
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name}: labels must be integers, got {labels.dtype}")
    if jnp.iinfo(labels.dtype).max > jnp.iinfo(jnp.int32).max:
        # A number that int32 cannot hold is no class, and must not become one by wrapping around.
        labels = jnp.where((labels < 0) | (labels > num_classes), num_classes, labels)
    return labels.astype(jnp.int32)


def _mask(name: str, where: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    if where is None:
        return jnp.ones(shape, bool)
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"{name}: where must be bool, got {where.dtype}")
    try:
        return jnp.broadcast_to(where, shape)
    except ValueError:
        raise ValueError(f"{name}: where must broadcast to labels {shape}, got {where.shape}") from None


def _segmentation(name: str, logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None) -> tuple[Array, ...]:
    """Logits in float32 with zeros where masked, labels in int32, and the whole mask."""
    logits = _float(name, "logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{name}: logits are [..., C] with C of at least 2, got {logits.shape}")
    if logits.shape[-1] == 1:
        # A softmax over one class is 1 whatever the logit, so nothing could be learnt.
        raise ValueError(f"{name}: use two logits for each pixel, or lovasz_hinge with one, got logits {logits.shape}")
    labels = _integer(name, labels, logits.shape[-1])
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"{name}: logits {logits.shape} need labels {logits.shape[:-1]}, got {labels.shape}")
    mask = _mask(name, where, labels.shape)
    return (logits if where is None else jnp.where(mask[..., None], logits, 0.0)), labels, mask


def _nan_if_invalid(labels: Array, num_classes: int, mask: Array, axes: int | tuple[int, ...] | None = None) -> Array:
    """0, or NaN if an unmasked label is no class."""
    invalid = jnp.any(((labels < 0) | (labels >= num_classes)) & mask, axis=axes)
    return jnp.where(invalid, jnp.float32(jnp.nan), jnp.float32(0.0))


def _images_by_pixels(name: str, labels: Array, per_image: bool, reduction: str) -> tuple[int, int]:
    """The shape of labels as images by pixels."""
    if reduction not in ("mean", "none"):
        raise ValueError(f'{name}: reduction is "mean" or "none", got {reduction!r}')
    if not per_image:
        if reduction == "none":
            raise ValueError(f'{name}: reduction="none" is the loss of each image and needs per_image=True')
        return 1, labels.size
    if labels.ndim == 0:
        raise ValueError(f"{name}: a loss per image needs labels with a first axis of images, got shape {labels.shape}")
    return labels.shape[0], labels.size // max(labels.shape[0], 1)


def _pixel_axes(name: str, labels: Array, reduction: str) -> tuple[int, ...] | None:
    """The axes of labels to take the mean over: all, or all but the first."""
    _images_by_pixels(name, labels, reduction == "none", reduction)
    return None if reduction == "mean" else tuple(range(1, labels.ndim))


def _padded(x: Array, num_classes: int) -> Array:
    """[B, N, ...] with zeros at the end of the second axis, so that N is a multiple of whole words.

    With few classes it is an odd multiple: rows whose length is a power of two would meet in the same few lines of a
    CPU's cache.
    """
    more = -x.shape[1] % _WORD if num_classes > _MANY else (_WORD - x.shape[1]) % (2 * _WORD)
    return jnp.pad(x, [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)])


def _class_weights(name: str, class_weights: ArrayLike, num_classes: int) -> Array:
    class_weights = jnp.asarray(class_weights)
    if class_weights.shape != (num_classes,):
        raise ValueError(f"{name}: class_weights must have shape {(num_classes,)}, got {class_weights.shape}")
    return class_weights.astype(jnp.float32)


def _chosen_classes(name: str, classes: str | tuple[int, ...], num_classes: int) -> tuple[int, ...]:
    if isinstance(classes, str):
        if classes not in ("present", "all"):
            raise ValueError(f'{name}: classes is "present", "all" or a tuple of ints, got {classes!r}')
        return tuple(range(num_classes))
    if not isinstance(classes, tuple) or not classes or not all(type(c) is int for c in classes):
        raise TypeError(f'{name}: classes is "present", "all" or a tuple of ints, got {classes!r}')
    if min(classes) < 0 or max(classes) >= num_classes or len(set(classes)) < len(classes):
        raise ValueError(f"{name}: classes must be different ints in 0..{num_classes - 1}, got {classes}")
    return classes


def _class_count(name: str, num_classes: int) -> int:
    if type(num_classes) is not int or num_classes < 1:
        raise ValueError(f"{name}: num_classes must be an int of at least 1, got {num_classes!r}")
    return num_classes


def _check_window(name: str, size: int, spatial_ndim: int, ndim: int) -> None:
    if type(size) is not int or type(spatial_ndim) is not int:
        raise TypeError(f"{name}: size and spatial_ndim must be ints, got {size!r} and {spatial_ndim!r}")
    if size < 1 or size % 2 == 0:
        raise ValueError(f"{name}: size must be odd and positive, got {size}")
    if not 1 <= spatial_ndim <= ndim:
        raise ValueError(f"{name}: spatial_ndim must be in 1..{ndim} for labels with {ndim} axes, got {spatial_ndim}")


def _critics(name: str, real: ArrayLike, fake: ArrayLike) -> tuple[Array, Array]:
    real, fake = _float(name, "real", real), _float(name, "fake", fake)
    if real.shape != fake.shape or not real.size:
        raise ValueError(f"{name}: real and fake have one shape and are not empty, got {real.shape} and {fake.shape}")
    return real, fake
