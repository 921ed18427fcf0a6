"""One self-contained HTML page about one or more runs: no address outside the file, no text that is not escaped."""

import dataclasses
import sys
import warnings
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from etils import epath

from isles_jax.data import layouts
from isles_jax.data.case import WHOLE_LESION, Case, Dataset
from isles_jax.pages import case_sections, case_table, markup, pictures, run_sections, score_sections
from isles_jax.pages.pictures import Picture
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import say
from isles_jax.scoring import clinical, comparison, run_files
from isles_jax.scoring.comparison import Study
from isles_jax.scoring.run_files import Run
from isles_jax.training import checkpoint


def refuse_output(path: epath.PathLike) -> None:
    """Raises an InputError if a file is at `path` that is no page of this package."""
    files.refuse_foreign(path, lambda content: markup.GENERATOR.encode() in content, "a page")


def write_report(
    path: epath.PathLike, runs: Sequence[Run], reference: str | None = None, dataset: Dataset | None = None
) -> None:
    """Writes one HTML file about one or more runs on the same data, atomically. The file needs nothing outside itself.

    Args:
      path: where the file is written.
      runs: from `run_files.read_run`.
      reference: label of the system that the others are compared with; None: see `comparison.make_study`.
      dataset: the runs' data if they are in memory. None: they are read from the folder that the first run read. The
        page has no pictures of cases that are gone or changed since, and says so; a note on stderr says it, too.

    Raises:
      InputError: as `comparison.make_study`; a prediction is missing or does not fit its case.
    """
    study = comparison.make_study(runs, reference)
    chosen = _best_median_worst(study.runs.get(study.reference, runs[-1]))
    left_out: list[str] = []
    if dataset is None:
        dataset, left_out = _read_data(runs[0])
    cases = []
    if dataset:
        cases = pictures.make(dataset, study.runs, list(chosen.values()), _thresholds(dataset, study.first))
    for sentence in left_out:
        say(f"note: {sentence}", sys.stderr)
    versions: dict[str, Mapping[str, str]] = {}
    damages: list[str] = []
    for label, run in study.runs.items():
        versions[label], sentences = _read_checkpoints(run)
        damages += [f"{label}, {sentence}" for sentence in sentences]
    files.write_atomic(path, page(study, cases, chosen, versions, damages, left_out))


def _read_data(run: Run) -> tuple[Dataset | None, list[str]]:
    """The held-out cases of a run whose files are those that it read, and a sentence for each reason to leave some out.

    The first is None if the data cannot be read at all.
    """
    data = run.config.data
    try:
        root = files.location(data.root or run.workdir / "phantom")
        if not root.exists():
            gone = "The images are no longer in the folder that the run read, so the page has no pictures of cases."
            return None, [gone]
        how = layouts.read_options(run.config, run.data)
        dataset = layouts.load(root, tuple(data.channels), **data.labels, how=how)
    except InputError as error:
        say(f"note: {error}", sys.stderr)
        return None, ["The data of the run can no longer be read, so the page has no pictures of cases."]
    names = sorted(name for fold in run.folds for name in fold)
    cases = {case.name: case for case in dataset.cases}
    gone_cases = [name for name in names if name not in cases]
    changed = [name for name in names if name in cases and _is_changed(cases[name], run)]
    left_out = []
    for reason, some in (("are gone from the data", gone_cases), ("have other files than the run read", changed)):
        if some:
            pictures_of = f"pictures of these cases are left out: {', '.join(some)}"
            left_out.append(f"{len(some)} of {len(names)} cases {reason}; {pictures_of}.")
    kept = tuple(cases[name] for name in names if name in cases and name not in changed)
    return dataclasses.replace(dataset, cases=kept), left_out


def _thresholds(dataset: Dataset, run: Run) -> list[float]:
    """The clinical rule's threshold in each fold; none if the rule does not apply, or if a case that it saw is gone."""
    if not run.rule or {case.name for case in dataset.cases} != run.data["cases"].keys():
        return []
    return [clinical.threshold_of_fold(dataset, names) for names in run.folds]


def _is_changed(case: Case, run: Run) -> bool:
    """Whether the checksums of a case's files are others than in data.json, where it has them."""
    facts = run.data["cases"].get(case.name)
    known = facts.get("sha256") if isinstance(facts, dict) else None
    return known is not None and known != {path.name: files.sha256(path) for path in case.files}


