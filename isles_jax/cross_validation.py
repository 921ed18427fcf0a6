"""A whole run: train every fold, predict its held-out cases, then score all of them together."""

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Sequence
from typing import Any

import ml_collections
from etils import epath

from isles_jax.config import complete, flatten, resolve, to_dict
from isles_jax.data import folds as splits
from isles_jax.data import grid, layouts, profile
from isles_jax.data.case import Dataset
from isles_jax.data.nifti import read_labels
from isles_jax.pages import page
from isles_jax.phantoms import phantom
from isles_jax.prediction import inference
from isles_jax.runtime import files, interrupt, lock, processes
from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import say
from isles_jax.scoring import calibration, calls, clinical, lesions, run_files, scores, table
from isles_jax.training import initial
from isles_jax.training.fold import train_fold
from isles_jax.training.metric_writer import require_tensorboard
from isles_jax.training.plan import Plan, prepare, training_slices

# The first file of a run. It shows that the others are of a run.
CONFIG = "config.json"
# Keys that may differ between two calls on one workdir, because they change how a call works and not its results.
FREE = (
    "fold",
    "train.checkpoint_every_seconds",
    "train.checkpoint_every_steps",
    "train.held_out_times",
    "train.parallel",
    "train.profile",
    "train.steps_per_call",
    "train.tensorboard",
)


