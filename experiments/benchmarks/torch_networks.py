"""The networks of `isles_jax.models` in PyTorch, as its users would write them.

Channels come first, in any memory format. The layers have the names of `isles_jax.models`, so that `load` can copy
weights. Needs the extra `bench`.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from isles_jax.models import DECODER, ENCODER


class SUMNet(nn.Module):
    """`isles_jax.models.SUMNet` with batch norm in the encoder: [B, M, H, W] to logits [B, classes, H, W]."""

    def __init__(self, channels: int = 3, num_classes: int = 3, *, residual: bool = True, width: int = 64):
        super().__init__()
        self.residual = residual
        self.preconv = nn.Conv2d(channels, 3, 1)
        before = 3
        skips = []
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

        x = F.relu(self.preconv(x))
        skips = []
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


class UNet(nn.Module):
    """`isles_jax.models.UNet`: [B, M, H, W] to logits [B, classes, H, W]."""

    def __init__(
        self,
        channels: int = 3,
        num_classes: int = 3,
        *,
        residual: bool = False,
        width: int = 64,
        batch_norm: str = "encoder",
        poolings: int = 4,
    ):
        super().__init__()
        self.residual = residual
        self.poolings = poolings
        sizes = [width * min(2**stage, 8) for stage in range(poolings + 1)]
        before = channels
        for stage, after in enumerate(sizes, start=1):
            normed = batch_norm != "none"
            self._add(before, after, f"{stage}a", normed)
            self._add(after, after, f"{stage}b", normed)
            if residual and before != after:
                self._add(before, after, f"{stage}_shortcut", normed, size=1)
            before = after
        for stage in range(poolings, 0, -1):
            after = sizes[stage - 1]
            self.add_module(f"up{stage}", nn.ConvTranspose2d(before, after, 2, stride=2))
            self._add(2 * after, after, f"_up{stage}a", batch_norm == "all")
            self._add(after, after, f"_up{stage}b", batch_norm == "all")
            before = after
        self.output = nn.Conv2d(before, num_classes, 1)

    def _add(self, before: int, after: int, name: str, normed: bool, size: int = 3) -> None:
        self.add_module(f"conv{name}", nn.Conv2d(before, after, size, padding=size // 2, bias=not normed))
        self.add_module(f"norm{name}", nn.BatchNorm2d(after) if normed else nn.Identity())

    def _layer(self, x: Tensor, name: str) -> Tensor:
        return self.get_submodule(f"norm{name}")(self.get_submodule(f"conv{name}")(x))

    def _encoder_stage(self, x: Tensor, stage: int) -> Tensor:
        y = self._layer(F.relu(self._layer(x, f"{stage}a")), f"{stage}b")
        if self.residual:
            y = y + (x if x.shape == y.shape else self._layer(x, f"{stage}_shortcut"))
        return F.relu(y)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in range(1, self.poolings + 1):
            x = self._encoder_stage(x, stage)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self._encoder_stage(x, self.poolings + 1)
        for stage in range(self.poolings, 0, -1):
            x = torch.cat([self.get_submodule(f"up{stage}")(x), skips.pop()], dim=1)
            for letter in "ab":
                x = F.relu(self._layer(x, f"_up{stage}{letter}"))
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
                if isinstance(getattr(module, layer, None), nn.ConvTranspose2d) and name == "kernel":
                    value = value.transpose(2, 3, 0, 1)
                else:
                    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
                state[f"{layer}.{names[name]}"] = torch.from_numpy(value.copy())
    missing, unexpected = module.load_state_dict(state, strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.endswith("num_batches_tracked"))]
    if wrong:
        raise ValueError(f"layers without a counterpart: {', '.join(wrong)}")
