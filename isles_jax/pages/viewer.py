"""The viewer of every slice; viewer.js draws it from the data that stand below it."""

import json
from collections.abc import Mapping, Sequence
from html import escape

from isles_jax.data import adc
from isles_jax.pages import pictures, tmax
from isles_jax.pages.pictures import Picture

# Of the channels whose unit is known. The values of the others are shown as they are stored.
UNITS = {tmax.CHANNEL: "s", "TTP": "s", "MTT": "s", "ADC": adc.UNIT}


def viewer(
    channels: Sequence[str],
    classes: Sequence[str],
    cases: Sequence[Picture],
    shown: str,
    legend: str,
    notes: Mapping[str, Mapping[str, str]],
) -> str:
    """The viewer's controls and data.

    Args:
      channels: names of the images' channels.
      classes: names of the classes.
      cases: one picture or more, all with the same results. The reference is offered if the cases have one, and the
        choice of a case if there are several.
      shown: label of the result that is shown first. Without references, the others are offered as thin lines, which
        are not shown at first.
      legend: HTML below the pictures.
      notes: {case: {label of a result: plain text about it}}; cases may be missing.
    """
    shown_as = {tmax.CHANNEL: {"window": tmax.WINDOW_S, "contour": tmax.CONTOUR_S}}
    data = {
        "channels": [{"name": name, "unit": UNITS.get(name, "")} | shown_as.get(name, {}) for name in channels],
        "classes": classes,
        "levels": pictures.LEVELS,
        "colours": tmax.COLOURS.tolist(),
        "cases": [
            pictures.viewer_case(picture, channels) | {"notes": notes.get(picture.name, {})} for picture in cases
        ],
    }
    # In a script element only "<" could end the text early.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<div id="viewer" class="screen">{_controls(channels, cases, shown)}'
        '<p class="status" data-part="status" aria-live="polite">Opening…</p>'
        '<div class="views" data-part="views" tabindex="0" role="group" aria-label="Slices of all channels. Arrow keys '
        'change the slice, plus and minus the zoom; shift and arrow keys move the image."></div>'
        f'<p class="status soft" data-part="values"></p>{legend}</div>'
        f'<script type="application/json" id="viewer-data">{text}</script>'
    )


def _controls(channels: Sequence[str], cases: Sequence[Picture], shown: str) -> str:
    labels = list(cases[0].results)
    text = ""
    if len(cases) > 1:
        options = "".join(f"<option>{escape(picture.name)}</option>" for picture in cases)
        text += _button("previous-case", "◀ case", "previous case")
        text += f'<select data-part="case" aria-label="case">{options}</select>'
        text += _button("next-case", "case ▶", "next case")
    systems = ""
    for label in labels:
        systems += f"<option{' selected' if label == shown else ''}>{escape(label)}</option>"
    systems += '<option value="">no result</option>'
    text += f'<select data-part="system" aria-label="result shown">{systems}</select>'
    if cases[0].truth is not None:
        text += _checkbox("truth", "reference")
    elif len(labels) > 1:
        # Many thin lines would hide what lies below them, so the reader asks for them.
        text += _checkbox("others", "the other results, thin", checked=False)
    if tmax.CHANNEL in channels and not all(tmax.CHANNEL in picture.absent for picture in cases):
        text += _checkbox("risk", f"Tmax {tmax.CONTOUR_S:g} s") + _checkbox("coloured", "Tmax in colour")
    slides = (
        _button("previous-slice", "◀ slice", "previous slice")
        + '<input type="range" min="1" max="1" value="1" data-part="slice" aria-label="slice">'
        + _button("next-slice", "slice ▶", "next slice")
    )
    zooms = _button("zoom-out", "zoom out") + _button("zoom-in", "zoom in") + _button("whole", "whole image")
    return f'<div class="controls">{text}<span class="slide">{slides}</span><span class="zoom">{zooms}</span></div>'


def _button(part: str, text: str, label: str = "") -> str:
    named = f' aria-label="{label}"' if label else ""
    return f'<button type="button" data-part="{part}"{named}>{text}</button>'


def _checkbox(part: str, text: str, *, checked: bool = True) -> str:
    return f'<label><input type="checkbox" data-part="{part}"{" checked" if checked else ""}> {text}</label>'
