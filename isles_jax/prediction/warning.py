"""Warnings about a new case: each names what was seen, and what was expected from the training cases.

A fact is expected in its range over the training cases. The range is widened on both sides by its own width, because a
new patient often lies a little outside of what a few cases show.

What cannot change a prediction raises no warning: the axes along which a case is stored if the run turns all cases to
one orientation, an empty rim, and the gain and offset of a channel without a unit, because each channel is normalised.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isles_jax.data.case import Case
from isles_jax.data.profile import PERCENTILES, across_ml, numbers, right_side
from isles_jax.prediction.expected import LEAST_CASES
from isles_jax.scoring.clinical import TMAX_SECONDS

Facts = Mapping[str, Any]
# The smallest and the largest value over the training cases, by fact.
Ranges = Mapping[str, list[float]]
# A range is widened by at least this share of its largest value.
_RELATIVE = 0.05
# Shares of voxels that differ by no more than this count as equal.
_SHARE = 0.05
# A lesion may lie across the midline by this much more than in training, because the midline is only estimated.
_ACROSS_ML = 1.0
# Channels whose values have a unit, so that a number says something of the tissue.
_WITH_UNIT = ("ADC", "Tmax", "TTP", "MTT", "CBF", "CBV")
# The volumes that the folds' networks find alone may differ by this factor, with so many ml added to each of them.
_FOLDS_APART, _OFFSET_ML = 4.0, 1.0
# Tmax may exceed the threshold of the tissue at risk in this share of the brain's better half.
_DELAYED = 0.1
# A lesion may be this much larger than the largest of the training cases.
_LARGER = 1.25


def notes(expected: Facts) -> list[str]:
    """The checks that are left out because the run does not hold what they need, one sentence each."""
    if not expected.get("norms", {}).get("cases"):
        return ["the run does not describe its training cases, so no image is compared with them"]
    left_out = []
    ranges = expected["norms"]["ranges"]
    if "brain_ml" in ranges and "extent_mm.0" not in ranges:
        left_out.append("an earlier version began this run; the brain's extent is not compared")
    if "brain_ml" not in ranges:
        facts = "axes, brain volume and extent, skull-stripping, coverage and the midline"
        left_out.append(f"an earlier version began this run; {facts} are not compared")
    if "least_dice" not in expected:
        left_out.append("the run is not scored; there are no intervals, and the folds' agreement is not compared")
    few = [len(errors) for errors in expected.get("errors", {}).values() if len(errors) < LEAST_CASES]
    if few:
        left_out.append(f"the run has {min(few)} scored cases; intervals of volumes need {LEAST_CASES}")
    return left_out


def of_absent(case: Case) -> list[str]:
    """What is not compared of a case that lacks a channel, and what that means for the numbers; one sentence each."""
    instead = "the networks saw zeros in its place, and may do worse than the run's intervals and Dice say"
    return [f"{name}, which this case lacks: {instead}" for name in case.absent]


def of_delay(case: Case, channels: Sequence[str]) -> tuple[list[str], list[str]]:
    """The warning that the blood arrives late on both sides, and the sentence that this was not checked.

    An artery blocked on one side delays the blood on that side. If Tmax is above its threshold in much of the better
    half, too, the circulation or the artery that was measured may be the reason, because Tmax is mainly a delay
    (Calamante et al., Stroke 2010). The volumes above thresholds of Tmax then say little of the stroke.

    Args:
      case: with Tmax in seconds, or without it.
      channels: names of the images' channels.
    """
    if "Tmax" not in channels or "Tmax" in case.absent:
        return [], []
    if not case.oriented:
        return [], ["the header does not say where left is; Tmax of the two halves is not compared"]
    late = case.images[..., list(channels).index("Tmax")] > TMAX_SECONDS
    right = right_side(case)
    halves = [case.brain & half for half in (right, ~right)]
    share = min(float(late[half].mean()) for half in halves if half.any())
    if share <= _DELAYED:
        return [], []
    return [
        f"Tmax is above {TMAX_SECONDS:g} s in {100 * share:.3g}% of the better half of the brain; expected at most "
        f"{100 * _DELAYED:.3g}%: the blood may arrive late on both sides, and volumes by Tmax then say little of a "
        "stroke"
    ], []


def of_images(facts: Facts, channels: Sequence[str], expected: Facts) -> list[str]:
    """Warnings about the images of a case; none about a channel that it lacks.

    Args:
      facts: from `profile.profile`.
      channels: names of the images' channels.
      expected: from `expected.read`.
    """
    norms = expected.get("norms", {})
    if not norms.get("cases"):
        return []
    ranges = norms["ranges"]
    as_in = f"as in the {norms['cases']} training cases"
    turned_to = norms.get("turned_to", "")
    seen = numbers(facts, channels, turned_to)
    found = []
    for key, title in (("spacing_mm", "voxels"), ("extent_mm", "a brain")):
        sides = [f"{key}.{axis}" for axis in range(3)]
        if sides[0] in ranges and any(
            _outside(seen[side], ranges[side], _RELATIVE * ranges[side][1]) for side in sides
        ):
            shown = " x ".join(f"{seen[side]:.4g}" for side in sides)
            wanted = " x ".join(_text(ranges[side]) for side in sides)
            found.append(f"{title} of {shown} mm; expected {wanted} mm, {as_in}")
    if not turned_to and facts["axes"] and norms["axes"] and facts["axes"] not in norms["axes"]:
        found.append(f"stored axes point to {facts['axes']}; expected {' or '.join(norms['axes'])}, {as_in}")
    there = [name for name in channels if name in facts["percentiles"]]
    return found + _skull(seen, ranges, as_in) + _channels(seen, there, ranges, as_in)


def _skull(seen: Mapping[str, float], ranges: Ranges, as_in: str) -> list[str]:
    if "empty" not in ranges:
        return []
    if seen["empty"] < _SHARE < ranges["empty"][0]:
        wanted = _text([100 * share for share in ranges["empty"]])
        return [f"{100 * seen['empty']:.3g}% of the voxels are 0; expected {wanted}%, {as_in}: is it skull-stripped?"]
    if _outside(seen["brain_ml"], ranges["brain_ml"], _RELATIVE * ranges["brain_ml"][1]):
        return [f"a brain of {seen['brain_ml']:.4g} ml; expected {_text(ranges['brain_ml'])} ml, {as_in}"]
    return []


def _channels(seen: Mapping[str, float], channels: Sequence[str], ranges: Ranges, as_in: str) -> list[str]:
    """At most one warning for each channel: constant, missing from the brain, swapped with another, or out of range."""
    values = {name: _percentiles(seen, name) for name in channels}
    found = []
    for name, own in values.items():
        covered = seen[f"covered.{name}"]
        least = ranges.get(f"covered.{name}", [0.0])[0]
        wanted = ", ".join(map(_text, _percentiles(ranges, name)))
        if own[0] == own[-1]:
            found.append(f"{name} is {own[0]:.4g} in the whole brain; expected percentiles of {wanted}, {as_in}")
        elif covered < least - _SHARE:
            shares = f"{100 * covered:.3g}% of the brain; expected at least {100 * least:.3g}%"
            found.append(f"{name} covers {shares}, {as_in}")
        elif not _fits(own, ranges, name):
            fitting = [other for other in channels if other != name and _fits(own, ranges, other)]
            others = [other for other in fitting if _fits(values[other], ranges, name)]
            hint = f"; they fit {' and '.join(others)}: are the channels swapped?" if others else ""
            shown = ", ".join(f"{value:.4g}" for value in own)
            if others or name in _WITH_UNIT or not _same_shape(seen, ranges, name):
                found.append(f"{name} has the percentiles {shown} in the brain; expected {wanted}, {as_in}{hint}")
    return found


def _same_shape(seen: Facts, ranges: Ranges, name: str) -> bool:
    """Whether the median lies where it is expected between the two other percentiles, whatever gain and offset are."""
    key = f"middle.{name}"
    return key not in ranges or not _outside(seen[key], ranges[key], _SHARE)


def _percentiles(facts: Facts, name: str) -> list[Any]:
    return [facts[f"percentile.{number}.{name}"] for number in range(len(PERCENTILES))]


def _fits(values: Sequence[float], ranges: Ranges, name: str) -> bool:
    limits = _percentiles(ranges, name)
    floor = _RELATIVE * max(abs(value) for pair in limits for value in pair)
    return not any(_outside(value, pair, floor) for value, pair in zip(values, limits, strict=True))


def of_prediction(
    labels: np.ndarray, case: Case, folds_dice: float | None, folds_ml: Sequence[float], expected: Facts
) -> list[str]:
    """Warnings about a prediction.

    Args:
      labels: uint8 [X, Y, Z].
      case: that was predicted.
      folds_dice: how far the folds agree on the whole lesion; None for a single fold.
      folds_ml: the volume of the whole lesion that each fold's network finds alone.
      expected: from `expected.read`.
    """
    found = []
    norms = expected.get("norms", {})
    if folds_dice is not None and folds_dice < expected.get("least_dice", 0.0):
        found.append(
            f"the folds' networks agree with a Dice of {folds_dice:.3f}; expected at least "
            f"{expected['least_dice']:.3f}, the least Dice of a held-out prediction with its reference"
        )
    least, most = min(folds_ml), max(folds_ml)
    if most + _OFFSET_ML > _FOLDS_APART * (least + _OFFSET_ML):
        found.append(
            f"the folds' networks alone find {least:.4g} to {most:.4g} ml; expected volumes that differ by a factor of "
            f"{_FOLDS_APART:.3g} at most, with {_OFFSET_ML:.3g} ml added to each"
        )
    if not norms.get("cases"):
        return found
    ranges = norms["ranges"]
    cases = f"the {norms['cases']} training cases"
    total = float((labels > 0).sum() * case.voxel_ml)
    least, most = ranges["lesion_ml"]
    if total > most * _LARGER:
        found.append(f"the lesion fills {total:.4g} ml; expected at most {most:.4g} ml, the largest of {cases}")
    if total == 0 < least:
        found.append(f"no lesion was found; expected one of {least:.4g} ml or more, as in {cases}")
    if "across_ml" in ranges:
        across = across_ml(labels, case)
        limit = ranges["across_ml"][1] + _ACROSS_ML
        if across > limit:
            sides = f"with {across:.4g} ml on its smaller side; expected at most {limit:.4g} ml"
            found.append(f"a lesion crosses the midline, {sides}, from {cases}")
    return found


def _outside(value: float, limits: Sequence[float], floor: float) -> bool:
    low, high = limits
    slack = max(high - low, floor)
    return not low - slack <= value <= high + slack


def _text(limits: Sequence[float]) -> str:
    low, high = (f"{value:.4g}" for value in limits)
    return low if low == high else f"{low} to {high}"
