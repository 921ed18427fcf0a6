"""The results of one or more runs as plain text for the terminal, in lines of at most 80 characters."""

import textwrap
from collections.abc import Mapping, Sequence

from isles_jax.runtime import columns
from isles_jax.runtime.command import WIDTH
from isles_jax.scoring import comparison, notes, statistics
from isles_jax.scoring.comparison import Study
from isles_jax.scoring.run_files import Run
from isles_jax.scoring.statistics import Interval


def table(runs: Sequence[Run], reference: str | None = None) -> str:
    """All results of runs: Dice, the other measures, the comparisons and the notes.

    Arguments and errors are those of `comparison.make_study`.
    """
    study = comparison.make_study(runs, reference)
    parts = [_head(study), _dice(study, paper=True), _measures(study)]
    if len(study.rows) > 1:
        parts.append(_comparisons(study))
    effects = comparison.design_effects(study)
    if effects:
        parts.append(_effects(effects))
    parts.append([line for note in notes.notes(study) for line in _wrapped(note)])
    return "\n\n".join("\n".join(part) for part in parts)


def dice_table(run: Run) -> str:
    """The Dice of a run beside that of the clinical rule, where it applies, without what needs a note."""
    study = comparison.make_study([run])
    return "\n".join([*_head(study), "", *_dice(study, paper=False)])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _head(study: Study) -> list[str]:
    first = study.first
    data = "the built-in phantom, not patients" if first.data["phantom"] else first.config.data.root
    return _wrapped(f"{len(study.case_names)} cases, {len(first.folds)} folds; data: {data}")


def _dice(study: Study, *, paper: bool) -> list[str]:
    heads = ["Dice", "", "mean ± std", "95% interval"]
    rows = []
    for name in study.classes:
        for label, dice in comparison.dice_means(study.rows, name).items():
            interval = comparison.format_interval(dice.interval)
            rows.append([label, name, f"{dice.mean:.3f} ± {dice.std:5.3f}", interval])
    published = [study.paper(label, name) for label, name, *_ in rows]
    if paper and any(published):
        heads.append("paper*")
        rows = [[*row, format(dice, ".3f") if dice else "-"] for row, dice in zip(rows, published, strict=True)]
    return columns.lines(heads, rows, names=2)


def _measures(study: Study) -> list[str]:
    measures, found = comparison.other_means(study)
    rows = [[label, name, *(f"{mean:.3f}" for mean in means)] for label, name, means in found]
    return columns.lines(["means", "", *(measure.heading for measure in measures)], rows, names=2)


def _comparisons(study: Study) -> list[str]:
    rows = []
    for label, name, found in comparison.differences(study):
        tests = comparison.format_p(found.wilcoxon), comparison.format_p(found.bootstrap)
        rows.append([label, name, f"{found.difference:+.3f}", comparison.format_interval(found.interval, "+"), *tests])
    title = f"difference of Dice from {study.reference}; p with Holm's correction"
    heads = ["", "", "mean", "95% interval", "Wilcoxon p", "bootstrap p"]
    return [*_wrapped(title), *columns.lines(heads, rows, names=2)]


def _effects(effects: Mapping[str, Mapping[str, tuple[float, Interval]]]) -> list[str]:
    rows = []
    for factor in statistics.FACTORS:
        for name, of_class in effects.items():
            effect, interval = of_class[factor]
            rows.append([factor, name, f"{effect:+.3f}", comparison.format_interval(interval, "+")])
    heads = ["", "", "mean", "95% interval"]
    return ["main effects of the design on Dice", *columns.lines(heads, rows, names=2)]
