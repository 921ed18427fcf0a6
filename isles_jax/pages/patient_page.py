"""The page of one new case: warnings, numbers, and pictures to check them by; one sheet of paper in print."""

import dataclasses
from collections.abc import Sequence
from html import escape

import numpy as np
from scipy import ndimage

from isles_jax.data.case import of_phantom
from isles_jax.pages import markup, pictures, stills, terms, tmax, viewer
from isles_jax.pages.pictures import Picture
from isles_jax.prediction import numbers
from isles_jax.prediction.numbers import Prediction

RESEARCH = "Research software, not for clinical use"
# At most so many slices fit on a sheet of paper. Where fewer slices than the least have a lesion, neighbours join them.
MOST_SLICES, LEAST_SLICES = 12, 8
# The channels on which a reader checks an infarct and the tissue at risk, if the case has them.
CHECKED = ("DWI", tmax.CHANNEL)
# No point of a small lesion is further from its edge than this. A line through it would hide it.
SMALL_MM = 6.0
AVERAGE = "average of the networks"


def page(prediction: Prediction) -> str:
    """The page as text: one HTML file that needs nothing outside itself."""
    results = {AVERAGE: prediction.labels}
    styles = {"solid": "prediction"}
    if len(prediction.fold_labels) > 1:
        results |= {f"network {number}": labels for number, labels in enumerate(prediction.fold_labels, 1)}
        styles["thin"] = "each network alone"
    picture = pictures.picture(dataclasses.replace(prediction.case, labels=None), results)
    there = [name for name in prediction.task.channels if name not in prediction.case.absent]
    legend = markup.contour_legend(there, prediction.task.classes, styles)
    title = f"Case {prediction.case.name}"
    found = f'<div class="numbers">{_volumes(prediction)}{_summary(prediction)}</div>'
    sections = [
        f'<p class="research" role="note">{RESEARCH}</p>',
        *_phantom(prediction),
        f"<h1>{escape(title)}: predicted lesions</h1>",
        _made(prediction),
        f'<p class="soft">Note: {escape(prediction.seen)}.</p>' if prediction.seen else "",
        _warnings(prediction.warnings, prediction.not_checked),
        found,
        f'<details class="screen"><summary>What these numbers mean</summary>{terms.explanations(found)}</details>',
        _slices(prediction, picture, legend),
        '<h2 class="screen">Every slice</h2>',
        viewer.viewer(prediction.task.channels, prediction.task.classes, [picture], AVERAGE, legend, {}),
        _origin(prediction),
    ]
    scripts = ("outline.js", "viewer.js")
    return markup.document(f"{title}: {RESEARCH}", "".join(sections), ("page.css", "patient_page.css"), scripts)


def _phantom(prediction: Prediction) -> list[str]:
    """A banner if the networks were trained on a phantom."""
    if not prediction.on_phantom:
        return []
    text = f"These networks were trained on {numbers.PHANTOM}"
    if not of_phantom(prediction.case):
        text += ". Their errors on it say nothing about this case, so no interval and no score is shown"
    return [f'<p class="phantom" role="note">{text}.</p>']


def _made(prediction: Prediction) -> str:
    """When the case was predicted, and the size of its voxels."""
    sides = " x ".join(f"{side:.3g}" for side in prediction.case.spacing_mm)
    made = f"Predicted on {prediction.date}. " if prediction.date else ""
    return f'<p class="soft">{escape(made)}Voxels of {sides} mm.</p>'


def _warnings(sentences: Sequence[str], not_checked: Sequence[str]) -> str:
    left_out = "".join(f'<p class="soft">Not checked: {escape(sentence)}.</p>' for sentence in not_checked)
    if not sentences:
        return (
            '<p class="soft">No check of the input and of the networks raised a warning. The prediction can be wrong '
            f"all the same: compare it with the pictures.</p>{left_out}"
        )
    warned = "1 warning" if len(sentences) == 1 else f"{len(sentences)} warnings"
    count = f"{warned}: check before you use any number"
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<section class="banner warnings"><h2>{count}</h2><ul>{items}</ul></section>{left_out}'


