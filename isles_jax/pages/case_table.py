"""The page's table of every case; tables.js sorts and filters its rows."""

from collections.abc import Sequence
from html import escape

from isles_jax.pages import markup, terms
from isles_jax.pages.pictures import Picture
from isles_jax.scoring.comparison import Study


def section(study: Study, cases: Sequence[Picture]) -> str:
    """A row for every case, system and class; the name of a case that has a picture opens the case in the viewer."""
    shown = {picture.name for picture in cases}
    measures = [measure for measure in study.measures if measure.in_cases]
    body = []
    for case in study.case_names:
        name = f'<button type="button" class="show">{escape(case)}</button>' if case in shown else escape(case)
        for label, rows in study.rows.items():
            body += [
                [name, markup.system_name(label), escape(row["class"]), str(row["fold"])]
                + [f"{row[measure.name]:.1f}" if measure.unit else f"{row[measure.name]:.3f}" for measure in measures]
                for row in rows
                if row["case"] == case
            ]
    meanings = dict.fromkeys(("case", "system", "class"), "") | {"fold": terms.MEANINGS["fold"]}
    meanings |= {measure.heading: measure.explanation for measure in measures}
    buttons = [_sort_button(title, meaning) for title, meaning in meanings.items()]
    filters = "".join(
        f'<label>{title} <select data-column="{column}"><option value="">all</option>'
        + "".join(f"<option>{escape(value)}</option>" for value in values)
        + "</select></label>"
        for column, title, values in ((1, "system", study.rows), (2, "class", study.classes))
    )
    use = "A column’s title sorts the rows by it"
    if shown:
        use += "; a case’s name opens the case in the viewer"
    return (
        f'<section id="cases"><h2>Every case</h2><p class="filters screen">{filters}</p>'
        f'<p class="soft screen">{use}.</p>'
        f"{markup.table('Scores of every case', buttons, body, row_headers=3, css_class='tall')}</section>"
    )


def _sort_button(title: str, meaning: str) -> str:
    """A column's title, which sorts by it; pointing at it explains it."""
    explained = f' title="{escape(meaning, quote=True)}"' if meaning else ""
    return f'<button type="button" class="sort"{explained}>{escape(title)}</button>'
