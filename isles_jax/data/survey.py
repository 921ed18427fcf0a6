"""What a data set is, as lines of text: what was read, the ranges over its cases, and what looks odd."""

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isles_jax.config import baseline, flatten
from isles_jax.data import adc, folds, oddities
from isles_jax.data.case import Dataset
from isles_jax.data.folder import listed
from isles_jax.data.oddities import Facts, number_text, sides_text
from isles_jax.data.profile import PERCENTILES
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError

# So many shapes or spacings are listed; of more, the ranges are.
_LISTED = 3
# Tmax in seconds seldom exceeds the length of a perfusion scan.
_LONGEST_TMAX_S = 100.0
_UNKNOWN = "unknown"


def survey(dataset: Dataset) -> list[str]:
    """The lines that describe a data set.

    They are the headline, the notes, the facts that cases share, a table of ranges, and what looks odd.
    """
    found = oddities.measure(dataset)
    odd = oddities.oddities(found, dataset)
    return [
        dataset.headline,
        *(f"note: {note}" for note in dataset.notes),
        "",
        *_facts(dataset, found),
        "",
        *_table(dataset, found),
        "",
        *(f"odd: {line}" for line in odd or ["nothing"]),
    ]


def _facts(dataset: Dataset, found: Sequence[Facts]) -> list[str]:
    """What most cases have in common, a line for each fact."""
    labels = ", ".join(f"{name} = {value}" for name, value in zip(dataset.classes, dataset.label_values, strict=True))
    axes = (facts.profile["axes"] or _UNKNOWN for facts in found)
    sites = (case.site or _UNKNOWN for case in dataset.cases) if any(case.site for case in dataset.cases) else ()
    rows = {
        "labels": labels,
        "no labels": listed([case.name for case in dataset.cases if case.labels is None]),
        "sites": _counts(sites) if sites else "",
        "shape": _sides([facts.profile["shape"] for facts in found]),
        "spacing": _sides([facts.profile["spacing_mm"] for facts in found]) + " mm",
        "orientation": _counts(axes),
        "units": _units(dataset, found),
        "background": _backgrounds(dataset),
    }
    return [f"{title:13}{text}" for title, text in rows.items() if text]


def _sides(sides: Sequence[Sequence[float]]) -> str:
    """Shapes or spacings: each with the number of its cases, or the ranges of many different ones."""
    shown = [sides_text(each) for each in sides]
    if len(set(shown)) <= _LISTED:
        return _counts(shown)
    ends = zip(np.min(sides, axis=0), np.max(sides, axis=0), strict=True)
    return " x ".join(" to ".join(dict.fromkeys(map(number_text, pair))) for pair in ends)


def _counts(texts: Iterable[str]) -> str:
    """The texts, the most frequent first, each with the number of cases unless all have the same."""
    counts = Counter(texts).most_common()
    shown = [f"{text} ({count} case{'s' * (count > 1)})" for text, count in counts]
    return counts[0][0] if len(counts) == 1 else ", ".join(shown)


def _units(dataset: Dataset, found: Sequence[Facts]) -> str:
    """What the values of ADC and Tmax say of their units; the notes say which files have another unit of ADC."""
    units = []
    for number, name in enumerate(dataset.channels):
        having = [case for case in dataset.cases if name not in case.absent]
        if name == "ADC" and having:
            other = sum(adc.unit_of(case.images[..., number]) != adc.UNIT for case in having)
            units.append(f"ADC in {adc.UNIT}" + f", in another unit in {other} cases" * bool(other))
        if name == "Tmax" and having:
            high = np.median([facts.profile["percentiles"][name][-1] for facts in found if name in facts.values])
            long = f"Tmax not in seconds, by its values (up to {high:.3g})"
            units.append(long if high > _LONGEST_TMAX_S else "Tmax in seconds, by its values")
    return "; ".join(units)


def _backgrounds(dataset: Dataset) -> str:
    """The value of each channel outside the brain."""
    rows = [case.backgrounds for case in dataset.cases if case.backgrounds]
    if not rows:
        return ""
    each = (_counts(f"{value:.4g}" for value in column) for column in zip(*rows, strict=True))
    return "; ".join(f"{name} {text}" for name, text in zip(dataset.channels, each, strict=True))


