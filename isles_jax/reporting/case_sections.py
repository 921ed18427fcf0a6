"""The page's sections that show cases: still pictures of three of them, and the viewer of every slice."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from isles_jax.reporting import markup, pictures, tmax
from isles_jax.reporting.pictures import Picture
from isles_jax.reporting.results import Study


def stills(study: Study, cases: Sequence[Picture], chosen: Mapping[str, str]) -> str:
    """The paper's Figure 2: inputs, reference and each system's contours for three cases.

    Args:
      study: the runs.
      cases: pictures of their cases; nothing is shown if there are none.
      chosen: {"best": case, "median": case, "worst": case}.
    """
    if not cases:
        return ""
    by_name = {picture.name: picture for picture in cases}
    text = f"<h2>Best, median and worst case</h2>{markup.contour_legend(study)}"
    if tmax.CHANNEL in study.first.data["channels"]:
        text += tmax.colour_bar()
    for place, name in chosen.items():
        picture = by_name[name]
        position = pictures.representative_slice(picture)
        text += (
            f"<h3>{escape(place.capitalize())}: case {escape(name)}, slice {picture.slices[position] + 1}</h3>"
            f'<div class="panels">{_figures(study, picture, position)}</div>'
        )
    return text + (
        '<p class="soft">The cases are chosen by the mean Dice over the classes. Contours follow the voxels’ edges. In '
        "a system’s picture the reference shows where it differs from the result. R and L are the patient’s sides.</p>"
    )


def _figures(study: Study, picture: Picture, position: int) -> str:
    """The channels, the reference and each system's result in one slice of a case."""
    channels = study.first.data["channels"]
    background = picture.gray[channels.index("DWI") if "DWI" in channels else 0][position]
    truth = picture.truth[position]
    gray = pictures.data_uri(background)
    figures = [_channel(picture, number, position, name) for number, name in enumerate(channels)]
    figures.append(_still(picture, gray, _outlines(truth, "reference"), "reference"))
    for label, result in picture.results.items():
        lines = _outlines(truth, "reference") + _outlines(result[position])
        figures.append(_still(picture, gray, lines, label, _dice_text(study, label, picture.name)))
    return "".join(figures)


def _channel(picture: Picture, number: int, position: int, name: str) -> str:
    """A channel without results: in gray, but Tmax in colour with the contour of the tissue at risk."""
    gray = picture.gray[number][position]
    if name != tmax.CHANNEL:
        return _still(picture, pictures.data_uri(gray), "", name)
    raised = (gray > 0) & (picture.values(number)[position] > tmax.CONTOUR_S)
    image = pictures.data_uri(gray, pictures.tmax_palette(picture, number))
    return _still(picture, image, _line(raised, "risk"), f"{name}, seconds")


def _still(picture: Picture, image: str, lines: str, title: str, note: str = "") -> str:
    _, height, width = picture.truth.shape
    height_mm, width_mm = picture.pixel_mm
    size = 0.08 * width * width_mm
    sides = ""
    if picture.sides:
        left, right = picture.sides[0], picture.sides[1]
        sides = (
            f'<g class="sides" font-size="{size:.3g}"><text x="{size / 3:.3g}" y="{size:.3g}">{left}</text>'
            f'<text class="end" x="{width * width_mm - size / 3:.5g}" y="{size:.3g}">{right}</text></g>'
        )
    return (
        f'<figure><svg class="scan" viewBox="0 0 {width * width_mm:.3f} {height * height_mm:.3f}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><g transform="scale({width_mm:.6g} {height_mm:.6g})">'
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" href="{image}"/>{lines}'
        f"</g>{sides}</svg><figcaption>{escape(title)}{f'<br>{escape(note)}' if note else ''}</figcaption></figure>"
    )


def _outlines(labels: np.ndarray, css_class: str = "") -> str:
    return "".join(
        _line(labels == value, f"{markup.class_colour(int(value))} {css_class}".strip())
        for value in np.unique(labels[labels > 0])
    )


def _line(mask: np.ndarray, css_class: str) -> str:
    """The outline of a mask on a dark halo, so that it also shows on bright tissue."""
    path = pictures.outline(mask)
    return f'<path class="halo" d="{path}"/><path class="{css_class}" d="{path}"/>' if path else ""