def _volumes(prediction: Prediction) -> str:
    classes = prediction.classes
    rows = {terms.term("volume", "ml"): [_text(one.ml) for one in classes]}
    if any(one.interval for one in classes):
        brain_ml = float(prediction.case.brain.sum() * prediction.case.voxel_ml)
        intervals = [_interval(one.interval, brain_ml) for one in classes]
        rows[terms.term(terms.INTERVAL, "ml")] = intervals
    if len(prediction.fold_labels) > 1:
        rows[terms.term("networks alone", "ml")] = [_span(one.least_ml, one.most_ml) for one in classes]
    shares = {
        "coverage of such intervals": [one.coverage for one in classes],
        "Dice between networks": [one.agreement for one in classes],
        "Dice in cross-validation": [one.dice for one in classes],
    }
    for title, values in shares.items():
        if any(value is not None for value in values):
            rows[terms.term(title)] = [_text(value) for value in values]
    head = [
        f'<span class="class" style="--colour: var(--{markup.class_colour(value)})"></span>{escape(one.name)}'
        for value, one in enumerate(classes, 1)
    ]
    body = [[title, *cells] for title, cells in rows.items()]
    caption = "Volume of each class, and how sure it is" if len(rows) > 1 else "Volume of each class"
    return markup.table(caption, ["class", *head], body)


def _summary(prediction: Prediction) -> str:
    of_case = [number for number in prediction.numbers if not number.of]
    # The first two stand elsewhere on the page. A single network has none to agree with.
    left_out = ["case", "warnings", *(["folds_dice"] if len(prediction.fold_labels) == 1 else [])]
    shown = [number for number in of_case if number.column not in left_out]
    items = ""
    for number in shown:
        title = terms.term(number.title, number.unit)
        items += f"<div><dt>{title}</dt><dd>{escape(_text(number.value))}</dd></div>"
    source = ""
    if {"hypoperfused_ml", f"tmax_above_{tmax.CONTOUR_S:g}_s_ml"} <= {number.column for number in shown}:
        source += (
            '<p class="soft">Hypoperfused is what the networks segmented. '
            f"Tmax above {tmax.CONTOUR_S:g} s counts every voxel of the brain: also noise, "
            "old lesions, and both sides where the blood arrives late everywhere.</p>"
        )
    if any(number.title.startswith(numbers.DEFUSE3) for number in shown):
        source += '<p class="soft">DEFUSE 3: Albers et al., N Engl J Med 2018.</p>'
    return f'<div><dl class="facts">{items}</dl>{source}</div>'


def _interval(interval: tuple[float, float] | None, brain_ml: float) -> str:
    if interval is None:
        return "unknown"
    if interval[0] == 0 and interval[1] >= round(brain_ml, 6):
        return "0 to the whole brain"
    return _span(*interval)


def _span(low: float, high: float) -> str:
    return f"{_text(low)} to {_text(high)}"


