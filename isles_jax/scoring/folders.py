"""Scores of label volumes of any tool: a folder of predictions against a folder of references, or a data set."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from isles_jax.data import layouts, nnunet, table
from isles_jax.data.case import Case, check_names
from isles_jax.data.folder import hint, is_nifti, list_folder, notes_of_volumes, volumes_by_name
from isles_jax.data.nifti import ReadOptions, read_labels, read_volume
from isles_jax.runtime import interrupt
from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import say
from isles_jax.scoring import lesions
from isles_jax.scoring.scores import Row, score_case


def score_folders(
    predictions: Path,
    labels: Path,
    classes: Sequence[str] | None = None,
    values: Sequence[int] | None = None,
    *,
    subset: bool = False,
) -> tuple[list[Row], list[Row]]:
    """Scores every labelled case of a folder against its prediction, CASE.nii or CASE.nii.gz.

    Args:
      predictions: a folder of label volumes.
      labels: a folder of label volumes, or a data set in any layout that training reads; of a table, only the labels
        are read.
      classes: names of the classes in a folder of label volumes; None: those in the dataset.json in the folder or above
        it, or else the integers that occur in the volumes. A data set names its own.
      values: the integers that the files hold for the classes; None: 1, 2, ..., or as for `classes`.
      subset: leave out the cases without a prediction, with a note; otherwise such a case is an error.

    Returns:
      The rows of `score_case`, and those of `lesions.of_case`.

    Raises:
      InputError: a prediction is missing, or all are missing with `subset`; a prediction lies on another grid or holds
        an unknown value; a folder holds no label volumes.
    """
    cases, classes, values = _labelled_cases(labels, classes, values, predictions)
    paths = _volumes(predictions)
    check_names(labels, list(cases), classes)
    missing = [name for name in cases if name not in paths]
    counts = f"{len(missing)} of {len(cases)} cases"
    if missing and not (subset and len(missing) < len(cases)):
        found = f"found no {missing[0]}.nii or .nii.gz, expected a prediction for every case; {counts} have none"
        remedy = "" if subset else "; --subset leaves out the cases without one"
        raise InputError(f"{predictions}: {found}{remedy}{hint(predictions, missing[0].lower())}")
    # A prediction's folder also holds maps, in folders below.
    for note in notes_of_volumes(predictions, below=False):
        say(f"note: {predictions}: {note}", sys.stderr)
    if missing:
        say(f"note: {counts} have no prediction and are not scored", sys.stderr)
    extra = sorted(paths.keys() - cases.keys())
    if extra:
        say(f"note: these predictions have no label and are not scored: {', '.join(extra)}", sys.stderr)
    rows = []
    lesion_rows = []
    for name, case in cases.items():
        if name in missing:
            continue
        interrupt.leave_if_requested()
        case = _flat_case(case, values) if isinstance(case, Path) else case
        assert case.labels is not None
        predicted = read_labels(paths[name], case, values)
        rows += score_case(name, 0, predicted, case.labels, case.spacing_mm, classes, case.voxel_ml)
        lesion_rows += lesions.of_case(name, 0, predicted, case.labels, classes, case.voxel_ml)
    return rows, lesion_rows


def _labelled_cases(
    labels: Path, classes: Sequence[str] | None, values: Sequence[int] | None, predictions: Path
) -> tuple[Mapping[str, Case | Path], Sequence[str], Sequence[int]]:
    """The labelled cases by name, the names of the classes and their integers.

    A folder of label volumes gives paths alone, so that one volume is in memory at a time.
    """
    if (labels / "labelsTr").is_dir() and not (labels / "imagesTr").exists():
        labels = labels / "labelsTr"  # the scores need no images
    from_table = table.is_table(labels)
    if from_table or any(is_nifti(path) for path in list_folder(labels)):
        if from_table:
            paths, named = table.references(labels)
            known = (tuple(named), tuple(named.values())) if named else None
        else:
            paths = _volumes(labels)
            known = nnunet.classes_beside(labels)
            for note in notes_of_volumes(labels, below=True):
                say(f"note: {labels}: {note}", sys.stderr)
        if classes is None and values is None:
            classes, values = known or _occurring(paths, _volumes(predictions))
            classes = ("lesion",) if from_table and len(values) == 1 and not known else classes
        values = values or tuple(range(1, len(classes or ()) + 1))
        classes = classes or tuple(map(str, values))
        check_names(f"--classes={','.join(classes)}", (), classes)
        if len(set(values)) != len(classes) or not all(1 <= value <= 255 for value in values):
            expected = f"{len(classes)} different integers from 1 to 255, for {', '.join(classes)}"
            raise InputError(f"--values={','.join(map(str, values))}: expected {expected}")
        return paths, classes, values
    if values and len(values) != 2:
        raise InputError(f"--values={','.join(map(str, values))}: expected two integers, of penumbra and of core")
    penumbra, core = values or (1, 2)
    # Scores need the labels alone, so a case may lack a sequence.
    dataset = layouts.load(labels, penumbra=penumbra, core=core, how=ReadOptions(missing=True))
    for note in dataset.notes:
        say(f"note: {note}", sys.stderr)
    if classes and tuple(classes) != tuple(dataset.classes):
        raise InputError(f"--classes={','.join(classes)}: {labels} has the classes {','.join(dataset.classes)}")
    if values and tuple(values) != tuple(dataset.label_values):
        raise InputError(f"--values={penumbra},{core}: {labels} has {','.join(map(str, dataset.label_values))}")
    cases = {case.name: case for case in dataset.cases if case.labels is not None}
    if not cases:
        raise InputError(f"{labels}: found no case with labels, expected a reference")
    return cases, dataset.classes, dataset.label_values


def _occurring(labels: Mapping[str, Path], predictions: Mapping[str, Path]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The integers that occur in the volumes, and their names as classes; 1 if there is no lesion at all."""
    every = tuple(range(1, 256))
    found: set[int] = set()
    for name, path in labels.items():
        interrupt.leave_if_requested()
        case = _flat_case(path, every)
        assert case.labels is not None
        found.update(np.unique(case.labels).tolist())
        if name in predictions:
            found.update(np.unique(read_labels(predictions[name], case, every)).tolist())
    values = tuple(sorted(found - {0})) or (1,)
    return tuple(map(str, values)), values


def _volumes(folder: Path) -> dict[str, Path]:
    """As `volumes_by_name`; an InputError if there is none."""
    paths = volumes_by_name(folder)
    if not paths:
        raise InputError(f"{folder}: found no .nii or .nii.gz file, expected label volumes{hint(folder)}")
    return paths


def _flat_case(path: Path, values: Sequence[int]) -> Case:
    """A label volume as a case whose only image is that volume."""
    volume, affine, header = read_volume(path)
    case = Case(path.name, volume[..., None], None, affine, header, (path,))
    return dataclasses.replace(case, labels=read_labels(path, case, values))