def _dice_text(study: Study, label: str, case: str) -> str:
    """A system's Dice on a case for each class, as a phrase."""
    return ", ".join(f"{row['class']} {row['dice']:.2f}" for row in study.rows[label] if row["case"] == case)


def viewer(study: Study, cases: Sequence[Picture]) -> str:
    """The viewer of every slice; viewer.js draws it from the data that stand below it."""
    text = '<h2 class="screen">Every slice</h2>'
    if not cases:
        return (
            text + "<p>The images are no longer in the folder that the run read, so this page has no pictures of "
            "cases.</p>"
        )
    labels, count = list(cases[0].results), len(study.case_names)
    if len(cases) < count:
        text += f'<p class="soft screen">{len(cases)} of {count} cases; more would make the file too large.</p>'
    # In a script element only "<" could end the text early.
    data = json.dumps(_viewer_data(study, cases, labels), separators=(",", ":")).replace("<", "\\u003c")
    return text + (
        f'<div id="viewer" class="screen">{_controls(study, cases, labels)}'
        '<p class="status" data-part="status" aria-live="polite">Opening…</p>'
        '<div class="views" data-part="views" tabindex="0" role="group" aria-label="Slices of all channels. Arrow keys '
        'change the slice, plus and minus the zoom; shift and arrow keys move the image."></div>'
        f'<p class="status soft" data-part="values"></p>{markup.contour_legend(study)}</div>'
        f'<script type="application/json" id="viewer-data">{data}</script>'
    )


def _controls(study: Study, cases: Sequence[Picture], labels: Sequence[str]) -> str:
    case_options = "".join(f"<option>{escape(picture.name)}</option>" for picture in cases)
    shown = study.reference if study.reference in labels else labels[-1]
    system_options = "".join(f"<option{' selected' * (label == shown)}>{escape(label)}</option>" for label in labels)
    with_tmax = ""
    if tmax.CHANNEL in study.first.data["channels"]:
        with_tmax = (
            f'<label><input type="checkbox" data-part="risk" checked> Tmax {tmax.CONTOUR_S:g} s</label>'
            '<label><input type="checkbox" data-part="coloured" checked> Tmax in colour</label>'
        )
    return (
        '<div class="controls">'
        '<button type="button" data-part="previous-case" aria-label="previous case">◀ case</button>'
        f'<select data-part="case" aria-label="case">{case_options}</select>'
        '<button type="button" data-part="next-case" aria-label="next case">case ▶</button>'
        f'<select data-part="system" aria-label="result shown">{system_options}'
        '<option value="">no result</option></select>'
        '<label><input type="checkbox" data-part="truth" checked> reference</label>'
        f'{with_tmax}<span class="slide">'
        '<button type="button" data-part="previous-slice" aria-label="previous slice">◀ slice</button>'
        '<input type="range" min="0" max="0" value="0" data-part="slice" aria-label="slice">'
        '<button type="button" data-part="next-slice" aria-label="next slice">slice ▶</button></span>'
        '<span class="zoom"><button type="button" data-part="zoom-out">zoom out</button>'
        '<button type="button" data-part="zoom-in">zoom in</button>'
        '<button type="button" data-part="whole">whole image</button></span></div>'
    )


def _viewer_data(study: Study, cases: Sequence[Picture], labels: Sequence[str]) -> dict[str, Any]:
    """What viewer.js reads: the cases, and how channels and classes are shown."""
    channels = study.first.data["channels"]
    seconds = {"unit": "s", "window": tmax.WINDOW_S, "contour": tmax.CONTOUR_S}
    return {
        "channels": [{"name": name} | (seconds if name == tmax.CHANNEL else {}) for name in channels],
        "classes": study.first.data["classes"],
        "levels": pictures.LEVELS,
        "colours": tmax.COLOURS.tolist(),
        "cases": [
            pictures.viewer_case(picture, channels)
            | {"start": pictures.representative_slice(picture)}
            | {"dice": {label: _dice_text(study, label, picture.name) for label in labels}}
            for picture in cases
        ],
    }
