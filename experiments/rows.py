"""The rows of a table: several configurations, trained and scored on the same data and folds."""

import contextlib
import copy
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np
from etils import epath

from isles_jax.config import resolve
from isles_jax.cross_validation import FREE, cross_validate, refuse_other
from isles_jax.phantoms.phantom import write_phantom
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.runtime.overrides import override
from isles_jax.scoring import run_files, scores
from isles_jax.scoring.run_files import Run

# Configurations by the name of their row.
Rows = dict[str, ml_collections.ConfigDict]


def changed_rows(
    config: ml_collections.ConfigDict, choices: Mapping[str, Sequence[str]], overrides: Sequence[str]
) -> Rows:
    """A configuration with some changes, by the name of the row.

    Args:
      config: what all rows start from.
      choices: name of the row: its --config.KEY=VALUE.
      overrides: --config.KEY=VALUE for all rows.

    Raises:
      InputError: see `overrides.read`.
    """
    rows = {}
    for name, changes in choices.items():
        rows[name] = override(copy.deepcopy(config), [*overrides, *changes])
        rows[name].name = name
    return rows


def run_rows(
    rows: Rows,
    workdir: epath.Path,
    *,
    only: Sequence[str] | None = None,
    folds: Sequence[int] | None = None,
    seeds: int = 1,
) -> dict[str, list[Run]] | None:
    """Trains, predicts and scores the rows that are not finished yet.

    Args:
      rows: configurations by name. The run of a row is `workdir`/seed_S/NAME.
      workdir: a folder or bucket. Several machines may share it, each with its own part of the rows and folds.
      only: names of the rows to run now; None: all.
      folds: folds to run now; None: all.
      seeds: number of seeds, counted from the configuration's own. Each seed has its own folds, the same for all rows;
        the data stay the same.

    Returns:
      The runs of each row by its name, one for each seed; None if some runs are not finished.

    Raises:
      InputError: an unknown row or fold; a bucket without a data set; a run of a row's name with other settings; as
        `cross_validate`.
    """
    _check_part(rows, only, folds)
    rows = _share_data(rows, workdir)
    jobs = [(seed, name) for seed in range(seeds) for name in only or rows]
    unfinished = [job for job in jobs if not _is_finished(workdir, *job)]
    for seed, name in (job for job in jobs if job not in unfinished):
        # Its data may have lain elsewhere: another machine may have trained it. A run finds the checksum itself.
        free = (*FREE, "data.root", "train.init_sha256")
        refuse_other(_with_seed(rows[name], seed), _run_folder(workdir, seed, name), free)
    start = time.monotonic()
    for number, (seed, name) in enumerate(unfinished):
        seconds_left = (time.monotonic() - start) / number * (len(unfinished) - number) if number else None
        time_left = "" if seconds_left is None else f", about {seconds_left / 60:.0f} min left"
        place = f"{len(jobs) - len(unfinished) + number + 1} of {len(jobs)}"
        print(f"\n--- {place}: {name}, seed {seed}{time_left}", flush=True)
        _run_row(_with_seed(rows[name], seed), folds, _run_folder(workdir, seed, name))
    missing = [
        f"{name} of seed {seed}" for seed in range(seeds) for name in rows if not _is_finished(workdir, seed, name)
    ]
    if missing:
        print(f"\nnot finished yet: {', '.join(missing)}")
        return None
    return read_seeds(workdir, list(rows), seeds)


def read_seeds(workdir: epath.Path, names: Sequence[str], seeds: int) -> dict[str, list[Run]]:
    """The finished runs of some rows by name, one for each seed.

    Raises:
      InputError: there is no seed, or a run is not finished or damaged.
    """
    if seeds < 1:
        raise InputError(f"--seeds={seeds}: expected 1 or more")
    return {name: [run_files.read_run(_run_folder(workdir, seed, name)) for seed in range(seeds)] for name in names}


def average(runs: Sequence[Run]) -> Run:
    """The runs of one row with several seeds as one run: the scores of a case are its means over the seeds.

    The curves, the folds and the pictures are those of the first seed.
    """
    return dataclasses.replace(
        runs[0], rows=_average([run.rows for run in runs]), rule=_average([run.rule for run in runs])
    )


def seconds_file(run: epath.Path) -> epath.Path:
    """The file with the seconds that a run took: training, prediction, scores and report.

    It exists only for runs that one call finished.
    """
    return run.with_suffix(".seconds.json")


def _check_part(rows: Rows, only: Sequence[str] | None, folds: Sequence[int] | None) -> None:
    for name in only or ():
        if name not in rows:
            raise InputError(f"--rows={name}: expected some of {','.join(rows)}")
    for fold in folds or ():
        config = next(iter(rows.values())).copy_and_resolve_references()
        config.fold = fold
        resolve(config)


def _share_data(rows: Rows, workdir: epath.Path) -> Rows:
    """The rows, resolved, on --config.data.root, or else on one phantom in `workdir`, which is written if missing."""
    resolved = {name: resolve(config) for name, config in rows.items()}
    first = next(iter(resolved.values()))
    if first.data.root:
        return resolved
    if files.is_bucket(workdir):
        raise InputError(f"{workdir}: a bucket, found no --config.data.root, expected one")
    root = workdir / "phantom"
    if not root.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        # Several machines may start at once, so each writes to a folder of its own; the first to rename it wins.
        temporary = epath.Path(tempfile.mkdtemp(prefix=".phantom_", dir=workdir))
        write_phantom(temporary / "phantom", seed=first.seed, **first.data.phantom)
        try:
            os.rename(temporary / "phantom", root)
        except OSError:
            if not root.exists():
                raise
        shutil.rmtree(temporary)
    for config in resolved.values():
        config.data.root = str(root)
    return resolved


def _with_seed(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    config.seed += seed
    return config


def _run_row(config: ml_collections.ConfigDict, folds: Sequence[int] | None, run: epath.Path) -> None:
    """Runs the given folds of a row, and prints its Dice once all folds are finished."""
    started = time.monotonic()
    in_one_call = folds is None and not run.exists()
    files.refuse_foreign(seconds_file(run), _is_number, "the seconds of a run")
    for fold in folds or [None]:
        config.fold = fold
        cross_validate(config, run)
    if (run / "DONE").exists():
        classes = scores.means(run_files.read_run(run).rows)["classes"]
        dice = ", ".join(f"{class_name} {summary['dice']['mean']:.3f}" for class_name, summary in classes.items())
        print(f"{config.name}, seed {config.seed}: Dice {dice}", flush=True)
    if in_one_call:
        files.write_json(seconds_file(run), round(time.monotonic() - started, 1))


def _is_number(content: bytes) -> bool:
    with contextlib.suppress(ValueError):
        return isinstance(float(content), float)
    return False


def _run_folder(workdir: epath.Path, seed: int, name: str) -> epath.Path:
    return workdir / f"seed_{seed}" / name


def _is_finished(workdir: epath.Path, seed: int, name: str) -> bool:
    return (_run_folder(workdir, seed, name) / "DONE").exists()


def _average(seeds: Sequence[Sequence[scores.Row]]) -> list[scores.Row]:
    def mean(rows: Sequence[scores.Row]) -> scores.Row:
        names = [measure.name for measure in scores.measures_of(rows)]
        return {key: value for key, value in rows[0].items() if key not in scores.NAMES} | {
            name: float(np.mean([row[name] for row in rows])) for name in names
        }

    by_case = [sorted(rows, key=lambda row: row["case"]) for rows in seeds]
    return [mean(rows) for rows in zip(*by_case, strict=True)]
