"""A folder of predictions: which run they are of, which files are theirs, and their table.

The hidden file `.predicted` names the run and the cases. It is written before the first file of a case, so it shows
that a file under the name of such a case is a prediction. Folders of earlier versions have none. There, each CASE.json
shows the same of its own case. CASE.json is the last file of a case, and summary.csv has a row for each CASE.json.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from isles_jax.prediction import numbers
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.runtime.lock import Held

RECORD = ".predicted"
TABLE = "summary.csv"
# The folders of maps that a command can write beside the label volumes.
MAPS = ("probabilities", "spread")
_RUN = {"run": str, "weights_sha256": str}
_OF_CASE = {"summary": {"case": str}, "origin": _RUN}


@dataclasses.dataclass(frozen=True)
class Record:
    """What a folder holds.

    Attributes:
      run: the name of the run, and the SHA-256 of its weights.
      cases: names of the cases that were begun, sorted.
    """

    run: Mapping[str, str]
    cases: Sequence[str]

    def __str__(self) -> str:
        """The run as a message names it."""
        return f"{self.run['run']} (weights {self.run['weights_sha256'][:8] or 'of several runs'})"


def paths_of(output: epath.Path, case: str) -> list[epath.Path]:
    """The files that a case has with all flags: the label volume, CASE.json, the page, the maps."""
    alone = [output / f"{case}{ending}" for ending in (".nii.gz", ".json", ".html")]
    return [*alone, *(output / name / f"{case}.nii.gz" for name in MAPS)]


def parts(cases: Sequence[str]) -> dict[int, str]:
    """The parts of the folder that a prediction of these cases works on, for `lock.hold`."""
    return {zlib.crc32(name.encode()) % ((1 << 30) - 1): f"the case {name}" for name in cases}


def begin(output: epath.Path, cases: Sequence[str], origin: Mapping[str, str], held: Held, *, overwrite: bool) -> None:
    """Records that the files of these cases are predictions of a run, and takes the rows of these cases away.

    Args:
      output: folder or bucket.
      cases: names of the cases that will be predicted.
      origin: of the predictions, with "run" and "weights_sha256".
      held: the locks of the cases; the caller is inside their context.
      overwrite: earlier predictions of these cases may be there.

    Raises:
      InputError: a file is there that no prediction wrote; a case was predicted and `overwrite` is not set; predictions
        of another run would stay in the folder, or another process is making some.
    """
    before = read(output)
    known = set(before.cases) if before else set()
    foreign = [path for name in cases if name not in known for path in _existing(output, name)]
    if before is None and files.is_there(output / TABLE):
        foreign.append(output / TABLE)
    if foreign:
        raise InputError(f"{foreign[0]}: found a file that no prediction wrote, expected none; choose another --output")
    existing = [path for name in cases for path in _existing(output, name)]
    new = Record({key: origin[key] for key in _RUN}, sorted(known.union(cases)))
    if before and before.run != new.run:
        new = dataclasses.replace(new, cases=sorted(cases))
        _refuse_mix(output, before, new, held, overwrite=overwrite)
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more of these cases' files" if existing[1:] else ""
        raise InputError(f"{existing[0]} exists{more}; choose another --output, or replace them with --overwrite")
    files.write_json(output / RECORD, {"run": dict(new.run), "cases": list(new.cases)})
    if (output / TABLE).exists():
        _write_table(output, [name for name in new.cases if name not in cases])


def _refuse_mix(output: epath.Path, before: Record, new: Record, held: Held, *, overwrite: bool) -> None:
    """Raises an InputError unless the new predictions replace all those of another run, and no process makes more."""
    there = [name for name in before.cases if _existing(output, name)]
    kept = [name for name in there if name not in new.cases]
    if kept or (there and not overwrite):
        found = f"found predictions of the run {before}, such as {(kept or there)[0]}; expected those of {new} alone"
        remedy = "" if kept else ", or replace them with --overwrite"
        raise InputError(f"{output}: {found}; choose another --output{remedy}")
    if not held.take_all():
        raise InputError(
            f"{output}: found another process at work with the run {before}, expected {new}; choose another --output"
        )


def _existing(output: epath.Path, case: str) -> list[epath.Path]:
    return [path for path in paths_of(output, case) if files.is_there(path)]


def read(output: epath.Path) -> Record | None:
    """What a folder holds; None if there is no prediction.

    Raises:
      InputError: the record is damaged.
    """
    path = output / RECORD
    if files.is_there(path):
        return Record(**files.read_json_like(path, {"run": _RUN, "cases": [str]}))
    found = {}
    for path in sorted(output.iterdir()) if output.is_dir() else ():
        content = _read_case(path) if path.suffix == ".json" else None
        if content:
            found[path.stem] = {key: content["origin"][key] for key in _RUN}
    runs = list(found.values())
    if not runs:
        return None
    several = {"run": "others", "weights_sha256": ""}
    return Record(runs[0] if all(run == runs[0] for run in runs) else several, sorted(found))


def _read_case(path: epath.Path) -> dict[str, Any] | None:
    """The content of a CASE.json; None if the file is another one."""
    try:
        content = files.read_json(path)
    except (OSError, ValueError):
        return None
    if files.misfit(content, _OF_CASE) or content["summary"]["case"] != path.stem:
        return None
    found: dict[str, Any] = content
    return found


def write_table(output: epath.Path) -> None:
    """Writes summary.csv: the rows of all finished cases, those of other processes too, sorted by case.

    The caller is inside the context of the folder's locks.
    """
    record = read(output)
    _write_table(output, record.cases if record else ())


def _write_table(output: epath.Path, cases: Sequence[str]) -> None:
    finished = [content for name in cases if (content := _read_case(output / f"{name}.json"))]
    if finished:
        numbers.write_csv(output / TABLE, [content["summary"] for content in finished])
    else:
        with files.writing(output / TABLE):
            (output / TABLE).unlink(missing_ok=True)
