"""The page's sections about scores: Dice, differences between systems, other measures, volumes."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from isles_jax.pages import charts, markup, terms
from isles_jax.scoring import comparison, notes, scores, statistics
from isles_jax.scoring import lesions as lesion_scores
from isles_jax.scoring.comparison import Study

# The frequency in a bin of fewer voxels is mostly chance, so such a bin is not drawn.
FEW_VOXELS = 100
FACTOR_NAMES = {
    "residual": "residual connections",
    "adversarial": "adversarial training",
    "overlap": "Lovasz-softmax and boundary losses",
}


def dice(study: Study) -> str:
    """The paper's Table 1 with intervals and the paper's numbers, and charts with a dot for each case."""
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
        intervals = {label: (one.mean, one.interval) for label, one in means.items()}
        strips.append(f"<div><h3>{escape(name)}</h3>{charts.strip(by_case, intervals, paper, f'Dice of {name}')}</div>")
    head = ["system", *(f"{terms.heading(terms.DICE)} of {escape(name)}" for name in study.classes)]
    body = [[markup.system_name(label), *cells] for label, *cells in zip(study.rows, *columns, strict=True)]
    caption = f"Dice of each system: mean ± standard deviation over cases{_interval_text(study, ' of the mean')}"
    diamond = ""
    if any(study.paper(label, name) for label in study.runs for name in study.classes):
        caption += "; paper*: Table 1 of the paper"
        diamond = " A diamond is the paper’s number."
    mark = "The bar is the mean with its 95% interval." if _has_intervals(study) else "The upright mark is the mean."
    return (
        f"<h2>Dice</h2>{markup.table(caption, head, body, css_class='dice')}"
        f'<div class="grid">{"".join(strips)}</div><p class="soft">Each dot is a case. {mark}{diamond}</p>'
    )


def how_to_read(study: Study, sections: str) -> str:
    """The notes, and what the headings of the page's sections (HTML) mean, folded."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes.notes(study))
    return (
        f'<details><summary>How to read these numbers</summary><ul class="notes">{items}</ul>'
        f"{terms.explanations(sections)}</details>"
    )


def _has_intervals(study: Study) -> bool:
    return len(study.case_names) >= statistics.LEAST_CASES


def _interval_text(study: Study, of: str = "") -> str:
    """What the brackets in a table are, for its caption; "" where there are too few cases for intervals."""
    return f" [95% interval{of}]" if _has_intervals(study) else ""


def _dice_cell(dice: comparison.Mean, paper: float | None) -> str:
    text = f"{dice.mean:.3f} ± {dice.std:.3f}{markup.interval(dice.interval)}"
    return text if paper is None else f'{text}<span class="paper">paper* {paper:.3f}</span>'


