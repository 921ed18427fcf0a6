"""Finished runs, as they are read from their workdirs."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from typing import Any

import ml_collections
from etils import epath

from isles_jax.config import complete
from isles_jax.data.case import WHOLE_LESION
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.scoring import calls, lesions, scores
from isles_jax.scoring.scores import Row

# A file in a fold's folder: what the reader of the report must know about its predictions, one line each.
NOTES = "notes.txt"
# What a report reads of the JSON files of a run.
_FORMS: dict[str, Any] = {
    "config.json": {
        "name": str,
        "data": {"root": str, "labels": {"penumbra": int, "core": int}},
        "model": {"residual": bool},
        "discriminator": {"enabled": bool},
        "loss": {"lovasz": (int, float), "boundary": (int, float)},
    },
    "folds.json": [[str]],
    "data.json": {"phantom": bool, "classes": [str], "channels": [str], "cases": {}},
}
# The files of a finished run whose checksums are in its DONE.
SEALED = (*_FORMS, "cases.csv", "summary.json", "clinical_rule.csv", "calibration.json", "lesions.csv")
# The files that a run writes to its workdir, and the folder of its calls, beside the folders of its folds.
WRITTEN = (*SEALED, "DONE", "report.html", calls.FOLDER)
_SHARES = [(int, float, type(None))]
_CURVE: dict[str, Any] = {"voxels": [int], "probability": _SHARES, "frequency": _SHARES, "error": float}


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished workdir.

    Attributes:
      workdir: its folder or bucket.
      name: the config's name.
      config: config.json, completed.
      data: data.json, with "phantom", "classes", "channels", "label_values" and "cases" (facts of each case by name).
      folds: names of the held-out cases of each fold.
      rows: scores, as `scores.read_cases_csv` gives them, sorted by case.
      rule: scores of the clinical rule on the same cases, sorted by case; empty where the rule does not apply.
      curves: for each fold, the lines of its metrics.jsonl.
      held_out: for each fold, the lines of its held_out.jsonl, see `watch.Watch`; empty for runs of earlier versions.
      notes: what a reader must know about the folds' predictions, one sentence each.
      lesions: lesions.csv, see `lesions.of_case`; None for runs of earlier versions.
      data_notes: what a reader must know about the data, one sentence each; empty for runs of earlier versions.
      calibration: calibration.json, see `calibration.curves`; None for runs of earlier versions.
      calls: what was run, see `calls.Call`; empty for runs of earlier versions.
    """

    workdir: epath.Path
    name: str
    config: ml_collections.ConfigDict
    data: dict[str, Any]
    folds: list[list[str]]
    rows: list[Row]
    rule: list[Row]
    curves: list[list[dict[str, float]]]
    held_out: list[list[dict[str, float]]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    lesions: list[Row] | None = None
    data_notes: list[str] = dataclasses.field(default_factory=list)
    calibration: dict[str, Any] | None = None
    calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def read_run(workdir: epath.PathLike) -> Run:
    """Reads a finished run.

    Raises:
      InputError: the folder holds no run, or one of its files is missing or damaged.
    """
    workdir = files.location(workdir)
    check_seal(workdir)
    stored, folds, data = (files.read_json_like(workdir / name, form) for name, form in _FORMS.items())
    config = complete(stored, workdir / "config.json")
    if not any((workdir / name).exists() for name in ("DONE", "cases.csv")):
        raise InputError(
            f"{workdir}: the run is not finished ({_standing(workdir, len(folds))}); "
            f"isles-jax train --workdir={shlex.quote(str(workdir))} goes on with it"
        )
    rule = workdir / "clinical_rule.csv"
    rows = _read_rows(workdir / "cases.csv", folds, data["classes"])
    folders = [workdir / f"fold_{fold}" for fold in range(len(folds))]
    return Run(
        workdir=workdir,
        name=config.name,
        config=config,
        data=data,
        folds=folds,
        rows=rows,
        rule=_read_rows(rule, folds, data["classes"]) if rule.exists() else [],
        curves=[_read_lines(folder / "metrics.jsonl") for folder in folders],
        held_out=[_read_lines(folder / "held_out.jsonl") for folder in folders],
        notes=[line for folder in folders for line in _read_notes(folder / NOTES)],
        lesions=_read_lesions(workdir / "lesions.csv", rows),
        data_notes=_read_data_notes(workdir / "summary.json"),
        calibration=_read_calibration(workdir / "calibration.json", data["classes"]),
        calls=calls.read(workdir),
    )


def _standing(workdir: epath.Path, folds: int) -> str:
    """How far each fold of a run is, by what it has written."""
    parts = []
    for fold in range(folds):
        folder = workdir / f"fold_{fold}"
        lines = _read_lines(folder / "metrics.jsonl")
        state = f"at step {lines[-1]['step']:.0f}" if lines else "not begun"
        parts.append(f"fold {fold} " + ("done" if (folder / "DONE").exists() else state))
    return ", ".join(parts)


def seal(workdir: epath.Path) -> None:
    """Marks a run as finished: writes the checksums of its files to DONE."""
    existing = [name for name in SEALED if (workdir / name).exists()]
    files.write_json(workdir / "DONE", {name: files.sha256(workdir / name) for name in existing})


def check_seal(workdir: epath.Path) -> None:
    """Raises an InputError if a file differs from its checksum in DONE, which is empty in runs of earlier versions."""
    done = workdir / "DONE"
    if not done.exists() or not done.read_bytes():
        return
    expected = files.read_json_like(done, {})
    for name in SEALED:
        path = workdir / name
        if expected.get(name) != (files.sha256(path) if path.exists() else None):
            raise InputError(f"{path}: found other content than when the run ended, expected it unchanged")


def _read_rows(path: epath.Path, folds: Sequence[Sequence[str]], classes: Sequence[str]) -> list[Row]:
    """The rows of a cases.csv, sorted by case; an InputError unless the file has those of all folds and classes."""
    rows = scores.read_cases_csv(path)
    names = [*classes, WHOLE_LESION] if len(classes) > 1 else classes
    expected = [(case, fold, name) for fold, cases in enumerate(folds) for case in cases for name in names]
    if [(row["case"], row["fold"], row["class"]) for row in rows] != expected:
        raise InputError(
            f"{path}: found {len(rows)} rows, expected those of the cases in folds.json and the classes in data.json, "
            f"{len(expected)} rows in their order"
        )
    return sorted(rows, key=lambda row: str(row["case"]))


def _read_lesions(path: epath.Path, rows: Sequence[Row]) -> list[Row] | None:
    """The rows of a lesions.csv, if there is one; an InputError if it has a case that the scores do not have."""
    if not path.exists():
        return None
    scored = {(row["case"], row["fold"], row["class"]) for row in rows}
    found = lesions.read(path)
    for row in found:
        key = row["case"], row["fold"], row["class"]
        if key not in scored:
            raise InputError(f"{path}: found a lesion of {key}, expected the cases, folds and classes of cases.csv")
    return found


def _read_calibration(path: epath.Path, classes: Sequence[str]) -> dict[str, Any] | None:
    form = {"cases": int, "confidence": _CURVE, "classes": dict.fromkeys(classes, _CURVE)}
    return files.read_json_like(path, form) if path.exists() else None


def _read_notes(path: epath.Path) -> list[str]:
    return path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []


def _read_data_notes(path: epath.Path) -> list[str]:
    summary = files.read_json_like(path, {}) if path.exists() else {}
    notes: list[str] = summary.get("notes", [])
    wrong = files.misfit(notes, [str], "notes")
    if wrong:
        raise InputError(f"{path}: found {wrong}, expected the file as it was written")
    return notes


def _read_lines(path: epath.Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in files.read_text(path).splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: found a line that is not JSON, expected the file as it was written") from error
    for line in lines:
        values = dict.fromkeys(line if isinstance(line, dict) else (), (int, float, type(None)))
        wrong = files.misfit(line, values | {"step": int})
        if wrong:
            # A name may hold a line break.
            raise InputError(f"{path}: found {' '.join(wrong.split())}, expected numbers")
    return lines


def name_of(path: str) -> str:
    """The last part of a path. A page may be passed on, and a whole path would tell how the machine is organised."""
    return epath.Path(path).name if path else ""


def design(run: Run) -> str:
    """How the cases of a run are divided into folds, in one sentence."""
    cases = run.data["cases"]
    names = [name for fold in run.folds for name in fold]
    patients = len({cases.get(name, {}).get("patient", name) for name in names})
    of_patients = f" of {patients} patients" if patients < len(names) else ""
    by = run.config.folds_by
    by = f"with the folds of {name_of(by)}" if by.endswith(".json") else f"by {by}"
    return f"{len(names)} cases{of_patients}, {len(run.folds)}-fold cross-validation {by}."


def origins(run: Run) -> list[str]:
    """A sentence if a run's networks worked on a grid of their own, and one if they started from other networks."""
    sentences = []
    train = run.config.train
    grid = run.data.get("grid", {})
    if grid.get("crop"):
        voxels = ""
        if grid["spacing_mm"]:
            sides = " x ".join(f"{side:.3g}" for side in grid["spacing_mm"])
            voxels = (
                f", and on voxels of {sides} mm where a case has others (in the plane alone if its slices are thick)"
            )
        sentences.append(
            f"{run.name} worked on the box of each brain{voxels}; its predictions and scores are on each case's own "
            "grid."
        )
    if train.init:
        sentences.append(f"{run.name} started from {name_of(train.init)} (SHA-256 {train.init_sha256}).")
    return sentences
