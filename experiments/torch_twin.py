"""The same networks, losses and training steps in PyTorch, as its users would write them, to measure against.

Channels come first, in whatever memory format. Names of layers are those of `isles_jax.models`, so that weights carry
over (`load`). Needs the extra `bench`; nothing in the package imports this.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from isles_jax.models import DECODER, ENCODER

ADVERSARIAL = 1e-3


class SUMNet(nn.Module):
    """`isles_jax.models.SUMNet` with batch norm in the encoder: [B, M, H, W] to logits [B, classes, H, W]."""

    def __init__(self, channels: int = 3, num_classes: int = 3, *, residual: bool = True, width: int = 64):
        super().__init__()
        self.residual = residual
        self.preconv = nn.Conv2d(channels, 3, 1)
        before, skips = 3, []
        for stage, widths in enumerate(ENCODER, start=1):
            first = before
            for after, letter in zip(widths, "ab" if len(widths) > 1 else ("",), strict=True):
                before = self._normed(before, int(after * width), f"{stage}{letter}", 3)
            if residual and first != before:
                self._normed(first, before, f"{stage}_shortcut", 1)
            skips.append(before)
        for stage, widths in zip(range(len(DECODER), 0, -1), DECODER, strict=True):
            before += skips[stage - 1]
            for after, letter in zip(widths, "ba" if len(widths) > 1 else ("",), strict=True):
                after = int(after * width)
                self.add_module(f"conv_up{stage}{letter}", nn.Conv2d(before, after, 3, padding=1))
                before = after
        self.output = nn.Conv2d(before, num_classes, 1)

    def _normed(self, before: int, after: int, name: str, size: int) -> int:
        self.add_module(f"conv{name}", nn.Conv2d(before, after, size, padding=size // 2, bias=False))
        self.add_module(f"norm{name}", nn.BatchNorm2d(after))
        return after

    def forward(self, x: Tensor) -> Tensor:
        def normed(x: Tensor, name: str) -> Tensor:
            return self.get_submodule(f"norm{name}")(self.get_submodule(f"conv{name}")(x))

        x, skips = F.relu(self.preconv(x)), []
        for stage, widths in enumerate(ENCODER, start=1):
            shortcut = x
            x = normed(F.relu(normed(x, f"{stage}a")), f"{stage}b") if len(widths) > 1 else normed(x, f"{stage}")
            if self.residual:
                x = x + (shortcut if shortcut.shape == x.shape else normed(shortcut, f"{stage}_shortcut"))
            x = F.relu(x)
            skips.append((x, *F.max_pool2d(x, 2, return_indices=True)))
            x = skips[-1][1]
        for stage, widths in zip(range(len(DECODER), 0, -1), DECODER, strict=True):
            skip, _, index = skips.pop()
            x = torch.cat([F.max_unpool2d(x, index, 2), skip], dim=1)
            for letter in "ba" if len(widths) > 1 else ("",):
                x = F.relu(self.get_submodule(f"conv_up{stage}{letter}")(x))
        return self.output(x)


class Discriminator(nn.Module):
    """`isles_jax.models.Discriminator`: maps [B, K, H, W] to logits [B]."""

    def __init__(self, planes: int, *, width: int = 64):
        super().__init__()
        sizes = [planes, *(factor * width for factor in (1, 2, 2, 4, 4))]
        for i in range(1, 6):
            self.add_module(f"conv{i}", nn.Conv2d(sizes[i - 1], sizes[i], 3, padding=1, bias=i == 1))
            if i > 1:
                self.add_module(f"norm{i}", nn.BatchNorm2d(sizes[i]))
        self.output = nn.Linear(sizes[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x), 0.2)
        for i in range(2, 6):
            x = self.get_submodule(f"conv{i}")(F.max_pool2d(x, 2))
            x = F.leaky_relu(self.get_submodule(f"norm{i}")(x), 0.2)
        return self.output(x.mean((2, 3)))[:, 0]


def load(module: nn.Module, variables: dict[str, Any]) -> None:
    """Copies the weights and statistics of the Flax network with the same layers."""
    names = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    state = {}
    for collection in variables.values():
        for layer, leaves in collection.items():
            for name, leaf in leaves.items():
                value = np.asarray(leaf)
                value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
                state[f"{layer}.{names[name]}"] = torch.from_numpy(value.copy())
    missing, unexpected = module.load_state_dict(state, strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.endswith("num_batches_tracked"))]
    if wrong:
        raise ValueError(f"layers without a counterpart: {', '.join(wrong)}")


def lovasz_loop(logits: Tensor, labels: Tensor) -> Tensor:
    """The reference's form: class by class, present ones only. Logits [B, C, ...], labels [B, ...]."""
    probabilities = logits.softmax(1).transpose(0, 1).flatten(1)
    labels, terms = labels.flatten(), []
    for c, p in enumerate(probabilities):
        foreground = (labels == c).float()
        if foreground.sum() == 0:
            continue
        errors, order = torch.sort((foreground - p).abs(), dim=0, descending=True)
        terms.append(torch.dot(errors, _jaccard_steps(foreground[order])))
    return torch.stack(terms).mean()


