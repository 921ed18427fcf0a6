"""Predictions: from a case to class probabilities and labels, and from a fold's held-out cases to label files."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath
from jax import Array

from isles_jax import metrics
from isles_jax.data import grid
from isles_jax.data.case import Case, Dataset
from isles_jax.data.nifti import write_labels
from isles_jax.data.slices import network_input, unpad
from isles_jax.runtime import files, interrupt, processes
from isles_jax.runtime.command import InputError
from isles_jax.runtime.memory import machine_memory
from isles_jax.runtime.progress import Bar
from isles_jax.scoring import calibration, run_files
from isles_jax.training import checkpoint
from isles_jax.training.networks import BATCH, make_forward
from isles_jax.training.task import Task

Images = TypeVar("Images", np.ndarray, Array)


def predict_case(
    forward: Callable[..., Array], folds: Sequence[Any], case: Case, task: Task, *, mirror: Sequence[int] = ()
) -> np.ndarray:
    """Class probabilities of a case on its own grid, averaged over the networks of several folds.

    Arguments and errors are those of `predict_folds`.

    Returns:
      float32 [X, Y, Z, C]. Outside the brain, background has probability 1.
    """
    mean: np.ndarray = predict_folds(forward, folds, case, task, mirror=mirror).mean(axis=0)
    return mean


def predict_folds(
    forward: Callable[..., Array], folds: Sequence[Any], case: Case, task: Task, *, mirror: Sequence[int] = ()
) -> np.ndarray:
    """Class probabilities of a case on its own grid, of each fold's network alone.

    Args:
      forward: from `make_forward`.
      folds: variables of one network or more.
      case: its labels are ignored.
      task: what the networks are for.
      mirror: see `average`.

    Returns:
      float32 [folds, X, Y, Z, C]. Outside the brain, background has probability 1.

    Raises:
      InputError: the case has no brain; its slices cannot fit the memory.
    """

    def on_host(variables: Any, images: np.ndarray) -> np.ndarray:
        return np.asarray(forward(variables, images))

    made = grid.make_grid(case, task.target)
    network_case = grid.to_network(case, made)
    shape = network_case.images.shape[:2]
    stack, places = network_input(network_case, task.padded(shape))
    if not len(stack):
        raise InputError(f"{case.name}: found no voxel of brain, expected some")
    _check_memory(case, stack.shape[1:3], task)
    # The last batch is filled up, so that one compilation serves all batches.
    filled = np.pad(stack, [(0, -len(stack) % BATCH)] + [(0, 0)] * 3)
    parts = np.split(filled, len(filled) // BATCH)
    results = []
    for variables in folds:
        batches = [average(on_host, [variables], part, mirror) for part in parts]
        inside = np.moveaxis(np.concatenate(batches)[: len(stack)], 0, 2)
        result = np.zeros((*network_case.images.shape[:3], inside.shape[-1]), np.float32)
        result[..., 0] = 1.0
        result[:, :, places] = unpad(inside, shape)
        result = grid.to_case(result, made, case)
        result[~case.brain] = np.eye(inside.shape[-1], dtype=np.float32)[0]
        results.append(result)
    return np.stack(results)


def _check_memory(case: Case, sides: tuple[int, ...], task: Task) -> None:
    """Raises an InputError if a batch of slices with these sides cannot fit the memory."""
    # The float32 feature maps of the first convolution, which it reads and writes; the other layers take more.
    needed = 8 * BATCH * math.prod(sides) * task.config.model.width
    memory = machine_memory()
    if needed > memory:
        sizes = f"{needed / 1e9:.0f} GB at the least, of {memory / 1e9:.0f} GB"
        raise InputError(f"{case.name}: found slices of {sides[0]}x{sides[1]} pixels, which need {sizes} of memory")


def average(
    forward: Callable[[Any, Images], Images], folds: Sequence[Any], images: Images, mirror: Sequence[int]
) -> Images:
    """The mean of the class probabilities of several networks.

    Args:
      forward: (variables, images) -> probabilities [B, H, W, C].
      folds: variables of one network or more.
      images: [B, H, W, M].
      mirror: axes of the slices. The mean also counts their mirror images along each axis and along several axes.
    """
    probabilities = []
    for chosen in itertools.product((1, -1), repeat=len(mirror)):
        step = dict(zip(mirror, chosen, strict=True))
        turn = tuple(slice(None, None, step.get(axis, 1)) for axis in range(images.ndim))
        probabilities += [forward(variables, images[turn])[turn] for variables in folds]
    return sum(probabilities[1:], start=probabilities[0]) / len(probabilities)


def remove_small(labels: np.ndarray, min_volume_ml: float, voxel_ml: float) -> np.ndarray:
    """Sets lesions smaller than `min_volume_ml` to background.

    `metrics.lesions` finds the lesions of all foreground classes together. So a small core inside a large penumbra
    stays, and no lesion gets a hole.

    Args:
      labels: uint8 [X, Y, Z], 0 for background.
      min_volume_ml: a lesion of exactly this volume stays; 0 removes nothing.
      voxel_ml: the volume of a voxel.
    """
    if min_volume_ml == 0:
        return labels
    numbered, _ = metrics.lesions(labels > 0)
    volume_ml = np.bincount(numbered.ravel()) * voxel_ml
    # Rounding must not push a lesion of exactly the minimum volume below it.
    return np.where(volume_ml[numbered] < min_volume_ml * (1 - 1e-6), 0, labels).astype(labels.dtype)


def predict_labels(probabilities: np.ndarray, case: Case, min_volume_ml: float) -> np.ndarray:
    """The most probable class of each voxel, uint8 [X, Y, Z], without small lesions."""
    labels = probabilities.argmax(axis=-1).astype(np.uint8)
    return remove_small(labels, min_volume_ml, case.voxel_ml)


def predict_fold(dataset: Dataset, held_out: Sequence[str], directory: epath.Path) -> None:
    """Segments the held-out cases of a trained fold into `directory`/predictions/CASE.nii.gz; existing files are kept.

    Before each of them, `directory`/calibration/CASE.json gets the histograms of `calibration.histograms`.
    Several processes divide the cases among them. All files are written when the function returns.
    """
    variables, task, meta = checkpoint.load_variables(directory / "checkpoints")
    settings = task.config.predict
    forward = make_forward(task.predictor())
    mirror = task.mirror_axes(settings.flips)
    folder = directory / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    if meta["skipped"]:
        # The report shows that the fold's predictions are not those of its last step.
        source = f"fold {meta['fold']} is predicted from step {meta['step']}"
        text = "".join(f"{source}: {reason}\n" for reason in meta["skipped"])
        processes.on_first(lambda: files.write_atomic(directory / run_files.NOTES, text))
    cases = [case for case in dataset.cases if case.name in held_out]

    def write() -> None:
        with Bar(f"fold {meta['fold']}, predicting", len(cases), "case") as bar:
            # Each process predicts one case per round, so that a signal stops all processes in the same round.
            for start in range(0, len(cases), processes.count()):
                if processes.leaving():
                    interrupt.leave_if_requested()
                for case in processes.share(cases[start : start + processes.count()]):
                    path = folder / f"{case.name}.nii.gz"
                    if not path.exists():
                        probabilities = predict_case(forward, [variables], case, task, mirror=mirror)
                        counts = calibration.histograms(probabilities, case, dataset.classes)
                        files.write_json(directory / "calibration" / f"{case.name}.json", counts)
                        labels = predict_labels(probabilities, case, settings.min_volume_ml)
                        write_labels(path, labels, case, task.label_values)
                bar.advance(min(processes.count(), len(cases) - start))

    processes.on_all(write)
