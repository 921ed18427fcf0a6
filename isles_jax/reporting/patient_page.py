"""The page of one new case: warnings, numbers, and pictures to check them by; one sheet of paper in print."""

import dataclasses
from collections.abc import Sequence
from html import escape

import numpy as np

from isles_jax.reporting import markup, pictures, stills, tmax, viewer
from isles_jax.reporting.pictures import Picture
from isles_jax.reporting.prediction import Prediction

RESEARCH = "Research software, not for clinical use"
# At most so many slices fit on a sheet of paper; fewer lesion slices are joined by their neighbours up to the least.
MOST_SLICES, LEAST_SLICES = 12, 8
# The channels on which a reader checks an infarct and the tissue at risk, if the case has them.
CHECKED = ("DWI", tmax.CHANNEL)
AVERAGE = "average of the networks"
# Columns of the summary that stand elsewhere on the page.
ELSEWHERE = {"case", "warnings"}


def page(prediction: Prediction) -> str:
    """The page as text: one HTML file that needs nothing outside itself."""
    folds = {f"network {number}": labels for number, labels in enumerate(prediction.fold_labels, 1)}
    results = {AVERAGE: prediction.labels} | (folds if len(folds) > 1 else {})
    picture = pictures.picture(dataclasses.replace(prediction.case, labels=None), results)
    styles = {"solid": "prediction"} | ({"thin": "each network alone"} if len(folds) > 1 else {})
    legend = markup.contour_legend(prediction.channels, prediction.classes, styles)
    title = f"Case {prediction.case.name}"
    sections = [
        f'<p class="research" role="note">{RESEARCH}</p>',
        f"<h1>{escape(title)}: predicted lesions</h1>",
        _warnings(prediction.warnings),
        '<div class="numbers">',
        _volumes(prediction),
        _summary(prediction),
        "</div>",
        _slices(prediction, picture, legend),
        '<h2 class="screen">Every slice</h2>',
        viewer.viewer(prediction.channels, prediction.classes, [picture], AVERAGE, legend),
        _origin(prediction),
    ]
    scripts = ("outline.js", "viewer.js")
    return markup.document(f"{title}: {RESEARCH}", "".join(sections), ("page.css", "patient_page.css"), scripts)


def _warnings(sentences: Sequence[str]) -> str:
    if not sentences:
        return (
            '<p class="soft">No check of the input and of the networks raised a warning. The prediction can be wrong '
            "all the same: compare it with the pictures.</p>"
        )
    count = f"{len(sentences)} warning{'s' * (len(sentences) > 1)}: check before you use any number"
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<section class="banner warnings"><h2>{count}</h2><ul>{items}</ul></section>'


def _volumes(prediction: Prediction) -> str:
    """The volume of each class, its interval, and the least and the largest volume of the single networks."""
    head, body = ["class", "volume, ml"], []
    if prediction.intervals:
        head.append("interval, ml")
    if len(prediction.fold_labels) > 1:
        head.append("networks alone, ml")
    for value, name in enumerate(prediction.classes, 1):
        sizes = [float((labels == value).sum()) * prediction.case.voxel_ml for labels in prediction.fold_labels]
        colour = f'<span class="class" style="--colour: var(--{markup.class_colour(value)})"></span>'
        row = [f"{colour}{escape(name)}", _text(float((prediction.labels == value).sum()) * prediction.case.voxel_ml)]
        if prediction.intervals:
            ends = prediction.intervals.get(name)
            row.append(f"{_text(ends[0])} to {_text(ends[1])}" if ends else "unknown")
        if len(sizes) > 1:
            row.append(f"{_text(min(sizes))} to {_text(max(sizes))}")
        body.append(row)
    return markup.table("Predicted volume of each class", head, body)


def _summary(prediction: Prediction) -> str:
    """Every other number of the case's row in summary.csv."""
    shown = ELSEWHERE | {f"{name}_ml" for name in prediction.classes}
    items = "".join(
        f"<div><dt>{escape(_words(name))}</dt><dd>{escape(_text(value))}</dd></div>"
        for name, value in prediction.summary.items()
        if name not in shown
    )
    return f'<dl class="facts">{items}</dl>'


def _words(column: str) -> str:
    """A column's name as text: hypoperfused_ml is "hypoperfused, ml"."""
    name, _, unit = column.rpartition("_")
    return f"{name}, {unit}".replace("_", " ") if name and unit in ("ml", "mm", "s") else column.replace("_", " ")


def _text(value: float | int | str | None) -> str:
    """A cell as text; a number has three digits, but no digit before the point is lost."""
    if value is None or value == "":
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _slices(prediction: Prediction, picture: Picture, legend: str) -> str:
    """Eight to twelve slices, each on the channels by which it is checked."""
    names = list(prediction.channels)
    channels = [name for name in CHECKED if name in names]
    channels = [*channels, *(name for name in names if name not in channels)][: len(CHECKED)]
    lesion = np.any([result > 0 for result in picture.results.values()], axis=0).any(axis=(1, 2))
    positions = choose_slices(lesion)
    figures = []
    for position in positions:
        title = f"slice {picture.slices[position] + 1}"
        result, *alone = (result[position] for result in picture.results.values())
        lines = stills.outlines(result) + "".join(stills.outlines(labels, "thin") for labels in alone)
        scans = []
        for name in channels:
            image, contour = stills.background(picture, names.index(name), position, name)
            scans.append(stills.scan(picture, image, contour + lines, f"{name}, {title}"))
        figures.append(f"<figure>{''.join(scans)}<figcaption>{title}</figcaption></figure>")
    covered = f"{int(lesion[positions].sum())} of {int(lesion.sum())} slices with a predicted lesion"
    sides = ", R and L are the patient’s sides" if picture.sides else ", sides unknown"
    bar = tmax.colour_bar() if tmax.CHANNEL in channels else ""
    return (
        f"<h2>{' and '.join(map(escape, channels))}: {covered}{sides}</h2>"
        f'<div class="legends">{legend}{bar}</div>'
        f'<div class="slices" style="--columns: {-(-len(positions) // 2)}; --scans: {len(channels)}">'
        f"{''.join(figures)}</div>"
    )


def choose_slices(lesion: np.ndarray) -> list[int]:
    """The slices to show: those with a lesion, joined by their neighbours up to `LEAST_SLICES`, at most `MOST_SLICES`.

    Args:
      lesion: bool [S], whether a slice has a lesion.

    Returns:
      Ascending positions. Of many slices, some at even steps; without a lesion, some of all.
    """
    count = len(lesion)
    if count <= MOST_SLICES:
        return list(range(count))
    chosen = np.flatnonzero(lesion) if lesion.any() else np.arange(count)
    if len(chosen) > MOST_SLICES:
        chosen = chosen[np.rint(np.linspace(0, len(chosen) - 1, MOST_SLICES)).astype(int)]
    if len(chosen) < LEAST_SLICES:
        distance = np.abs(np.arange(count)[:, None] - chosen).min(axis=1)
        chosen = np.argsort(distance, kind="stable")[:LEAST_SLICES]
    return sorted(chosen.tolist())


def _origin(prediction: Prediction) -> str:
    facts = "; ".join(f"{escape(name)}: {escape(value)}" for name, value in prediction.origin.items())
    return f'<p class="soft origin">{facts}</p><p class="research print">{RESEARCH}</p>'
