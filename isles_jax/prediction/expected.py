"""What is expected of a new case: images like those of the training cases, and errors like those of held-out cases.

The interval of a volume is a split conformal one (Lei et al., JASA 2018). The error of a held-out case is
|log((true + 1 ml) / (predicted + 1 ml))|. It is relative to the volume, so a large lesion may have a wider interval,
and 1 ml keeps small lesions from dominating. With n held-out cases, the ceil(0.9 (n + 1))th smallest error spans the
interval. The interval then holds the true volume of a new case with a probability of at least 0.9, if this case is
drawn as the training cases were. A lesion lies in the brain, so the interval ends at 0 and at the volume of the brain.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from isles_jax.data import orientation, profile
from isles_jax.data.case import WHOLE_LESION, Case, of_phantom
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.scoring import calibration, run_files, scores
from isles_jax.scoring.scores import Row
from isles_jax.training.task import Task
from isles_jax.training.weights import SUFFIX, Trained

LEVEL = 0.9
# With fewer, the rank of `quantile` is above the number of errors.
LEAST_CASES = 9
_NUMBER = (int, float)
_FORM: dict[str, Any] = {
    "norms": {"cases": int, "ranges": {}, "axes": [str]},
    "dice": {},
    "least_dice": _NUMBER,
    "errors": {},
    "coverage": {},
    "temperature": (dict, type(None)),
}
_TEMPERATURE: dict[str, Any] = {"value": _NUMBER, "error": [_NUMBER], "pays": bool}
# What these keys hold for each class.
_VALUES: dict[str, Any] = {"dice": _NUMBER, "errors": [_NUMBER], "coverage": (*_NUMBER, type(None))}
_OFFSET_ML = 1.0


def known(run: epath.PathLike, trained: Trained) -> Mapping[str, Any]:
    """What is expected of a new case: taken from a file of weights, or `read` from the workdir of a run."""
    path = files.location(run)
    expected = trained.expected if path.suffix == SUFFIX else read(path)
    wrong = _misfit(expected, trained.task.channels)
    if wrong:
        raise InputError(f"{path}: found {wrong}, expected what was written of the training cases")
    return expected


def _misfit(expected: Any, channels: Sequence[str]) -> str:
    """Where `expected` differs from what `read` gives; "" if it does not."""
    wrong = files.misfit(expected, {})
    wrong = wrong or files.misfit(expected, {key: form for key, form in _FORM.items() if key in expected})
    if wrong:
        return wrong
    if expected.get("temperature"):
        found = expected["temperature"]
        wrong = wrong or files.misfit(found, _TEMPERATURE, "temperature")
        if not wrong and (found["value"] not in calibration.TEMPERATURES or len(found["error"]) != 2):
            wrong = f"the temperature {found['value']!r}"
    for key, kind in _VALUES.items():
        values = expected.get(key, {})
        wrong = wrong or files.misfit(values, dict.fromkeys(values, kind))
    norms = expected.get("norms", {"cases": 0, "ranges": {}})
    ranges = norms["ranges"]
    wrong = wrong or files.misfit(ranges, {key: [_NUMBER] for key in ranges})
    if wrong:
        return wrong
    if not all(len(pair) == 2 and all(map(math.isfinite, pair)) for pair in ranges.values()):
        return "a range without two finite ends"
    needed = [f"percentile.{number}.{name}" for name in channels for number in range(len(profile.PERCENTILES))]
    needed += ["lesion_ml", *(f"spacing_mm.{axis}" for axis in range(3))]
    missing = [key for key in needed if key not in ranges and norms["cases"]]
    if missing:
        return f"no range of {missing[0]}"
    axes = norms.get("turned_to", "")
    return "" if axes in ("", *orientation.ALL) else f"the axes {axes!r}"


def read(workdir: epath.Path) -> dict[str, Any]:
    """What a run tells us to expect of a new case, as JSON can hold it. It names no case.

    Returns:
      norms: see `profile.norms`; missing without data.json. The other keys need cases.csv, which a run has once all its
      folds are scored. dice: the mean of each class. least_dice: the smallest Dice of the whole lesion over the
      held-out cases that have a lesion. errors: those of each class's volume, ascending. coverage: for each class, the
      share of held-out cases whose interval from the other cases' errors holds the true volume; None if there are too
      few cases. temperature: see `calibration.temperature`, of a run with calibration.json. held_out: of each file of
      the training cases, by its SHA-256, the fold that held its case out.

    Raises:
      InputError: data.json or cases.csv is damaged, or a file of a finished run has changed.
    """
    run_files.check_seal(workdir)
    expected: dict[str, Any] = {}
    path = workdir / "data.json"
    if path.exists():
        description = files.read_json_like(path, {"cases": {}, "channels": [str]})
        try:
            expected["norms"] = profile.norms(description)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: found no facts of the cases, expected the file as it was written") from error
        expected["held_out"] = _held_out(workdir, description["cases"])
    path = workdir / "calibration.json"
    if path.exists():
        expected["temperature"] = files.read_json_like(path, {"cases": int}).get("temperature")
    path = workdir / "cases.csv"
    return expected | (of_scores(scores.read_cases_csv(path)) if path.exists() else {})


def _held_out(workdir: epath.Path, cases: Mapping[str, Any]) -> dict[str, int]:
    """{SHA-256 of a file: the fold that held its case out}; empty for a run whose folds are not there."""
    path = workdir / "folds.json"
    folds = files.read_json_like(path, [[str]]) if path.exists() else []
    sums = {name: facts.get("sha256", {}).values() for name, facts in cases.items()}
    return {one: number for number, names in enumerate(folds) for name in names for one in sums.get(name, ())}


def on_phantom(expected: Mapping[str, Any], task: Task) -> bool:
    """Whether the networks were trained on a phantom, and not on patients."""
    return bool(expected.get("norms", {}).get("phantom", not task.config.data.root))


def for_case(expected: Mapping[str, Any], case: Case, task: Task) -> Mapping[str, Any]:
    """What is expected of this case. The errors on a phantom say nothing of a patient, so they are left out."""
    if not on_phantom(expected, task) or of_phantom(case):
        return expected
    return {key: value for key, value in expected.items() if key not in ("dice", "errors", "coverage")}


def seen_in_training(expected: Mapping[str, Any], case: Case, folds: Sequence[int]) -> str:
    """A sentence on a case whose files are among the training data; "" for a new case.

    Args:
      expected: from `read`.
      case: that is predicted.
      folds: the numbers of those whose networks predict it.
    """
    held_out = expected.get("held_out", {})
    fold = next((held_out[one] for one in map(files.sha256, case.files) if one in held_out), None)
    if fold is None:
        return ""
    known = "this case is among the training data of the run"
    others = [str(number) for number in folds if number != fold]
    if not others:
        return f"{known}; fold {fold}, which predicts it, held it out"
    trained = f"network of fold {others[0]} was" if len(others) == 1 else f"networks of folds {', '.join(others)} were"
    return (
        f"{known}; the {trained} trained on it, so the prediction is better than that of a new case "
        f"(--folds={fold} predicts it with the fold that held it out)"
    )


def of_scores(rows: Sequence[Row]) -> dict[str, Any]:
    """The part of `read` that follows from the scores of the held-out cases."""
    classes = scores.means(rows)["classes"]
    whole = WHOLE_LESION if WHOLE_LESION in classes else next(iter(classes))
    errors = {
        name: sorted(_error(row["volume_pred_ml"], row["volume_true_ml"]) for row in rows if row["class"] == name)
        for name in classes
    }
    agreement = [row["dice"] for row in rows if row["class"] == whole and row["volume_true_ml"] > 0]
    return {
        "dice": {name: round(row["dice"]["mean"], 6) for name, row in classes.items()},
        "least_dice": min(agreement, default=0.0),
        "errors": errors,
        "coverage": {name: coverage(values) for name, values in errors.items()},
    }


def _error(predicted_ml: float, true_ml: float) -> float:
    return abs(math.log((true_ml + _OFFSET_ML) / (predicted_ml + _OFFSET_ML)))


def quantile(errors: Sequence[float]) -> float | None:
    """The error that a new case exceeds with a probability of at most 1 - `LEVEL`; None if there are too few errors.

    Args:
      errors: ascending.
    """
    rank = math.ceil(LEVEL * (len(errors) + 1) - 1e-9)
    return errors[rank - 1] if rank <= len(errors) else None


def coverage(errors: Sequence[float]) -> float | None:
    """The share of errors that the quantile of the others covers; None if there are too few."""
    inside = 0
    for place, error in enumerate(errors):
        span = quantile([*errors[:place], *errors[place + 1 :]])
        if span is None:
            return None
        inside += error <= span
    return round(inside / len(errors), 4) if errors else None


def interval(volume_ml: float, errors: Sequence[float], brain_ml: float) -> tuple[float, float] | None:
    """The interval of a volume in ml; None if there are too few errors.

    It ends at 0 and at the volume of the brain, or at the predicted volume if that is larger.
    """
    span = quantile(errors)
    if span is None:
        return None
    low, high = ((volume_ml + _OFFSET_ML) * math.exp(sign * span) - _OFFSET_ML for sign in (-1, 1))
    return round(max(low, 0.0), 6), round(min(high, max(brain_ml, volume_ml)), 6)