def lovasz_batched(logits: Tensor, labels: Tensor) -> Tensor:
    """One sort for all classes; a pixel with a negative label counts as no error of any class."""
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


def band_one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Dilation minus erosion of each class by max pooling, the usual form. Labels [B, H, W] or [B, D, H, W]."""
    pool = F.max_pool2d if labels.ndim == 3 else F.max_pool3d
    maps = F.one_hot(labels, num_classes).movedim(-1, 1).float()
    return (pool(maps, 3, 1, 1) + pool(-maps, 3, 1, 1) > 0).any(1)


def band_labels(labels: Tensor, num_classes: int) -> Tensor:
    """The same band from the largest and the smallest label of each window: the shortest form there is."""
    pool = F.max_pool2d if labels.ndim == 3 else F.max_pool3d
    maps = labels[:, None].float()
    # A negative label is no pixel: neither the largest nor the smallest of a window.
    low = torch.where(maps < 0, float(num_classes), maps)
    return (pool(maps, 3, 1, 1) + pool(-low, 3, 1, 1) > 0)[:, 0]


def augment(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Flip, rotation, scale and intensity, drawn for each slice: what `isles_jax.augment` does, by grid_sample."""
    count, channels = images.shape[:2]
    drawn = torch.rand(count, 3 + 2 * channels, device=images.device) * 2 - 1
    turn, size = torch.deg2rad(10 * drawn[:, 1]), 1 + 0.1 * drawn[:, 2]
    cos, sin, mirror = torch.cos(turn) / size, torch.sin(turn) / size, torch.sign(drawn[:, 0])
    zero = torch.zeros_like(cos)
    matrix = torch.stack([cos, -sin, zero, mirror * sin, mirror * cos, zero], 1).view(count, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    # One more than the label: what comes from outside is 0, that is, label -1.
    labels = F.grid_sample(labels[:, None].float() + 1, grid, "nearest", align_corners=False)[:, 0].long() - 1
    factor, shift = (1 + 0.1 * drawn[:, 3 : 3 + channels]), 0.1 * drawn[:, 3 + channels :]
    brain = (images != 0).any(1, keepdim=True)
    return (images * factor[..., None, None] + shift[..., None, None]) * brain, labels


def adam(module: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), fused=True, **options)


def supervised_step(
    segmenter: nn.Module, cast: Callable[[], Any], wrap: Callable[..., Any]
) -> Callable[[Tensor, Tensor], Tensor]:
    """A training step with cross-entropy: (images, labels) -> loss.

    Args:
      segmenter: trained in place.
      cast: makes the context in which the networks run (autocast, or nothing).
      wrap: the networks and the losses go through it: `torch.compile`, or the identity.
    """
    optimizer, network = adam(segmenter, lr=1e-3, weight_decay=1e-5), wrap(segmenter)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with cast():
            logits = network(images)
        loss = F.cross_entropy(logits.float(), labels, ignore_index=-1)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def adversarial_step(
    segmenter: nn.Module, critics: list[tuple[slice, nn.Module]], cast: Callable[[], Any], wrap: Callable[..., Any]
) -> Callable[[Tensor, Tensor], Tensor]:
    """The proposed system's step: all four losses, three relativistic critics, one forward pass of the segmenter.

    Args:
      segmenter: trained in place.
      critics: each with the class channels that it sees; trained in place.
      cast: as in `supervised_step`.
      wrap: as in `supervised_step`.
    """
    optimizer, network = adam(segmenter, lr=1e-3, weight_decay=1e-5), wrap(segmenter)
    judges = [(view, critic, wrap(critic), adam(critic, lr=1e-4, betas=(0.5, 0.999))) for view, critic in critics]
    losses = wrap(_supervised_losses)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with cast():
            logits = network(images)
        logits, inside = logits.float(), (labels >= 0)[:, None]
        real = (F.one_hot(labels.clamp(0), logits.shape[1]).movedim(-1, 1) * inside).float()
        fake = logits.softmax(1) * inside
        for view, critic, judge, judge_optimizer in judges:
            judge_optimizer.zero_grad(set_to_none=True)
            with cast():
                difference = judge(fake[:, view].detach()) - judge(real[:, view])
            F.softplus(difference.float()).mean().backward()
            judge_optimizer.step()
            critic.requires_grad_(False)
        optimizer.zero_grad(set_to_none=True)
        loss = losses(logits, labels)
        for view, _, judge, _ in judges:
            with cast():
                difference = judge(real[:, view]) - judge(fake[:, view])
            loss = loss + ADVERSARIAL * F.softplus(difference.float()).mean()
        loss.backward()
        optimizer.step()
        for _, critic, _, _ in judges:
            critic.requires_grad_(True)
        return loss.detach()

    return step


def _supervised_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, Lovasz-softmax and the boundary-weighted negative log-likelihood."""
    inside = labels >= 0
    nll = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    weights = torch.where(band_labels(labels, logits.shape[1]) & inside, 10.0, 1.0)
    return ((1 + weights) * nll).sum() / inside.sum() + lovasz_batched(logits, labels)