def differences(study: Study) -> str:
    """Each system minus the reference, and the main effects if the runs are the eight cells of the design."""
    if len(study.rows) < 2:
        return ""
    body = []
    for label, name, found in comparison.differences(study):
        change = markup.signed(found.difference, found.interval)
        tests = [comparison.format_p(found.wilcoxon), comparison.format_p(found.bootstrap)]
        body.append([markup.system_name(label), escape(name), change, *tests])
    head = ["system", "class", *map(terms.term, ("difference of Dice", "p, Wilcoxon", "p, bootstrap"))]
    caption = (
        f"Dice minus that of {study.reference}, paired over cases{_interval_text(study, ' of the mean')}; "
        "p values have Holm’s correction over the systems"
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
    caption = f"Mean Dice of the four systems with a factor minus that of the four without it{_interval_text(study)}"
    return f"<h3>Main effects of the 2 × 2 × 2 design on Dice</h3>{markup.table(caption, head, body)}"


def measures(study: Study) -> str:
    """The means of the other measures."""
    shown, found = comparison.other_means(study)
    body = [
        [markup.system_name(label), escape(name), *(f"{mean:.3f}" for mean in means)] for label, name, means in found
    ]
    head = ["system", "class", *map(terms.heading, shown)]
    caption = "Means over the cases of a fold, then over the folds"
    return f"<h2>Other measures</h2>{markup.table(caption, head, body, row_headers=2)}"


def volumes(study: Study) -> str:
    """A Bland-Altman chart of the volumes for each class and system; the systems of a class share their scales."""
    text = f"<h2>Volumes</h2>{_volume_table(study)}{_mismatch_table(study)}"
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
    limits = ", and the dashed lines are the 95% limits of agreement (Bland-Altman)" if _has_intervals(study) else ""
    return text + (
        '<p class="soft">Each dot is a case: the predicted minus the reference volume, over the mean of the two. The '
        f"solid line is the mean difference{limits}.</p>"
    )


def _volume_table(study: Study) -> str:
    body = []
    for label, rows in study.rows.items():
        classes = scores.means(rows)["classes"]
        for name in study.classes:
            found = classes[name]["volume_agreement"]
            ends = found["limits_ml"]
            limits = "–" if ends is None else f"{ends[0]:+.1f} to {ends[1]:+.1f}"
            shares = [_share(found[key]) for key in ("ccc", "icc")]
            body.append([markup.system_name(label), escape(name), f"{found['difference_ml']:+.1f}", limits, *shares])
    explained = ("mean difference ml", "limits of agreement ml", "CCC", "ICC(A,1)")
    head = ["system", "class", *map(terms.term, explained)]
    caption = "Agreement of predicted and reference volumes over all cases"
    return markup.table(caption, head, body, row_headers=2)


def _mismatch_table(study: Study) -> str:
    """How often the predicted volumes and the references lead to the same decision, with core and penumbra."""
    found = {label: scores.mismatch(rows) for label, rows in study.rows.items()}
    counts = ("both", "reference_only", "predicted_only", "neither")
    body = [
        [markup.system_name(label), *(str(one[key]) for key in counts), _share(one["kappa"])]
        for label, one in found.items()
        if one
    ]
    if not body:
        return ""
    head = ["system", "in both", "only by the reference", "only by the prediction", "in neither", terms.term("kappa")]
    caption = (
        "Cases with a mismatch by the thresholds of DEFUSE 3 (core below 70 ml, ratio at least 1.8, mismatch at least "
        "15 ml); not for clinical use"
    )
    return f"<h3>Mismatch</h3>{markup.table(caption, head, body)}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def lesions(study: Study) -> str:
    """How many lesions of each size each run finds; nothing where no run has kept its lesions."""
    known = {label: run.lesions for label, run in study.runs.items() if run.lesions is not None}
    if not known:
        return ""
    columns = []
    for name in study.classes:
        drawn = ""
        for label, rows in known.items():
            of_class = [row for row in rows if row["class"] == name]
            drawn += charts.detection(label, lesion_scores.by_size(of_class))
        columns.append(f"<div><h3>{escape(name)}</h3>{drawn}</div>")
    return f'<h2>Lesion by lesion</h2><div class="grid">{"".join(columns)}</div>' + (
        '<p class="soft">A bar is the share of the references’ lesions of a volume that are found: any common voxel '
        f"counts. A hollow bar is of fewer than {charts.FEW_LESIONS} lesions and says little. The lowest line counts "
        "predicted lesions that have no voxel in common with the reference. Lesions of one case resemble each other: "
        "they are no independent trials. lesions.csv has each lesion.</p>"
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
        errors = [f"{curve['error']:.3f}" for curve in curves.values()]
        body.append([markup.system_name(label), *errors, _at_temperature(one.get("temperature"))])
        drawn.append(charts.reliability(label, {name: _bins(curve) for name, curve in curves.items()}))
    at_a_temperature = terms.term("predicted class at a temperature")
    head = ["system", terms.term("predicted class"), *map(escape, names), at_a_temperature]
    caption = "Expected calibration error: mean difference of probability and frequency over the brain’s voxels"
    colours = {name: f"c{number % 6}" for number, name in enumerate(["predicted class", *names])}
    return (
        f"<h2>Calibration</h2>{markup.table(caption, head, body)}{markup.legend(colours)}"
        f'<div class="grid">{"".join(drawn)}</div><p class="soft">Probabilities of held-out cases in ten bins. A bin '
        f"of fewer than {FEW_VOXELS} voxels is not drawn. On the dashed line, a probability of 0.7 is right in 70% of "
        "the voxels. Below it, the networks are too sure. A temperature T changes probabilities p to p^(1/T) over "
        "their sum. The cases of each fold have that of the other folds. Where it gains, "
        f"{markup.command('predict --probabilities --calibrated')} uses it.</p>"
    )


def _at_temperature(found: Mapping[str, Any] | None) -> str:
    return f"{found['error'][1]:.3f} (T = {found['value']:.2f})" if found else "–"


def _bins(curve: Mapping[str, Sequence[Any]]) -> list[tuple[float, float, int]]:
    """The probability, the frequency and the voxels of each bin that is drawn."""
    bins = zip(curve["probability"], curve["frequency"], curve["voxels"], strict=True)
    return [(probability, frequency, voxels) for probability, frequency, voxels in bins if voxels >= FEW_VOXELS]
