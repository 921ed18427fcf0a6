"""One self-contained HTML page about one or more runs: no address outside the file, no text that is not escaped."""

import base64
import hashlib
import importlib.resources
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from etils import epath

from isles_jax import __version__
from isles_jax.config import flatten
from isles_jax.data import layouts
from isles_jax.data.case import Dataset
from isles_jax.reporting import case_sections, charts, pictures, results, scores, statistics
from isles_jax.reporting.pictures import Picture
from isles_jax.reporting.results import Run
from isles_jax.reporting.scores import Row
from isles_jax.runtime import files
from isles_jax.training import checkpoint


def write_report(
    path: epath.PathLike, runs: Sequence[Run], reference: str | None = None, dataset: Dataset | None = None
) -> None:
    """Writes one HTML file about one or more runs on the same data, atomically; it needs nothing outside itself.

    Args:
      path: of the file.
      runs: from `results.read_run`.
      reference: the row that the others are compared with; None: see `results.reference_of`.
      dataset: the runs' data if they are in memory; None: read from where the first run read them. If they are not
        there, the page has no pictures, and says so.

    Raises:
      InputError: the runs are not on the same data, or no row is called `reference`; a prediction is missing or does
        not fit its case.
    """
    base = results.reference_of(runs, reference)
    labels = [label for label in results.systems(runs) if label != results.RULE]
    by_label = dict(zip(labels, runs, strict=True))
    chosen = _chosen(by_label[base] if base in by_label else runs[-1])
    dataset = dataset or _read_data(runs[0])
    cases = pictures.make(dataset, by_label, list(chosen.values())) if dataset else []
    folders = [run.workdir / "fold_0" / "checkpoints" for run in runs]
    versions = [checkpoint.read_meta(folder)["versions"] if folder.is_dir() else {} for folder in folders]
    files.write_atomic(path, page(runs, base, cases, chosen, versions))


def _read_data(run: Run) -> Dataset | None:
    root = epath.Path(run.config["data"]["root"] or run.workdir / "phantom")
    if not root.is_dir():
        return None
    values = run.config["data"]["labels"]
    return layouts.load(files.fetch(root), penumbra=values["penumbra"], core=values["core"])


def _chosen(run: Run) -> dict[str, str]:
    """The best, the median and the worst case by the mean Dice over the classes; fewer where there are few cases."""
    dice: dict[str, list[float]] = {}
    for row in run.rows:
        if row["class"] != scores.WHOLE_LESION:
            dice.setdefault(row["case"], []).append(row["dice"])
    ranked = sorted(dice, key=lambda name: -np.mean(dice[name]))
    places = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    names = list(places.values())
    return {place: name for number, (place, name) in enumerate(places.items()) if name not in names[:number]}


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
    assets = importlib.resources.files("isles_jax.reporting")
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
        case_sections.stills(cases, chosen, runs),
        case_sections.viewer(cases, runs, reference),
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
        summary = scores.summarise(mine)["classes"]
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


# --- configuration ---------------------------------------------------------------------------------------------------


def _settings(runs: Sequence[Run], versions: Sequence[Mapping[str, str]]) -> str:
    columns = [
        flatten(run.config) | {f"version of {name}": version for name, version in mine.items()}
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
