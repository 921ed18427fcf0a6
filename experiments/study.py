"""The command line of a study, and its outputs: the printed table, the CSV files and the page."""

import csv
import io
from collections.abc import Callable, Sequence

from etils import epath

from experiments.rows import Rows, run_rows
from isles_jax.reporting import page, results, table
from isles_jax.reporting.results import Run, Study
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError, Parser


def command(stem: str, description: str, make_rows: Callable[[Sequence[str]], Rows], arguments: Sequence[str]) -> None:
    """Runs the rows of a study and, when all are finished, writes their table.

    Args:
      stem: the name of the study's module, and of the files with the table.
      description: for --help.
      make_rows: makes the rows from the --config.KEY=VALUE among the arguments.
      arguments: the command line.
    """
    parser = Parser(
        prog=f"python -m experiments.{stem}", description=description,
        epilog="Any --config.KEY=VALUE of isles_jax.main applies to every row.",
    )  # fmt: skip
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
    runs = run_rows(rows, options.workdir, only=options.rows, folds=options.folds, seeds=options.seeds)
    if runs:
        finish(runs, options.workdir, options.seeds, stem)


def finish(runs: Sequence[Run], workdir: epath.Path, seeds: int, stem: str, reference: str = "proposed") -> None:
    """Prints the table of all rows, compared with `reference`, and writes it as `stem`.csv and `stem`.html.

    For the eight cells of the design, it also writes `stem`_effects.csv.
    """
    study = results.make_study(runs, reference)
    print("\n" + table.table(runs, reference))
    if seeds > 1:
        print(f"Every score is a case's mean over {seeds} seeds.")
    write_table(workdir / f"{stem}.csv", study)
    write_effects(workdir / f"{stem}_effects.csv", study)
    page.write_report(workdir / f"{stem}.html", runs, reference)
    print(f"\n{workdir / stem}.csv, {workdir / stem}.html")


def write_table(path: epath.Path, study: Study) -> None:
    """Writes a CSV with one line for each row and class: Dice, its interval, the difference from the reference, p."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "class", "cases", "dice", "std", "low", "high", "difference", "difference_low",
                     "difference_high", "p_wilcoxon_holm", "p_bootstrap_holm", "paper_dice"])  # fmt: skip
    for class_name in study.classes:
        means, comparisons = results.dice_means(study.rows, class_name), results.compare(study, class_name)
        for name, mean in means.items():
            numbers = [mean.mean, mean.std, mean.low, mean.high]
            if name in comparisons:
                other = comparisons[name]
                numbers += [other.difference, other.low, other.high, other.wilcoxon, other.bootstrap]
            cells = [f"{number:.6f}" for number in numbers] + [""] * (9 - len(numbers))
            cases = len(results.dice_of(study.rows[name], class_name))
            writer.writerow([name, class_name, cases, *cells, results.paper_dice(name, class_name) or ""])
    files.write_atomic(path, text.getvalue())


def write_effects(path: epath.Path, study: Study) -> None:
    """Writes a CSV with the main effects of the design if the runs are its eight cells, else nothing."""
    lines = ["factor,class,effect,low,high"]
    for class_name, effects in results.design_effects(study).items():
        for factor, numbers in effects.items():
            lines.append(f"{factor},{class_name}," + ",".join(f"{number:.6f}" for number in numbers))
    if len(lines) > 1:
        files.write_atomic(path, "\n".join(lines) + "\n")


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
