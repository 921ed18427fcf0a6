"""PyTorch's functions to be timed, with this package's weights and data.

A variant is "eager" or "compiled", then in any order "channels last", "autocast" (bfloat16) and "CUDA graphs" (of what
is compiled). Compiled are the networks, each on its own, and the losses if PyTorch's compiler takes them. The step
around them is Python, as PyTorch's users have it.
"""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from experiments.benchmarks import torch_losses, torch_networks, torch_steps
from experiments.benchmarks.timing import Makers, one_line
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
    return torch.channels_last if "channels last" in variant else torch.contiguous_format


def _cast(variant: str) -> Callable[[], Any]:
    return partial(torch.autocast, DEVICE, torch.bfloat16) if "autocast" in variant else nullcontext


def _wrap(variant: str) -> Callable[..., Any]:
    if "compiled" not in variant:
        return lambda function: function
    # The critics share the code of `forward`, and PyTorch counts all their compilations together: 8 are too few.
    torch._dynamo.config.recompile_limit = 64
    return partial(torch.compile, dynamic=False, mode="reduce-overhead" if "CUDA graphs" in variant else None)


def _begin(variant: str) -> None:
    """Says that the results of the step before are no longer needed, so that CUDA graphs may write over them."""
    if "CUDA graphs" in variant:
        torch.compiler.cudagraph_mark_step_begin()


def _losses(variant: str, classes: int, labels: torch.Tensor) -> tuple[Callable[..., torch.Tensor], str]:
    """The supervised losses, compiled if that works for labels of this shape, and a note if it does not."""
    if "compiled" not in variant:
        return torch_losses.supervised_losses, ""
    function = torch.compile(torch_losses.supervised_losses, dynamic=False)
    shape = (len(labels), classes, *labels.shape[1:])
    try:
        function(torch.zeros(shape, device=DEVICE, requires_grad=True), labels).backward()
    except Exception as error:  # whatever the compiler raises
        return torch_losses.supervised_losses, f"losses eager, which cannot be compiled: {one_line(error)}"
    return function, ""


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


def step(
    variant: str, setup: Setup, losses: Callable[..., torch.Tensor] = torch_losses.supervised_losses
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The training step of a state. It is adversarial, with these losses, if the state has critics."""
    network = segmenter(variant, setup[0])
    adversaries = critics(variant, setup)
    options = _cast(variant), _wrap(variant)
    if adversaries:
        return torch_steps.adversarial_step(network, adversaries, losses, *options)
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


def forward_makers(variants: list[str], setup: Setup, batch: tuple[np.ndarray, np.ndarray]) -> Makers:
    """Softmax maps of a batch in inference mode."""

    def make(variant: str) -> Callable[[], object]:
        network = _wrap(variant)(segmenter(variant, setup[0]).eval())
        x, _ = _place(variant, *batch)

        @torch.inference_mode()
        def run() -> None:
            _begin(variant)
            with _cast(variant)():
                network(x).float().softmax(1)
            _wait()

        return run

    return {f"PyTorch, {variant}": partial(make, variant) for variant in variants}


def step_makers(variants: list[str], setup: Setup, batch: tuple[np.ndarray, np.ndarray]) -> Makers:
    """One training step on a batch, waited for."""

    def make(variant: str) -> Callable[[], object]:
        images, labels = _place(variant, *batch)
        losses, note = torch_losses.supervised_losses, ""
        if setup[0].critics:
            losses, note = _losses(variant, setup[0].segmenter.params["output"]["kernel"].shape[3], labels)
        train = step(variant, setup, losses)

        def run() -> None:
            _begin(variant)
            train(images, labels)
            _wait()

        run.note = note
        return run

    return {f"PyTorch, {variant}": partial(make, variant) for variant in variants}


def training_rate(variant: str, setup: Setup, plan: Plan, steps: int) -> float:
    """Steps a second of a training loop that draws and augments batches on the device and reads the losses at the end.

    Args:
      variant: see above.
      setup: the first state.
      plan: its slices and settings.
      steps: that are timed, after ten others.
    """
    train = step(variant, setup)
    images, labels = _place(variant, plan.slices.images, plan.slices.labels)
    pool = np.arange(len(labels))
    size = plan.config.train.batch_size

    def run(numbers: range) -> None:
        losses = []
        for number in numbers:
            rows = torch.from_numpy(draw_batch(pool, plan.slices.lesion, size, (number,))).to(DEVICE).long()
            losses.append(train(*torch_steps.augment(images[rows], labels[rows])))
        torch.stack(losses).cpu()

    run(range(10))
    start = time.perf_counter()
    run(range(steps))
    return steps / (time.perf_counter() - start)


def inference_makers(variants: list[str], setup: Setup, case: Case) -> Makers:
    """Labels of a case's slices."""

    def make(variant: str) -> Callable[[], object]:
        network = _wrap(variant)(segmenter(variant, setup[0]).eval())

        @torch.inference_mode()
        def run() -> np.ndarray:
            stack, _ = network_input(case, padded_size(case.images.shape[:2], MULTIPLE))
            # As in our inference, the last batch is filled up, so that one compilation serves all batches.
            filled = np.pad(stack, [(0, -len(stack) % BATCH)] + [(0, 0)] * 3)
            x = torch.from_numpy(np.moveaxis(filled, -1, 1).copy()).to(DEVICE, memory_format=_layout(variant))
            parts = []
            for part in x.split(BATCH):
                _begin(variant)
                with _cast(variant)():
                    parts.append(network(part).float().softmax(1).argmax(1).byte())
            return torch.cat(parts)[: len(stack)].cpu().numpy()

        return run

    return {f"PyTorch, {variant}": partial(make, variant) for variant in variants}
