"""The page's sections that show cases: still pictures of three of them, and the viewer of every slice."""

import json
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from isles_jax.reporting import pictures, results
from isles_jax.reporting.pictures import Picture
from isles_jax.reporting.results import Run


def _key(runs: Sequence[Run]) -> str:
    words = enumerate(runs[0].data["classes"])
    keys = "".join(f'<span style="--colour: var(--k{n % 6 + 1})">{escape(word)}</span>' for n, word in words)
    return f'<p class="key"><span style="--colour: var(--truth)">reference</span>{keys}</p>'


def stills(cases: Sequence[Picture], chosen: Mapping[str, str], runs: Sequence[Run]) -> str:
    """The paper's Figure 2: inputs, reference and each system's contours for three cases."""
    if not cases:
        return ""
    by_name = {picture.name: picture for picture in cases}
    channels = runs[0].data["channels"]
    behind = channels.index("DWI") if "DWI" in channels else 0
    text = f"<h2>Best, median and worst case</h2>{_key(runs)}"
    for place, name in chosen.items():
        picture = by_name[name]
        at = pictures.telling_slice(picture)
        figures = [_still(picture, gray[at], "", channel) for channel, gray in zip(channels, picture.gray, strict=True)]
        truth = _outlines(picture.truth[at], "t")
        figures.append(_still(picture, picture.gray[behind][at], _outlines(picture.truth[at]), "reference"))
        for label, result in picture.results.items():
            lines = truth + _outlines(result[at])
            figures.append(_still(picture, picture.gray[behind][at], lines, label, _case_dice(runs, label, name)))
        text += f"<h3>{escape(place.capitalize())}: case {escape(name)}, slice {picture.slices[at] + 1}</h3>"
        text += f'<div class="panels">{"".join(figures)}</div>'
    return text + (
        '<p class="soft">Chosen by the mean Dice over the classes. Contours follow the voxels’ edges; in a system’s '
        "panel the reference is white, where it differs.</p>"
    )


def _still(picture: Picture, gray: np.ndarray, lines: str, title: str, more: str = "") -> str:
    height, width = gray.shape
    tall, wide = picture.pixel
    return (
        f'<figure><svg class="scan" viewBox="0 0 {width * wide:.3f} {height * tall:.3f}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><g transform="scale({wide:.6g} {tall:.6g})"><image width="{width}" '
        f'height="{height}" preserveAspectRatio="none" href="{pictures.data_uri(gray)}"/>{lines}</g></svg>'
        f"<figcaption>{escape(title)}{f'<br>{escape(more)}' if more else ''}</figcaption></figure>"
    )


def _outlines(labels: np.ndarray, kind: str = "") -> str:
    values = [int(value) for value in np.unique(labels) if value]
    return "".join(
        f'<path class="{kind or f"k{(v - 1) % 6 + 1}"}" d="{pictures.outline(labels == v)}"/>' for v in values
    )


def _case_dice(runs: Sequence[Run], label: str, case: str) -> str:
    """Dice of a case for each class, in words."""
    rows = results.systems(runs)[label]
    return ", ".join(f"{row['class']} {row['dice']:.2f}" for row in rows if row["case"] == case)


def viewer(cases: Sequence[Picture], runs: Sequence[Run], reference: str) -> str:
    text = '<h2 class="screen">Every slice</h2>'
    if not cases:
        return (
            text + "<p>The images are not where the run read them, so there are no pictures of cases on this page.</p>"
        )
    labels = list(cases[0].results)
    data = [
        pictures.viewer_case(picture, runs[0].data["channels"])
        | {"start": pictures.telling_slice(picture)}
        | {"dice": {label: _case_dice(runs, label, picture.name) for label in labels}}
        for picture in cases
    ]
    options = "".join(f"<option>{escape(picture.name)}</option>" for picture in cases)
    first = reference if reference in labels else labels[-1]
    systems = "".join(f"<option{' selected' * (label == first)}>{escape(label)}</option>" for label in labels)
    systems += '<option value="">no result</option>'
    count = sum(map(len, runs[0].folds))
    if len(cases) < count:
        text += f'<p class="soft screen">{len(cases)} of {count} cases; more would make the file too large.</p>'
    # In a script element only "<" could end the text early.
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return text + (
        f'<div id="viewer" class="screen" data-classes="{len(runs[0].data["classes"])}"><div class="controls">'
        '<button type="button" data-part="previous-case" aria-label="previous case">◀ case</button>'
        f'<select data-part="case" aria-label="case">{options}</select>'
        '<button type="button" data-part="next-case" aria-label="next case">case ▶</button>'
        f'<select data-part="system" aria-label="result shown">{systems}</select>'
        '<label><input type="checkbox" data-part="truth" checked> reference</label><span class="slide">'
        '<button type="button" data-part="previous-slice" aria-label="previous slice">−</button>'
        '<input type="range" min="0" max="0" value="0" data-part="slice" aria-label="slice">'
        '<button type="button" data-part="next-slice" aria-label="next slice">+</button></span></div>'
        '<p class="said" data-part="said" aria-live="polite">Opening…</p><div class="views" data-part="views"></div>'
        f'{_key(runs)}</div><script type="application/json" id="viewer-data">{embedded}</script>'
    )
