"""Finished runs to a table for the terminal and one self-contained HTML page; also the command for a set of runs.

python -m isles_jax.report RUN [RUN ...] --output=report.html
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from etils import epath

from isles_jax import evaluate, files, results, statistics
from isles_jax.config import Parser, run_command
from isles_jax.evaluate import Row
from isles_jax.results import Run, read_run

__all__ = ["Run", "read_run", "table", "write_report"]


def table(runs: Sequence[Run], reference: str | None = None) -> str:
    """The results of one or more runs on the same data as plain text.

    Args:
      runs: from `read_run`.
      reference: the row that the others are compared with; None: see `reference_of`.

    Raises:
      InputError: the runs are not on the same data, or no row is called `reference`.
    """
    rows, base = results.systems(runs), results.reference_of(runs, reference)
    classes = list(dict.fromkeys(row["class"] for row in runs[0].rows))
    cases, folds = len({row["case"] for row in runs[0].rows}), len(runs[0].folds)
    width = max(map(len, rows))
    head = f"{cases} cases, {folds} folds; data: {results.data_words(runs[0])}"
    parts = [head, "", *_dice_lines(rows, classes, width), "", *_measure_lines(rows, classes, width)]
    compared = len(rows) - 1
    if compared:
        parts += ["", *_comparison_lines(runs, classes, base, width)]
    effects = {word: found for word in classes if (found := results.design_effects(runs, word))}
    if len(effects) == len(classes):
        parts += ["", "main effects of the design on Dice [95% interval]"]
        for factor in statistics.FACTORS:
            cells = "   ".join(f"{word} {_signed(effects[word][factor])}" for word in classes)
            parts.append(f"{factor:{width}}  {cells}")
    notes = [textwrap.fill(note, 118, subsequent_indent="  ") for note in results.notes(runs, compared)]
    return "\n".join([*parts, "", *notes])


def _dice_lines(rows: dict[str, list[Row]], classes: Sequence[str], width: int) -> list[str]:
    with_paper = [word for word in classes if any(results.paper_dice(label, word) for label in rows)]
    title = f"{'Dice':{width}}"
    for word in classes:
        title += f"  {word:28}" + ("  paper*" if word in with_paper else "")
    means = {word: results.dice_means(rows, word) for word in classes}
    lines = [title.rstrip()]
    for label in rows:
        line = f"{label:{width}}"
        for word in classes:
            one = means[word][label]
            line += f"  {one.mean:.3f} ± {one.std:5.3f} [{one.low:.3f}, {one.high:.3f}]"
            if word in with_paper:
                paper = results.paper_dice(label, word)
                line += f"  {'-' if paper is None else format(paper, '.3f'):>6}"
        lines.append(line)
    return lines


def _measure_lines(rows: dict[str, list[Row]], classes: Sequence[str], width: int) -> list[str]:
    wide = max(map(len, classes))
    lines = [f"{'means':{width}}  {'':{wide}}" + "".join(f"  {title}" for title in results.MEASURES.values())]
    for label, mine in rows.items():
        summary = evaluate.summarise(mine)["classes"]
        for word in classes:
            cells = [f"  {summary[word][name]['mean']:{len(title)}.3f}" for name, title in results.MEASURES.items()]
            lines.append(f"{label:{width}}  {word:{wide}}" + "".join(cells))
    return lines


def _comparison_lines(runs: Sequence[Run], classes: Sequence[str], base: str, width: int) -> list[str]:
    wide = max(map(len, classes))
    lines = [f"difference of Dice from {base} [95% interval], p of Wilcoxon and of the paired bootstrap (Holm)"]
    compared = {word: results.compare(runs, word, base) for word in classes}
    for label in compared[classes[0]]:
        for word in classes:
            one = compared[word][label]
            change = _signed((one.difference, one.low, one.high))
            tests = f"p = {results.p_words(one.wilcoxon)}, {results.p_words(one.bootstrap)}"
            lines.append(f"{label:{width}}  {word:{wide}}  {change}  {tests}")
    return lines


def _signed(effect: tuple[float, float, float]) -> str:
    return f"{effect[0]:+.3f} [{effect[1]:+.3f}, {effect[2]:+.3f}]"


# --- the page --------------------------------------------------------------------------------------------------------


def write_report(path: epath.PathLike, runs: Sequence[Run], reference: str | None = None) -> None:
    """Writes one HTML file about one or more runs on the same data, atomically; it needs nothing outside itself.

    Args:
      path: of the file.
      runs: from `read_run`.
      reference: the row that the others are compared with; None: see `results.reference_of`.

    Raises:
      InputError: as `table`; a prediction is missing or does not fit its case.
    """
    from isles_jax import checkpoint, data, page, pictures

    base = results.reference_of(runs, reference)
    labels = [label for label in results.systems(runs) if label != results.RULE]
    by_label = dict(zip(labels, runs, strict=True))
    chosen = _chosen(by_label[base] if base in by_label else runs[-1])
    first = runs[0]
    root = epath.Path(first.config["data"]["root"] or first.workdir / "phantom")
    cases = []
    # A page about runs whose data are elsewhere has all but the pictures, and says so.
    if root.is_dir():
        values = first.config["data"]["labels"]
        dataset = data.load(files.fetch(root), penumbra=values["penumbra"], core=values["core"])
        cases = pictures.make(dataset, by_label, list(chosen.values()))
    folders = [run.workdir / "fold_0" / "checkpoints" for run in runs]
    versions = [checkpoint.read_meta(folder)["versions"] if folder.is_dir() else {} for folder in folders]
    files.write_atomic(path, page.page(runs, base, cases, chosen, versions))


def _chosen(run: Run) -> dict[str, str]:
    """The best, the median and the worst case by the mean Dice over the classes; fewer of very few cases."""
    scores: dict[str, list[float]] = {}
    for row in run.rows:
        if row["class"] != evaluate.WHOLE_LESION:
            scores.setdefault(row["case"], []).append(row["dice"])
    ranked = sorted(scores, key=lambda name: -np.mean(scores[name]))
    places = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    return {
        place: name for place, name in places.items() if name not in list(places.values())[: list(places).index(place)]
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of one or more finished runs on the same data and writes their page."""
    parser = Parser(prog="python -m isles_jax.report", description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdir of a finished run")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="default: report.html")
    parser.add_argument("--reference", metavar="ROW", help="the row that the others are compared with, for example bl1")
    options = parser.parse_args(arguments)
    runs = [read_run(workdir) for workdir in options.runs]
    print(table(runs, options.reference))
    write_report(options.output, runs, options.reference)
    print(f"\nreport: {options.output}")


if __name__ == "__main__":
    run_command(main)
