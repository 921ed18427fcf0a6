"""Checks of what was read: that the brains can be brains, and that the labels agree with the images."""

from collections.abc import Sequence

import numpy as np

from isles_jax.data.case import Case, Dataset
from isles_jax.data.folder import listed
from isles_jax.data.profile import volume_ml
from isles_jax.runtime.command import InputError

# The largest brains of adults have about 1,900 ml.
LARGEST_BRAIN_ML = 2200
# A skull-stripped image has more background than this share of its voxels.
LEAST_BACKGROUND = 0.05
# A lesion may fill this share of the brain.
LARGEST_LESION = 0.5


def brain_notes(cases: Sequence[Case]) -> tuple[str, ...]:
    """A note on the cases whose brain is too large to be one, or fills the image; none if there is no such case."""
    odd = [
        case
        for case in cases
        if case.brain.sum() * case.voxel_ml > LARGEST_BRAIN_ML or case.brain.mean() > 1 - LEAST_BACKGROUND
    ]
    if not odd:
        return ()
    first = odd[0]
    found = f"{first.brain.sum() * first.voxel_ml:.0f} ml, {100 * first.brain.mean():.0f}% of the image"
    return (
        f"{len(odd)} of {len(cases)} cases, such as {first.name}, have a brain of {found}; expected at most "
        f"{LARGEST_BRAIN_ML} ml with background around it; HD-BET and SynthStrip remove the skull (docs/dicom.md)",
    )


def label_notes(cases: Sequence[Case]) -> tuple[str, ...]:
    """A note on the cases whose label fills most of the brain, as the brain's own mask does; none without such a case.

    Masks of the brain are named like masks of a lesion, such as CASE_mask.nii.gz.
    """
    shares = {
        case.name: np.count_nonzero(case.labels) / case.brain.sum()
        for case in cases
        if case.labels is not None and case.brain.any()
    }
    large = [f"{name} ({100 * share:.0f}%)" for name, share in shares.items() if share > LARGEST_LESION]
    if not large:
        return ()
    return (f"the label fills more than half of the brain: {listed(large)}; is it a mask of the brain?",)


def verify_labels(dataset: Dataset) -> None:
    """Checks that core is smaller than penumbra and brighter in DWI, and that the Tmax of penumbra is raised.

    The measures are taken over all labelled cases that have both channels. Only data sets with the classes penumbra and
    core and the channels DWI and Tmax are checked.

    Raises:
      InputError: the images contradict the labels; the message names the settings that would agree.
    """
    measured_in = {"Tmax", "DWI"}
    labelled = [case for case in dataset.cases if case.labels is not None and not measured_in & set(case.absent)]
    if set(dataset.classes) != {"penumbra", "core"} or not measured_in <= set(dataset.channels) or not labelled:
        return
    facts = {name: _class_facts(labelled, dataset.channels, value) for value, name in enumerate(dataset.classes, 1)}
    penumbra, core = facts["penumbra"], facts["core"]
    if _agree(penumbra, core):
        return
    measured = "; ".join(
        f"{name} {fact['ml']:.0f} ml, DWI {fact['DWI']:+.2f}, Tmax {fact['Tmax']:+.2f}" for name, fact in facts.items()
    )
    first, second = dataset.label_values
    if any(len(case.files) == len(dataset.channels) + 2 for case in labelled) and not penumbra["ml"] > core["ml"]:
        remedy = "exchanging the files named penumbralabel and corelabel would agree"
    elif not _agree(core, penumbra):
        remedy = "exchanging the two would not agree either"
    elif dataset.layout in ("table", "nnU-Net"):
        where = dataset.root if dataset.layout == "table" else "dataset.json"
        remedy = f"exchanging the names penumbra and core in {where} would agree"
    else:
        remedy = (
            f"--config.data.labels.penumbra={second} --config.data.labels.core={first} would agree"
            f" (evaluate: --values={second},{first}; convert: --penumbra={second} --core={first})"
        )
    raise InputError(
        f"{dataset.root}: the images contradict the labels: {measured} (standard deviations above the healthy brain); "
        f"expected core smaller and brighter in DWI, and Tmax raised in penumbra; {remedy}"
    )


def _agree(penumbra: dict[str, float], core: dict[str, float]) -> bool:
    return core["ml"] < penumbra["ml"] and core["DWI"] > penumbra["DWI"] and penumbra["Tmax"] > 0


def _class_facts(cases: list[Case], channels: tuple[str, ...], value: int) -> dict[str, float]:
    """The total volume of a class in ml, and its mean elevation over the healthy brain in DWI and in Tmax.

    The elevation is in standard deviations of the healthy brain, and is the mean over cases. If no case has the class,
    the elevations are NaN, so that every comparison with them fails.
    """
    facts = {"ml": sum(volume_ml(case, value) for case in cases)}
    for name in ("DWI", "Tmax"):
        elevations = []
        for case in cases:
            assert case.labels is not None
            inside = case.labels == value
            channel = case.images[..., channels.index(name)]
            healthy = channel[case.brain & (case.labels == 0)]
            if inside.any() and healthy.size:
                elevations.append((channel[inside].mean() - np.median(healthy)) / (healthy.std() + 1e-12))
        facts[name] = float(np.mean(elevations)) if elevations else float("nan")
    return facts
