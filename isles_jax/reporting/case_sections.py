"""The page's sections about cases: still pictures of three of them, and the viewer of every slice."""

import json
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from isles_jax.reporting import markup, pictures
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
    text = f"<h2>Best, median and worst case</h2>{markup.class_legend(study)}"
    for place, name in chosen.items():
        picture = by_name[name]
        position = pictures.representative_slice(picture)
        text += (
            f"<h3>{escape(place.capitalize())}: case {escape(name)}, slice {picture.slices[position] + 1}</h3>"
            f'<div class="panels">{_figures(study, picture, position)}</div>'
        )
    return text + (
        '<p class="soft">The cases are chosen by the mean Dice over the classes. Contours follow the voxels’ edges. In '
        "a system’s picture the reference is white where it differs.</p>"
    )


def _figures(study: Study, picture: Picture, position: int) -> str:
    """The channels, the reference and each system's result in one slice of a case."""
    channels = study.first.data["channels"]
    background = picture.gray[channels.index("DWI") if "DWI" in channels else 0][position]
    truth = picture.truth[position]
    figures = [_still(picture, gray[position], "", name) for name, gray in zip(channels, picture.gray, strict=True)]
    figures.append(_still(picture, background, _outlines(truth), "reference"))
    for label, result in picture.results.items():
        lines = _outlines(truth, "t") + _outlines(result[position])
        figures.append(_still(picture, background, lines, label, _dice_text(study, label, picture.name)))
    return "".join(figures)


def _still(picture: Picture, gray: np.ndarray, lines: str, title: str, note: str = "") -> str:
    height, width = gray.shape
    height_mm, width_mm = picture.pixel_mm
    return (
        f'<figure><svg class="scan" viewBox="0 0 {width * width_mm:.3f} {height * height_mm:.3f}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><g transform="scale({width_mm:.6g} {height_mm:.6g})">'
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" href="{pictures.data_uri(gray)}"/>{lines}'
        f"</g></svg><figcaption>{escape(title)}{f'<br>{escape(note)}' if note else ''}</figcaption></figure>"
    )


def _outlines(labels: np.ndarray, css_class: str = "") -> str:
    values = [int(value) for value in np.unique(labels) if value]
    return "".join(
        f'<path class="{css_class or markup.class_colour(value)}" d="{pictures.outline(labels == value)}"/>'
        for value in values
    )


def _dice_text(study: Study, label: str, case: str) -> str:
    """A system's Dice on a case for each class, as a phrase."""
    return ", ".join(f"{row['class']} {row['dice']:.2f}" for row in study.rows[label] if row["case"] == case)


def viewer(study: Study, cases: Sequence[Picture]) -> str:
    """The viewer of every slice; page.js draws it from the data that stand below it."""
    text = '<h2 class="screen">Every slice</h2>'
    if not cases:
        return (
            text + "<p>The images are no longer in the folder that the run read, so this page has no pictures of "
            "cases.</p>"
        )
    labels, classes = list(cases[0].results), study.first.data["classes"]
    data = [
        pictures.viewer_case(picture, study.first.data["channels"])
        | {"start": pictures.representative_slice(picture)}
        | {"dice": {label: _dice_text(study, label, picture.name) for label in labels}}
        for picture in cases
    ]
    case_options = "".join(f"<option>{escape(picture.name)}</option>" for picture in cases)
    shown = study.reference if study.reference in labels else labels[-1]
    system_options = "".join(f"<option{' selected' * (label == shown)}>{escape(label)}</option>" for label in labels)
    system_options += '<option value="">no result</option>'
    count = len(study.case_names)
    if len(cases) < count:
        text += f'<p class="soft screen">{len(cases)} of {count} cases; more would make the file too large.</p>'
    # In a script element only "<" could end the text early.
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return text + (
        f'<div id="viewer" class="screen" data-classes="{len(classes)}"><div class="controls">'
        '<button type="button" data-part="previous-case" aria-label="previous case">◀ case</button>'
        f'<select data-part="case" aria-label="case">{case_options}</select>'
        '<button type="button" data-part="next-case" aria-label="next case">case ▶</button>'
        f'<select data-part="system" aria-label="result shown">{system_options}</select>'
        '<label><input type="checkbox" data-part="truth" checked> reference</label><span class="slide">'
        '<button type="button" data-part="previous-slice" aria-label="previous slice">−</button>'
        '<input type="range" min="0" max="0" value="0" data-part="slice" aria-label="slice">'
        '<button type="button" data-part="next-slice" aria-label="next slice">+</button></span></div>'
        '<p class="status" data-part="status" aria-live="polite">Opening…</p>'
        f'<div class="views" data-part="views"></div>{markup.class_legend(study)}</div>'
        f'<script type="application/json" id="viewer-data">{embedded}</script>'
    )