def _table(dataset: Dataset, found: Sequence[Facts]) -> list[str]:
    """Least, median and largest of each number over the cases, aligned."""
    rows = [("brain, ml", [facts.profile["brain_ml"] for facts in found], "")]
    labelled = [facts for facts in found if facts.lesions is not None]
    for name in dataset.classes if labelled else ():
        volumes = [facts.volumes_ml[name] for facts in labelled]
        empty = f"none in {volumes.count(0)} of {len(volumes)} cases" if 0 in volumes else ""
        rows.append((f"{name}, ml", volumes, empty))
    if labelled:
        rows.append(("lesions in a case", [facts.lesions or 0 for facts in labelled], ""))
    for name in dataset.channels:
        having = [facts.profile["percentiles"][name] for facts in found if name in facts.values]
        for percentile, values in zip(PERCENTILES, zip(*having, strict=True), strict=False):
            rows.append((f"{name}, {percentile:g}th percentile", list(values), ""))
    width = max(len(title) for title, _, _ in rows)
    lines = [f"{'over the cases':{width}} {'least':>9} {'median':>9} {'largest':>9}"]
    for title, numbers, more in rows:
        least, middle, largest = map(number_text, (min(numbers), float(np.median(numbers)), max(numbers)))
        lines.append(f"{title:{width}} {least:>9} {middle:>9} {largest:>9}  {more}".rstrip())
    return lines


def training_command(dataset: Dataset, root: str, settings: Mapping[str, Any]) -> str:
    """The command that trains on a data set, quoted for a shell.

    Args:
      dataset: which was read.
      root: the folder or table, as the user gave it.
      settings: {key: value} of the configuration, by which it was read. Those that are not the default are named.

    Raises:
      InputError: the data set cannot be trained: it has labels of fewer than two patients, or no lesion in the
        training cases of a fold.
    """
    defaults = baseline(residual=True, adversarial=True, overlap=True)
    usual = flatten(defaults)
    folds_wanted = _fitting_folds(dataset, defaults.folds, defaults.seed)
    changed = {key: value for key, value in {**settings, "folds": folds_wanted}.items() if value != usual[key]}
    flags = [f"--config.{key}={_flag(value)}" for key, value in {"data.root": root, **changed}.items()]
    workdir = f"runs/{defaults.name}"
    above = os.path.realpath(root)
    if not files.is_bucket(root) and Path(os.path.realpath(workdir)).is_relative_to(above):
        # Training writes nothing into the data.
        flags.append(f"--workdir={os.path.relpath(os.path.join(above, os.pardir, workdir))}")
    return shlex.join(["isles-jax", "train", *flags])


def _flag(value: Any) -> str:
    """A value as the flag of a configuration takes it."""
    if not isinstance(value, tuple):
        return str(value)
    names = ",".join(json.dumps(name, ensure_ascii=False) for name in value)
    return f"({names},)" if len(value) == 1 else f"({names})"


def _fitting_folds(dataset: Dataset, wanted: int, seed: int) -> int:
    """The number of folds in which a data set can be trained: `wanted`, or fewer if it has fewer patients."""
    labelled = {case.name: case for case in dataset.cases if case.labels is not None}
    groups = folds.group(list(labelled.values()), "patient")
    patients = len(set(groups.values()))
    if patients < 2:
        raise InputError(
            f"{dataset.root}: cannot be trained: found labels of {patients} patients, expected 2 or more, of whom one "
            "is held out"
        )
    count = min(wanted, patients)
    for held_out in folds.make_folds(list(labelled), count, seed, groups):
        training = [case for name, case in labelled.items() if name not in held_out]
        if not any(case.labels is not None and case.labels.any() for case in training):
            raise InputError(
                f"{dataset.root}: cannot be trained: found no lesion in the {len(training)} training cases of one of "
                f"{count} folds, expected some to learn from"
            )
    return count
