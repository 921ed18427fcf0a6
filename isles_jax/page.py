"""One self-contained HTML page about one or more runs: no address outside the file, no text that is not escaped."""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from isles_jax import __version__, charts, evaluate, pictures, results, statistics
from isles_jax.evaluate import Row
from isles_jax.pictures import Picture
from isles_jax.results import Run


def page(
    runs: Sequence[Run],
    reference: str,
    cases: Sequence[Picture],
    chosen: Mapping[str, str],
    versions: Sequence[Mapping[str, str]],
) -> str:
    """The page.

    Args:
      runs: on the same data.
      reference: the row that the others are compared with.
      cases: pictures of them, or none: then the page says that the images were not found.
      chosen: {"best": case, "median": case, "worst": case} for the still panels.
      versions: for each run, those of the packages that trained it; none where they were not kept.
    """
    assets = importlib.resources.files("isles_jax")
    style, script = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The browser itself refuses whatever would leave the file, and any script but this one.
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    rows = results.systems(runs)
    title = ", ".join(run.name for run in runs)
    sections = [
        _head(title, runs),
        _dice(rows, runs),
        _differences(rows, runs, reference),
        _panels(cases, chosen, runs),
        _viewer(cases, runs, reference),
        _measures(rows, runs),
        _volumes(rows, runs),
        _curves(runs),
        _settings(runs, versions),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}: lesion segmentation</title>'
        f"<style>{style}</style></head>\n<body><main>{''.join(sections)}</main>\n<script>{script}</script></body></html>\n"
    )


def _classes(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(row["class"] for row in runs[0].rows))


def _head(title: str, runs: Sequence[Run]) -> str:
    cases = len({row["case"] for row in runs[0].rows})
    text = f"<h1>Ischaemic stroke lesions: {escape(title)}</h1>"
    text += (
        f'<p class="lead">{cases} cases, {len(runs[0].folds)}-fold cross-validation by patient; every case is scored '
    )
    text += f"by networks that never saw it. Data: {escape(results.data_words(runs[0]))}.</p>"
    if runs[0].data["phantom"]:
        text += (
            '<p class="banner">These are results on a digital phantom, not on patients. They compare systems; they say '
        )
        text += "nothing about accuracy in the clinic and cannot be set against published numbers.</p>"
    return text


def _table(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1, kinds: Sequence[str] = ()) -> str:
    """A table of cells that are HTML already; the first `left` columns are text."""
    marks = ['class="left"' if column < left else "" for column in range(len(head))]
    top = "".join(f'<th scope="col" {mark}>{cell}</th>' for cell, mark in zip(head, marks, strict=True))
    lines = []
    for number, row in enumerate(body):
        kind = f' class="{kinds[number]}"' if kinds and kinds[number] else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td {m}>{c}</td>" for c, m in zip(row, marks, strict=True)) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _kinds(rows: Mapping[str, Any]) -> list[str]:
    return ["rule" if label == results.RULE else "" for label in rows]


def _dice(rows: Mapping[str, list[Row]], runs: Sequence[Run]) -> str:
    """Table 1 with intervals, the paper's numbers, and the dots of every case."""
    head, columns, dots = ["system"], [], []
    other = " (other data)" if runs[0].data["phantom"] else ""
    for word in _classes(runs):
        means, paper = results.dice_means(rows, word), {label: results.paper_dice(label, word) for label in rows}
        head.append(escape(word))
        columns.append([
            f'{one.mean:.3f} ± {one.std:.3f} <span class="interval">[{one.low:.3f}, {one.high:.3f}]</span>'
            for one in means.values()
        ])  # fmt: skip
        if any(paper.values()):
            head.append(f"paper*{other}, {escape(word)}")
            columns.append(
                ["" if value is None else f'<span class="paper">{value:.3f}</span>' for value in paper.values()]
            )
        values = {label: [(r["case"], r["dice"]) for r in mine if r["class"] == word] for label, mine in rows.items()}
        intervals = {label: (one.mean, one.low, one.high) for label, one in means.items()}
        dots.append(f"<div><h3>{escape(word)}</h3>{charts.strip(values, intervals, paper, f'Dice of {word}')}</div>")
    body = [[escape(label), *cells] for label, *cells in zip(rows, *columns, strict=True)]
    notes = "".join(f"<li>{escape(note)}</li>" for note in results.notes(runs, len(rows) - 1))
    return (
        f"<h2>Dice</h2>{_table(head, body, kinds=_kinds(rows))}"
        f'<div class="grid">{"".join(dots)}</div><p class="soft">A dot is a case; the bar is the mean with its 95% '
        f'interval; a diamond is the paper’s number.</p><ul class="notes">{notes}</ul>'
    )


def _differences(rows: Mapping[str, list[Row]], runs: Sequence[Run], reference: str) -> str:
    if len(rows) < 2:
        return ""
    words = _classes(runs)
    compared = {word: results.compare(runs, word, reference) for word in words}
    body = [
        [escape(label), escape(word), _effect(one.difference, one.low, one.high), results.p_words(one.wilcoxon),
         results.p_words(one.bootstrap)]
        for label in compared[words[0]] for word, one in ((word, compared[word][label]) for word in words)
    ]  # fmt: skip
    head = ["system", "class", "difference of Dice", "p, Wilcoxon", "p, bootstrap"]
    text = f"<h2>Differences from {escape(reference)}</h2>{_table([escape(c) for c in head], body, left=2)}"
    text += '<p class="soft">Paired over cases, 95% intervals; p values corrected with Holm over the systems.</p>'
    effects = {word: found for word in words if (found := results.design_effects(runs, word))}
    if len(effects) == len(words):
        body = [[escape(FACTOR_WORDS[factor]), *(_effect(*effects[word][factor]) for word in words)]
                for factor in statistics.FACTORS]  # fmt: skip
        text += f"<h3>Main effects of the 2 × 2 × 2 design on Dice</h3>{_table(['factor', *map(escape, words)], body)}"
    return text


