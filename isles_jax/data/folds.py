"""Cross-validation folds, by patient or by site, or given by the user."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from isles_jax.data.case import Case, check_complete
from isles_jax.runtime.command import InputError
from isles_jax.runtime.files import read_json


def group(cases: Sequence[Case], by: str) -> dict[str, str]:
    """The group of each case, by the case's name: its patient, or its site if `by` is "site".

    Raises:
      InputError: the site of a case is not known; a patient was scanned at two sites.
    """
    patients = {case.name: case.patient or case.name for case in cases}
    if by != "site":
        return patients
    sites: dict[str, str] = {}
    for case in cases:
        patient = patients[case.name]
        if not case.site:
            raise InputError(
                f"--config.folds_by=site: found no site of the case {case.name}, "
                "expected it in the column 'site' of cases.csv, or of participants.tsv in BIDS"
            )
        if sites.setdefault(patient, case.site) != case.site:
            raise InputError(
                f"--config.folds_by=site: the patient {patient} has scans at {sites[patient]} and {case.site}; "
                "expected one site"
            )
    return {case.name: case.site for case in cases}


def make_folds(names: Sequence[str], folds: int, seed: int, groups: Mapping[str, str] | None = None) -> list[list[str]]:
    """Divides the cases at random into folds whose numbers of groups differ by at most one. No group is divided.

    Args:
      names: of the cases; their order does not matter.
      folds: at least 2.
      seed: decides which group is in which fold.
      groups: from `group`; None: each case is a group of its own.

    Returns:
      The held-out names of each fold, sorted.

    Raises:
      InputError: fewer than two folds or more folds than groups.
    """
    of_case = {name: groups[name] if groups else name for name in names}
    every = sorted(set(of_case.values()))
    if not 2 <= folds <= len(every):
        kind = "labelled cases" if len(every) == len(names) else "patients or sites with labelled cases"
        raise InputError(f"--config.folds={folds}: expected 2 to {len(every)}, the number of {kind}")
    order = np.random.default_rng(seed).permutation(every)
    parts = [set(part.tolist()) for part in np.array_split(order, folds)]
    return [sorted(name for name in names if of_case[name] in part) for part in parts]


def read_or_make(
    path: Path,
    names: Sequence[str],
    folds: int,
    seed: int,
    groups: Mapping[str, str] | None = None,
    given: Path | None = None,
) -> list[list[str]]:
    """Reads a run's folds from `path`. If the file does not exist, they are those of `given`, or else new ones.

    `given` is the user's own file: lists of the held-out cases, or nnU-Net's splits_final.json. The other arguments are
    those of `make_folds`.

    Raises:
      InputError: a file is damaged; it does not hold `folds` folds of exactly these cases; a group is in two folds.
    """
    if path.exists():
        return _read(path, names, folds, groups)
    return _read(given, names, folds, groups) if given else make_folds(names, folds, seed, groups)


def _read(path: Path, names: Sequence[str], folds: int, groups: Mapping[str, str] | None) -> list[list[str]]:
    try:
        read: list[list[str]] = read_json(path)
        if isinstance(read, list):
            read = [part["val"] if isinstance(part, dict) and "val" in part else part for part in read]
        assigned = [name for part in read for name in part]
        well_formed = all(isinstance(name, str) for name in assigned) and all(isinstance(part, list) for part in read)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a readable list of folds ({error}); expected lists of case names") from error
    if not well_formed or len(read) != folds:
        raise InputError(f"{path}: holds {len(read)} folds; expected {folds} lists of case names")
    check_complete(path, assigned, names, "the folds of these data")
    if not all(read):
        raise InputError(f"{path}: one of its folds is empty; expected a case in each")
    fold_of: dict[str, int] = {}
    for number, part in enumerate(read):
        for name in part:
            if groups and fold_of.setdefault(groups[name], number) != number:
                raise InputError(f"{path}: {groups[name]} has cases in two folds; expected all of them in one")
    return read
