"""Pictures of held-out slices for TensorBoard: inputs, reference and prediction side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from isles_jax.data.case import Case, radiological
from isles_jax.data.slices import Slices
from isles_jax.networks import BATCH

# How many slices are shown, each of another case; one batch of a prediction holds them.
SHOWN = 4
# Screen pixels for a voxel: contours are one pixel wide.
ZOOM = 3
# The classes' colours, as in the report: amber and sky are told apart by every kind of colour vision.
COLOURS = ((255, 176, 0), (53, 200, 255), (255, 122, 217), (123, 227, 123), (255, 111, 77), (184, 161, 255))


def choose(slices: Slices, cases: Sequence[Case], held_out: Sequence[str]) -> list[int]:
    """For each of the first few held-out cases its slice with the most lesion, as an index into `slices`."""
    numbers = [number for number, case in enumerate(cases) if case.name in held_out][:SHOWN]
    area = (slices.labels > 0).sum(axis=(1, 2))
    return [int(np.where(slices.case == number, area, -1).argmax()) for number in numbers]


def draw(
    forward: Callable[..., jax.Array], variables: Any, slices: Slices, cases: Sequence[Case], chosen: Sequence[int]
) -> dict[str, np.ndarray]:
    """One picture for each chosen slice: its channels, then the last channel with the reference, with the prediction.

    Args:
      forward: from `networks.make_forward`; it runs once, on a batch of the size that prediction has.
      variables: of the network, any placement on devices.
      slices: of `cases`.
      cases: in the order that `slices.case` counts.
      chosen: from `choose`.

    Returns:
      "held-out/CASE" -> uint8 [rows, columns, 3], in radiological orientation where the affine allows it.
    """
    batch = np.zeros((BATCH, *slices.images.shape[1:]), np.float32)
    batch[: len(chosen)] = slices.images[chosen]
    # Through the host, so that a process needs no other one for its pictures.
    found = np.asarray(forward(jax.device_get(variables), batch)).argmax(axis=-1)
    pictures = {}
    for number, index in enumerate(chosen):
        case = cases[slices.case[index]]
        # As in a prediction, what lies outside the brain is background.
        where = (slices.images[index] != 0).any(axis=-1)
        pictures[f"held-out/{case.name}"] = _row(
            slices.images[index], slices.labels[index], np.where(where, found[number], 0), case.affine
        )
    return pictures


def _row(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Panels of one slice [X, Y, M] side by side, uint8 [rows, columns, 3]."""
    (x, y), _ = radiological(affine)

    def show(plane: np.ndarray) -> np.ndarray:
        return np.kron(plane.T[::y, ::x], np.ones((ZOOM, ZOOM), plane.dtype))

    # Normalised: from two standard deviations below the brain's mean to three above; outside the brain it is 0.
    gray = np.clip((image + 2) / 5, 0, 1) * (image != 0).any(axis=-1, keepdims=True)
    panels = [np.repeat(show((255 * gray[..., m]).astype(np.uint8))[..., None], 3, -1) for m in range(image.shape[-1])]
    for labels in (truth, prediction):
        panel = panels[image.shape[-1] - 1].copy()
        for value in range(1, max(int(labels.max()), 0) + 1):
            panel[_contour(show(labels) == value)] = COLOURS[(value - 1) % len(COLOURS)]
        panels.append(panel)
    return np.concatenate(panels, axis=1)


def _contour(mask: np.ndarray) -> np.ndarray:
    """The pixels of a bool [H, W] mask that have a neighbour outside it; the border of the picture is outside."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
