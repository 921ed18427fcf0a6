"""PyTorch's functions to be timed, with this package's weights and data.

A variant is "eager" or "compiled", then in any order "channels last" and "autocast" (bfloat16).
"""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from experiments.benchmarks import torch_networks, torch_steps
from experiments.benchmarks.timing import Functions
from isles_jax.data.case import Case
from isles_jax.data.slices import draw_batch, network_input, padded_size
from isles_jax.models import MULTIPLE
from isles_jax.training.networks import BATCH
from isles_jax.training.plan import Plan
from isles_jax.training.state import State

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_num_threads(os.cpu_count())
# JAX lets float32 products use TF32 on a GPU by default; PyTorch gets the same here.
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
torch.backends.cudnn.benchmark = True

Setup = tuple[State, list[slice]]


def _layout(variant: str) -> torch.memory_format:
    last = "channels last" in variant or "autocast" in variant
    return torch.channels_last if last else torch.contiguous_format


def _cast(variant: str) -> Callable[[], Any]:
    return partial(torch.autocast, DEVICE, torch.bfloat16) if "autocast" in variant else nullcontext


def _wrap(variant: str) -> Callable[..., Any]:
    return torch.compile if "compiled" in variant else lambda function: function


def segmenter(variant: str, state: State) -> torch.nn.Module:
    """The network with our weights."""
    params = state.segmenter.params
    width = params["conv1"]["kernel"].shape[-1]
    residual = "conv1_shortcut" in params
    channels = params["preconv"]["kernel"].shape[2]
    classes = params["output"]["kernel"].shape[3]
    module = torch_networks.SUMNet(channels, classes, residual=residual, width=width)
    torch_networks.load(module, state.segmenter.variables)
    return module.to(DEVICE, memory_format=_layout(variant))


def critics(variant: str, setup: Setup) -> list[tuple[slice, torch.nn.Module]]:
    """The critics with our weights, each with the class channels that it sees."""
    networks = []
    for network, view in zip(setup[0].critics.values(), setup[1], strict=True):
        kernel = network.params["conv1"]["kernel"]
        module = torch_networks.Discriminator(kernel.shape[2], width=kernel.shape[3])
        torch_networks.load(module, network.variables)
        networks.append((view, module.to(DEVICE, memory_format=_layout(variant))))
    return networks


def step(variant: str, setup: Setup) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The training step of a state. It is adversarial if the state has critics."""
    network = segmenter(variant, setup[0])
    adversaries = critics(variant, setup)
    options = _cast(variant), _wrap(variant)
    if adversaries:
        return torch_steps.adversarial_step(network, adversaries, *options)
    return torch_steps.supervised_step(network, *options)


def _place(variant: str, images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.from_numpy(np.moveaxis(images, -1, 1).copy()).to(DEVICE, memory_format=_layout(variant))
    return x, torch.from_numpy(labels.astype(np.int64)).to(DEVICE)


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def logits(state: State, batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The segmenter's logits in inference, [B, H, W, C]."""
    with torch.inference_mode():
        result = segmenter("eager", state).eval()(_place("eager", *batch)[0])
    return np.moveaxis(result.cpu().numpy(), 1, -1)


def first_loss(setup: Setup, batch: tuple[np.ndarray, np.ndarray]) -> float:
    """The loss of the first training step."""
    return float(step("eager", setup)(*_place("eager", *batch)))


def forward_functions(variants: list[str], setup: Setup, batch: tuple[np.ndarray, np.ndarray]) -> Functions:
    """Softmax maps of a batch in inference mode."""

    def make(variant: str) -> Callable[[], object]:
        network = _wrap(variant)(segmenter(variant, setup[0]).eval())
        x, _ = _place(variant, *batch)

        @torch.inference_mode()
        def run() -> None:
            with _cast(variant)():
                network(x).float().softmax(1)
            _wait()

        return run

    return {f"PyTorch, {variant}": make(variant) for variant in variants}


def step_functions(variants: list[str], setup: Setup, batch: tuple[np.ndarray, np.ndarray]) -> Functions:
    """One training step on a batch, waited for."""

    def make(variant: str) -> Callable[[], object]:
        train = step(variant, setup)
        placed = _place(variant, *batch)

        def run() -> None:
            train(*placed)
            _wait()

        return run

    return {f"PyTorch, {variant}": make(variant) for variant in variants}


def _epoch(variant: str, setup: Setup, plan: Plan) -> Callable[[], object]:
    """The plan's steps: batches are indexed and augmented on the device, and the losses are read at the end."""
    train = step(variant, setup)
    images, labels = _place(variant, plan.slices.images, plan.slices.labels)
    pool = np.arange(len(labels))
    size = plan.config.train.batch_size

    def run() -> None:
        losses = []
        for number in range(plan.steps):
            rows = torch.from_numpy(draw_batch(pool, plan.slices.lesion, size, (number,))).to(DEVICE).long()
            losses.append(train(*torch_steps.augment(images[rows], labels[rows])))
        torch.stack(losses).cpu()

    return run


def epoch_functions(variants: list[str], setup: Setup, plan: Plan) -> Functions:
    """An epoch of each variant."""
    return {f"PyTorch, {variant}": _epoch(variant, setup, plan) for variant in variants}


def _inference(variant: str, state: State, case: Case) -> Callable[[], object]:
    network = _wrap(variant)(segmenter(variant, state).eval())

    @torch.inference_mode()
    def run() -> np.ndarray:
        stack, _ = network_input(case, padded_size(case.images.shape[:2], MULTIPLE))
        x = torch.from_numpy(np.moveaxis(stack, -1, 1).copy()).to(DEVICE, memory_format=_layout(variant))
        parts = []
        for part in x.split(BATCH):
            with _cast(variant)():
                parts.append(network(part).float().softmax(1).argmax(1).byte())
        return torch.cat(parts).cpu().numpy()

    return run


def inference_functions(variants: list[str], setup: Setup, case: Case) -> Functions:
    """Labels of a case's slices."""
    return {f"PyTorch, {variant}": _inference(variant, setup[0], case) for variant in variants}


def fold_seconds(setup: Setup, plan: Plan, held_out: list[str]) -> dict[str, float]:
    """Seconds of a fold in PyTorch, eager and without saving: training, and prediction of the held-out cases."""
    start = time.perf_counter()
    _epoch("eager", setup, plan)()
    trained = time.perf_counter() - start
    for case in plan.dataset.cases:
        if case.name in held_out:
            _inference("eager", setup[0], case)()
    return {"pytorch_training_s": round(trained, 2), "pytorch_total_s": round(time.perf_counter() - start, 2)}
