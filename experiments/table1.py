"""The paper's Table 1: eight systems, three folds, one data set.

python -m experiments.table1 --workdir=DIR --config.data.root=/data/SPES2015_Training
"""

import csv
import dataclasses
import io
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np
from absl import flags
from etils import epath
from ml_collections import config_flags

from isles_jax.config import baseline, resolve
from isles_jax.reporting import page, results, scores, table
from isles_jax.reporting.results import Run
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError, Parser, one_line, run_command

Rows = dict[str, ml_collections.ConfigDict]


def table_rows(overrides: Sequence[str]) -> Rows:
    """The eight systems by name, in the paper's order.

    Args:
      overrides: --config.KEY=VALUE, applied to each.

    Raises:
      InputError: an unknown key or a value of another type.
    """
    made = [
        baseline(residual=residual, adversarial=adversarial, overlap=overlap)
        for residual, adversarial, overlap in itertools.product((False, True), repeat=3)
    ]
    return {config.name: override(config, overrides) for config in made}


def override(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """The configuration after each --config.KEY=VALUE has been applied to it, as the main command does it.

    Raises:
      InputError: an unknown key or a value of another type.
    """
    values, words = flags.FlagValues(), ["table", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=words)
        rest = values(words)
    except (flags.Error, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"--config: {one_line(error)}") from error
    if len(rest) > 1:
        raise InputError(f"found {rest[1]!r}, expected --config.KEY=VALUE")
    return values.config


def run_rows(
    rows: Rows,
    workdir: epath.Path,
    *,
    only: Sequence[str] | None = None,
    folds: Sequence[int] | None = None,
    seeds: int = 1,
) -> list[Run] | None:
    """Trains, predicts and scores what is not there yet of several configurations on one data set.

    Args:
      rows: configurations by name; a run is `workdir`/seed_S/NAME.
      workdir: a folder or bucket that several machines may share, each with its own part of rows and folds.
      only: names of the rows to run now; None: all.
      folds: folds to run now; None: all.
      seeds: how many seeds, counted from the configuration's own. A seed is another training on other folds, the same
        for all rows; the data stay.

    Returns:
      One run for each row, its scores the means over the seeds; None if some are still to be finished.

    Raises:
      InputError: an unknown row or fold; no data for a bucket; as `cross_validate`.
    """
    from isles_jax.cross_validation import cross_validate

    for name in only or ():
        if name not in rows:
            raise InputError(f"--rows={name}: expected some of {','.join(rows)}")
    for fold in folds or ():
        checked = next(iter(rows.values())).copy_and_resolve_references()
        checked.fold = fold
        resolve(checked)
    rows = _one_data_set(rows, workdir)
    jobs = [(seed, name) for seed in range(seeds) for name in only or rows]
    open_jobs = [job for job in jobs if not (_directory(workdir, *job) / "DONE").exists()]
    start = time.monotonic()
    for number, (seed, name) in enumerate(open_jobs):
        left = (time.monotonic() - start) / number * (len(open_jobs) - number) / 60 if number else None
        told = "" if left is None else f", about {left:.0f} min left"
        print(f"\n--- {len(jobs) - len(open_jobs) + number + 1} of {len(jobs)}: {name}, seed {seed}{told}", flush=True)
        config = rows[name].copy_and_resolve_references()
        config.seed += seed
        run, begun = _directory(workdir, seed, name), time.monotonic()
        whole = folds is None and not run.exists()
        for fold in folds or [None]:
            config.fold = fold
            cross_validate(config, run)
        if (run / "DONE").exists():
            summary = scores.summarise(results.read_run(run).rows)["classes"]
            dice = ", ".join(f"{word} {scores['dice']['mean']:.3f}" for word, scores in summary.items())
            print(f"{name}, seed {seed}: Dice {dice}", flush=True)
        if whole:
            files.write_json(seconds_file(run), round(time.monotonic() - begun, 1))
    every = [(seed, name) for seed in range(seeds) for name in rows]
    missing = [
        f"{name} of seed {seed}" for seed, name in every if not (_directory(workdir, seed, name) / "DONE").exists()
    ]
    if missing:
        print(f"\nstill to be finished: {', '.join(missing)}")
        return None
    return [average([results.read_run(_directory(workdir, seed, name)) for seed in range(seeds)]) for name in rows]


def _directory(workdir: epath.Path, seed: int, name: str) -> epath.Path:
    return workdir / f"seed_{seed}" / name


def seconds_file(run: epath.Path) -> epath.Path:
    """Holds how long a run took if it was done in one go: training, prediction, scores and report."""
    return run.with_suffix(".seconds.json")


def _one_data_set(rows: Rows, workdir: epath.Path) -> Rows:
    """The rows on the data of --config.data.root, or all on one phantom in `workdir`, made if it is not there."""
    resolved = {name: resolve(config) for name, config in rows.items()}
    first = next(iter(resolved.values()))
    if first.data.root:
        return resolved
    from isles_jax.data.phantom import write_phantom

    if files.is_bucket(workdir):
        raise InputError(f"{workdir}: a bucket, found no --config.data.root, expected one")
    root = workdir / "phantom"
    if not root.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        # Under another name first: several machines may begin at once.
        made = epath.Path(tempfile.mkdtemp(prefix=".phantom_", dir=workdir))
        phantom = first.data.phantom
        write_phantom(made / "phantom", cases=phantom.cases, shape=tuple(phantom.shape), difficulty=phantom.difficulty,
                      seed=first.seed)  # fmt: skip
        try:
            os.rename(made / "phantom", root)
        except OSError:
            if not root.exists():
                raise
        shutil.rmtree(made)
    for config in resolved.values():
        config.data.root = str(root)
    return resolved


def average(runs: Sequence[Run]) -> Run:
    """The runs of one row on several seeds as one: each case's scores are the means over the seeds.

    The curves, the folds and the pictures are those of the first seed.
    """
    return dataclasses.replace(
        runs[0], rows=_average([run.rows for run in runs]), rule=_average([run.rule for run in runs])
    )


def _average(seeds: Sequence[Sequence[scores.Row]]) -> list[scores.Row]:
    def mean(rows: Sequence[scores.Row]) -> scores.Row:
        return rows[0] | {name: float(np.mean([row[name] for row in rows])) for name in scores.METRICS}

    by_case = [sorted(rows, key=lambda row: row["case"]) for rows in seeds]
    return [mean(rows) for rows in zip(*by_case, strict=True)]


def write_table(path: epath.Path, runs: Sequence[Run], reference: str) -> None:
    """Writes a CSV with one line for each row and class: Dice, its interval, the difference from `reference`, tests."""
    study = results.make_study(runs, reference)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "class", "cases", "dice", "std", "low", "high", "difference", "difference_low",
                     "difference_high", "p_wilcoxon_holm", "p_bootstrap_holm", "paper_dice"])  # fmt: skip
    for word in study.classes:
        means, compared = results.dice_means(study.rows, word), results.compare(study, word)
        for name, one in means.items():
            other = compared.get(name)
            differences = [other.difference, other.low, other.high, other.wilcoxon, other.bootstrap] if other else []
            numbers = [one.mean, one.std, one.low, one.high, *differences]
            cells = [f"{number:.6f}" for number in numbers] + [""] * (9 - len(numbers))
            cases = len(results.dice_of(study.rows[name], word))
            writer.writerow([name, word, cases, *cells, results.paper_dice(name, word) or ""])
    files.write_atomic(path, text.getvalue())


