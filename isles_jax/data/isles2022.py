"""Reads ISLES-2022, as its archive holds it and as its organisers' repository does.

    <root>/sub-A/ses-1/dwi/sub-A_ses-1_dwi.nii.gz and ..._adc.nii.gz, anat/..._FLAIR.nii.gz      the archive
    <root>/rawdata/sub-A/ses-1/sub-A_ses-1_dwi.nii.gz and ..._adc.nii.gz, ..._flair.nii.gz       the repository
    <root>/derivatives/sub-A/ses-1/sub-A_ses-1_msk.nii.gz                                        labels of both

The files of a case share their names up to the last underscore. Its patient is the folder sub-A.
"""

from dataclasses import replace
from pathlib import Path

from isles_jax.data.adc import in_one_unit
from isles_jax.data.case import Case, Dataset, make_dataset
from isles_jax.data.nifti import is_nifti, list_folder, only, read_all, read_images, stem, with_labels
from isles_jax.runtime.command import InputError

CHANNELS = ("DWI", "ADC")
CLASSES = ("lesion",)

Files = dict[str, list[Path]]


def fits(root: Path) -> bool:
    """True for a folder of subjects (sub-...), with or without rawdata between, and for a subject or a session."""
    return bool(_subjects(root))


def read(root: Path, channels: tuple[str, ...] = CHANNELS) -> Dataset:
    """Reads all cases; those without a mask have labels None. An InputError lists the bad cases, one line for each."""
    found = _cases(root, channels)
    masks = _masks(root)

    def read_case(name: str) -> Case:
        if name not in found:
            raise InputError(f"{masks[name][0]}: a mask whose images are not in {root}")
        case = _read_images(root, name, found[name], channels)
        if name not in masks:
            return case
        return with_labels(case, only(root, f"mask (msk) of {name}", masks[name], f"{name}_msk.nii"), (1,))

    cases = read_all(sorted(found.keys() | masks.keys()), read_case)
    return make_dataset(root, cases, channels, CLASSES, (1,), layout="ISLES-2022")


def read_image_folder(path: Path, channels: tuple[str, ...]) -> tuple[Case, ...]:
    """Reads the images of all cases, or of one subject or session, without labels. Errors are those of `read`."""
    found = _cases(path, channels)
    return read_all(sorted(found), lambda name: _read_images(path, name, found[name], channels))


def _read_images(root: Path, name: str, files: Files, channels: tuple[str, ...]) -> Case:
    every = [path for paths in files.values() for path in paths]

    def find(channel: str) -> Path:
        word = channel.lower()
        return only(root, f"{channel} of {name}", files.get(word, []), f"{name}_{word}.nii or .nii.gz", sorted(every))

    paths = [find(channel) for channel in channels]
    case = replace(in_one_unit(read_images(name, paths), channels), patient=name.split("_")[0])
    if "flair" not in files or "FLAIR" in {channel.upper() for channel in channels}:
        return case
    return replace(case, notes=(*case.notes, "FLAIR is left out: in ISLES-2022 it lies on another grid than DWI"))


def _subjects(root: Path) -> list[Path]:
    """The folders of the subjects in `root`; only `root` if it is the folder of a subject or a session."""
    if root.resolve().name.startswith(("sub-", "ses-")):
        return [root]
    base = root / "rawdata" if (root / "rawdata").is_dir() else root
    return [path for path in list_folder(base) if path.is_dir() and path.name.startswith("sub-")]


def _cases(root: Path, channels: tuple[str, ...]) -> dict[str, Files]:
    """{case: {sequence in lower case: files}} of every case with a channel; an InputError if a subject has no case."""
    wanted = {channel.lower() for channel in channels}
    empty = []
    found: dict[str, Files] = {}
    for subject in _subjects(root):
        here = {name: files for name, files in _grouped(subject).items() if wanted & files.keys()}
        found |= here
        if not here:
            name = f"{subject.name}_…_{channels[0].lower()}.nii.gz"
            empty.append(f"{subject}: no {name} in it; expected one file for each of {', '.join(channels)}")
    if empty:
        raise InputError("\n".join(empty))
    return found


def _masks(root: Path) -> dict[str, list[Path]]:
    folder = next((path for path in (root / "derivatives", root.parent / "derivatives") if path.is_dir()), None)
    groups = _grouped(folder) if folder else {}
    return {name: files["msk"] for name, files in groups.items() if "msk" in files}


def _grouped(folder: Path, depth: int = 3) -> dict[str, Files]:
    """{name up to the last underscore: {what follows it, in lower case: files}} of a folder and the folders in it."""
    groups: dict[str, Files] = {}
    for path in list_folder(folder):
        if path.is_dir() and depth:
            for name, files in _grouped(path, depth - 1).items():
                for word, more in files.items():
                    groups.setdefault(name, {}).setdefault(word, []).extend(more)
        elif is_nifti(path):
            name, _, word = stem(path).rpartition("_")
            groups.setdefault(name, {}).setdefault(word.lower(), []).append(path)
    return groups