def _read_checkpoints(run: Run) -> tuple[dict[str, str], list[str]]:
    """The versions of the packages that trained a run, and a sentence for each fold whose last checkpoint is damaged.

    Both are empty where no checkpoints were kept.
    """
    versions: dict[str, str] = {}
    sentences = []
    for fold, lines in enumerate(run.curves):
        directory = run.workdir / f"fold_{fold}" / "checkpoints"
        if not directory.is_dir():
            continue
        last = max([*checkpoint.steps(directory), *(int(line["step"]) for line in lines)], default=0)
        try:
            with warnings.catch_warnings():
                # The sentence below says it.
                warnings.simplefilter("ignore")
                meta = checkpoint.read_meta(directory)
        except InputError:
            sentences.append(f"fold {fold}: no checkpoint is whole, so the fold cannot predict or be exported.")
            continue
        versions = versions or meta["versions"]
        if meta["step"] < last:
            found = f"the checkpoint of step {last} is damaged or missing"
            used = f"what predicts or exports now uses the one of step {meta['step']}"
            sentences.append(f"fold {fold}: {found}; {used}.")
    return versions, sentences


def _best_median_worst(run: Run) -> dict[str, str]:
    """The best, the median and the worst case by the mean Dice over the classes; fewer if there are few cases."""
    dice: dict[str, list[float]] = {}
    for row in run.rows:
        if row["class"] != WHOLE_LESION:
            dice.setdefault(row["case"], []).append(row["dice"])
    ranked = sorted(dice, key=lambda name: -np.mean(dice[name]))
    places = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    names = list(places.values())
    return {place: name for number, (place, name) in enumerate(places.items()) if name not in names[:number]}


def page(
    study: Study,
    cases: Sequence[Picture],
    chosen: Mapping[str, str],
    versions: Mapping[str, Mapping[str, str]],
    damages: Sequence[str],
    left_out: Sequence[str] = (),
) -> str:
    """The page as text.

    Args:
      study: the runs.
      cases: pictures of their cases.
      chosen: see `case_sections.best_median_worst`.
      versions: see `run_sections.configuration`.
      damages: sentences about checkpoints that are not whole.
      left_out: sentences about cases that have no picture because their files are gone or changed.
    """
    title = ", ".join(run.name for run in study.runs.values())
    sections = [
        score_sections.dice(study),
        case_sections.best_median_worst(study, cases, chosen),
        case_sections.every_slice(study, cases, left_out),
        score_sections.differences(study),
        case_table.section(study, cases),
        score_sections.measures(study),
        score_sections.lesions(study),
        score_sections.volumes(study),
        score_sections.calibration(study),
        run_sections.learning_curves(study),
        run_sections.data_notes(study),
        run_sections.what_was_run(study),
        run_sections.configuration(study, versions),
    ]
    sections.insert(1, score_sections.how_to_read(study, "".join(sections)))
    scripts = ("outline.js", "viewer.js", "tables.js")
    content = _head(title, study, damages) + markup.with_contents("".join(sections))
    return markup.document(f"{title}: lesion segmentation", content, ("page.css",), scripts)


def _head(title: str, study: Study, damages: Sequence[str]) -> str:
    first = study.first
    data = f"{first.data.get('layout') or 'folder'} {run_files.name_of(first.config.data.root)}"
    data = "the built-in phantom, not patients" if first.data["phantom"] else data
    text = (
        f"<h1>Ischaemic stroke lesions: {escape(title)}</h1>"
        f'<p class="lead">{escape(run_files.design(first))} Every case is scored by networks that never saw it. '
        f"Data: {escape(data)}.</p>"
    )
    text += "".join(f"<p>{escape(sentence)}</p>" for run in study.runs.values() for sentence in run_files.origins(run))
    if first.data["phantom"]:
        text += (
            '<p class="banner">These are results on a digital phantom, not on patients. They compare systems. They say '
            "nothing about accuracy in the clinic and cannot be compared with published numbers.</p>"
        )
    # What the folds' predictions are not is said before any number, and not only among the notes.
    notes = [f"{label}: {note}." for label, run in study.runs.items() for note in run.notes]
    return text + "".join(f'<p class="banner">{escape(sentence)}</p>' for sentence in (*damages, *notes))
