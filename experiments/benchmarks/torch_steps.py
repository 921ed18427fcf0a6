"""The steps of `isles_jax.training.step` in PyTorch, as its users would write them. Needs the extra `bench`."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

# The weight of each critic's loss, as `loss.adversarial`.
ADVERSARIAL = 1e-3


def augment(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Random flip, rotation, scale and intensity of each slice, as `isles_jax.training.augment`, by grid_sample."""
    count, channels = images.shape[:2]
    drawn = torch.rand(count, 3 + 2 * channels, device=images.device) * 2 - 1
    turn = torch.deg2rad(10 * drawn[:, 1])
    size = 1 + 0.1 * drawn[:, 2]
    cos = torch.cos(turn) / size
    sin = torch.sin(turn) / size
    mirror = torch.sign(drawn[:, 0])
    zero = torch.zeros_like(cos)
    matrix = torch.stack([cos, -sin, zero, mirror * sin, mirror * cos, zero], 1).view(count, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    # Labels are shifted by 1, so that grid_sample's 0 outside the image stands for label -1.
    labels = F.grid_sample(labels[:, None].float() + 1, grid, "nearest", align_corners=False)[:, 0].long() - 1
    factor = 1 + 0.1 * drawn[:, 3 : 3 + channels]
    shift = 0.1 * drawn[:, 3 + channels :]
    brain = (images != 0).any(1, keepdim=True)
    return (images * factor[..., None, None] + shift[..., None, None]) * brain, labels


def adam(module: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """Adam on the module's parameters, in its fused form."""
    return torch.optim.Adam(module.parameters(), fused=True, **options)


def supervised_step(
    segmenter: nn.Module, cast: Callable[[], Any], wrap: Callable[..., Any]
) -> Callable[[Tensor, Tensor], Tensor]:
    """A training step with cross-entropy: (images, labels) -> loss.

    Args:
      segmenter: trained in place.
      cast: makes the context in which the networks run (autocast, or nothing).
      wrap: applied to each network: `torch.compile`, or the identity.
    """
    optimizer = adam(segmenter, lr=1e-3, weight_decay=1e-5)
    network = wrap(segmenter)

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
    segmenter: nn.Module,
    critics: list[tuple[slice, nn.Module]],
    losses: Callable[[Tensor, Tensor], Tensor],
    cast: Callable[[], Any],
    wrap: Callable[..., Any],
) -> Callable[[Tensor, Tensor], Tensor]:
    """The proposed system's step: all four losses, three relativistic critics, one forward pass of the segmenter.

    Args:
      segmenter: trained in place.
      critics: each with the class channels that it sees; trained in place.
      losses: (logits, labels) -> the sum of the supervised losses.
      cast: as in `supervised_step`.
      wrap: as in `supervised_step`.
    """
    optimizer = adam(segmenter, lr=1e-3, weight_decay=1e-5)
    network = wrap(segmenter)
    wrapped = [(view, critic, wrap(critic), adam(critic, lr=1e-3, betas=(0.5, 0.999))) for view, critic in critics]

    def one_hot(classes: Tensor, like: Tensor) -> Tensor:
        return F.one_hot(classes, like.shape[1]).movedim(-1, 1).to(like.dtype)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with cast():
            logits = network(images)
        logits = logits.float()
        inside = (labels >= 0)[:, None]
        real = one_hot(labels.clamp(0), logits) * inside
        # Zeros and ones with the gradient of the probabilities, as `discriminator.hard`.
        probabilities = logits.softmax(1)
        fake = (one_hot(logits.argmax(1), logits) + probabilities - probabilities.detach()) * inside
        for view, critic, verdict, critic_optimizer in wrapped:
            critic_optimizer.zero_grad(set_to_none=True)
            with cast():
                difference = verdict(fake[:, view].detach()) - verdict(real[:, view])
            F.softplus(difference.float()).mean().backward()
            critic_optimizer.step()
            critic.requires_grad_(False)
        optimizer.zero_grad(set_to_none=True)
        loss = losses(logits, labels)
        for view, _, verdict, _ in wrapped:
            with cast():
                difference = verdict(real[:, view]) - verdict(fake[:, view])
            loss = loss + ADVERSARIAL * F.softplus(difference.float()).mean()
        loss.backward()
        optimizer.step()
        for _, critic, _, _ in wrapped:
            critic.requires_grad_(True)
        return loss.detach()

    return step
