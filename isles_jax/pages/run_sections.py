"""The page's sections about the runs themselves: learning curves, configuration and versions."""

import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from isles_jax import __version__
from isles_jax.config import SUPERVISED, baseline, flatten, resolve, to_dict
from isles_jax.pages import charts, markup, terms
from isles_jax.scoring import calls, comparison, run_files
from isles_jax.scoring.comparison import Study
from isles_jax.scoring.run_files import Run

# The metrics of a training in groups: the heading and how the names begin, in the order of the page.
GROUPS = {
    "Losses": ("loss", *SUPERVISED),
    "Critics": ("critic/", "critic_accuracy/", "adversarial/", "critic_gradient"),
    "Learning rate": ("learning_rate",),
}
OTHERS = "Others"
# The folders above the last part of an absolute path or address, at the start of a word or of a flag's value.
_ABSOLUTE = re.compile(r"^((?:--?[^=/]*=)?)(?:[a-z0-9]+:/)?/(?:.*/)?(?=[^/])", re.DOTALL)


def learning_curves(study: Study) -> str:
    """The Dice of held-out slices and the metrics of every run over the training steps, a line for each fold."""
    text = "<h2>Learning curves</h2>"
    opened = " open" if len(study.runs) == 1 else ""
    for label, run in study.runs.items():
        drawn = _held_out(run) + _metrics(run)
        colours = {f"fold {fold}": f"c{fold % 6}" for fold in range(len(run.curves))}
        inner = markup.legend(colours) + drawn if drawn else "<p>None were kept.</p>"
        text += f"<details{opened}><summary>{escape(label)}, over steps</summary>{inner}</details>"
    return text


def _held_out(run: Run) -> str:
    """The Dice of held-out slices, a chart for each class; "" for runs that did not measure it."""
    drawn = "".join(
        _curves(run.held_out, f"dice/{name}", f"Dice of {name}, held-out slices") for name in run.data["classes"]
    )
    return drawn and (
        f'<h3>Held-out cases during the training</h3><div class="grid">{drawn}</div><p class="soft">The mean over a '
        "fold’s held-out cases of the Dice in some of a case’s slices, those with the largest lesions. A case without "
        "the class in these slices does not count. Nothing is chosen by these curves: the weights are always those of "
        "the last step, and the scores above are of whole cases.</p>"
    )


def _metrics(run: Run) -> str:
    """What the folds logged, in groups."""
    names = sorted({name for lines in run.curves for line in lines for name in line} - {"step"})
    grouped: dict[str, list[str]] = {heading: [] for heading in (*GROUPS, OTHERS)}
    for name in names:
        grouped[_group(name)].append(name)
    grouped["Losses"].sort(key=GROUPS["Losses"].index)
    text = ""
    for heading, members in grouped.items():
        drawn = "".join(_curves(run.curves, name, name) for name in members)
        text += f'<h3>{heading}</h3><div class="grid">{drawn}</div>' if drawn else ""
    return text


def _group(name: str) -> str:
    for heading, beginnings in GROUPS.items():
        if any(name == start or (start.endswith("/") and name.startswith(start)) for start in beginnings):
            return heading
    return OTHERS


def _curves(folds: Sequence[Sequence[Mapping[str, float]]], name: str, title: str) -> str:
    """A chart of one quantity, a line for each fold."""
    series = {}
    for fold, lines in enumerate(folds):
        with_name = [line for line in lines if name in line]
        series[f"fold {fold}"] = ([line["step"] for line in with_name], [line[name] for line in with_name])
    return charts.curves(title, series)


def data_notes(study: Study) -> str:
    """What the command said about the data of the runs; nothing where it said nothing."""
    notes = dict.fromkeys(note for run in study.runs.values() for note in run.data_notes)
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<h2>Notes on the data</h2><ul class="notes">{items}</ul>' if items else ""


def what_was_run(study: Study) -> str:
    """Each call of every run: command, date, machine, versions, and the seconds of its parts.

    It is empty for runs of earlier versions, which kept no records of their calls.
    """
    items = []
    body = []
    for label, run in study.runs.items():
        for call in run.calls:
            # Records of earlier versions have no commit.
            commit = str(call.get("commit") or "")[:12]
            program = f"isles_jax {call['isles_jax']}" + (f" ({escape(commit)})" if commit else "")
            versions = f"{program}, jax {call['jax']}"
            command = markup.command(_without_folders(call["command"]))
            items.append(f"<li>{escape(label)}, {call['date']}, {versions}, {_machine(call)}: {command}</li>")
            seconds = [call["seconds"][part] for part in calls.PARTS]
            shown = [f"{one:.1f}" if one else "–" for one in (*seconds, sum(seconds))]
            body.append([escape(label), call["date"], *shown])
    if not items:
        return ""
    head = ["system", "call", *map(terms.term, (*calls.PARTS, "together"))]
    table = markup.table("Seconds of each part of a call", head, body, row_headers=2)
    return f'<h2>What was run</h2><ul class="notes">{"".join(items)}</ul>{table}'


def _machine(call: Mapping[str, Any]) -> str:
    """The processor, and the accelerators if the networks ran on some."""
    machine = f"{call['cores']} cores of {call['processor']}"
    if call["device"] != "cpu":
        machine = f"{call['devices']} x {call['device']}, {machine}"
    if call["processes"] > 1:
        machine = f"{call['processes']} processes, {machine}"
    return escape(machine)


def _without_folders(command: str) -> str:
    """A command line with "..." in place of the folders of absolute paths, for the reason of `run_files.name_of`."""
    return shlex.join(_ABSOLUTE.sub(r"\1.../", word) for word in shlex.split(command))


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
    items = "".join(f"<li>{_unusual(label, run)}</li>" for label, run in study.runs.items())
    text = "<h2>Configuration and versions</h2><p>Settings that differ from the defaults of the system:</p>"
    text += f'<ul class="notes">{items}</ul>'
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


def _unusual(label: str, run: Run) -> str:
    """The settings of a run that differ from the defaults of its system on its data, in one sentence."""
    residual, adversarial, overlap = comparison.factors_of(run)
    default = baseline(residual=residual, adversarial=adversarial, overlap=overlap)
    default.data.root = run.config.data.root
    usual, own = (flatten(to_dict(config)) for config in (resolve(default), run.config))
    found = [
        f"{key} {value!r} (default {usual[key]!r})"
        for key, value in _shown(run).items()
        if key in usual and key != "data.root" and usual[key] != own[key]
    ]
    return escape(f"{label}: {', '.join(found) or 'the defaults'}.")


def _column(run: Run, versions: Mapping[str, str]) -> dict[str, Any]:
    """The configuration of a run with its versions."""
    return _shown(run) | {f"version of {package}": version for package, version in versions.items()}


def _shown(run: Run) -> dict[str, Any]:
    """The configuration of a run; a path is shown without the folders above it."""
    config = run.config
    paths = {"data.root": config.data.root, "folds_by": config.folds_by, "train.init": config.train.init}
    shown = {key: run_files.name_of(path) for key, path in paths.items()}
    return flatten(config) | shown
