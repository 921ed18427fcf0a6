"""Cross-validation folds, by patient."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isles_jax.runtime.command import InputError
from isles_jax.runtime.files import read_json, write_json


def make_folds(names: Sequence[str], folds: int, seed: int) -> list[list[str]]:
    """Divides the cases at random into folds whose sizes differ by at most one.

    Args:
      names: one for each patient; their order does not matter.
      folds: at least 2.
      seed: decides which case is in which fold.

    Returns:
      The held-out names of each fold, sorted.

    Raises:
      InputError: fewer than two folds or more folds than cases.
    """
    if not 2 <= folds <= len(names):
        raise InputError(f"--config.folds={folds}: expected 2 to {len(names)}, the number of labelled cases")
    order = np.random.default_rng(seed).permutation(sorted(names))
    return [sorted(part.tolist()) for part in np.array_split(order, folds)]


def read_or_write(path: Path, names: Sequence[str], folds: int, seed: int) -> list[list[str]]:
    """Reads the folds from `path`; makes and writes them if the file does not exist.

    Raises:
      InputError: the file is damaged; it does not hold `folds` folds of exactly these cases.
    """
    if not path.exists():
        new = make_folds(names, folds, seed)
        write_json(path, new)
        return new
    try:
        read = read_json(path)
        assigned = [name for part in read for name in part]
        well_formed = all(isinstance(name, str) for name in assigned) and all(isinstance(part, list) for part in read)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: not a readable list of folds ({error}); expected the file as it was written"
        ) from error
    if not well_formed or len(read) != folds:
        raise InputError(f"{path}: holds {len(read)} folds; expected {folds} lists of case names")
    for problem, cases in (
        ("does not hold the case", set(names) - set(assigned)),
        ("holds a case that the data lack,", set(assigned) - set(names)),
        ("holds twice the case", {name for name in assigned if assigned.count(name) > 1}),
    ):
        if cases:
            raise InputError(f"{path}: {problem} {min(cases)}; expected the folds of these data")
    if not all(read):
        raise InputError(f"{path}: one of its folds is empty; expected a case in each")
    return read
