"""The page's sections about the runs themselves: learning curves, configuration and versions."""

from collections.abc import Mapping
from html import escape
from typing import Any

from isles_jax import __version__
from isles_jax.config import flatten
from isles_jax.pages import charts, markup
from isles_jax.scoring import run_files
from isles_jax.scoring.comparison import Study
from isles_jax.scoring.run_files import Run


def learning_curves(study: Study) -> str:
    """The metrics of every run over the training steps, a line for each fold."""
    text = "<h2>Learning curves</h2>"
    opened = " open" if len(study.runs) == 1 else ""
    for label, run in study.runs.items():
        drawn = _curves(run)
        colours = {f"fold {fold}": f"c{fold % 6}" for fold in range(len(run.curves))}
        inner = f'{markup.legend(colours)}<div class="grid">{drawn}</div>' if drawn else "<p>None were kept.</p>"
        text += f"<details{opened}><summary>{escape(label)}, over steps</summary>{inner}</details>"
    return text


def _curves(run: Run) -> str:
    names = sorted({name for lines in run.curves for line in lines for name in line} - {"step"})
    names.sort(key=lambda name: name != "loss")
    drawn = []
    for name in names:
        series = {}
        for fold, lines in enumerate(run.curves):
            with_name = [line for line in lines if name in line]
            series[f"fold {fold}"] = ([line["step"] for line in with_name], [line[name] for line in with_name])
        drawn.append(charts.curves(name, series))
    return "".join(drawn)


def data_notes(study: Study) -> str:
    """What the command said about the data of the runs; nothing where it said nothing."""
    notes = dict.fromkeys(note for run in study.runs.values() for note in run.data_notes)
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<h2>Notes on the data</h2><ul class="notes">{items}</ul>' if items else ""


def configuration(study: Study, versions: Mapping[str, Mapping[str, str]]) -> str:
    """Every key of every run's configuration, and the versions of the packages that trained the runs.

    Args:
      study: the runs.
      versions: by label of the run, {package: version}; empty where they were not kept.
    """
    columns = [_column(run, versions[label]) for label, run in study.runs.items()]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    head = ["key", *map(escape, study.runs)]
    body = [[escape(key), *(escape(str(column.get(key, ""))) for column in columns)] for key in keys]
    differing = [row for row in body if len(set(row[1:])) > 1]
    text = "<h2>Configuration and versions</h2>"
    if differing:
        caption = "Keys and versions that differ between the runs"
        text += f"<h3>Where the runs differ</h3>{markup.table(caption, head, differing, css_class='values')}"
    table = markup.table("Every key of the configuration, and the versions", head, body, css_class="values")
    text += f"<details><summary>Every key</summary>{table}</details>"
    # One line names the versions that all runs share; the table of differences holds the others.
    every = list(versions.values())
    shared = [
        f"{package} {version}"
        for package, version in every[0].items()
        if all(run_versions.get(package) == version for run_versions in every)
    ]
    trained = f"Trained with {escape(', '.join(shared))}; this" if shared else "This"
    return text + f'<p class="soft">{trained} page was made by isles_jax {__version__}.</p>'


def _column(run: Run, versions: Mapping[str, str]) -> dict[str, Any]:
    """The configuration of a run with its versions; a path is shown without the folders above it."""
    config = run.config
    paths = {"data.root": config.data.root, "folds_by": config.folds_by, "train.init": config.train.init}
    shown = {key: run_files.name_of(path) for key, path in paths.items()}
    return flatten(config) | shown | {f"version of {package}": version for package, version in versions.items()}