def write_effects(path: epath.Path, runs: Sequence[Run]) -> None:
    """Writes a CSV with the main effects of the design if the runs are its eight cells, else nothing."""
    lines = ["factor,class,effect,low,high"]
    for name, effects in results.design_effects(results.make_study(runs)).items():
        lines += [f"{factor},{name}," + ",".join(f"{x:.6f}" for x in effect) for factor, effect in effects.items()]
    if len(lines) > 1:
        files.write_atomic(path, "\n".join(lines) + "\n")


def finish(runs: Sequence[Run], workdir: epath.Path, seeds: int, stem: str, reference: str = "proposed") -> None:
    """Prints the table of all rows, compared with `reference`, and writes it as `stem`.csv and `stem`.html.

    The eight cells of the design have a `stem`_effects.csv besides.
    """
    print("\n" + table.table(runs, reference))
    if seeds > 1:
        print(f"Every score is a case's mean over {seeds} seeds.")
    write_table(workdir / f"{stem}.csv", runs, reference)
    write_effects(workdir / f"{stem}_effects.csv", runs)
    page.write_report(workdir / f"{stem}.html", runs, reference)
    print(f"\n{workdir / stem}.csv, {workdir / stem}.html")


def command(stem: str, description: str, make_rows: Callable[[Sequence[str]], Rows], arguments: Sequence[str]) -> None:
    """The command line that this and the ablation share: runs the rows and, when all are done, makes their table.

    Args:
      stem: of the module, and of the files with the table.
      description: what --help says.
      make_rows: from the --config.KEY=VALUE among the arguments to the rows.
      arguments: the command line.
    """
    parser = Parser(
        prog=f"python -m experiments.{stem}", description=description,
        epilog="Any --config.KEY=VALUE of isles_jax.main applies to every row.",
    )  # fmt: skip
    parser.add_argument(
        "--workdir", type=files.location, required=True, help=f"where runs, {stem}.csv and {stem}.html go"
    )
    parser.add_argument("--rows", type=names, metavar="NAMES", help="run these only, for example bl1,proposed")
    parser.add_argument("--folds", type=numbers, metavar="NUMBERS", help="run these only, for example 0,1")
    parser.add_argument("--seeds", type=int, default=1, help="repeat everything with so many seeds (default 1)")
    options, overrides = parser.parse_known_args(arguments)
    if options.seeds < 1:
        raise InputError(f"--seeds={options.seeds}: expected 1 or more")
    rows = make_rows(overrides)
    runs = run_rows(rows, options.workdir, only=options.rows, folds=options.folds, seeds=options.seeds)
    if runs:
        finish(runs, options.workdir, options.seeds, stem)


def names(text: str) -> list[str]:
    """Words with commas between them, of a flag."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """Integers with commas between them, of a flag."""
    return [int(word) for word in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains all eight systems of the paper on one data set and makes its table; run again, it goes on."""
    command("table1", main.__doc__, table_rows, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    run_command(main)
