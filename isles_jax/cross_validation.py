"""A whole run: every fold is trained, predicts its held-out cases, and all are scored once."""

import dataclasses
import shutil
from pathlib import Path

import ml_collections
import numpy as np
from etils import epath

from isles_jax import clinical, data, files
from isles_jax.config import InputError, flatten, resolve, to_dict
from isles_jax.data import folds as splits
from isles_jax.data.case import Dataset, read_label_values

# Keys that may differ between calls on one workdir: they change what a call does, not what the run is.
_FREE = ("fold",)


def cross_validate(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> str:
    """Runs or resumes a cross-validation; of a run that is done only the table is made.

    Args:
      config: the whole configuration, as `config.baseline` makes it.
      workdir: a folder or bucket; what is written there is listed in the README.

    Returns:
      The table of results, as text.

    Raises:
      InputError: a mistake in the configuration or the data; a workdir that holds another run.
    """
    config, workdir = resolve(config), epath.Path(workdir)
    refuse_other(config, workdir)
    if not (workdir / "DONE").exists():
        unfinished = _run(config, workdir)
        if unfinished:
            return f"folds {', '.join(map(str, unfinished))} are still to be run; the last one makes the table"
    from isles_jax import report  # scipy's import, which a mistake in the settings or the data should not wait for

    return report.table([report.read_run(workdir)])


def refuse_other(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Refuses a workdir whose config.json is another configuration.

    Raises:
      InputError: naming the keys that differ.
    """
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        found = flatten(ml_collections.ConfigDict(files.read_json(path)))
    except ValueError as error:
        raise InputError(f"{path}: found no JSON, expected the configuration of a run") from error
    wanted = flatten(ml_collections.ConfigDict(to_dict(config)))
    differing = [
        f"{key} is {found.get(key)!r} there and {wanted.get(key)!r} here"
        for key in sorted(found.keys() | wanted.keys())
        if key not in _FREE and found.get(key) != wanted.get(key)
    ]
    if differing:
        raise InputError(f"{workdir} holds another run: {'; '.join(differing)}; choose another --workdir")


def _run(config: ml_collections.ConfigDict, workdir: epath.Path) -> list[int]:
    """Runs the folds that are to be run and, when all are done, scores; returns the folds that are still to be run."""
    dataset = _dataset(config, workdir)
    for note in dataset.notes:
        print(f"note: {note}", flush=True)
    description = data.describe(dataset)
    refuse_changed(dataset, description, workdir / "data.json")
    labelled = dataclasses.replace(dataset, cases=tuple(case for case in dataset.cases if case.labels is not None))
    names = [case.name for case in labelled.cases]
    if len(names) < config.folds:
        raise InputError(
            f"{dataset.root}: found {len(names)} labelled cases, expected one for each of {config.folds} folds"
        )
    from isles_jax import predict, train  # JAX's import, too

    plan = train.prepare(config, labelled)
    held_out = splits.read_or_write(workdir / "folds.json", names, config.folds, config.seed)
    # Only now, when nothing in the settings was refused, is the workdir bound to them.
    if not (workdir / "config.json").exists():
        files.write_json(workdir / "data.json", description)
        files.write_json(workdir / "config.json", to_dict(config))
    for fold in range(config.folds) if config.fold is None else [config.fold]:
        directory = workdir / f"fold_{fold}"
        if (directory / "DONE").exists():
            continue
        train.train_fold(plan, fold, held_out[fold], directory)
        predict.predict_fold(config, labelled, held_out[fold], directory)
        files.write_atomic(directory / "DONE", "")
    unfinished = [fold for fold in range(config.folds) if not (workdir / f"fold_{fold}" / "DONE").exists()]
    if not unfinished:
        _score(labelled, held_out, workdir)
        files.write_atomic(workdir / "DONE", "")
    return unfinished


def _dataset(config: ml_collections.ConfigDict, workdir: epath.Path) -> Dataset:
    root, phantom = Path(config.data.root), config.data.phantom
    if not config.data.root:
        from isles_jax.data.phantom import MARKER, write_phantom  # scipy's import, too

        root = Path(workdir) / "phantom"
        print("No --config.data.root: the run uses the built-in digital perfusion phantom, not patients.\n"
              "For real data: --config.data.root=/data/SPES2015_Training", flush=True)  # fmt: skip
        # What a call that failed left behind may be another phantom; once a run has begun, it is the run's own.
        if (root / MARKER).exists() and not (workdir / "config.json").exists():
            shutil.rmtree(root)
        if not (root / MARKER).exists():
            write_phantom(root, cases=phantom.cases, shape=tuple(phantom.shape), difficulty=phantom.difficulty,
                          seed=config.seed)  # fmt: skip
    return data.load(root, penumbra=config.data.labels.penumbra, core=config.data.labels.core)


def refuse_changed(dataset: Dataset, description: dict, path: epath.Path) -> None:
    """Refuses data that are not those the run began with, as its data.json describes them.

    Raises:
      InputError: naming the cases that differ.
    """
    if not path.exists():
        return
    before, now = files.read_json(path)["cases"], description["cases"]
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        names = ", ".join(changed)
        raise InputError(f"{dataset.root}: the data changed since this run began ({names}); choose another --workdir")


def _score(dataset: Dataset, held_out: list[list[str]], workdir: epath.Path) -> None:
    """Scores every held-out prediction, and the clinical rule on the same cases; writes the report."""
    from isles_jax import evaluate, report

    cases = {case.name: case for case in dataset.cases}
    rows, rule = [], []
    # The data set's own label values back to the integers inside.
    table = np.zeros(256, np.uint8)
    table[list(dataset.label_values)] = np.arange(1, len(dataset.label_values) + 1)
    rule_applies = {"Tmax", "DWI"} <= set(dataset.channels) and {"penumbra", "core"} <= set(dataset.classes)
    words = {"channels": dataset.channels, "classes": dataset.classes}
    for fold, names in enumerate(held_out):
        if rule_applies:
            training = [case for case in dataset.cases if case.name not in names]
            threshold = clinical.fit_core_threshold(training, **words)
        for name in names:
            case = cases[name]
            values = read_label_values(Path(workdir) / f"fold_{fold}" / "predictions" / f"{name}.nii.gz", case)
            prediction = table[values]
            rows += evaluate.score_case(name, fold, prediction, case.labels, case.spacing_mm, dataset.classes)
            if rule_applies:
                by_rule = clinical.clinical_rule(case, threshold, **words)
                rule += evaluate.score_case(name, fold, by_rule, case.labels, case.spacing_mm, dataset.classes)
    evaluate.write_cases_csv(workdir / "cases.csv", rows)
    evaluate.write_summary(workdir / "summary.json", evaluate.summarise(rows))
    if rule:
        evaluate.write_cases_csv(workdir / "clinical_rule.csv", rule)
    report.write_report(workdir / "report.html", [report.read_run(workdir)])
