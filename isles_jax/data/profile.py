"""What was read, for data.json: the facts of each case, and the ranges of these facts over the training cases."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from isles_jax import metrics
from isles_jax.data import adc, orientation
from isles_jax.data.case import Case, Dataset
from isles_jax.runtime import files

PERCENTILES = (0.5, 50.0, 99.5)


def profile(case: Case, channels: Sequence[str]) -> dict[str, Any]:
    """The facts of a case's images, as JSON holds them.

    Returns:
      shape and spacing_mm; axes: where the stored axes point to, such as "RAS", "" if the header does not say;
      brain_ml; extent_mm: the sides of the box around the brain; empty: the share of voxels outside the brain;
      background: of each channel, if one is not 0; percentiles: of each channel in the brain; covered: the share of the
      brain in the box around a channel's values that are not 0. Zeros inside the box are no gap: Tmax is 0 where blood
      arrives early. A channel that the case lacks is left out of the last three.
    """
    there = [(number, name) for number, name in enumerate(channels) if name not in case.absent]
    inside = case.images[case.brain]
    quantiles = np.percentile(inside, PERCENTILES, axis=0).T
    return {
        "shape": list(case.images.shape[:3]),
        "spacing_mm": [round(side, 4) for side in case.spacing_mm],
        "axes": orientation.axes_of(case),
        "brain_ml": round(len(inside) * case.voxel_ml, 3),
        "extent_mm": _extent_mm(case),
        "empty": round(1 - len(inside) / case.brain.size, 5),
        **({"background": {name: case.backgrounds[number] for number, name in there}} if any(case.backgrounds) else {}),
        "percentiles": {name: [float(f"{value:.5g}") for value in quantiles[number]] for number, name in there},
        "covered": {name: round(_covered(case, number), 5) for number, name in there},
    }


def _extent_mm(case: Case) -> list[float]:
    boxes = ndimage.find_objects(case.brain.astype(np.int8))
    sides = boxes[0] if boxes else [slice(0, 0)] * 3
    return [round((side.stop - side.start) * length, 3) for side, length in zip(sides, case.spacing_mm, strict=True)]


def _covered(case: Case, channel: int) -> float:
    boxes = ndimage.find_objects((case.images[..., channel] != 0).astype(np.int8))
    return float(case.brain[boxes[0]].sum() / case.brain.sum()) if boxes else 0.0


def right_side(case: Case) -> np.ndarray:
    """Bool [X, Y, Z]: the voxels on the patient's right.

    The affine gives the left-right position in the world. The midline is the position with half of the brain on each
    side.
    """
    steps = (np.arange(n) * step for n, step in zip(case.images.shape[:3], case.affine[0, :3], strict=True))
    x, y, z = np.ix_(*steps)
    position = x + y + z
    right: np.ndarray = position > np.median(np.broadcast_to(position, case.brain.shape)[case.brain])
    return right


def across_ml(labels: np.ndarray, case: Case) -> float:
    """How far a lesion crosses the midline: the volume on its smaller side, the largest over lesions, in ml.

    It is 0 where the header does not say where left is.
    """
    if not case.oriented:
        return 0.0
    numbered, count = metrics.lesions(labels > 0)
    right = np.bincount(numbered[right_side(case)], minlength=count + 1)[1:]
    left = np.bincount(numbered.ravel(), minlength=count + 1)[1:] - right
    return round(float(np.minimum(left, right).max(initial=0) * case.voxel_ml), 3)


def norms(description: Mapping[str, Any]) -> dict[str, Any]:
    """The ranges of the training cases' facts.

    Args:
      description: a run's data.json; those of earlier versions hold fewer facts.

    Returns:
      cases: their number; ranges: {fact: [least, largest]} for the facts of `numbers` that are known, over the cases
      that have them; axes: all that occur, empty if they are not known; turned_to: the orientation to which the run
      brings all cases, "" for none; units: those to which the run brings channels, missing if an earlier version began
      it; phantom: whether the cases are those of a phantom, missing if that is not known.
    """
    axes = description.get("grid", {}).get("axes", "")
    profiles = description.get("profiles", {})
    known = {name: facts | profiles.get(name, {}) for name, facts in description["cases"].items()}
    labelled = [facts for facts in known.values() if facts["volume_ml"] is not None]
    channels = description["channels"]
    rows = [numbers(facts, channels, axes) | {"lesion_ml": sum(facts["volume_ml"].values())} for facts in labelled]
    keys = dict.fromkeys(key for row in rows for key in row)
    values = {key: [row[key] for row in rows if key in row] for key in keys}
    return {
        "cases": len(rows),
        "ranges": {key: [min(of_cases), max(of_cases)] for key, of_cases in values.items()},
        "axes": sorted({facts["axes"] for facts in labelled if facts.get("axes")}),
        "turned_to": axes,
        **{key: description[key] for key in ("units", "phantom") if key in description},
    }


def numbers(facts: Mapping[str, Any], channels: Sequence[str], axes: str = "") -> dict[str, float]:
    """The facts of one case that have a range, {name: number}; those of a channel only if the case has it.

    Args:
      facts: from `profile`; those of earlier versions are fewer.
      channels: of the images.
      axes: the orientation in whose order the sides are given; "": as stored.
    """
    order = orientation.order(facts.get("axes", ""), axes)
    sides = [key for key in ("spacing_mm", "extent_mm") if key in facts]
    flat = {f"{key}.{place}": facts[key][axis] for key in sides for place, axis in enumerate(order)}
    flat |= {key: facts[key] for key in ("brain_ml", "empty", "across_ml") if key in facts}
    for name in [name for name in channels if name in facts["percentiles"]]:
        flat |= {f"percentile.{number}.{name}": value for number, value in enumerate(facts["percentiles"][name])}
        low, middle, high = facts["percentiles"][name]
        flat[f"middle.{name}"] = (middle - low) / (high - low) if high > low else 0.0
        flat |= {f"covered.{name}": facts["covered"][name]} if "covered" in facts else {}
    return flat


def volume_ml(case: Case, value: int) -> float:
    """The volume of a class in ml."""
    assert case.labels is not None
    return float((case.labels == value).sum() * case.voxel_ml)


def describe(dataset: Dataset) -> dict[str, Any]:
    """What was read, for data.json. Two descriptions are equal only if files and settings are equal.

    Returns:
      channels, classes and label values; units: those to which channels were brought; cases: for each case its shape,
      its spacing in mm, its class volumes in ml (None without labels), the percentiles of each channel in the brain,
      and the SHA-256 of each file; profiles: for each case the other facts of `profile`, and `across_ml` if it has
      labels.
    """
    profiles = {}
    for case in dataset.cases:
        profiles[case.name] = profile(case, dataset.channels)
        if case.labels is not None:
            profiles[case.name]["across_ml"] = across_ml(case.labels, case)
    return {
        "channels": list(dataset.channels),
        "classes": list(dataset.classes),
        "label_values": list(dataset.label_values),
        "phantom": dataset.phantom,
        "layout": dataset.layout,
        "units": {"ADC": adc.UNIT} if "ADC" in dataset.channels else {},
        "cases": {case.name: _describe_case(case, dataset, profiles[case.name]) for case in dataset.cases},
        # Not among the cases, because those are compared with the cases of runs of earlier versions.
        "profiles": {
            name: {key: facts[key] for key in facts if key not in ("shape", "spacing_mm", "percentiles")}
            for name, facts in profiles.items()
        },
    }


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The cases at which two descriptions differ, or which only one has, by name; each is the `cases` of `describe`.

    A run that did not know the site of a case did not make its folds by it, so a site that one of them lacks does not
    count.
    """

    def without_site(facts: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in facts.items() if key != "site"}

    apart = files.differing(one, other)
    both = {name: (one[name], other[name]) for name in apart if name in one and name in other}
    same = {
        name
        for name, (first, second) in both.items()
        if not ("site" in first and "site" in second) and without_site(first) == without_site(second)
    }
    return [name for name in apart if name not in same]


