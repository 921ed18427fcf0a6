"""From a volume to class probabilities and a label NIfTI on the input's grid; also the command for new patients.

python -m isles_jax.predict --workdir=RUN --input=CASE_OR_FOLDER --output=DIR
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ml_collections
import numpy as np
from etils import epath

from isles_jax import data, files, interrupt, processes, weights
from isles_jax.config import InputError, Parser, run_command
from isles_jax.data.case import Case, Dataset, brain_mask, write_labels, write_volume
from isles_jax.data.slices import normalise, pad, padded_size, unpad
from isles_jax.writer import Bar

# JAX is imported where it is used: --help and mistakes should not wait for it.
if TYPE_CHECKING:
    import jax

    from isles_jax.models import SUMNet

BATCH = 8


@functools.cache
def make_forward(segmenter: "SUMNet") -> Callable[[Any, "jax.Array"], "jax.Array"]:
    """A compiled (variables, images [B, H, W, M]) -> float32 probabilities [B, H, W, C]; one compilation a size.

    All that ask for the same network share it.
    """
    import jax

    # Flax's type is a pair too, which `apply` returns with `mutable` only.
    return jax.jit(lambda variables, images: jax.nn.softmax(segmenter.apply(variables, images)))  # type: ignore[arg-type]


def predict_case(
    forward: Callable[..., "jax.Array"], folds: Sequence[Any], case: Case, *, flips: bool = False
) -> np.ndarray:
    """Class probabilities of a case, averaged over the networks of several folds.

    Args:
      forward: from `make_forward`.
      folds: variables of one network or more.
      case: its labels, if any, are not looked at.
      flips: average with the prediction of each slice's mirror image along the first axis, too, as training flips.

    Returns:
      float32 [X, Y, Z, C]; where there is no brain, background has probability 1.
    """
    from isles_jax.models import MULTIPLE

    brain = brain_mask(case.images)
    volume = normalise(case.images, brain)
    chosen = np.flatnonzero(brain.any(axis=(0, 1)))
    shape = volume.shape[:2]
    stack = np.moveaxis(pad(volume[:, :, chosen], padded_size(shape, MULTIPLE)), 2, 0)
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
    result[:, :, chosen] = unpad(inside, shape)
    result[~brain] = np.eye(inside.shape[-1], dtype=np.float32)[0]
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
    from scipy import ndimage

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
    from isles_jax import checkpoint
    from isles_jax.state import make_segmenter

    variables, _, meta = checkpoint.load_variables(directory / "checkpoints")
    slices = sum(case.images.shape[2] for case in dataset.cases)
    forward = make_forward(make_segmenter(config, len(dataset.classes) + 1, runs=slices // BATCH))
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

    processes.together(write)


# --- the command -----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m isles_jax.predict", description=main.__doc__)
    run = "a run of isles_jax.main, or a .safetensors file of isles_jax.export"
    parser.add_argument("--workdir", required=True, metavar="RUN", help=run)
    cases = "a case folder, a folder of cases, or an nnU-Net imagesTs folder"
    parser.add_argument("--input", required=True, metavar="DIR", help=cases)
    parser.add_argument("--output", required=True, metavar="DIR", help="where CASE.nii.gz are written")
    add_folds_flag(parser)
    flips = "average with the left-right mirror images, in twice the time; default: as the run's predict.flips"
    parser.add_argument("--flips", action=argparse.BooleanOptionalAction, help=flips)
    small = "remove lesions smaller than this; default: the run's predict.min_volume_ml"
    parser.add_argument("--min-volume-ml", type=float, metavar="ML", help=small)
    maps = "also write DIR/probabilities/CASE.nii.gz: float32, fourth axis background and the classes in their order"
    parser.add_argument("--probabilities", action="store_true", help=maps)
    parser.add_argument("--overwrite", action="store_true", help="replace files of that name; without it they are kept")
    return parser


def add_folds_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --folds=0,2 as a sequence of numbers, or None."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(word) for word in text.split(","))

    folds = "average these folds, as in 0,2, even if one is not finished; default: all finished ones"
    parser.add_argument("--folds", type=numbers, metavar="NUMBERS", help=folds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Segments new cases with the networks of a run, its folds averaged; NIfTI in, NIfTI out on the same grid."""
    options = _parser().parse_args(arguments)
    if options.min_volume_ml is not None and not options.min_volume_ml >= 0:
        raise InputError(f"--min-volume-ml: found {options.min_volume_ml:g}, expected 0 or more")
    options.output, images = files.location(options.output), files.fetch(options.input)
    data.check_folder(images)
    trained = weights.load(options.workdir, options.folds)
    settings = _settings(trained.config, options)
    cases = data.load_images(images, trained.channels).cases
    targets = [(options.output / f"{case.name}.nii.gz", _map_path(options, case.name)) for case in cases]
    _make_room(options, [path for pair in targets for path in pair if path is not None])
    from isles_jax.state import make_segmenter

    forward = make_forward(make_segmenter(trained.config, len(trained.classes) + 1))
    told = ", ".join(f"{number} ({trained.steps[number]} steps)" for number in trained.folds)
    count = f"{len(trained.folds)} of {trained.config.folds}"
    notes = [f"{len(cases)} case{'s' * (len(cases) != 1)}", f"{count} folds of {options.workdir}: {told}"]
    notes += ["with flips"] * settings.flips
    notes += [f"no lesion below {settings.min_volume_ml:g} ml"] * (settings.min_volume_ml > 0)
    print("; ".join([*notes, f"to {options.output}"]))
    with Bar("predict", len(cases), "case") as bar:
        for case, (path, map_path) in zip(cases, targets, strict=True):
            interrupt.leave_if_requested()
            found = predict_case(forward, list(trained.folds.values()), case, flips=settings.flips)
            if map_path is not None:
                write_volume(map_path, found, case)
            write_labels(path, predict_labels(found, case, settings), case, trained.label_values)
            bar.advance()


def _settings(config: ml_collections.ConfigDict, options: argparse.Namespace) -> ml_collections.ConfigDict:
    """The run's config.predict with what the command line says instead."""
    settings = config.predict.copy_and_resolve_references()
    settings.update({key: value for key in settings if (value := getattr(options, key)) is not None})
    return settings


def _map_path(options: argparse.Namespace, name: str) -> epath.Path | None:
    return options.output / "probabilities" / f"{name}.nii.gz" if options.probabilities else None


def _make_room(options: argparse.Namespace, paths: Sequence[epath.Path]) -> None:
    """Makes the folders of the files to write; InputError where something stands in the way, before any is written."""
    there = [path for path in paths if path.exists()]
    if there and not options.overwrite:
        more = f" and {len(there) - 1} more of the files to write" if there[1:] else ""
        raise InputError(f"{there[0]} exists{more}; choose another --output, or replace them with --overwrite")
    for folder in {path.parent for path in paths}:
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    run_command(main)
