"""From a case to class probabilities, labels, and a label volume on the case's own grid."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax import Array
from scipy import ndimage

from isles_jax.data.case import Case, Dataset
from isles_jax.data.layouts import load_images
from isles_jax.data.nifti import write_labels, write_volume
from isles_jax.data.slices import network_input, padded_size, unpad
from isles_jax.models import MULTIPLE
from isles_jax.networks import BATCH, make_forward, make_segmenter
from isles_jax.runtime import files, interrupt, processes
from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import Bar
from isles_jax.training import checkpoint, weights
from isles_jax.training.weights import Trained

# An exported inference function runs on these.
PLATFORMS = ("cpu", "cuda", "tpu")


def predict_case(forward: Callable[..., Array], folds: Sequence[Any], case: Case, *, flips: bool = False) -> np.ndarray:
    """Class probabilities of a case, averaged over the networks of several folds.

    Args:
      forward: from `make_forward`.
      folds: variables of one network or more.
      case: its labels, if any, are not looked at.
      flips: average with the prediction of each slice's mirror image along the first axis, too, as training flips.

    Returns:
      float32 [X, Y, Z, C]; where there is no brain, background has probability 1.
    """
    shape = case.images.shape[:2]
    stack, places = network_input(case, padded_size(shape, MULTIPLE))
    parts = []
    for start in range(0, len(stack), BATCH):
        part = stack[start : start + BATCH]
        # The last batch is filled up, so that one compilation serves all.
        part = np.pad(part, [(0, BATCH - len(part))] + [(0, 0)] * 3)
        found = [np.asarray(forward(variables, part)) for variables in folds]
        if flips:
            found += [np.asarray(forward(variables, part[:, ::-1]))[:, ::-1] for variables in folds]
        parts.append(sum(found) / len(found))
    if not parts:
        raise InputError(f"{case.name}: found no voxel of brain, expected some")
    inside = np.moveaxis(np.concatenate(parts)[: len(stack)], 0, 2)
    result = np.zeros((*case.images.shape[:3], inside.shape[-1]), np.float32)
    result[..., 0] = 1.0
    result[:, :, places] = unpad(inside, shape)
    result[~case.brain] = np.eye(inside.shape[-1], dtype=np.float32)[0]
    return result


def remove_small(labels: np.ndarray, min_volume_ml: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """Labels without the lesions smaller than `min_volume_ml`.

    A lesion is a 26-connected component of any foreground, as the lesion F1 counts them: core inside penumbra stays
    with it, however small, and no hole is made in a lesion.

    Args:
      labels: uint8 [X, Y, Z], 0 background.
      min_volume_ml: a lesion of exactly this volume stays; 0 removes nothing.
      spacing_mm: the voxel's sides.
    """
    if min_volume_ml == 0:
        return labels
    lesions, _ = ndimage.label(labels > 0, np.ones((3, 3, 3)))
    volume_ml = np.bincount(lesions.ravel()) * float(np.prod(spacing_mm)) / 1000
    # A volume of whole voxels that equals the bound must not fall under it by rounding.
    return np.where(volume_ml[lesions] < min_volume_ml * (1 - 1e-6), 0, labels).astype(labels.dtype)


def predict_labels(probabilities: np.ndarray, case: Case, settings: ml_collections.ConfigDict) -> np.ndarray:
    """The most probable class of each voxel without small lesions, uint8 [X, Y, Z]; `settings` are config.predict."""
    labels = probabilities.argmax(axis=-1).astype(np.uint8)
    return remove_small(labels, settings.min_volume_ml, case.spacing_mm)


def predict_fold(
    config: ml_collections.ConfigDict, dataset: Dataset, held_out: Sequence[str], directory: epath.Path
) -> None:
    """Writes a trained fold's held-out cases to `directory`/predictions/CASE.nii.gz; those that exist are kept.

    Several processes share the cases; all are written when it returns.
    """
    variables, _, meta = checkpoint.load_variables(directory / "checkpoints")
    slices = sum(case.images.shape[2] for case in dataset.cases)
    forward = make_forward(make_segmenter(config, len(dataset.classes) + 1, calls=slices // BATCH))
    folder = directory / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    cases = [case for case in dataset.cases if case.name in held_out]

    def write() -> None:
        with Bar(f"fold {meta['fold']}, predicting", len(cases), "case") as bar:
            # One case for each process at a time, so that all of them can be asked to leave at the same place.
            for start in range(0, len(cases), processes.count()):
                if processes.leaving():
                    interrupt.leave_if_requested()
                for case in processes.share(cases[start : start + processes.count()]):
                    path = folder / f"{case.name}.nii.gz"
                    if not path.exists():
                        found = predict_case(forward, [variables], case, flips=config.predict.flips)
                        write_labels(path, predict_labels(found, case, config.predict), case, dataset.label_values)
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
    """Segments the cases of a folder, the run's folds averaged, and writes `output`/CASE.nii.gz.

    Args:
      run: the workdir of a run, or a .safetensors file.
      images: a case folder, a folder of cases, or an nnU-Net imagesTs folder.
      output: folder or bucket.
      folds: numbers of the folds, finished or not; None: all finished ones.
      flips: average with the left-right mirror images; None: as the run's config.predict.
      min_volume_ml: remove smaller lesions; None: as the run's config.predict.
      probabilities: also write `output`/probabilities/CASE.nii.gz.
      overwrite: replace files that exist.

    Raises:
      InputError: as `weights.load`; bad cases (one line each); files that exist without `overwrite`; a file that cannot
        be written.
    """
    trained = weights.load(run, folds)
    settings = trained.config.predict.copy_and_resolve_references()
    given = {"flips": flips, "min_volume_ml": min_volume_ml}
    settings.update({key: value for key, value in given.items() if value is not None})
    cases = load_images(images, trained.channels).cases
    paths = [output / f"{case.name}.nii.gz" for case in cases]
    map_paths = [output / "probabilities" / path.name for path in paths] if probabilities else []
    _make_room([*paths, *map_paths], overwrite)
    forward = make_forward(make_segmenter(trained.config, len(trained.classes) + 1))
    trained_folds = ", ".join(f"{number} ({trained.steps[number]} steps)" for number in trained.folds)
    count = f"{len(trained.folds)} of {trained.config.folds}"
    notes = [f"{len(cases)} case{'s' * (len(cases) != 1)}", f"{count} folds of {run}: {trained_folds}"]
    notes += ["with flips"] * settings.flips
    notes += [f"no lesion below {settings.min_volume_ml:g} ml"] * (settings.min_volume_ml > 0)
    print("; ".join([*notes, f"to {output}"]))
    interrupt.advise("add --overwrite, or choose another --output")
    with Bar("predict", len(cases), "case") as bar:
        for number, (case, path) in enumerate(zip(cases, paths, strict=True)):
            interrupt.leave_if_requested()
            maps = predict_case(forward, list(trained.folds.values()), case, flips=settings.flips)
            if map_paths:
                write_volume(map_paths[number], maps, case)
            write_labels(path, predict_labels(maps, case, settings), case, trained.label_values)
            bar.advance()


def _make_room(paths: Sequence[epath.Path], overwrite: bool) -> None:
    """Makes the folders of the files to write; InputError where something stands in the way, before any is written."""
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more of the files to write" if existing[1:] else ""
        raise InputError(f"{existing[0]} exists{more}; choose another --output, or replace them with --overwrite")
    for folder in {path.parent for path in paths}:
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)


# --- the inference function for other programs -----------------------------------------------------------------------


def serialised(trained: Trained) -> bytes:
    """The inference function as a serialised `jax.export.Exported`, for CPU, CUDA and TPU.

    Its arguments are the weights by the names that they have in the .safetensors file of the same folds, and slices,
    float32 [B, H, W, M], normalised as `data.slices.normalise` does and 0 outside the brain; B is any number, H and W
    are any multiples of 32. It returns class probabilities, float32 [B, H, W, C], averaged over the folds and, where
    the run's predict.flips is set, over the mirror images.

    Raises:
      InputError: flatbuffers is not installed.
    """
    forward = make_forward(make_segmenter(trained.config, len(trained.classes) + 1))

    def call(tensors: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        networks = list(weights.nested(tensors).values())
        found = [forward(variables, images) for variables in networks]
        if trained.config.predict.flips:
            found += [forward(variables, images[:, ::-1])[:, ::-1] for variables in networks]
        return cast(jax.Array, sum(found) / len(found))

    like = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in weights.flat(trained).items()}
    shape = jax.export.symbolic_shape(f"b, {MULTIPLE}*h, {MULTIPLE}*w, {len(trained.channels)}")
    exported = jax.export.export(jax.jit(call), platforms=PLATFORMS)(like, jax.ShapeDtypeStruct(shape, jnp.float32))
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        wanted = "pip install flatbuffers, or uv run --extra export"
        raise InputError(f"flatbuffers is not installed, expected it for .stablehlo files: {wanted}") from error


def export(run: epath.PathLike, output: epath.Path, folds: Sequence[int] | None = None) -> Trained:
    """Writes a run's networks: as weights where `output` ends in .safetensors, else as the inference function.

    Args:
      run: the workdir of a run, or a .safetensors file.
      output: replaced if it exists.
      folds: numbers of the folds, finished or not; None: all finished ones.

    Returns:
      What was written.

    Raises:
      InputError: as `weights.load`; a package that is not installed; a file that cannot be written.
    """
    trained = weights.load(run, folds)
    if output.suffix == weights.SUFFIX:
        weights.save(output, trained)
    else:
        files.write_atomic(output, serialised(trained))
    return trained
