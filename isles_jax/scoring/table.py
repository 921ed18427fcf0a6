"""The results of one or more runs as a plain-text table for the terminal."""

import textwrap
from collections.abc import Sequence

from isles_jax.scoring import comparison, notes, statistics
from isles_jax.scoring.comparison import Study
from isles_jax.scoring.run_files import Run


def table(runs: Sequence[Run], reference: str | None = None) -> str:
    """The results of runs as plain text. Arguments and errors are those of `comparison.make_study`."""
    study = comparison.make_study(runs, reference)
    first = study.first
    width = max(map(len, study.rows))
    data = "the built-in phantom, not patients" if first.data["phantom"] else first.config.data.root
    head = f"{len(study.case_names)} cases, {len(first.folds)} folds; data: {data}"
    parts = [head, "", *_dice_lines(study, width), "", *_measure_lines(study, width)]
    if len(study.rows) > 1:
        parts += ["", *_comparison_lines(study, width)]
    effects = comparison.design_effects(study)
    if effects:
        parts += ["", "main effects of the design on Dice [95% interval]"]
        for factor in statistics.FACTORS:
            cells = "   ".join(
                f"{name} {comparison.format_mean(*effects[name][factor], '+')}" for name in study.classes
            )
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
            text = f"{dice.mean:.3f} ± {dice.std:5.3f}{comparison.format_interval(dice.interval)}"
            line += f"  {text:28}"
            if name in with_paper:
                paper = study.paper(label, name)
                line += f"  {'-' if paper is None else format(paper, '.3f'):>6}"
        lines.append(line.rstrip())
    return lines


def _measure_lines(study: Study, width: int) -> list[str]:
    class_width = max(map(len, study.classes))
    measures, found = comparison.other_means(study)
    headings = [measure.heading for measure in measures]
    lines = [f"{'means':{width}}  {'':{class_width}}" + "".join(f"  {heading}" for heading in headings)]
    for label, name, means in found:
        cells = [f"  {mean:{len(heading)}.3f}" for mean, heading in zip(means, headings, strict=True)]
        lines.append(f"{label:{width}}  {name:{class_width}}" + "".join(cells))
    return lines


def _comparison_lines(study: Study, width: int) -> list[str]:
    class_width = max(map(len, study.classes))
    lines = [
        f"difference of Dice from {study.reference} [95% interval], p of Wilcoxon and of the paired bootstrap (Holm)"
    ]
    for label, name, found in comparison.differences(study):
        change = comparison.format_mean(found.difference, found.interval, "+")
        tests = f"p = {comparison.format_p(found.wilcoxon)}, {comparison.format_p(found.bootstrap)}"
        lines.append(f"{label:{width}}  {name:{class_width}}  {change:23}  {tests}")
    return lines
