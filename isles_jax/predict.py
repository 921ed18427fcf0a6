"""From a volume to class probabilities and a label NIfTI on the input's grid; also the command for new patients.

python -m isles_jax.predict --workdir=RUN --input=CASE_OR_FOLDER --output=DIR
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from isles_jax import checkpoint
from isles_jax.config import InputError, run_command
from isles_jax.data import load_images
from isles_jax.data.case import Case, Dataset, brain_mask, write_labels
from isles_jax.data.slices import normalise, pad, padded_size, unpad
from isles_jax.models import MULTIPLE, SUMNet
from isles_jax.state import make_segmenter
from isles_jax.writer import Bar

BATCH = 8


def make_forward(segmenter: SUMNet) -> Callable[[Any, jax.Array], jax.Array]:
    """A compiled (variables, images [B, H, W, M]) -> float32 probabilities [B, H, W, C]; one compilation a size."""
    return jax.jit(lambda variables, images: jax.nn.softmax(segmenter.apply(variables, images)))


def predict_case(forward: Callable[..., jax.Array], folds: Sequence[Any], case: Case) -> np.ndarray:
    """Class probabilities of a case, averaged over the networks of several folds.

    Args:
      forward: from `make_forward`.
      folds: variables of one network or more.
      case: its labels, if any, are not looked at.

    Returns:
      float32 [X, Y, Z, C]; where there is no brain, background has probability 1.
    """
    brain = brain_mask(case.images)
    volume = normalise(case.images, brain)
    chosen = np.flatnonzero(brain.any(axis=(0, 1)))
    shape = volume.shape[:2]
    stack = np.moveaxis(pad(volume[:, :, chosen], padded_size(shape, MULTIPLE)), 2, 0)
    parts = []
    for start in range(0, len(stack), BATCH):
        part = stack[start : start + BATCH]
        # The last batch is filled up, so that one compilation serves all.
        part = jnp.asarray(np.pad(part, [(0, BATCH - len(part))] + [(0, 0)] * 3))
        parts.append(sum(np.asarray(forward(variables, part)) for variables in folds) / len(folds))
    if not parts:
        raise InputError(f"{case.name}: found no voxel of brain, expected some")
    inside = np.moveaxis(np.concatenate(parts)[: len(stack)], 0, 2)
    result = np.zeros((*case.images.shape[:3], inside.shape[-1]), np.float32)
    result[..., 0] = 1.0
    result[:, :, chosen] = unpad(inside, shape)
    result[~brain] = np.eye(inside.shape[-1], dtype=np.float32)[0]
    return result


def predict_labels(forward: Callable[..., jax.Array], folds: Sequence[Any], case: Case) -> np.ndarray:
    """The most probable class of each voxel, uint8 [X, Y, Z]."""
    return predict_case(forward, folds, case).argmax(axis=-1).astype(np.uint8)


def predict_fold(
    config: ml_collections.ConfigDict, dataset: Dataset, held_out: Sequence[str], directory: epath.Path
) -> None:
    """Writes a trained fold's held-out cases to `directory`/predictions/CASE.nii.gz; those that exist are kept."""
    variables, _, meta = checkpoint.load_variables(directory / "checkpoints")
    forward = make_forward(make_segmenter(config, len(dataset.classes) + 1))
    folder = directory / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    with Bar(f"fold {meta['fold']}, predicting", len(held_out), "case") as bar:
        for case in dataset.cases:
            path = folder / f"{case.name}.nii.gz"
            if case.name in held_out:
                if not path.exists():
                    write_labels(Path(path), predict_labels(forward, [variables], case), case, dataset.label_values)
                bar.advance()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: segments new cases with the networks of a run's finished folds."""
    parser = argparse.ArgumentParser(prog="python -m isles_jax.predict", description=main.__doc__)
    parser.add_argument("--workdir", required=True, help="a run of isles_jax.main; all its trained folds are averaged")
    parser.add_argument(
        "--input", required=True, help="a case folder, a folder of cases, or an nnU-Net imagesTs folder"
    )
    parser.add_argument("--output", required=True, help="where CASE.nii.gz are written")
    options = parser.parse_args(arguments)
    workdir = epath.Path(options.workdir)
    directories = sorted(workdir.glob("fold_*/checkpoints"))
    if not directories:
        raise InputError(f"{workdir}: found no fold_*/checkpoints, expected a run of isles_jax.main")
    loaded = [checkpoint.load_variables(directory) for directory in directories]
    _, config, meta = loaded[0]
    folds = [variables for variables, _, _ in loaded]
    cases = load_images(Path(options.input), tuple(meta["channels"])).cases
    forward = make_forward(make_segmenter(config, len(meta["classes"]) + 1))
    print(f"{len(cases)} cases, {len(folds)} folds of {workdir}; to {options.output}")
    with Bar("predict", len(cases), "case") as bar:
        for case in cases:
            labels = predict_labels(forward, folds, case)
            write_labels(Path(options.output) / f"{case.name}.nii.gz", labels, case, tuple(meta["label_values"]))
            bar.advance()


if __name__ == "__main__":
    run_command(main)
