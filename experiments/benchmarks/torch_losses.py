"""The losses of `isles_jax.losses` in PyTorch, in the forms that its users write. Needs the extra `bench`.

Logits are [B, C, ...], labels [B, ...].
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def lovasz_loop(logits: Tensor, labels: Tensor) -> Tensor:
    """The reference implementation's form: a loop over the classes that are present."""
    probabilities = logits.softmax(1).transpose(0, 1).flatten(1)
    labels = labels.flatten()
    terms = []
    for c, p in enumerate(probabilities):
        foreground = (labels == c).float()
        if foreground.sum() == 0:
            continue
        errors, order = torch.sort((foreground - p).abs(), dim=0, descending=True)
        terms.append(torch.dot(errors, _jaccard_steps(foreground[order])))
    return torch.stack(terms).mean()


def lovasz_batched(logits: Tensor, labels: Tensor) -> Tensor:
    """One sort for all classes. A pixel with a negative label has no error in any class."""
    probabilities = logits.softmax(1).transpose(0, 1).flatten(1)
    labels = labels.flatten()
    foreground = (labels == torch.arange(len(probabilities), device=labels.device)[:, None]).float()
    errors, order = torch.sort((foreground - probabilities).abs() * (labels >= 0), dim=1, descending=True)
    terms = (errors * _jaccard_steps(foreground.gather(1, order))).sum(1)
    present = (foreground.sum(1) > 0).float()
    return (terms * present).sum() / present.sum()


def _jaccard_steps(foreground: Tensor) -> Tensor:
    total = foreground.sum(-1, keepdim=True)
    jaccard = 1 - (total - foreground.cumsum(-1)) / (total + (1 - foreground).cumsum(-1))
    return torch.cat([jaccard[..., :1], jaccard[..., 1:] - jaccard[..., :-1]], dim=-1)


def overlap_one_hot(logits: Tensor, labels: Tensor, alpha: float, beta: float) -> Tensor:
    """The Tversky loss as usually written, with one-hot labels; alpha = beta = 0.5 is soft Dice."""
    p = logits.softmax(1)
    t = F.one_hot(labels, p.shape[1]).movedim(-1, 1).float()
    axes = [axis for axis in range(p.ndim) if axis != 1]
    true = (p * t).sum(axes)
    extra = (p * (1 - t)).sum(axes)
    missed = ((1 - p) * t).sum(axes)
    return (1 - true / (true + alpha * extra + beta * missed)).mean()


def overlap_gathered(logits: Tensor, labels: Tensor, alpha: float, beta: float) -> Tensor:
    """The same from the probability of the label alone and counts: the fastest form we know."""
    p = logits.softmax(1)
    flat = labels.flatten()
    zeros = torch.zeros(p.shape[1], device=p.device)
    count = zeros.index_add(0, flat, torch.ones(flat.shape, device=p.device))
    true = zeros.index_add(0, flat, p.gather(1, labels[:, None]).flatten())
    extra = p.sum([axis for axis in range(p.ndim) if axis != 1]) - true
    missed = count - true
    return (1 - true / (true + alpha * extra + beta * missed)).mean()


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """The focal loss with gamma 2."""
    nll = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-nll)) ** 2 * nll).mean()


def boundary_distance(logits: Tensor, distances: Tensor) -> Tensor:
    """Mean over pixels of the sum over classes of probability times distance, both [B, C, ...]."""
    return (logits.softmax(1) * distances).sum(1).mean()


def band_one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Dilation minus erosion of each class by max pooling, as usually written. Labels [B, H, W] or [B, D, H, W]."""
    pool = F.max_pool2d if labels.ndim == 3 else F.max_pool3d
    maps = F.one_hot(labels, num_classes).movedim(-1, 1).float()
    return (pool(maps, 3, 1, 1) + pool(-maps, 3, 1, 1) > 0).any(1)


def band_labels(labels: Tensor, num_classes: int) -> Tensor:
    """The same band from the largest and the smallest label of each window: the fastest form we know."""
    pool = F.max_pool2d if labels.ndim == 3 else F.max_pool3d
    maps = labels[:, None].float()
    # A negative label must be neither the largest nor the smallest of a window.
    low = torch.where(maps < 0, float(num_classes), maps)
    return (pool(maps, 3, 1, 1) + pool(-low, 3, 1, 1) > 0)[:, 0]


def supervised_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, Lovasz-softmax and the boundary-weighted negative log-likelihood."""
    inside = labels >= 0
    nll = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    weights = torch.where(band_labels(labels, logits.shape[1]) & inside, 10.0, 1.0)
    return ((1 + weights) * nll).sum() / inside.sum() + lovasz_batched(logits, labels)
