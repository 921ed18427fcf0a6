"""The results of one or more runs as a plain-text table for the terminal."""

import textwrap
from collections.abc import Sequence

from isles_jax.scoring import comparison, notes, scores, statistics
from isles_jax.scoring.comparison import Study
from isles_jax.scoring.run_files import Run


def table(runs: Sequence[Run], reference: str | None = None) -> str:
    """The results of one or more runs on the same data as plain text.

    Args:
      runs: from `run_files.read_run`.
      reference: label of the system that the others are compared with; None: see `comparison.make_study`.

    Raises:
      InputError: as `comparison.make_study`.
    """
    study = comparison.make_study(runs, reference)
    first, width = study.first, max(map(len, study.rows))
    data = "the built-in phantom, not patients" if first.data["phantom"] else first.config.data.root
    head = f"{len(study.case_names)} cases, {len(first.folds)} folds; data: {data}"
    parts = [head, "", *_dice_lines(study, width), "", *_measure_lines(study, width)]
    if study.comparisons:
        parts += ["", *_comparison_lines(study, width)]
    effects = comparison.design_effects(study)
    if effects:
        parts += ["", "main effects of the design on Dice [95% interval]"]
        for factor in statistics.FACTORS:
            cells = "   ".join(f"{name} {_signed(effects[name][factor])}" for name in study.classes)
            parts.append(f"{factor:{width}}  {cells}")
    lines = [textwrap.fill(note, 118, subsequent_indent="  ") for note in notes.notes(study)]
    return "\n".join([*parts, "", *lines])


def _dice_lines(study: Study, width: int) -> list[str]:
    with_paper = [name for name in study.classes if any(study.paper(label, name) for label in study.rows)]
    title = f"{'Dice':{width}}"
    for name in study.classes:
        title += f"  {name:28}" + ("  paper*" if name in with_paper else "")
    means = {name: comparison.dice_means(study.rows, name) for name in study.classes}
    lines = [title.rstrip()]
    for label in study.rows:
        line = f"{label:{width}}"
        for name in study.classes:
            dice = means[name][label]
            line += f"  {dice.mean:.3f} ± {dice.std:5.3f} [{dice.low:.3f}, {dice.high:.3f}]"
            if name in with_paper:
                paper = study.paper(label, name)
                line += f"  {'-' if paper is None else format(paper, '.3f'):>6}"
        lines.append(line)
    return lines


def _measure_lines(study: Study, width: int) -> list[str]:
    class_width = max(map(len, study.classes))
    # Dice has a table of its own.
    shown = [measure for measure in study.measures if measure.in_means and measure.name != "dice"]
    titles = "".join(f"  {measure.heading}" for measure in shown)
    lines = [f"{'means':{width}}  {'':{class_width}}{titles}"]
    for label, rows in study.rows.items():
        means = scores.means(rows)["classes"]
        for name in study.classes:
            cells = [f"  {means[name][one.name]['mean']:{len(one.heading)}.3f}" for one in shown]
            lines.append(f"{label:{width}}  {name:{class_width}}" + "".join(cells))
    return lines


def _comparison_lines(study: Study, width: int) -> list[str]:
    class_width = max(map(len, study.classes))
    lines = [
        f"difference of Dice from {study.reference} [95% interval], p of Wilcoxon and of the paired bootstrap (Holm)"
    ]
    compared = {name: comparison.compare(study, name) for name in study.classes}
    for label in compared[study.classes[0]]:
        for name in study.classes:
            one = compared[name][label]
            change = _signed((one.difference, one.low, one.high))
            tests = f"p = {comparison.format_p(one.wilcoxon)}, {comparison.format_p(one.bootstrap)}"
            lines.append(f"{label:{width}}  {name:{class_width}}  {change}  {tests}")
    return lines


def _signed(effect: tuple[float, float, float]) -> str:
    return f"{effect[0]:+.3f} [{effect[1]:+.3f}, {effect[2]:+.3f}]"