def cross_validate(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> str:
    """Runs or resumes a cross-validation. For a finished run, only the table is rebuilt.

    Args:
      config: the whole configuration, as `config.baseline` makes it.
      workdir: a folder or bucket; docs/run.md lists what is written there.

    Returns:
      The Dice as a table, where the report is, and a command to go on with; or a line that names the folds that are
      still missing.

    Raises:
      InputError: a mistake in the configuration or the data; the workdir holds another run, or another process is at
        work on one of the folds; a file cannot be written.
    """
    config = resolve(config)
    workdir = files.location(workdir)
    if config.train.init:
        config.train.init_sha256 = processes.on_first(lambda: _init_digest(config, workdir))
    if not processes.on_first(lambda: _is_done(config, workdir)):
        unfinished = _run(config, workdir)
        if unfinished:
            missing = f"folds still to be run: {', '.join(map(str, unfinished))}; the last one makes the table"
            return f"{missing}\nnext: isles-jax train --workdir={shlex.quote(str(workdir))}"
    return processes.on_first(lambda: _outcome(run_files.read_run(workdir)))


def _init_digest(config: ml_collections.ConfigDict, workdir: epath.Path) -> str:
    """SHA-256 of the weights that the run starts from; of a run that has begun, as its config.json holds it."""
    weights = config.train.init
    given: str = config.train.init_sha256
    path = workdir / CONFIG
    if path.exists():
        # The weights may be gone once they are not needed; `refuse_other` compares the path.
        stored = str(complete(files.read_json_like(path, {}), path).train.init_sha256)
        if given in ("", stored):
            return stored
    found = initial.digest(weights)
    if given not in ("", found):
        raise InputError(f"--config.train.init_sha256: found {given!r}, expected {found}, as of {weights}")
    return found


def _is_done(config: ml_collections.ConfigDict, workdir: epath.Path) -> bool:
    _refuse_workdir(config, workdir)
    return bool((workdir / "DONE").exists())


def _run(config: ml_collections.ConfigDict, workdir: epath.Path) -> list[int]:
    """Runs the requested folds, and scores the run once all folds are done; returns the folds that are not."""
    if config.train.tensorboard:
        require_tensorboard(workdir)
    began = time.monotonic()
    folds = range(config.folds) if config.fold is None else [config.fold]
    with contextlib.ExitStack() as stack:
        # Process 0 holds the locks for all processes.
        names = {fold: f"fold {fold}" for fold in folds}
        hold = lock.hold(workdir, names) if processes.first() else contextlib.nullcontext(lock.Held(None))
        alone = processes.on_all(lambda: stack.enter_context(hold))
        with alone():
            plan, held_out = _prepare(config, workdir)
            call = calls.Call(workdir, began)
        done = processes.on_first(lambda: [fold for fold in folds if _is_fold_done(workdir / f"fold_{fold}")])
        for number, fold in enumerate((fold for fold in folds if fold not in done), len(done)):
            _run_fold(plan, fold, held_out[fold], workdir / f"fold_{fold}", (number, len(folds)), call)
        with alone():
            return processes.on_first(lambda: _finish(plan.dataset, held_out, workdir, call))


# --- before the first fold -------------------------------------------------------------------------------------------


def _prepare(config: ml_collections.ConfigDict, workdir: epath.Path) -> tuple[Plan, list[list[str]]]:
    """Prepares the workdir, the data and the compiled step; returns the plan and the held-out cases of each fold."""
    new_phantom = processes.on_first(lambda: _prepare_workdir(config, workdir))
    try:
        dataset, description = processes.on_all(lambda: _read_cases(config, workdir))
        begun = _begun(workdir)
        # An earlier version may have chosen another grid.
        target = None if begun is None else grid.read_target(workdir / "data.json", begun.get("grid", {}))
        plan = processes.on_all(lambda: prepare(config, dataset, target))
        description["grid"] = plan.task.target._asdict()
        return plan, processes.on_first(lambda: _record_run(config, workdir, plan, description))
    except InputError:
        # The run has not begun, and the next call may ask for another phantom.
        if new_phantom and processes.first() and not (workdir / CONFIG).exists():
            (workdir / "phantom").replace(files.part_of(workdir / "phantom")).rmtree()
        raise


def _prepare_workdir(config: ml_collections.ConfigDict, workdir: epath.Path) -> bool:
    """Removes what interrupted calls left, and writes the phantom if the run uses it; returns whether it did."""
    # This is checked again because another run may have started here before the lock was taken.
    _refuse_workdir(config, workdir)
    files.remove_parts(workdir)
    if config.data.root:
        return False
    say("No --config.data.root: the run uses the built-in digital perfusion phantom, not patients.")
    say("For real data: --config.data.root=/data/SPES2015_Training")
    begun = (workdir / CONFIG).exists()
    return phantom.provide(workdir / "phantom", begun=begun, seed=config.seed, **config.data.phantom)


def _read_cases(config: ml_collections.ConfigDict, workdir: epath.Path) -> tuple[Dataset, dict[str, Any]]:
    """Reads the cases with labels and a description of the data, and checks that they are those of the run.

    Raises:
      InputError: the data changed since the run began; there are fewer labelled cases than folds.
    """
    data = config.data
    begun = _begun(workdir)
    root = data.root or workdir / "phantom"
    dataset = layouts.load(root, tuple(data.channels), **data.labels, how=layouts.read_options(config, begun))
    say(dataset.headline)
    description = profile.describe(dataset)
    dataset = dataclasses.replace(dataset, notes=dataset.notes + profile.copies(description))
    for note in dataset.notes:
        say(f"note: {note}")
    refuse_changed(dataset, description, workdir / "data.json")
    labelled = dataclasses.replace(dataset, cases=tuple(case for case in dataset.cases if case.labels is not None))
    if len(labelled.cases) < config.folds:
        raise InputError(
            f"{dataset.root}: found {len(labelled.cases)} labelled cases, expected one for each of {config.folds} folds"
        )
    return labelled, description


def _begun(workdir: epath.Path) -> dict[str, Any] | None:
    """data.json of a run that has begun; None for a new run."""
    path = workdir / "data.json"
    begun: dict[str, Any] | None = files.read_json_like(path, {"cases": {}}) if path.exists() else None
    return begun


def _record_run(
    config: ml_collections.ConfigDict, workdir: epath.Path, plan: Plan, description: dict[str, Any]
) -> list[list[str]]:
    """Writes the folds, the description of the data and the configuration; returns the held-out cases of each fold.

    From here on the workdir belongs to this configuration and these data. All checks have passed before.
    """
    by = config.folds_by
    cases = plan.dataset.cases
    groups = splits.group(cases, by)
    given = files.fetch(by) if by.endswith(".json") else None
    names = [case.name for case in cases]
    held_out = splits.read_or_make(workdir / "folds.json", names, config.folds, config.seed, groups, given)
    for part in held_out:
        training_slices(plan, part)  # a fold without lesions to learn from is refused now and not after hours
    # config.json comes first: it shows that the other files are of a run.
    for name, content in ((CONFIG, to_dict(config)), ("folds.json", held_out), ("data.json", description)):
        if not (workdir / name).exists():
            files.write_json(workdir / name, content)
    return held_out


def _refuse_workdir(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Refuses a workdir that holds another run, or, without config.json, files under the names of a run's files.

    Raises:
      InputError: it does.
    """
    refuse_other(config, workdir)
    names = sorted(path.name for path in workdir.iterdir()) if workdir.is_dir() else []
    # Looked for after the others: another process may be writing them just now, this one first.
    if (workdir / CONFIG).exists():
        return
    for name in names:
        if name in run_files.WRITTEN or name.startswith("fold_"):
            raise InputError(
                f"{workdir / name}: found beside no {CONFIG}, so it is not of a run that began here; choose another "
                "--workdir"
            )


def refuse_other(config: ml_collections.ConfigDict, workdir: epath.Path, free: Sequence[str] = FREE) -> None:
    """Refuses a workdir that holds a run whose configuration differs in other keys than the `free` ones.

    Raises:
      InputError: it does; the message names the keys.
    """
    path = workdir / CONFIG
    if not path.exists():
        return
    there = flatten(complete(files.read_json_like(path, {}), path))
    here = flatten(to_dict(config))
    differing = [
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in files.differing(there, here)
        if key not in free
    ]
    if differing:
        raise InputError(f"{workdir} holds another run: {'; '.join(differing)}; choose another --workdir")


def refuse_changed(dataset: Dataset, description: dict[str, Any], path: epath.Path) -> None:
    """Refuses data that differ from the description in `path`, the run's data.json.

    Raises:
      InputError: they differ; the message names what differs and the cases.
    """
    if not path.exists():
        return
    before = files.read_json_like(path, {"cases": {}})
    # A table's columns may have changed places.
    kept = {key: before[key] for key in ("channels", "classes", "label_values") if key in before}
    changed = [key for key, value in kept.items() if value != description[key]]
    names = ", ".join(changed + profile.differing(before["cases"], description["cases"]))
    if names:
        raise InputError(f"{dataset.root}: the data changed since this run began ({names}); choose another --workdir")


# --- one fold --------------------------------------------------------------------------------------------------------


def _run_fold(
    plan: Plan, fold: int, held_out: list[str], directory: epath.Path, part: tuple[int, int], call: calls.Call
) -> None:
    """Trains a fold and predicts its held-out cases; `part` is that of `train_fold`."""
    with call.part("training"):
        train_fold(plan, fold, held_out, directory, part)
    with call.part("prediction"):
        inference.predict_fold(plan.dataset, held_out, directory)
    # The record is written before: once all folds are done, the last call removes what killed ones left of theirs.
    processes.on_first(lambda: files.write_atomic(directory / "DONE", ""))


def _is_fold_done(directory: epath.Path) -> bool:
    folders = ("predictions", "calibration", "checkpoints")
    files.remove_parts(directory, *(directory / name for name in folders))
    return bool((directory / "DONE").exists())


# --- after the last fold ---------------------------------------------------------------------------------------------


def _finish(dataset: Dataset, held_out: list[list[str]], workdir: epath.Path, call: calls.Call) -> list[int]:
    """Scores the run if every fold is done; returns the folds that are not."""
    unfinished = [fold for fold in range(len(held_out)) if not (workdir / f"fold_{fold}" / "DONE").exists()]
    if not unfinished and not (workdir / "DONE").exists():
        files.remove_parts(workdir / calls.FOLDER)
        with call.part("scoring"):
            _score(dataset, held_out, workdir)
        with call.part("report"):
            page.write_report(workdir / "report.html", [run_files.read_run(workdir)], dataset=dataset)
        run_files.seal(workdir)
    return unfinished


def _score(dataset: Dataset, held_out: list[list[str]], workdir: epath.Path) -> None:
    """Scores all held-out predictions, and the clinical rule on the same cases if it applies."""
    channels = dataset.channels
    classes = dataset.classes
    everywhere = set(channels).difference(*(case.absent for case in dataset.cases))
    rule_applies = {"Tmax", "DWI"} <= everywhere and {"penumbra", "core"} <= set(classes)

    cases = {case.name: case for case in dataset.cases}
    rows = []
    lesion_rows = []
    rule_rows = []
    for fold, names in enumerate(held_out):
        interrupt.leave_if_requested()
        predictions = files.fetch(workdir / f"fold_{fold}" / "predictions")
        if rule_applies:
            threshold = clinical.threshold_of_fold(dataset, names)
        for name in names:
            interrupt.leave_if_requested()
            case = cases[name]
            assert case.labels is not None
            truth, sizes = case.labels, (case.spacing_mm, classes, case.voxel_ml)
            predicted = read_labels(predictions / f"{name}.nii.gz", case, dataset.label_values)
            rows += scores.score_case(name, fold, predicted, truth, *sizes)
            lesion_rows += lesions.of_case(name, fold, predicted, truth, classes, case.voxel_ml)
            if rule_applies:
                ruled = clinical.clinical_rule(case, threshold, channels, classes)
                rule_rows += scores.score_case(name, fold, ruled, truth, *sizes)
    scores.write_cases_csv(workdir / "cases.csv", rows)
    lesions.write(workdir / "lesions.csv", lesion_rows)
    files.write_json(workdir / "summary.json", scores.means(rows) | {"notes": dataset.notes})
    if rule_rows:
        scores.write_cases_csv(workdir / "clinical_rule.csv", rule_rows)
    _write_calibration(held_out, workdir)


def _outcome(run: run_files.Run) -> str:
    """What a finished run ends with: its Dice, where the report is, and a command to go on with."""
    page_file = run.workdir / "report.html"
    workdir = shlex.quote(str(run.workdir))
    report = page_file if page_file.exists() else f"isles-jax report {workdir} writes it"
    following = f"isles-jax predict --workdir={workdir} --input=CASE_OR_FOLDER --output=DIR"
    if run.data["phantom"]:
        following = "isles-jax train --config.data.root=DIR --workdir=runs/NAME"
    return f"{table.dice_table(run)}\n\nreport: {report}\nnext: {following}"


def _write_calibration(held_out: list[list[str]], workdir: epath.Path) -> None:
    """Writes calibration.json, unless an earlier version predicted some of the cases and kept no counts."""
    folders = {workdir / f"fold_{fold}" / "calibration": names for fold, names in enumerate(held_out)}
    paths = [folder / f"{name}.json" for folder, names in folders.items() for name in names]
    if all(path.exists() for path in paths):
        counts = {path: files.read_json_like(path, {"confidence": {}, "classes": {}}) for path in paths}
        by_fold = [[counts[folder / f"{name}.json"] for name in names] for folder, names in folders.items()]
        summary = calibration.curves(list(counts.values()))
        files.write_json(workdir / "calibration.json", summary | {"temperature": calibration.temperature(by_fold)})
