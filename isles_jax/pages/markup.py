"""Pieces of HTML that pages share: the frame of a page, tables, legends, class colours."""

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from html import escape

from isles_jax.pages import tmax
from isles_jax.scoring import comparison
from isles_jax.scoring.statistics import Interval

# What shows that a page is one of this package.
GENERATOR = '<meta name="generator" content="isles_jax">'
# Class colours in page.css: --k1 to --k6.
CLASS_COLOURS = 6


def document(title: str, content: str, styles: Sequence[str], scripts: Sequence[str]) -> str:
    """A self-contained page: no address outside the file, and no script but the package's own.

    Args:
      title: plain text.
      content: HTML of the page's body.
      styles: names of style sheets of this package.
      scripts: names of scripts of this package.
    """
    style = _assets(styles)
    script = _assets(scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The browser itself refuses every request that would leave the file, and every script but this one.
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'{GENERATOR}<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{style}</style></head>\n<body><main>{content}</main>\n<script>{script}</script></body></html>\n"
    )


def _assets(names: Sequence[str]) -> str:
    folder = importlib.resources.files("isles_jax.pages")
    return "".join((folder / name).read_text(encoding="utf-8") for name in names)


def class_colour(value: int) -> str:
    """The CSS class of the label value 1, 2, ...; its colour has the same name."""
    return f"k{(value - 1) % CLASS_COLOURS + 1}"


def table(
    caption: str, head: Sequence[str], body: Sequence[Sequence[str]], row_headers: int = 1, css_class: str = ""
) -> str:
    """A table in a box that scrolls sideways, by keyboard too, where the window is narrow.

    Args:
      caption: plain text above the table.
      head: HTML of the column headers.
      body: HTML of the cells of each row.
      row_headers: the number of first columns that name the row.
      css_class: of the box.
    """
    columns = "".join(
        f'<th scope="col"{" class=left" if number < row_headers else ""}>{cell}</th>'
        for number, cell in enumerate(head)
    )
    rows = []
    for row in body:
        names = "".join(f'<th scope="row">{cell}</th>' for cell in row[:row_headers])
        cells = "".join(f"<td>{cell}</td>" for cell in row[row_headers:])
        rows.append(f"<tr>{names}{cells}</tr>")
    return (
        f'<div class="wide {css_class}" role="region" tabindex="0" aria-label="{escape(caption, quote=True)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{columns}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def with_contents(sections: str) -> str:
    """The sections below a table of contents, whose lines lead to their headings (h2)."""
    items: list[str] = []

    def numbered(heading: re.Match[str]) -> str:
        attributes, title = heading.groups()
        items.append(f'<li{attributes}><a href="#s{len(items) + 1}">{title}</a></li>')
        return f'<h2 id="s{len(items)}"{attributes}>{title}</h2>'

    marked = re.sub("<h2([^>]*)>(.*?)</h2>", numbered, sections)
    return f'<nav class="contents screen" aria-label="Contents"><ul>{"".join(items)}</ul></nav>{marked}'


def command(text: str) -> str:
    """A command line, which is broken between its words alone."""
    return f"<code>{' '.join(f'<span>{escape(word)}</span>' for word in text.split(' '))}</code>"


def system_name(label: str) -> str:
    """A system's label; the clinical rule stands out from the trained systems."""
    return f"<em>{label}</em>" if label == comparison.RULE else escape(label)


def legend(colours: dict[str, str]) -> str:
    """Names with the colour that each has in a chart or picture.

    Args:
      colours: {name: CSS variable of the colour, without the two dashes}.
    """
    items = [f'<span style="--colour: var(--{colour})">{escape(name)}</span>' for name, colour in colours.items()]
    return f'<p class="key">{"".join(items)}</p>'


def contour_legend(channels: Sequence[str], classes: Sequence[str], styles: Mapping[str, str]) -> str:
    """The lines in the pictures of cases: a class has one colour, and what drew it has one style.

    Args:
      channels: names of the images' channels.
      classes: names of the classes.
      styles: {"solid", "dashed" or "thin": what the lines of this style show}.
    """
    items = []
    for style, source in styles.items():
        for value, name in enumerate(classes, 1):
            colour = f"--colour: var(--{class_colour(value)})"
            items.append(f'<span class="{style}" style="{colour}">{escape(name)}, {source}</span>')
    if tmax.CHANNEL in channels:
        items.append(f'<span class="solid" style="--colour: #fff">Tmax {tmax.CONTOUR_S:g} s</span>')
    return f'<p class="key contours">{"".join(items)}</p>'


def signed(value: float, ends: Interval) -> str:
    """A difference with its interval."""
    return f"{value:+.3f}{interval(ends, '+')}"


def interval(ends: Interval, sign: str = "") -> str:
    """An interval after a space; "" if there is none. `sign` is "+" for differences."""
    text = comparison.format_interval(ends, sign)
    return f' <span class="interval">{text}</span>' if text else ""
