"""Pictures of held-out slices for TensorBoard: inputs, reference and prediction side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from scipy import ndimage

from isles_jax.data.case import Case, radiological
from isles_jax.data.slices import Slices
from isles_jax.training.networks import BATCH

# Number of slices shown, each from a different case. They fit into one batch of the network.
SHOWN = 4
# Screen pixels per voxel side. Contours are one screen pixel wide.
ZOOM = 3
# Colours of the classes, as in the report. The first two, amber and sky blue, suit every kind of colour vision.
COLOURS = ((255, 176, 0), (53, 200, 255), (255, 122, 217), (123, 227, 123), (255, 111, 77), (184, 161, 255))


def choose(slices: Slices, cases: Sequence[Case], held_out: Sequence[str]) -> list[int]:
    """For each of the first few held-out cases, the index in `slices` of its slice with the largest lesion area."""
    numbers = [number for number, case in enumerate(cases) if case.name in held_out][:SHOWN]
    area = (slices.labels > 0).sum(axis=(1, 2))
    return [int(np.where(slices.case == number, area, -1).argmax()) for number in numbers]


def draw(
    forward: Callable[..., jax.Array], variables: Any, slices: Slices, cases: Sequence[Case], chosen: Sequence[int]
) -> dict[str, np.ndarray]:
    """Draws one picture for each chosen slice.

    It shows from left to right: the channels that the case has, the last one with the reference outlined, and the last
    one with the prediction outlined. `forward` (from `networks.make_forward`) runs once, on a batch of the size that
    inference uses. The variables may lie on any devices.

    Returns:
      "held-out/CASE" -> uint8 [rows, columns, 3], in radiological orientation where the affine allows it.
    """
    batch = np.zeros((BATCH, *slices.images.shape[1:]), np.float32)
    batch[: len(chosen)] = slices.images[chosen]
    # The variables are taken to the host, so that one process can do this without the others.
    labels = np.asarray(forward(jax.device_get(variables), batch)).argmax(axis=-1)
    pictures = {}
    for number, index in enumerate(chosen):
        case = cases[slices.case[index]]
        # Outside the brain everything is background, as in a prediction.
        brain = (slices.images[index] != 0).any(axis=-1)
        pictures[f"held-out/{case.name}"] = _row(
            slices.images[index], slices.labels[index], np.where(brain, labels[number], 0), case
        )
    return pictures


def _row(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, case: Case) -> np.ndarray:
    """The panels of one slice, image [X, Y, M], side by side: uint8 [rows, columns, 3]."""
    (x, y), _ = radiological(case)

    def show(plane: np.ndarray) -> np.ndarray:
        return np.kron(plane.T[::y, ::x], np.ones((ZOOM, ZOOM), plane.dtype))

    # The image is z-scored. Black is two standard deviations below the brain's mean, white is three above.
    gray = np.clip((image + 2) / 5, 0, 1) * (image != 0).any(axis=-1, keepdims=True)
    # A channel that the case lacks is 0 everywhere.
    shown = [m for m in range(image.shape[-1]) if image[..., m].any()] or [0]
    panels = [np.repeat(show((255 * gray[..., m]).astype(np.uint8))[..., None], 3, -1) for m in shown]
    for labels in (truth, prediction):
        panel = panels[len(shown) - 1].copy()
        for value in range(1, int(labels.max()) + 1):
            mask = show(labels) == value
            panel[mask & ~ndimage.binary_erosion(mask)] = COLOURS[(value - 1) % len(COLOURS)]
        panels.append(panel)
    return np.concatenate(panels, axis=1)
