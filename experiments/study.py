"""The command line of a study, and its outputs: the printed table, the CSV files and the page."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from experiments import seeds as several
from experiments.rows import Rows, average, run_rows
from isles_jax.pages import page
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError, Parser
from isles_jax.scoring import comparison, statistics, table
from isles_jax.scoring.run_files import Run


def command(
    stem: str,
    description: str,
    make_rows: Callable[[Sequence[str]], Rows],
    arguments: Sequence[str] | None,
    reference: str = "proposed",
) -> None:
    """Runs the rows of a study and, when all are finished, writes their table.

    Args:
      stem: the name of the study's module, and of the files with the table.
      description: for --help.
      make_rows: makes the rows from the --config.KEY=VALUE among the arguments.
      arguments: the command line; None: that of the process.
      reference: the row that the others are compared with.
    """
    parser = Parser(
        prog=f"python -m experiments.{stem}",
        description=description,
        epilog="Any --config.KEY=VALUE of isles_jax.main applies to every row.",
    )
    parser.add_argument(
        "--workdir", type=files.location, required=True, help=f"where the runs, {stem}.csv and {stem}.html are written"
    )
    parser.add_argument("--rows", type=_names, metavar="NAMES", help="run only these, for example bl1,proposed")
    parser.add_argument("--folds", type=_numbers, metavar="NUMBERS", help="run only these, for example 0,1")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds to run every row with (default 1)")
    options, overrides = parser.parse_known_args(arguments)
    if options.seeds < 1:
        raise InputError(f"--seeds={options.seeds}: expected 1 or more")
    rows = make_rows(overrides)
    refuse_outputs(options.workdir, stem)
    runs = run_rows(rows, options.workdir, only=options.rows, folds=options.folds, seeds=options.seeds)
    if runs:
        finish(runs, options.workdir, stem, reference)


# Runs of each row by its name, one for each seed.
Seeds = Mapping[str, Sequence[Run]]


def finish(runs: Seeds, workdir: epath.Path, stem: str, reference: str = "proposed") -> None:
    """Prints the table of all rows, compared with `reference`, and writes it as `stem`.csv and `stem`.html.

    For the eight cells of the design, it also writes `stem`_effects.csv.
    """
    refuse_outputs(workdir, stem)
    averaged = [average(row) for row in runs.values()]
    print("\n" + table.table(averaged, reference))
    seeds = len(runs[reference])
    if seeds > 1:
        print(f"Every score is a case's mean over {seeds} seeds.")
    write_table(workdir / f"{stem}.csv", runs, reference)
    write_effects(workdir / f"{stem}_effects.csv", runs)
    page.write_report(workdir / f"{stem}.html", averaged, reference)
    print(f"\n{workdir / stem}.csv, {workdir / stem}.html")


def refuse_outputs(workdir: epath.Path, stem: str) -> None:
    """Raises an InputError if one of the files that `finish` writes is there and is not an earlier one."""
    refuse_table(workdir / f"{stem}.csv")
    refuse_table(workdir / f"{stem}_effects.csv")
    page.refuse_output(workdir / f"{stem}.html")


def refuse_table(path: epath.PathLike) -> None:
    """Raises an InputError if a file is at `path` that is no table of a study, by its first columns."""
    columns = (
        b"row,class,cases,dice,",
        b"factor,class,effect,",
        b"row,until_step,",
        b"distribution,method,",
        b"row,seed,case,",
    )
    files.refuse_foreign(path, lambda content: content.startswith(columns), "a table")


COLUMNS = (
    "row class cases dice std low high difference difference_low difference_high p_wilcoxon_holm p_bootstrap_holm "
    "paper_dice seeds seed_std crossed_low crossed_high p_crossed_holm"
)


def write_table(path: epath.Path, runs: Seeds, reference: str) -> None:
    """Writes a CSV with one line for each row and class: Dice, its interval, the difference from the reference, p.

    With several seeds, the last columns count their spread, too (`seeds.crossed`). `seed_std` is that of the difference
    over seeds, and of Dice itself in the line of the reference.
    """
    refuse_table(path)
    study = comparison.make_study([average(row) for row in runs.values()], reference)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS.split())
    for class_name in study.classes:
        means = comparison.dice_means(study.rows, class_name)
        comparisons = comparison.compare(study, class_name)
        over_seeds = _over_seeds(runs, class_name, reference)
        for name, mean in means.items():
            numbers = [mean.mean, mean.std, *_ends(mean.interval)]
            if name in comparisons:
                other = comparisons[name]
                numbers += [other.difference, *_ends(other.interval), other.wilcoxon, other.bootstrap]
            cells = _cells(numbers, 9)
            cases = len(comparison.dice_of(study.rows[name], class_name))
            run = study.runs.get(name)
            paper = (run and comparison.paper_dice(run, class_name)) or ""
            writer.writerow([name, class_name, cases, *cells, paper, *over_seeds.get(name, [""] * 5)])
    files.write_atomic(path, text.getvalue())


def _over_seeds(runs: Seeds, class_name: str, reference: str) -> dict[str, list[str]]:
    """The last columns of `write_table` by row; nothing if there is one seed."""
    count = len(runs[reference])
    if count < 2:
        return {}
    scores = {name: several.dice(row, class_name) for name, row in runs.items()}
    if runs[reference][0].rule:
        rule = [comparison.dice_of(run.rule, class_name) for run in runs[reference]]
        scores = {comparison.RULE: np.array(rule), **scores}
    own = several.crossed(scores.pop(reference))
    differences = {
        name: several.crossed(dice - several.dice(runs[reference], class_name)) for name, dice in scores.items()
    }
    holm = statistics.holm([difference.p for difference in differences.values()])
    lines = {reference: [str(count), f"{own.std:.6f}", "", "", ""]}
    for (name, found), p in zip(differences.items(), holm, strict=True):
        lines[name] = [str(count), *_cells([found.std, *_ends(found.interval), p], 4)]
    return lines


def write_effects(path: epath.Path, runs: Seeds) -> None:
    """Writes a CSV with the main effects of the design if the runs are its eight cells, else nothing.

    With several seeds, the last columns count their spread, too, as in `write_table`.
    """
    refuse_table(path)
    study = comparison.make_study([average(row) for row in runs.values()])
    lines = ["factor,class,effect,low,high,seed_std,crossed_low,crossed_high"]
    for class_name, effects in comparison.design_effects(study).items():
        dice = {comparison.factors_of(row[0]): several.dice(row, class_name) for row in runs.values()}
        by_case = statistics.case_effects(dice)
        for factor, (effect, interval) in effects.items():
            numbers = [effect, *_ends(interval), *_spread(by_case[factor])]
            lines.append(",".join([factor, class_name, *_cells(numbers, 6)]))
    if len(lines) > 1:
        files.write_atomic(path, "\n".join(lines) + "\n")


def _ends(interval: statistics.Interval) -> list[float | None]:
    return list(interval or (None, None))


def _cells(numbers: Sequence[float | None], count: int) -> list[str]:
    """So many cells with six decimals; those of a number that is None, and those that are left over, are empty."""
    cells = ["" if number is None else f"{number:.6f}" for number in numbers]
    return cells + [""] * (count - len(cells))


def _spread(values: np.ndarray) -> list[float | None]:
    """The standard deviation over seeds and the crossed interval of values [seeds, cases]; nothing for one seed."""
    if len(values) < 2:
        return []
    found = several.crossed(values)
    return [found.std, *_ends(found.interval)]


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
