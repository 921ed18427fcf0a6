"""The results of one or more runs as a plain-text table for the terminal."""

import textwrap
from collections.abc import Sequence

from isles_jax.reporting import results, scores, statistics
from isles_jax.reporting.results import Run
from isles_jax.reporting.scores import Row


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
        summary = scores.summarise(mine)["classes"]
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
