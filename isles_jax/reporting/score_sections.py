"""The page's sections about scores: Dice, differences between systems, other measures, volumes."""

from html import escape

from isles_jax.reporting import charts, markup, results, scores, statistics
from isles_jax.reporting.results import Study

FACTOR_NAMES = {
    "residual": "residual connections",
    "adversarial": "adversarial training",
    "overlap": "Lovasz-softmax and boundary losses",
}


def dice(study: Study) -> str:
    """The paper's Table 1 with intervals and the paper's numbers, charts with a dot for each case, and the notes."""
    head, columns, strips = ["system"], [], []
    other = " (other data)" if study.first.data["phantom"] else ""
    for name in study.classes:
        means = results.dice_means(study.rows, name)
        paper = {label: results.paper_dice(label, name) for label in study.rows}
        head.append(escape(name))
        columns.append([
            f'{one.mean:.3f} ± {one.std:.3f} <span class="interval">[{one.low:.3f}, {one.high:.3f}]</span>'
            for one in means.values()
        ])  # fmt: skip
        if any(paper.values()):
            head.append(f"paper*{other}, {escape(name)}")
            columns.append(
                ["" if value is None else f'<span class="paper">{value:.3f}</span>' for value in paper.values()]
            )
        by_case = {
            label: [(row["case"], row["dice"]) for row in rows if row["class"] == name]
            for label, rows in study.rows.items()
        }
        intervals = {label: (one.mean, one.low, one.high) for label, one in means.items()}
        strips.append(f"<div><h3>{escape(name)}</h3>{charts.strip(by_case, intervals, paper, f'Dice of {name}')}</div>")
    body = [[escape(label), *cells] for label, *cells in zip(study.rows, *columns, strict=True)]
    notes = "".join(f"<li>{escape(note)}</li>" for note in results.notes(study))
    return (
        f"<h2>Dice</h2>{markup.table(head, body)}"
        f'<div class="grid">{"".join(strips)}</div><p class="soft">Each dot is a case. The bar is the mean with its '
        f'95% interval, and a diamond is the paper’s number.</p><ul class="notes">{notes}</ul>'
    )


def differences(study: Study) -> str:
    """Each system minus the reference, and the main effects if the runs are the eight cells of the design."""
    if not study.comparisons:
        return ""
    compared = {name: results.compare(study, name) for name in study.classes}
    body = [
        [
            escape(label),
            escape(name),
            markup.signed(one.difference, one.low, one.high),
            results.format_p(one.wilcoxon),
            results.format_p(one.bootstrap),
        ]
        for label in compared[study.classes[0]]
        for name, one in ((name, compared[name][label]) for name in study.classes)
    ]
    head = ["system", "class", "difference of Dice", "p, Wilcoxon", "p, bootstrap"]
    return (
        f"<h2>Differences from {escape(study.reference)}</h2>{markup.table(head, body, text_columns=2)}"
        '<p class="soft">Paired over cases, 95% intervals; p values have Holm’s correction over the systems.</p>'
        f"{_main_effects(study)}"
    )


def _main_effects(study: Study) -> str:
    effects = results.design_effects(study)
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
    return f"<h3>Main effects of the 2 × 2 × 2 design on Dice</h3>{markup.table(head, body)}"


def measures(study: Study) -> str:
    """The means of the other measures."""
    body = []
    for label, rows in study.rows.items():
        summary = scores.summarise(rows)["classes"]
        for name in study.classes:
            cells = [f"{summary[name][key]['mean']:.3f}" for key in results.MEASURES]
            body.append([escape(label), escape(name), *cells])
    head = ["system", "class", *map(escape, results.MEASURES.values())]
    return f"<h2>Other measures, means</h2>{markup.table(head, body, text_columns=2)}"


def volumes(study: Study) -> str:
    """A Bland-Altman chart of the volumes for each system and class."""
    drawn = []
    for label, rows in study.rows.items():
        for name in study.classes:
            points = [
                (row["case"], (row["volume_true_ml"] + row["volume_pred_ml"]) / 2, row["volume_difference_ml"])
                for row in rows
                if row["class"] == name
            ]
            drawn.append(charts.bland_altman(f"{label}, {name}", points))
    return (
        f'<h2>Volumes (Bland-Altman)</h2><div class="grid">{"".join(drawn)}</div><p class="soft">Predicted minus true '
        "volume over the mean of the two, in ml, with the mean difference and the 95% limits of agreement.</p>"
    )
