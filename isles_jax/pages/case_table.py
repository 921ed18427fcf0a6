"""The page's table of every case; tables.js sorts and filters its rows."""

from collections.abc import Sequence
from html import escape

from isles_jax.pages import markup
from isles_jax.pages.pictures import Picture
from isles_jax.scoring.comparison import Study

# The measures shown: title and decimals.
MEASURES = {
    "dice": ("Dice", 3),
    "hd95_mm": ("HD95 mm", 1),
    "lesion_f1": ("lesion F1", 3),
    "volume_true_ml": ("reference ml", 1),
    "volume_pred_ml": ("predicted ml", 1),
}


def section(study: Study, cases: Sequence[Picture]) -> str:
    """A row for every case, system and class.

    Args:
      study: the runs.
      cases: those in the viewer; the name of such a case is a button that opens it there.
    """
    shown = {picture.name for picture in cases}
    body = []
    for case in study.case_names:
        name = f'<button type="button" class="show">{escape(case)}</button>' if case in shown else escape(case)
        for label, rows in study.rows.items():
            body += [
                [name, markup.system_name(label), escape(row["class"]), str(row["fold"])]
                + [f"{row[key]:.{digits}f}" for key, (_, digits) in MEASURES.items()]
                for row in rows
                if row["case"] == case
            ]
    head = ["case", "system", "class", "fold", *(title for title, _ in MEASURES.values())]
    buttons = [f'<button type="button" class="sort">{title}</button>' for title in head]
    filters = "".join(
        f'<label>{title} <select data-column="{column}"><option value="">all</option>'
        + "".join(f"<option>{escape(value)}</option>" for value in values)
        + "</select></label>"
        for column, title, values in ((1, "system", study.rows), (2, "class", study.classes))
    )
    caption = "Scores of every case. A column’s title sorts the rows by it"
    caption += "; a case’s name opens the case in the viewer" if shown else ""
    return (
        f'<section id="cases"><h2>Every case</h2><p class="filters screen">{filters}</p>'
        f"{markup.table(caption, buttons, body, row_headers=3, css_class='tall')}</section>"
    )
