"""Pieces of HTML that several sections of the page share: tables, legends, class colours."""

from collections.abc import Sequence
from html import escape

from isles_jax.reporting.results import RULE, Study

# Class colours in page.css: --k1 to --k6.
CLASS_COLOURS = 6


def class_colour(value: int) -> str:
    """The CSS class, and the name of the colour, of the label value 1, 2, ..."""
    return f"k{(value - 1) % CLASS_COLOURS + 1}"


def table(head: Sequence[str], body: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table.

    Args:
      head: HTML of the column headers.
      body: HTML of the cells of each row.
      text_columns: the first columns that hold text, which is aligned to the left.
    """
    marks = ['class="left"' if column < text_columns else "" for column in range(len(head))]
    top = "".join(f'<th scope="col" {mark}>{cell}</th>' for cell, mark in zip(head, marks, strict=True))
    lines = []
    for row in body:
        kind = ' class="rule"' if row[0] == RULE else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td {m}>{c}</td>" for c, m in zip(row, marks, strict=True)) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def legend(colours: dict[str, str]) -> str:
    """Names with the colour that each has in a chart or picture.

    Args:
      colours: {name: CSS variable of the colour, without the two dashes}.
    """
    items = [f'<span style="--colour: var(--{colour})">{escape(name)}</span>' for name, colour in colours.items()]
    return f'<p class="key">{"".join(items)}</p>'


def class_legend(study: Study) -> str:
    """The colours of the reference and of the classes in the pictures of cases."""
    names = study.first.data["classes"]
    return legend({"reference": "truth"} | {name: class_colour(value) for value, name in enumerate(names, 1)})


def signed(value: float, low: float, high: float) -> str:
    """A difference with its interval."""
    return f'{value:+.3f} <span class="interval">[{low:+.3f}, {high:+.3f}]</span>'
