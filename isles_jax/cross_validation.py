"""A whole run: train every fold, predict its held-out cases, then score all of them together."""

import contextlib
import dataclasses
from collections.abc import Sequence

import ml_collections
from etils import epath

from isles_jax.config import complete, flatten, resolve, to_dict
from isles_jax.data import folds as splits
from isles_jax.data import layouts, profile
from isles_jax.data.case import Dataset
from isles_jax.data.nifti import read_labels
from isles_jax.pages import page
from isles_jax.phantoms import phantom
from isles_jax.prediction import inference
from isles_jax.runtime import files, interrupt, lock, processes
from isles_jax.runtime.command import InputError
from isles_jax.scoring import calibration, clinical, run_files, scores, table
from isles_jax.training import initial
from isles_jax.training.fold import train_fold
from isles_jax.training.metric_writer import require_tensorboard
from isles_jax.training.plan import Plan, prepare, training_slices

# Keys that may differ between two calls on one workdir, because they change how a call works and not its results.
FREE = ("fold", "train.parallel", "train.profile", "train.tensorboard")


def cross_validate(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> str:
    """Runs or resumes a cross-validation. For a finished run, only the table is rebuilt.

    Args:
      config: the whole configuration, as `config.baseline` makes it.
      workdir: a folder or bucket; the README lists what is written there.

    Returns:
      The table of results as text, or a line that names the folds that are still missing.

    Raises:
      InputError: a mistake in the configuration or the data; the workdir holds another run, or another process is at
        work on one of the folds; a file cannot be written.
    """
    config, workdir = resolve(config), files.location(workdir)
    if config.train.init:
        config.train.init_sha256 = processes.on_first(lambda: _init_digest(config, workdir))
    if not processes.on_first(lambda: _is_done(config, workdir)):
        unfinished = _run(config, workdir)
        if unfinished:
            return f"folds {', '.join(map(str, unfinished))} are still to be run; the last one makes the table"
    return processes.on_first(lambda: table.table([run_files.read_run(workdir)]))


def _init_digest(config: ml_collections.ConfigDict, workdir: epath.Path) -> str:
    """SHA-256 of the weights that the run starts from; of a run that has begun, as its config.json holds it."""
    given, path = config.train.init_sha256, workdir / "config.json"
    if given or not path.exists():
        found = initial.digest(config.train.init)
        if given not in ("", found):
            raise InputError(
                f"--config.train.init_sha256: found {given!r}, expected {found}, as of {config.train.init}"
            )
        return found
    # The weights may be gone once they are not needed; `refuse_other` compares the path.
    return complete(files.read_json(path)).train.init_sha256


def _is_done(config: ml_collections.ConfigDict, workdir: epath.Path) -> bool:
    refuse_other(config, workdir)
    return (workdir / "DONE").exists()


def _run(config: ml_collections.ConfigDict, workdir: epath.Path) -> list[int]:
    """Runs the requested folds, and scores the run once all folds are done; returns the folds that are not."""
    if config.train.tensorboard:
        require_tensorboard(workdir)
    folds = range(config.folds) if config.fold is None else [config.fold]
    with contextlib.ExitStack() as stack:
        # Process 0 holds the locks for all processes.
        hold = lock.hold(workdir, folds) if processes.first() else contextlib.nullcontext(contextlib.nullcontext)
        alone = processes.on_all(lambda: stack.enter_context(hold))
        with alone():
            plan, held_out = _prepare(config, workdir)
        for fold in folds:
            _run_fold(plan, fold, held_out[fold], workdir / f"fold_{fold}")
        with alone():
            return processes.on_first(lambda: _finish(config, plan.dataset, held_out, workdir))


# --- before the first fold -------------------------------------------------------------------------------------------


def _prepare(config: ml_collections.ConfigDict, workdir: epath.Path) -> tuple[Plan, list[list[str]]]:
    """Prepares the workdir, the data and the compiled step; returns the plan and the held-out cases of each fold."""
    processes.on_first(lambda: _prepare_workdir(config, workdir))
    dataset, description = processes.on_all(lambda: _read_cases(config, workdir))
    plan = processes.on_all(lambda: prepare(config, dataset))
    description["grid"] = plan.task.target._asdict()
    return plan, processes.on_first(lambda: _record_run(config, workdir, plan, description))


def _prepare_workdir(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Removes what calls left that ended too early, and writes the phantom if the run uses it."""
    # This is checked again because another run may have started here before the lock was taken.
    refuse_other(config, workdir)
    files.remove_parts(workdir)
    # Without config.json, an earlier call failed before the run began, and may have had other settings.
    begun = (workdir / "config.json").exists()
    if not begun:
        for name in ("folds.json", "data.json"):
            (workdir / name).unlink(missing_ok=True)
    if not config.data.root:
        print("No --config.data.root: the run uses the built-in digital perfusion phantom, not patients.\n"
              "For real data: --config.data.root=/data/SPES2015_Training", flush=True)  # fmt: skip
        phantom.provide(workdir / "phantom", replace=not begun, seed=config.seed, **config.data.phantom)


def _read_cases(config: ml_collections.ConfigDict, workdir: epath.Path) -> tuple[Dataset, dict]:
    """Reads the cases with labels and a description of the data, and checks that they are those of the run.

    Raises:
      InputError: the data changed since the run began; there are fewer labelled cases than folds.
    """
    data = config.data
    root = files.fetch(data.root or workdir / "phantom")
    dataset = layouts.load(root, tuple(data.channels), **data.labels)
    print(dataset.headline, flush=True)
    for note in dataset.notes:
        print(f"note: {note}", flush=True)
    description = profile.describe(dataset)
    refuse_changed(dataset, description, workdir / "data.json")
    labelled = dataclasses.replace(dataset, cases=tuple(case for case in dataset.cases if case.labels is not None))
    if len(labelled.cases) < config.folds:
        raise InputError(
            f"{dataset.root}: found {len(labelled.cases)} labelled cases, expected one for each of {config.folds} folds"
        )
    return labelled, description


def _record_run(config: ml_collections.ConfigDict, workdir: epath.Path, plan: Plan, description: dict) -> list:
    """Writes the folds, the description of the data and the configuration; returns the held-out cases of each fold.

    From here on the workdir belongs to this configuration and these data. All checks have passed before.
    """
    dataset, by = plan.dataset, config.folds_by
    groups = splits.group(dataset.cases, by)
    given = files.fetch(by) if by.endswith(".json") else None
    names = [case.name for case in dataset.cases]
    held_out = splits.read_or_write(workdir / "folds.json", names, config.folds, config.seed, groups, given)
    for cases in held_out:
        training_slices(plan, cases)  # a fold without lesions to learn from is refused now and not after hours
    if not (workdir / "config.json").exists():
        files.write_json(workdir / "data.json", description)
        files.write_json(workdir / "config.json", to_dict(config))
    return held_out


def refuse_other(config: ml_collections.ConfigDict, workdir: epath.Path, free: Sequence[str] = FREE) -> None:
    """Refuses a workdir that holds a run with another configuration.

    Args:
      config: of the run that may be there.
      workdir: where it may be.
      free: keys that may differ.

    Raises:
      InputError: it does; the message names the keys that differ.
    """
    path = workdir / "config.json"
    if not path.exists():
        return
    there = flatten(complete(files.read_json_like(path, {})))
    here = flatten(to_dict(config))
    differing = [
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if key not in free and there.get(key) != here.get(key)
    ]
    if differing:
        raise InputError(f"{workdir} holds another run: {'; '.join(differing)}; choose another --workdir")


def refuse_changed(dataset: Dataset, description: dict, path: epath.Path) -> None:
    """Refuses data that differ from the description in `path`, the run's data.json.

    Raises:
      InputError: they differ; the message names the cases.
    """
    if not path.exists():
        return
    before, now = files.read_json_like(path, {"cases": {}})["cases"], description["cases"]
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        names = ", ".join(changed)
        raise InputError(f"{dataset.root}: the data changed since this run began ({names}); choose another --workdir")


# --- one fold --------------------------------------------------------------------------------------------------------


def _run_fold(plan: Plan, fold: int, held_out: list[str], directory: epath.Path) -> None:
    """Trains a fold and predicts its held-out cases, unless that is done already."""
    if processes.on_first(lambda: _is_fold_done(directory)):
        return
    train_fold(plan, fold, held_out, directory)
    inference.predict_fold(plan.dataset, held_out, directory)
    processes.on_first(lambda: files.write_atomic(directory / "DONE", ""))


def _is_fold_done(directory: epath.Path) -> bool:
    files.remove_parts(directory, directory / "predictions", directory / "calibration")
    return (directory / "DONE").exists()


# --- after the last fold ---------------------------------------------------------------------------------------------


def _finish(config: ml_collections.ConfigDict, dataset: Dataset, held_out: list, workdir: epath.Path) -> list[int]:
    """Scores the run if every fold is done; returns the folds that are not."""
    unfinished = [fold for fold in range(config.folds) if not (workdir / f"fold_{fold}" / "DONE").exists()]
    if not unfinished and not (workdir / "DONE").exists():
        _score(dataset, held_out, workdir)
        run_files.seal(workdir)
    return unfinished


def _score(dataset: Dataset, held_out: list[list[str]], workdir: epath.Path) -> None:
    """Scores all held-out predictions, and the clinical rule on the same cases if it applies; writes the report."""
    rule_applies = {"Tmax", "DWI"} <= set(dataset.channels) and {"penumbra", "core"} <= set(dataset.classes)
    cases, classes = {case.name: case for case in dataset.cases}, dataset.classes
    rows, rule_rows = [], []
    for fold, names in enumerate(held_out):
        interrupt.leave_if_requested()
        predictions = files.fetch(workdir / f"fold_{fold}" / "predictions")
        if rule_applies:
            training_cases = [case for case in dataset.cases if case.name not in names]
            threshold = clinical.fit_core_threshold(training_cases, dataset.channels, classes)
        for name in names:
            interrupt.leave_if_requested()
            case = cases[name]
            assert case.labels is not None
            predicted = read_labels(predictions / f"{name}.nii.gz", case, dataset.label_values)
            rows += scores.score_case(name, fold, predicted, case.labels, case.spacing_mm, classes, case.voxel_ml)
            if rule_applies:
                predicted = clinical.clinical_rule(case, threshold, dataset.channels, classes)
                rule_rows += scores.score_case(
                    name, fold, predicted, case.labels, case.spacing_mm, classes, case.voxel_ml
                )
    scores.write_cases_csv(workdir / "cases.csv", rows)
    files.write_json(workdir / "summary.json", scores.means(rows))
    if rule_rows:
        scores.write_cases_csv(workdir / "clinical_rule.csv", rule_rows)
    _write_calibration(held_out, workdir)
    page.write_report(workdir / "report.html", [run_files.read_run(workdir)], dataset=dataset)


def _write_calibration(held_out: list[list[str]], workdir: epath.Path) -> None:
    """Writes calibration.json, unless an earlier version predicted some of the cases and kept no counts."""
    paths = [
        workdir / f"fold_{fold}" / "calibration" / f"{n}.json" for fold, names in enumerate(held_out) for n in names
    ]
    if all(path.exists() for path in paths):
        counts = [files.read_json_like(path, {"confidence": {}, "classes": {}}) for path in paths]
        files.write_json(workdir / "calibration.json", calibration.curves(counts))
