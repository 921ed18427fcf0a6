"""Checks that the labels agree with the images, and describes exactly what was read."""

import hashlib
from typing import Any

import numpy as np

from isles_jax.data import profile
from isles_jax.data.case import Case, Dataset
from isles_jax.runtime.command import InputError


def verify_labels(dataset: Dataset) -> None:
    """Checks, over all labelled cases, that core is smaller and brighter in DWI than penumbra, whose Tmax is raised.

    Does nothing if the classes are not called penumbra and core, or if there is no DWI or no Tmax.

    Raises:
      InputError: the images contradict the labels; the message names the settings that would agree.
    """
    labelled = [case for case in dataset.cases if case.labels is not None]
    if set(dataset.classes) != {"penumbra", "core"} or not {"Tmax", "DWI"} <= set(dataset.channels) or not labelled:
        return
    facts = {name: _class_facts(labelled, dataset.channels, value) for value, name in enumerate(dataset.classes, 1)}
    penumbra, core = facts["penumbra"], facts["core"]
    if _agree(penumbra, core):
        return
    measured = "; ".join(
        f"{name} {fact['ml']:.0f} ml, DWI {fact['DWI']:+.2f}, Tmax {fact['Tmax']:+.2f}" for name, fact in facts.items()
    )
    head = (
        f"{dataset.root}: the images contradict the labels: {measured} (standard deviations above the healthy brain); "
        "expected core smaller and brighter in DWI, and Tmax raised in penumbra"
    )
    if any(len(case.files) == len(dataset.channels) + 2 for case in labelled) and not penumbra["ml"] > core["ml"]:
        raise InputError(f"{head}; exchanging the files named penumbralabel and corelabel would agree")
    if not _agree(core, penumbra):
        raise InputError(f"{head}; exchanging the two would not agree either")
    if (dataset.root / "dataset.json").is_file():
        raise InputError(f"{head}; exchanging the names penumbra and core in dataset.json would agree")
    first, second = dataset.label_values
    raise InputError(
        f"{head}; --config.data.labels.penumbra={second} --config.data.labels.core={first} would agree"
        f" (evaluate: --values={second},{first}; convert: --penumbra={second} --core={first})"
    )


def _agree(penumbra: dict[str, float], core: dict[str, float]) -> bool:
    return core["ml"] < penumbra["ml"] and core["DWI"] > penumbra["DWI"] and penumbra["Tmax"] > 0


def _class_facts(cases: list[Case], channels: tuple[str, ...], value: int) -> dict[str, float]:
    """The total volume of a class in ml, and its mean elevation over the healthy brain in DWI and in Tmax.

    The elevation is in standard deviations of the healthy brain and averaged over cases. A class that no case has gets
    volume 0 and NaN for the elevations, so that every comparison with it fails.
    """
    facts = {"ml": sum(volume_ml(case, value) for case in cases)}
    for name in ("DWI", "Tmax"):
        elevations = []
        for case in cases:
            assert case.labels is not None
            inside, channel = case.labels == value, case.images[..., channels.index(name)]
            healthy = channel[case.brain & (case.labels == 0)]
            if inside.any() and healthy.size:
                elevations.append((channel[inside].mean() - np.median(healthy)) / (healthy.std() + 1e-12))
        facts[name] = float(np.mean(elevations)) if elevations else float("nan")
    return facts


def volume_ml(case: Case, value: int) -> float:
    """The volume of a class in ml."""
    assert case.labels is not None
    return float((case.labels == value).sum() * case.voxel_ml)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Describes what was read, for data.json. Two descriptions are equal only if files and settings are equal.

    Returns:
      channels, classes and label values; for each case its shape, its spacing in mm, its class volumes in ml (None
      without labels), the percentiles of each channel in the brain, and the SHA-256 of each file; profiles: for each
      case the other facts of `profile.profile`, and `profile.across_ml` if it has labels.
    """
    profiles = {case.name: _profile(case, dataset) for case in dataset.cases}
    return {
        "channels": list(dataset.channels),
        "classes": list(dataset.classes),
        "label_values": list(dataset.label_values),
        "phantom": dataset.phantom,
        "layout": dataset.layout,
        "cases": {case.name: _describe_case(case, dataset, profiles[case.name]) for case in dataset.cases},
        # Apart from the cases, which are compared with those of runs of earlier versions.
        "profiles": {
            name: {key: facts[key] for key in facts if key not in ("shape", "spacing_mm", "percentiles")}
            for name, facts in profiles.items()
        },
    }


def _profile(case: Case, dataset: Dataset) -> dict[str, Any]:
    facts = profile.profile(case, dataset.channels)
    return facts if case.labels is None else facts | {"across_ml": profile.across_ml(case.labels, case)}


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
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in case.files},
    }