FACTOR_WORDS = {
    "residual": "residual connections",
    "adversarial": "adversarial training",
    "overlap": "Lovasz-softmax and boundary losses",
}


def _effect(value: float, low: float, high: float) -> str:
    return f'{value:+.3f} <span class="interval">[{low:+.3f}, {high:+.3f}]</span>'


def _measures(rows: Mapping[str, list[Row]], runs: Sequence[Run]) -> str:
    body, kinds = [], []
    for label, mine in rows.items():
        summary = evaluate.summarise(mine)["classes"]
        for word in _classes(runs):
            cells = [f"{summary[word][name]['mean']:.3f}" for name in results.MEASURES]
            body.append([escape(label), escape(word), *cells])
            kinds.append("rule" if label == results.RULE else "")
    head = ["system", "class", *map(escape, results.MEASURES.values())]
    return f"<h2>Other measures, means</h2>{_table(head, body, left=2, kinds=kinds)}"


def _volumes(rows: Mapping[str, list[Row]], runs: Sequence[Run]) -> str:
    drawn = []
    for label, mine in rows.items():
        for word in _classes(runs):
            points = [
                (row["case"], (row["volume_true_ml"] + row["volume_pred_ml"]) / 2, row["volume_difference_ml"])
                for row in mine
                if row["class"] == word
            ]
            drawn.append(charts.bland_altman(f"{label}, {word}", points))
    return (
        f'<h2>Volumes (Bland-Altman)</h2><div class="grid">{"".join(drawn)}</div><p class="soft">Predicted minus true '
        "volume over the mean of the two, in ml; the mean difference and the 95% limits of agreement.</p>"
    )


def _curves(runs: Sequence[Run]) -> str:
    text = "<h2>Learning curves</h2>"
    for run in runs:
        names = sorted({name for lines in run.curves for line in lines for name in line} - {"step"})
        names.sort(key=lambda name: name != "loss")
        drawn = []
        for name in names:
            series = {}
            for fold, lines in enumerate(run.curves):
                having = [line for line in lines if name in line]
                series[f"fold {fold}"] = ([line["step"] for line in having], [line[name] for line in having])
            drawn.append(charts.curves(name, series))
        keys = "".join(
            f'<span style="--colour: var(--c{fold % 6})">fold {fold}</span>' for fold in range(len(run.curves))
        )
        inner = (
            f'<p class="key">{keys}</p><div class="grid">{"".join(drawn)}</div>' if drawn else "<p>None were kept.</p>"
        )
        is_open = " open" if len(runs) == 1 else ""
        text += f"<details{is_open}><summary>{escape(run.name)}, over steps</summary>{inner}</details>"
    return text


# --- cases -----------------------------------------------------------------------------------------------------------


def _key(runs: Sequence[Run]) -> str:
    words = enumerate(runs[0].data["classes"])
    keys = "".join(f'<span style="--colour: var(--k{n % 6 + 1})">{escape(word)}</span>' for n, word in words)
    return f'<p class="key"><span style="--colour: var(--truth)">reference</span>{keys}</p>'


def _panels(cases: Sequence[Picture], chosen: Mapping[str, str], runs: Sequence[Run]) -> str:
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
        panels = [_panel(picture, gray[at], "", channel) for channel, gray in zip(channels, picture.gray, strict=True)]
        truth = _outlines(picture.truth[at], "t")
        panels.append(_panel(picture, picture.gray[behind][at], _outlines(picture.truth[at]), "reference"))
        for label, result in picture.results.items():
            lines = truth + _outlines(result[at])
            panels.append(_panel(picture, picture.gray[behind][at], lines, label, _case_dice(runs, label, name)))
        text += f"<h3>{escape(place.capitalize())}: case {escape(name)}, slice {picture.slices[at] + 1}</h3>"
        text += f'<div class="panels">{"".join(panels)}</div>'
    return text + (
        '<p class="soft">Chosen by the mean Dice over the classes. Contours follow the voxels’ edges; in a system’s '
        "panel the reference is white, where it differs.</p>"
    )


def _panel(picture: Picture, gray: np.ndarray, lines: str, title: str, more: str = "") -> str:
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


def _viewer(cases: Sequence[Picture], runs: Sequence[Run], reference: str) -> str:
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


# --- configuration ---------------------------------------------------------------------------------------------------


def _settings(runs: Sequence[Run], versions: Sequence[Mapping[str, str]]) -> str:
    columns = [
        _flatten(run.config) | {f"version of {name}": version for name, version in mine.items()}
        for run, mine in zip(runs, versions, strict=True)
    ]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    head = ["key", *(escape(label) for label in results.systems(runs) if label != results.RULE)]
    body = [[escape(key), *(escape(str(column.get(key, ""))) for column in columns)] for key in keys]
    differing = [row for row in body if len(set(row[1:])) > 1]
    text = "<h2>Configuration and versions</h2>"
    if differing:
        text += f"<h3>Where the runs differ</h3>{_table(head, differing)}"
    text += f"<details><summary>Every key</summary>{_table(head, body)}</details>"
    # What all runs share in a line; where they differ the table above says so.
    shared = [f"{name} {version}" for name, version in versions[0].items()
              if all(mine.get(name) == version for mine in versions)]  # fmt: skip
    trained = f"Trained with {escape(', '.join(shared))}; this" if shared else "This"
    return text + f'<p class="soft">{trained} page was made by isles_jax {__version__}.</p>'


def _flatten(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat
