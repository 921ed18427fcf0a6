"""The page's sections about scores: Dice, differences between systems, other measures, volumes."""

from html import escape

from isles_jax.metrics import Measure
from isles_jax.pages import charts, markup
from isles_jax.scoring import comparison, notes, scores, statistics
from isles_jax.scoring.comparison import Study

# Of a curve of calibration.json.
CURVE = ("probability", "frequency", "voxels")
# The frequency in a bin of fewer voxels is mostly chance, so such a bin is not drawn.
FEW_VOXELS = 100
FACTOR_NAMES = {
    "residual": "residual connections",
    "adversarial": "adversarial training",
    "overlap": "Lovasz-softmax and boundary losses",
}


def dice(study: Study) -> str:
    """The paper's Table 1 with intervals and the paper's numbers, charts with a dot for each case, and the notes."""
    columns, strips = [], []
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
        caption += "; paper*: Table 1 of the paper" + ", on other data" * study.first.data["phantom"]
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
    if not study.comparisons:
        return ""
    compared = {name: comparison.compare(study, name) for name in study.classes}
    body = [
        [
            markup.system_name(label),
            escape(name),
            markup.signed(one.difference, one.low, one.high),
            comparison.format_p(one.wilcoxon),
            comparison.format_p(one.bootstrap),
        ]
        for label in compared[study.classes[0]]
        for name, one in ((name, compared[name][label]) for name in study.classes)
    ]
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
        [
            escape(FACTOR_NAMES[factor]),
            *(markup.signed(*effects[name][factor]) for name in study.classes),
        ]
        for factor in statistics.FACTORS
    ]
    head = ["factor", *map(escape, study.classes)]
    caption = "Mean Dice of the four systems with a factor minus that of the four without it [95% interval]"
    return f"<h3>Main effects of the 2 × 2 × 2 design on Dice</h3>{markup.table(caption, head, body)}"


def measures(study: Study) -> str:
    """The means of the other measures."""
    # Dice has a section of its own.
    shown = [measure for measure in study.measures if measure.in_means and measure.name != "dice"]
    body = []
    for label, rows in study.rows.items():
        means = scores.means(rows)["classes"]
        for name in study.classes:
            cells = [f"{means[name][measure.name]['mean']:.3f}" for measure in shown]
            body.append([markup.system_name(label), escape(name), *cells])
    head = ["system", "class", *(_heading(measure) for measure in shown)]
    caption = "Means over the cases of a fold, then over the folds"
    return f"<h2>Other measures</h2>{markup.table(caption, head, body, row_headers=2)}"


def _heading(measure: Measure) -> str:
    """A measure's title with its unit, and an explanation on pointing of which values are better."""
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
    body, drawn = [], []
    names = list(study.first.data["classes"])
    for label, one in known.items():
        curves = {"predicted class": one["confidence"]} | {name: one["classes"][name] for name in names}
        body.append([markup.system_name(label), *(f"{curve['error']:.3f}" for curve in curves.values())])
        bins = {
            name: [
                (probability, frequency, voxels)
                for probability, frequency, voxels in zip(*(curve[key] for key in CURVE), strict=True)
                if voxels >= FEW_VOXELS
            ]
            for name, curve in curves.items()
        }
        drawn.append(charts.reliability(label, bins))
    head = ["system", "predicted class", *map(escape, names)]
    caption = "Expected calibration error: mean difference of probability and frequency over the brain’s voxels"
    colours = {name: f"c{number % 6}" for number, name in enumerate(["predicted class", *names])}
    return (
        f"<h2>Calibration</h2>{markup.table(caption, head, body)}{markup.legend(colours)}"
        f'<div class="grid">{"".join(drawn)}</div><p class="soft">Probabilities of held-out cases in ten bins. A bin '
        f"of fewer than {FEW_VOXELS} voxels is not drawn. On the dashed line, a probability of 0.7 is right in 70% of "
        "the voxels. Below it, the networks are too sure.</p>"
    )
