"""Facts about a data set: do the labels fit the images, and what exactly was read."""

import hashlib
from typing import Any

import numpy as np

from isles_jax.data.case import Case, Dataset
from isles_jax.runtime.command import InputError

PERCENTILES = (0.5, 50.0, 99.5)


def verify_labels(dataset: Dataset) -> None:
    """Checks, over all labelled cases, that core is the smaller and DWI-brighter class and penumbra's Tmax is raised.

    Data sets whose classes are not called penumbra and core, or that lack a DWI and a Tmax channel, are not checked.

    Raises:
      InputError: the data contradict the labels; says which setting would agree.
    """
    labelled = [case for case in dataset.cases if case.labels is not None]
    if set(dataset.classes) != {"penumbra", "core"} or not {"Tmax", "DWI"} <= set(dataset.channels) or not labelled:
        return
    facts = {name: _class_facts(labelled, dataset.channels, value) for value, name in enumerate(dataset.classes, 1)}
    penumbra, core = facts["penumbra"], facts["core"]
    if _agree(penumbra, core):
        return
    found = "; ".join(
        f"{name} {fact['ml']:.0f} ml, DWI {fact['DWI']:+.2f}, Tmax {fact['Tmax']:+.2f}" for name, fact in facts.items()
    )
    head = (
        f"{dataset.root}: the images contradict the labels: {found} (standard deviations above the healthy brain); "
        "expected core smaller and brighter in DWI, and Tmax raised in penumbra"
    )
    if any(len(case.files) == len(dataset.channels) + 2 for case in labelled) and not penumbra["ml"] > core["ml"]:
        raise InputError(f"{head}; exchanging the files named penumbralabel and corelabel would agree")
    if not _agree(core, penumbra):
        raise InputError(f"{head}; exchanging the two would not agree either")
    if (dataset.root / "dataset.json").is_file():
        raise InputError(f"{head}; exchanging the names penumbra and core in dataset.json would agree")
    first, second = dataset.label_values
    raise InputError(f"{head}; --config.data.labels.penumbra={second} --config.data.labels.core={first} would agree")


def _agree(penumbra: dict[str, float], core: dict[str, float]) -> bool:
    return core["ml"] < penumbra["ml"] and core["DWI"] > penumbra["DWI"] and penumbra["Tmax"] > 0


def _class_facts(cases: list[Case], channels: tuple[str, ...], value: int) -> dict[str, float]:
    """Volume over all cases in ml, and the mean over cases of how far a class lies above the healthy brain.

    A class that no case holds has volume 0 and NaN for the rest, which agrees with nothing.
    """
    facts = {"ml": sum(volume_ml(case, value) for case in cases)}
    for name in ("DWI", "Tmax"):
        raised = []
        for case in cases:
            assert case.labels is not None
            inside, channel = case.labels == value, case.images[..., channels.index(name)]
            healthy = channel[case.brain & (case.labels == 0)]
            if inside.any() and healthy.size:
                raised.append((channel[inside].mean() - np.median(healthy)) / (healthy.std() + 1e-12))
        facts[name] = float(np.mean(raised)) if raised else float("nan")
    return facts


def volume_ml(case: Case, value: int) -> float:
    """The volume of a class in ml."""
    assert case.labels is not None
    return float((case.labels == value).sum() * abs(np.linalg.det(case.affine[:3, :3])) / 1000)


def describe(dataset: Dataset) -> dict[str, Any]:
    """What was read, for data.json: equal if and only if the data and their reading are equal.

    Returns:
      channels, classes, label values, and for each case its shape, spacing in mm, class volumes in ml (None without
      labels), in-brain intensity percentiles of each channel, and the SHA-256 of its files by name.
    """
    return {
        "channels": list(dataset.channels),
        "classes": list(dataset.classes),
        "label_values": list(dataset.label_values),
        "phantom": dataset.phantom,
        "cases": {case.name: _describe_case(case, dataset) for case in dataset.cases},
    }


def _describe_case(case: Case, dataset: Dataset) -> dict[str, Any]:
    inside = case.images[case.brain]
    quantiles = np.percentile(inside, PERCENTILES, axis=0).T
    volumes = None
    if case.labels is not None:
        volumes = {name: round(volume_ml(case, value), 3) for value, name in enumerate(dataset.classes, 1)}
    return {
        "shape": list(case.images.shape[:3]),
        "spacing_mm": [round(side, 4) for side in case.spacing_mm],
        "volume_ml": volumes,
        "percentiles": {
            name: [float(f"{value:.5g}") for value in row]
            for name, row in zip(dataset.channels, quantiles, strict=True)
        },
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in case.files},
    }