def copies(description: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on labelled cases of different patients that hold the same image.

    Args:
      description: from `describe`.

    Returns:
      One sentence for each group of such cases.
    """
    holders: dict[str, list[str]] = {}
    patients = {}
    for name, facts in description["cases"].items():
        patients[name] = facts.get("patient", name)
        if facts["volume_ml"] is not None:
            # The images stand before the labels, which may be empty in many cases.
            for digest in list(facts["sha256"].values())[: len(facts["percentiles"])]:
                holders.setdefault(digest, []).append(name)
    groups = [names for names in holders.values() if len({patients[name] for name in names}) > 1]
    why = "a network that is trained on one knows the other; leave one out, or name one patient for both"
    return tuple(f"the same image in {' and '.join(names)}: {why}" for names in dict.fromkeys(map(tuple, groups)))


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """The files by their names; by their paths from a common folder if two have one name."""
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        common = os.path.commonpath(list(map(os.path.abspath, paths)))
        names = [os.path.relpath(path, common) for path in paths]
    return dict(zip(names, paths, strict=True))


def _describe_case(case: Case, dataset: Dataset, facts: dict[str, Any]) -> dict[str, Any]:
    volumes = None
    if case.labels is not None:
        volumes = {name: round(volume_ml(case, value), 3) for value, name in enumerate(dataset.classes, 1)}
    return {
        "shape": facts["shape"],
        "spacing_mm": facts["spacing_mm"],
        "volume_ml": volumes,
        "percentiles": facts["percentiles"],
        **{key: value for key, value in (("patient", case.patient), ("site", case.site)) if value},
        "sha256": {name: files.sha256(path) for name, path in _names(case.files).items()},
    }
