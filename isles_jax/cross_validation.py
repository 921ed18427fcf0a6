"""A whole run: every fold is trained, predicts its held-out cases, and all are scored once."""

import contextlib
import dataclasses
import functools
import tempfile
from pathlib import Path

import ml_collections
from etils import epath

from isles_jax import clinical, inference
from isles_jax.config import flatten, resolve, to_dict
from isles_jax.data import check, layouts
from isles_jax.data import folds as splits
from isles_jax.data.case import PHANTOM_MARKER, Dataset
from isles_jax.data.nifti import read_labels
from isles_jax.data.phantom import write_phantom
from isles_jax.reporting import page, results, scores, table
from isles_jax.runtime import files, interrupt, lock, processes
from isles_jax.runtime.command import InputError
from isles_jax.training import fold as training
from isles_jax.training.fold import Plan
from isles_jax.training.metric_writer import require_tensorboard

# Keys that may differ between calls on one workdir: they change what a call does, not what the run is.
_FREE = ("fold", "train.parallel", "train.profile", "train.tensorboard")


def cross_validate(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> str:
    """Runs or resumes a cross-validation; of a run that is done only the table is made.

    Args:
      config: the whole configuration, as `config.baseline` makes it.
      workdir: a folder or bucket; what is written there is listed in the README.

    Returns:
      The table of results, as text.

    Raises:
      InputError: a mistake in the configuration or the data; a workdir that holds another run, or in which another
        process is at work on one of the folds; a file that cannot be written.
    """
    config, workdir = resolve(config), files.location(workdir)
    if not processes.on_first(lambda: _is_done(config, workdir)):
        unfinished = _run(config, workdir)
        if unfinished:
            return f"folds {', '.join(map(str, unfinished))} are still to be run; the last one makes the table"
    return processes.on_first(lambda: _table(workdir))


def _is_done(config: ml_collections.ConfigDict, workdir: epath.Path) -> bool:
    refuse_other(config, workdir)
    return (workdir / "DONE").exists()


def _table(workdir: epath.Path) -> str:
    return table.table([results.read_run(workdir)])


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
    if config.train.tensorboard:
        require_tensorboard(workdir)
    folds = range(config.folds) if config.fold is None else [config.fold]
    with contextlib.ExitStack() as stack:
        # Process 0 holds the locks for all.
        hold = lock.hold(workdir, folds) if processes.first() else contextlib.nullcontext(contextlib.nullcontext)
        alone = processes.on_all(lambda: stack.enter_context(hold))
        with alone():
            plan, held_out = _prepare(config, workdir)
        for fold in folds:
            directory = workdir / f"fold_{fold}"
            if processes.on_first(functools.partial(_is_fold_done, directory)):
                continue
            training.train_fold(plan, fold, held_out[fold], directory)
            inference.predict_fold(config, plan.dataset, held_out[fold], directory)
            processes.on_first(functools.partial(files.write_atomic, directory / "DONE", ""))
        with alone():
            return processes.on_first(lambda: _finish(config, plan.dataset, held_out, workdir))


def _is_fold_done(directory: epath.Path) -> bool:
    files.remove_parts(directory, directory / "predictions")
    return (directory / "DONE").exists()


def _prepare(config: ml_collections.ConfigDict, workdir: epath.Path) -> tuple[Plan, list[list[str]]]:
    """Makes or reads the data and the folds, checks both, and binds the workdir to them."""
    processes.on_first(lambda: _clear(config, workdir))
    dataset, description = processes.on_all(lambda: _read(config, workdir))
    plan = processes.on_all(lambda: training.prepare(config, dataset))
    return plan, processes.on_first(lambda: _begin(config, workdir, dataset, description))


def _clear(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Makes the workdir ready to be read: removes what is left of calls that ended too early; writes the phantom."""
    # Again, now that no other run can begin here.
    refuse_other(config, workdir)
    files.remove_parts(workdir)
    begun = (workdir / "config.json").exists()
    if not begun:
        # What a call left behind that ended before it had begun a run.
        for name in ("folds.json", "data.json"):
            (workdir / name).unlink(missing_ok=True)
    if not config.data.root:
        _make_phantom(config, workdir / "phantom", begun)


def _make_phantom(config: ml_collections.ConfigDict, root: epath.Path, begun: bool) -> None:
    phantom = config.data.phantom
    print("No --config.data.root: the run uses the built-in digital perfusion phantom, not patients.\n"
          "For real data: --config.data.root=/data/SPES2015_Training", flush=True)  # fmt: skip
    # What a call that failed left behind may be another phantom; once a run has begun, it is the run's own.
    if (root / PHANTOM_MARKER).exists() and not begun:
        # Renamed first: a kill must not leave half a phantom under this name.
        root.replace(files.part_of(root)).rmtree()
    if (root / PHANTOM_MARKER).exists():
        return
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary) / "phantom" if files.is_bucket(root) else Path(root)
        write_phantom(local, cases=phantom.cases, shape=tuple(phantom.shape), difficulty=phantom.difficulty,
                      seed=config.seed)  # fmt: skip
        if files.is_bucket(root):
            # The marker is copied last, and what lies there without it is a copy that was cut off.
            root.rmtree(missing_ok=True)
            files.copy(epath.Path(local), root)


def _read(config: ml_collections.ConfigDict, workdir: epath.Path) -> tuple[Dataset, dict]:
    """The labelled cases, enough for the folds, and the description of the data, the same as when the run began."""
    labels, root = config.data.labels, config.data.root or workdir / "phantom"
    dataset = layouts.load(files.fetch(root), penumbra=labels.penumbra, core=labels.core)
    for note in dataset.notes:
        print(f"note: {note}", flush=True)
    description = check.describe(dataset)
    refuse_changed(dataset, description, workdir / "data.json")
    labelled = dataclasses.replace(dataset, cases=tuple(case for case in dataset.cases if case.labels is not None))
    if len(labelled.cases) < config.folds:
        found = f"found {len(labelled.cases)} labelled cases"
        raise InputError(f"{dataset.root}: {found}, expected one for each of {config.folds} folds")
    return labelled, description


def _begin(config: ml_collections.ConfigDict, workdir: epath.Path, dataset: Dataset, description: dict) -> list:
    """Binds the workdir to the settings, now that none was refused; returns the held-out cases of each fold."""
    names = [case.name for case in dataset.cases]
    held_out = splits.read_or_write(workdir / "folds.json", names, config.folds, config.seed)
    if not (workdir / "config.json").exists():
        files.write_json(workdir / "data.json", description)
        files.write_json(workdir / "config.json", to_dict(config))
    return held_out


def _finish(config: ml_collections.ConfigDict, dataset: Dataset, held_out: list, workdir: epath.Path) -> list[int]:
    """Scores once every fold is done; returns the folds that are still to be run."""
    unfinished = [fold for fold in range(config.folds) if not (workdir / f"fold_{fold}" / "DONE").exists()]
    if not unfinished and not (workdir / "DONE").exists():
        _score(dataset, held_out, workdir)
        files.write_atomic(workdir / "DONE", "")
    return unfinished


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
    cases = {case.name: case for case in dataset.cases}
    rows, rule_rows = [], []
    rule_applies = {"Tmax", "DWI"} <= set(dataset.channels) and {"penumbra", "core"} <= set(dataset.classes)
    names_of = {"channels": dataset.channels, "classes": dataset.classes}
    for fold, names in enumerate(held_out):
        interrupt.leave_if_requested()
        predictions = files.fetch(workdir / f"fold_{fold}" / "predictions")
        if rule_applies:
            training_cases = [case for case in dataset.cases if case.name not in names]
            threshold = clinical.fit_core_threshold(training_cases, **names_of)
        for name in names:
            interrupt.leave_if_requested()
            case = cases[name]
            assert case.labels is not None
            prediction = read_labels(predictions / f"{name}.nii.gz", case, dataset.label_values)
            rows += scores.score_case(name, fold, prediction, case.labels, case.spacing_mm, dataset.classes)
            if rule_applies:
                by_rule = clinical.clinical_rule(case, threshold, **names_of)
                rule_rows += scores.score_case(name, fold, by_rule, case.labels, case.spacing_mm, dataset.classes)
    scores.write_cases_csv(workdir / "cases.csv", rows)
    scores.write_summary(workdir / "summary.json", scores.summarise(rows))
    if rule_rows:
        scores.write_cases_csv(workdir / "clinical_rule.csv", rule_rows)
    page.write_report(workdir / "report.html", [results.read_run(workdir)], dataset=dataset)
