"""The page's sections about scores: Dice, differences between systems, other measures, volumes."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from isles_jax.metrics import Measure
from isles_jax.pages import charts, markup
from isles_jax.scoring import comparison, notes
from isles_jax.scoring.comparison import Study

# The frequency in a bin of fewer voxels is mostly chance, so such a bin is not drawn.
FEW_VOXELS = 100
FACTOR_NAMES = {
    "residual": "residual connections",
    "adversarial": "adversarial training",
    "overlap": "Lovasz-softmax and boundary losses",
}


def dice(study: Study) -> str:
    """The paper's Table 1 with intervals and the paper's numbers, charts with a dot for each case, and the notes."""
    columns = []
    strips = []
    for name in study.classes:
        means = comparison.dice_means(study.rows, name)
        paper = {label: study.paper(label, name) for label in study.rows}
        columns.append([_dice_cell(mean, paper[label]) for label, mean in means.items()])
        by_case = {
            label: [(row["case"], row["dice"]) for row in rows if row["class"] == name]
            for label, rows in study.rows.items()
        }
        intervals = {label: (one.mean, one.low, one.high) for label, one in means.items()}
        strips.append(f"<div><h3>{escape(name)}</h3>{charts.strip(by_case, intervals, paper, f'Dice of {name}')}</div>")
    head = ["system", *map(escape, study.classes)]
    body = [[markup.system_name(label), *cells] for label, *cells in zip(study.rows, *columns, strict=True)]
    caption = "Dice of each system: mean ± standard deviation over cases [95% interval of the mean]"
    if any(study.paper(label, name) for label in study.runs for name in study.classes):
        caption += "; paper*: Table 1 of the paper"
        caption += ", on other data" if study.first.data["phantom"] else ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes.notes(study))
    return (
        f"<h2>Dice</h2>{markup.table(caption, head, body, css_class='dice')}"
        f'<div class="grid">{"".join(strips)}</div><p class="soft">Each dot is a case. The bar is the mean with its '
        f'95% interval, and a diamond is the paper’s number.</p><ul class="notes">{items}</ul>'
    )


def _dice_cell(dice: comparison.Mean, paper: float | None) -> str:
    text = f'{dice.mean:.3f} ± {dice.std:.3f} <span class="interval">[{dice.low:.3f}, {dice.high:.3f}]</span>'
    return text if paper is None else f'{text}<span class="paper">paper* {paper:.3f}</span>'


def differences(study: Study) -> str:
    """Each system minus the reference, and the main effects if the runs are the eight cells of the design."""
    if len(study.rows) < 2:
        return ""
    body = []
    for label, name, found in comparison.differences(study):
        change = markup.signed(found.difference, found.low, found.high)
        tests = [comparison.format_p(found.wilcoxon), comparison.format_p(found.bootstrap)]
        body.append([markup.system_name(label), escape(name), change, *tests])
    head = ["system", "class", "difference of Dice", "p, Wilcoxon", "p, bootstrap"]
    caption = (
        f"Dice minus that of {study.reference}, paired over cases [95% interval of the mean]; p values have Holm’s "
        "correction over the systems"
    )
    return (
        f"<h2>Differences from {escape(study.reference)}</h2>"
        f"{markup.table(caption, head, body, row_headers=2, css_class='differences')}{_main_effects(study)}"
    )


def _main_effects(study: Study) -> str:
    effects = comparison.design_effects(study)
    if not effects:
        return ""
    body = [
        [title, *(markup.signed(*effects[name][factor]) for name in study.classes)]
        for factor, title in FACTOR_NAMES.items()
    ]
    head = ["factor", *map(escape, study.classes)]
    caption = "Mean Dice of the four systems with a factor minus that of the four without it [95% interval]"
    return f"<h3>Main effects of the 2 × 2 × 2 design on Dice</h3>{markup.table(caption, head, body)}"


def measures(study: Study) -> str:
    """The means of the other measures."""
    shown, found = comparison.other_means(study)
    body = [
        [markup.system_name(label), escape(name), *(f"{mean:.3f}" for mean in means)] for label, name, means in found
    ]
    head = ["system", "class", *map(_heading, shown)]
    caption = "Means over the cases of a fold, then over the folds"
    return f"<h2>Other measures</h2>{markup.table(caption, head, body, row_headers=2)}"


def _heading(measure: Measure) -> str:
    """A measure's title with its unit; pointing at it shows which values are better."""
    text = escape(measure.heading)
    return f'<abbr title="{measure.better} is better">{text}</abbr>' if measure.better else text


def volumes(study: Study) -> str:
    """A Bland-Altman chart of the volumes for each class and system; the systems of a class share their scales."""
    text = "<h2>Volumes (Bland-Altman)</h2>"
    for name in study.classes:
        points = {
            label: [
                (row["case"], (row["volume_true_ml"] + row["volume_pred_ml"]) / 2, row["volume_difference_ml"])
                for row in rows
                if row["class"] == name
            ]
            for label, rows in study.rows.items()
        }
        drawn = "".join(charts.bland_altman(name, points))
        text += f'<h3>{escape(name)}</h3><div class="grid">{drawn}</div>'
    return text + (
        '<p class="soft">Each dot is a case: the predicted minus the reference volume, over the mean of the two. The '
        "solid line is the mean difference, and the dashed lines are the 95% limits of agreement.</p>"
    )


def calibration(study: Study) -> str:
    """The expected calibration error of each system and its reliability curve; nothing where no counts were kept."""
    known = {label: run.calibration for label, run in study.runs.items() if run.calibration}
    if not known:
        return ""
    body = []
    drawn = []
    names = list(study.first.data["classes"])
    for label, one in known.items():
        curves = {"predicted class": one["confidence"]} | {name: one["classes"][name] for name in names}
        body.append([markup.system_name(label), *(f"{curve['error']:.3f}" for curve in curves.values())])
        drawn.append(charts.reliability(label, {name: _bins(curve) for name, curve in curves.items()}))
    head = ["system", "predicted class", *map(escape, names)]
    caption = "Expected calibration error: mean difference of probability and frequency over the brain’s voxels"
    colours = {name: f"c{number % 6}" for number, name in enumerate(["predicted class", *names])}
    return (
        f"<h2>Calibration</h2>{markup.table(caption, head, body)}{markup.legend(colours)}"
        f'<div class="grid">{"".join(drawn)}</div><p class="soft">Probabilities of held-out cases in ten bins. A bin '
        f"of fewer than {FEW_VOXELS} voxels is not drawn. On the dashed line, a probability of 0.7 is right in 70% of "
        "the voxels. Below it, the networks are too sure.</p>"
    )


def _bins(curve: Mapping[str, Sequence[Any]]) -> list[tuple[float, float, int]]:
    """The probability, the frequency and the voxels of each bin that is drawn."""
    bins = zip(curve["probability"], curve["frequency"], curve["voxels"], strict=True)
    return [(probability, frequency, voxels) for probability, frequency, voxels in bins if voxels >= FEW_VOXELS]