def _text(value: float | int | str | None) -> str:
    """A cell as text; a number has three digits, but no digit before the point is lost."""
    if value is None or value == "":
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _slices(prediction: Prediction, picture: Picture, legend: str) -> str:
    """Eight to twelve slices: each once without lines, then with lines on the channels by which it is checked."""
    names = list(prediction.task.channels)
    there = [name for name in names if name not in picture.absent]
    channels = sorted(there, key=lambda name: CHECKED.index(name) if name in CHECKED else len(CHECKED))[: len(CHECKED)]
    lesion = _lesion_slices(picture.results[AVERAGE])
    alone_only = np.stack([_lesion_slices(labels) for labels in picture.results.values()]).any(axis=0) & ~lesion
    positions = choose_slices(lesion, alone_only)
    figures = []
    for position in positions:
        title = f"slice {picture.slices[position] + 1}"
        result, *alone = (result[position] for result in picture.results.values())
        spared = [spare_small(result, labels, picture.pixel_mm) for labels in alone]
        lines = stills.outlines(result) + "".join(stills.outlines(labels, "thin") for labels in spared)
        plain, _ = stills.background(picture, names.index(channels[0]), position, channels[0])
        scans = [stills.scan(picture, plain, "", f"{channels[0]} without lines, {title}")]
        for name in channels:
            image, contour = stills.background(picture, names.index(name), position, name)
            scans.append(stills.scan(picture, image, contour + lines, f"{name}, {title}"))
        figures.append(f"<figure>{''.join(scans)}<figcaption>{title}</figcaption></figure>")
    covered = f"{lesion[positions].sum()} of {lesion.sum()} slices with a predicted lesion"
    if alone_only.any():
        covered += f", {alone_only[positions].sum()} of {alone_only.sum()} where only a network alone has one"
    sides = (
        "R and L are the patient’s sides, A is the front and P the back." if picture.sides else "The sides are unknown."
    )
    bar = tmax.colour_bar() if tmax.CHANNEL in channels else ""
    spared_note = " No thin line is drawn inside a small lesion." if len(picture.results) > 1 else ""
    return (
        f"<h2>{' and '.join(map(escape, channels))}: {covered}</h2>"
        f'<div class="legends">{legend}{bar}<p class="soft">{sides}{spared_note}</p></div>'
        f'<div class="slices" style="--columns: {-(-len(positions) // 2)}; --scans: {1 + len(channels)}">'
        f"{''.join(figures)}</div>"
    )


def _lesion_slices(labels: np.ndarray) -> np.ndarray:
    return np.asarray((labels > 0).any(axis=(1, 2)))


def spare_small(result: np.ndarray, alone: np.ndarray, pixel_mm: tuple[float, float]) -> np.ndarray:
    """The labels of one network in a slice, with those of the result inside each small lesion of it (`SMALL_MM`).

    The thin line of the network then runs beside the small lesion, and not through it.

    Args:
      result: uint8 [H, W], the average of the networks.
      alone: uint8 [H, W].
      pixel_mm: height and width of a pixel.
    """
    lesion = result > 0
    # The rim outside the picture is no lesion.
    depth = ndimage.distance_transform_edt(np.pad(lesion, 1), sampling=pixel_mm)[1:-1, 1:-1]
    pieces, count = ndimage.label(lesion, np.ones((3, 3)))
    deepest = ndimage.maximum(depth, pieces, range(count + 1))
    small = lesion & (np.asarray(deepest)[pieces] <= SMALL_MM)
    return np.where(small, result, alone).astype(np.uint8)


def choose_slices(lesion: np.ndarray, alone_only: np.ndarray) -> list[int]:
    """The slices to show: `LEAST_SLICES` to `MOST_SLICES`, or all if there are fewer.

    Slices with a lesion come first, then those where only a network alone has one, then their neighbours. Where there
    are too many of a kind, they are taken at even steps.

    Args:
      lesion: bool [S], whether a slice has a predicted lesion.
      alone_only: bool [S], whether only a network alone has a lesion there.

    Returns:
      Ascending positions.
    """
    count = len(lesion)
    if count <= MOST_SLICES:
        return list(range(count))
    if not (lesion | alone_only).any():
        return _even(np.arange(count), MOST_SLICES)
    chosen = _even(np.flatnonzero(lesion), MOST_SLICES)
    chosen += _even(np.flatnonzero(alone_only), MOST_SLICES - len(chosen))
    if len(chosen) < LEAST_SLICES:
        distance = np.abs(np.arange(count)[:, None] - chosen).min(axis=1)
        chosen = np.argsort(distance, kind="stable")[:LEAST_SLICES].tolist()
    return sorted(chosen)


def _even(positions: np.ndarray, most: int) -> list[int]:
    """At most so many of the positions, at even steps."""
    if len(positions) > most:
        positions = positions[np.rint(np.linspace(0, len(positions) - 1, most)).astype(int)]
    chosen: list[int] = positions.tolist()
    return chosen


def _origin(prediction: Prediction) -> str:
    facts = "; ".join(f"{escape(name)}: {escape(value)}" for name, value in prediction.origin.items())
    return f'<p class="soft origin">{facts}</p><p class="research print">{RESEARCH}</p>'
