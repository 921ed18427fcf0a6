"""Predictions: from a case to class probabilities and labels, and from many cases to label files on their own grids."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ml_collections
import numpy as np
from etils import epath
from jax import Array
from scipy import ndimage

from isles_jax.data import grid
from isles_jax.data.case import Case, Dataset
from isles_jax.data.grid import AS_STORED, Target
from isles_jax.data.layouts import load_images
from isles_jax.data.nifti import write_labels, write_volume
from isles_jax.data.slices import network_input, padded_size, unpad
from isles_jax.models import MULTIPLE
from isles_jax.networks import BATCH, make_forward, make_segmenter
from isles_jax.runtime import files, interrupt, processes
from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import Bar
from isles_jax.training import checkpoint, weights

# In a fold's folder: what the reader of the report must know about its predictions, one line each.
NOTES = "notes.txt"

Images = TypeVar("Images", np.ndarray, Array)


def predict_case(
    forward: Callable[..., Array], folds: Sequence[Any], case: Case, *, flips: bool = False, target: Target = AS_STORED
) -> np.ndarray:
    """Class probabilities of a case on its own grid, averaged over the networks of several folds.

    Args:
      forward: from `make_forward`.
      folds: variables of one network or more.
      case: its labels are ignored.
      flips: see `average`.
      target: the grid that the networks work on.

    Returns:
      float32 [X, Y, Z, C]. Outside the brain, background has probability 1.

    Raises:
      InputError: the case has no brain.
    """

    def on_host(variables: Any, images: np.ndarray) -> np.ndarray:
        return np.asarray(forward(variables, images))

    made = grid.make_grid(case, target)
    network_case = grid.to_network(case, made)
    shape = network_case.images.shape[:2]
    stack, places = network_input(network_case, padded_size(shape, MULTIPLE))
    parts = []
    for start in range(0, len(stack), BATCH):
        part = stack[start : start + BATCH]
        # The last batch is padded, so that one compilation serves all batches.
        part = np.pad(part, [(0, BATCH - len(part))] + [(0, 0)] * 3)
        parts.append(average(on_host, folds, part, flips))
    if not parts:
        raise InputError(f"{case.name}: found no voxel of brain, expected some")
    inside = np.moveaxis(np.concatenate(parts)[: len(stack)], 0, 2)
    result = np.zeros((*network_case.images.shape[:3], inside.shape[-1]), np.float32)
    result[..., 0] = 1.0
    result[:, :, places] = unpad(inside, shape)
    result = grid.to_case(result, made, case.images.shape[:3])
    result[~case.brain] = np.eye(inside.shape[-1], dtype=np.float32)[0]
    return result


def average(forward: Callable[[Any, Images], Images], folds: Sequence[Any], images: Images, flips: bool) -> Images:
    """The mean of the class probabilities of several networks.

    Args:
      forward: (variables, images) -> probabilities [B, H, W, C].
      folds: variables of one network or more.
      images: [B, H, W, M].
      flips: average also over the mirror images of the slices along their first axis, the axis that training flips.
    """
    probabilities = [forward(variables, images) for variables in folds]
    if flips:
        probabilities += [forward(variables, images[:, ::-1])[:, ::-1] for variables in folds]
    return sum(probabilities[1:], start=probabilities[0]) / len(probabilities)


def remove_small(labels: np.ndarray, min_volume_ml: float, voxel_ml: float) -> np.ndarray:
    """Sets lesions smaller than `min_volume_ml` to background.

    A lesion is a 26-connected component of all foreground classes together, as in the lesion F1. A small core inside a
    large penumbra therefore stays, and no lesion gets a hole.

    Args:
      labels: uint8 [X, Y, Z], 0 for background.
      min_volume_ml: a lesion of exactly this volume stays; 0 removes nothing.
      voxel_ml: the volume of a voxel.
    """
    if min_volume_ml == 0:
        return labels
    lesions, _ = ndimage.label(labels > 0, np.ones((3, 3, 3)))
    volume_ml = np.bincount(lesions.ravel()) * voxel_ml
    # Rounding must not push a lesion of exactly the minimum volume below it.
    return np.where(volume_ml[lesions] < min_volume_ml * (1 - 1e-6), 0, labels).astype(labels.dtype)


def predict_labels(probabilities: np.ndarray, case: Case, settings: ml_collections.ConfigDict) -> np.ndarray:
    """The most probable class of each voxel, uint8 [X, Y, Z], without small lesions; `settings` is config.predict."""
    labels = probabilities.argmax(axis=-1).astype(np.uint8)
    return remove_small(labels, settings.min_volume_ml, case.voxel_ml)


def predict_fold(
    config: ml_collections.ConfigDict, dataset: Dataset, held_out: Sequence[str], directory: epath.Path
) -> None:
    """Segments the held-out cases of a trained fold into `directory`/predictions/CASE.nii.gz; existing files are kept.

    Several processes divide the cases among them. All files are written when the function returns.
    """
    variables, _, meta = checkpoint.load_variables(directory / "checkpoints")
    target = Target(**meta.get("grid", {}))
    slices = sum(case.images.shape[2] for case in dataset.cases)
    forward = make_forward(make_segmenter(config, len(dataset.classes) + 1, calls=slices // BATCH))
    folder = directory / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    if meta["skipped"]:
        # The report shows that the fold's predictions are not those of its last step.
        text = "\n".join(f"fold {meta['fold']} is predicted from step {meta['step']}: {n}" for n in meta["skipped"])
        processes.on_first(lambda: files.write_atomic(directory / NOTES, text + "\n"))
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
                        maps = predict_case(forward, [variables], case, flips=config.predict.flips, target=target)
                        write_labels(path, predict_labels(maps, case, config.predict), case, dataset.label_values)
                bar.advance(min(processes.count(), len(cases) - start))

    processes.on_all(write)


def predict_folder(
    run: epath.PathLike,
    images: Path,
    output: epath.Path,
    *,
    folds: Sequence[int] | None = None,
    flips: bool | None = None,
    min_volume_ml: float | None = None,
    probabilities: bool = False,
    overwrite: bool = False,
) -> None:
    """Segments the cases of a folder with the average of a run's folds, and writes `output`/CASE.nii.gz.

    Args:
      run: the workdir of a run, or a .safetensors file.
      images: a case folder, a folder of cases, or an nnU-Net imagesTs folder.
      output: folder or bucket.
      folds: numbers of the folds, finished or not; None: all finished ones.
      flips: average also over left-right mirror images; None: as in the run's config.predict.
      min_volume_ml: remove smaller lesions; None: as in the run's config.predict.
      probabilities: also write `output`/probabilities/CASE.nii.gz.
      overwrite: replace existing files.

    Raises:
      InputError: see `weights.load`; bad cases (one line each); a file exists and `overwrite` is not set; a file cannot
        be written.
    """
    trained = weights.load(run, folds)
    settings = trained.config.predict.copy_and_resolve_references()
    given = {"flips": flips, "min_volume_ml": min_volume_ml}
    settings.update({key: value for key, value in given.items() if value is not None})
    dataset = load_images(images, trained.channels)
    cases = dataset.cases
    paths = [output / f"{case.name}.nii.gz" for case in cases]
    map_paths = [output / "probabilities" / path.name for path in paths] if probabilities else []
    _make_room([*paths, *map_paths], overwrite)
    forward = make_forward(make_segmenter(trained.config, len(trained.classes) + 1))
    folds_text = ", ".join(f"{number} ({trained.steps[number]} steps)" for number in trained.folds)
    count = f"{len(trained.folds)} of {trained.config.folds}"
    notes = [f"{len(cases)} case{'s' * (len(cases) != 1)}", f"{count} folds of {run}: {folds_text}"]
    notes += ["with flips"] * settings.flips
    notes += [f"no lesion below {settings.min_volume_ml:g} ml"] * (settings.min_volume_ml > 0)
    print("; ".join([*notes, f"to {output}"]))
    for note in dataset.notes:
        print(f"note: {note}")
    interrupt.advise("add --overwrite, or choose another --output")
    with Bar("predict", len(cases), "case") as bar:
        for number, (case, path) in enumerate(zip(cases, paths, strict=True)):
            interrupt.leave_if_requested()
            maps = predict_case(
                forward, list(trained.folds.values()), case, flips=settings.flips, target=trained.target
            )
            if map_paths:
                write_volume(map_paths[number], maps, case)
            write_labels(path, predict_labels(maps, case, settings), case, trained.label_values)
            bar.advance()


def _make_room(paths: Sequence[epath.Path], overwrite: bool) -> None:
    """Makes the folders for the files to write; InputError before any is written if a file exists already."""
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more of the files to write" if existing[1:] else ""
        raise InputError(f"{existing[0]} exists{more}; choose another --output, or replace them with --overwrite")
    for folder in {path.parent for path in paths}:
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
