"""Reads ISLES-2022 and what is named like it: folders of subjects in the style of BIDS, and flat folders.

    <root>/sub-A/ses-1/dwi/sub-A_ses-1_dwi.nii.gz and ..._adc.nii.gz, anat/..._FLAIR.nii.gz      the archive
    <root>/rawdata/sub-A/ses-1/sub-A_ses-1_dwi.nii.gz and ..._adc.nii.gz, ..._flair.nii.gz       the repository
    <root>/derivatives/sub-A/ses-1/sub-A_ses-1_msk.nii.gz                                        labels of both
    <root>/raw_data/sub-A/…, <root>/derivatives/sub-A/ses-1/sub-A_ses-1_lesion-msk.nii.gz        ISLES-2024
    <root>/sub-A/…, <root>/derivatives/PIPELINE/sub-A/ses-1/anat/sub-A_ses-1_…_mask.nii.gz       BIDS
    <root>/A_1_dwi.nii.gz and A_1_adc.nii.gz, A_1_msk.nii.gz                                     a flat folder

The images of a case share their names up to the last underscore. Labels have the same name without what BIDS adds to
that of a derivative (`space-`, `label-`, `desc-` and others). The patient of a case is its name up to the first
underscore, the folder sub-A. The column `site` of participants.tsv, which BIDS has beside the subjects, is its centre.
"""

import csv
from dataclasses import replace
from pathlib import Path

from isles_jax.data.case import Case, Dataset, make_dataset
from isles_jax.data.folder import hint, holds_images, is_nifti, list_folder, only, only_if_there, stem
from isles_jax.data.nifti import AS_USUAL, ReadOptions, read_all, read_images, with_labels
from isles_jax.runtime.command import InputError

CHANNELS = ("DWI", "ADC")
CLASSES = ("lesion",)
# The last words of a label volume's name, the surest first: a "mask" may also be that of a brain.
MASKS = ("msk", "lesion-msk", "lesion-mask", "mask")
_RAW = ("rawdata", "raw_data")
# What BIDS adds to the name of a derivative.
_DERIVED = ("space-", "res-", "den-", "label-", "desc-")
# A mask of something else than lesions.
_NO_LESION = ("label-brain", "desc-brain")
# BIDS names here the age, the sex and mostly the centre of each subject.
_PARTICIPANTS = "participants.tsv"
# derivatives/PIPELINE/sub-A/ses-1/anat/
_DEPTH = 4

Files = dict[str, list[Path]]


def fits(root: Path, channels: tuple[str, ...] = CHANNELS) -> bool:
    """True for a folder of subjects (sub-...), with or without rawdata between, and for a subject or a session.

    It is also true for a flat folder: one that holds files NAME_CHANNEL.nii.gz, in upper or lower case.
    """
    return bool(subjects(root)) or _is_flat(root, channels)


def holds_case(root: Path, channels: tuple[str, ...]) -> bool:
    """Whether some case of the folder has a file for each channel."""
    wanted = {channel.lower() for channel in channels}
    return any(wanted <= files.keys() for tree in _trees(root) for files in tree.values())


def read(root: Path, channels: tuple[str, ...] = CHANNELS, how: ReadOptions = AS_USUAL) -> Dataset:
    """Reads all cases; those without a mask have labels None. ADC is always brought to one unit.

    Raises:
      InputError: some cases are bad, one line for each.
    """
    found = _cases(root, channels)
    masks = _masks(root)
    sites, notes = _sites(root)

    def read_case(name: str) -> Case:
        case = _read_images(root, name, found[name], channels, how)
        case = replace(case, site=sites.get(case.patient, ""))
        mine = masks.get(_key(name))
        if not mine:
            return case
        return with_labels(case, only(root, f"mask (msk) of {name}", mine, f"{name}_msk.nii"), (1,), how)

    def read_item(item: str | Path) -> Case:
        if isinstance(item, str):
            return read_case(item)
        raise InputError(f"{item}: a mask whose images are not in {root}{hint(root, _key(stem(item)).lower())}")

    keys = set(map(_key, found))
    lost = [paths[0] for key, paths in sorted(masks.items()) if key not in keys and not _is_vague(paths[0])]
    items: list[str | Path] = [*sorted(found), *lost]
    if not masks:
        where = " and ".join(map(str, mask_folders(root)))
        notes += (f"no labels: no file NAME_WORD.nii.gz in {where}, where WORD is one of {', '.join(MASKS)}",)
    return make_dataset(root, read_all(items, read_item), channels, CLASSES, (1,), notes, layout="ISLES-2022")


def read_image_folder(path: Path, channels: tuple[str, ...], how: ReadOptions = AS_USUAL) -> tuple[Case, ...]:
    """Reads the images of all cases, or of one subject or session, without labels. Errors are those of `read`."""
    found = _cases(path, channels)
    return read_all(sorted(found), lambda name: _read_images(path, name, found[name], channels, how))


def _read_images(root: Path, name: str, files: Files, channels: tuple[str, ...], how: ReadOptions) -> Case:
    every = [path for paths in files.values() for path in paths]

    def find(channel: str) -> Path | None:
        word = channel.lower()
        of_case = (f"{channel} of {name}", files.get(word, []), f"{name}_{word}.nii or .nii.gz", sorted(every))
        return only_if_there(root, *of_case, missing=how.missing)

    paths = [find(channel) for channel in channels]
    case = read_images(name, paths, channels, how._replace(adc_as_stored=False))
    return replace(case, patient=name.split("_")[0])


def subjects(root: Path) -> list[Path]:
    """The folders of the subjects in `root`; only `root` if it is the folder of a subject or a session."""
    if root.resolve().name.startswith(("sub-", "ses-")):
        return [root]
    base = next((root / name for name in _RAW if (root / name).is_dir()), root)
    return [path for path in list_folder(base) if path.is_dir() and path.name.startswith("sub-")]


def _sites(root: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """{sub-A: site} of participants.tsv, empty without such a file or column; a note if the file cannot be read."""
    folders = dict.fromkeys([root, *(path.parent for path in subjects(root))])
    path = next((folder / _PARTICIPANTS for folder in folders if (folder / _PARTICIPANTS).is_file()), None)
    if path is None:
        return {}, ()
    try:
        rows = list(csv.DictReader(path.read_text("utf-8-sig").splitlines(), delimiter="\t"))
    except (OSError, ValueError, csv.Error) as error:
        return {}, (f"{path.name}: not readable as a table in UTF-8 ({error}); the sites are not known",)
    sites = {row.get("participant_id") or "": row.get("site") or "" for row in rows}
    return {subject: site for subject, site in sites.items() if subject and site not in ("", "n/a")}, ()


def mask_folders(root: Path) -> list[Path]:
    """Where the masks of a data set lie: beside its images, or in a folder derivatives."""
    derived = (root / "derivatives", root.parent / "derivatives")
    return [root, *[path for path in derived if path.is_dir()][:1]]


def _is_flat(root: Path, channels: tuple[str, ...]) -> bool:
    wanted = {channel.lower() for channel in channels}
    # The challenges of 2015 to 2018 have names such as XX.O.MR_DWI.
    return any(
        not name.endswith((".MR", ".CT")) and wanted & files.keys() for name, files in _grouped(root, depth=0).items()
    )


def _cases(root: Path, channels: tuple[str, ...]) -> dict[str, Files]:
    """{case: {sequence in lower case: files}} of every case with a channel; an InputError if a subject has no case.

    A folder of a subject without any image is passed over.
    """
    wanted = {channel.lower() for channel in channels}
    if not subjects(root):
        return {name: files for name, files in _grouped(root, depth=0).items() if wanted & files.keys()}
    empty = []
    found: dict[str, Files] = {}
    for subject in subjects(root):
        here = {name: files for name, files in _grouped(subject).items() if wanted & files.keys()}
        _merge(found, here)
        if not here:
            empty.append(subject)
    bad = [subject for subject in empty if holds_images(subject)] if found else empty
    if bad:
        name = f"…_{channels[0].lower()}.nii.gz"
        expected = f"expected one file for each of {', '.join(channels)}"
        raise InputError("\n".join(f"{s}: no {s.name}_{name} in it; {expected}{hint(s)}" for s in bad))
    return found


def _masks(root: Path) -> dict[str, list[Path]]:
    """{key of a case: its masks}."""
    trees = [*_trees(root), *(_grouped(folder) for folder in mask_folders(root)[1:])]
    by_key: dict[str, Files] = {}
    for name, files in (item for tree in trees for item in tree.items()):
        if not any(word in name for word in _NO_LESION):
            _merge(by_key, {_key(name): files})
    chosen = {key: next((files[word] for word in MASKS if word in files), []) for key, files in by_key.items()}
    return {key: paths for key, paths in chosen.items() if paths}


def _is_vague(mask: Path) -> bool:
    """Whether a mask may be of something else than a lesion, by its name."""
    return stem(mask).lower().endswith("_mask")


def _key(name: str) -> str:
    """The name of a case without what BIDS adds to that of a derivative."""
    return "_".join(part for part in name.split("_") if not part.startswith(_DERIVED))


def _trees(root: Path) -> list[dict[str, Files]]:
    """The files of each subject; those of the folder alone if it is flat."""
    return [_grouped(subject) for subject in subjects(root)] or [_grouped(root, depth=0)]


def _grouped(folder: Path, depth: int = _DEPTH) -> dict[str, Files]:
    """{name up to the last underscore: {what follows it, in lower case: files}} of a folder and the folders in it."""
    groups: dict[str, Files] = {}
    for path in list_folder(folder):
        if path.is_dir() and depth:
            _merge(groups, _grouped(path, depth - 1))
        elif is_nifti(path):
            name, _, word = stem(path).rpartition("_")
            if name:
                _merge(groups, {name: {word.lower(): [path]}})
    return groups


def _merge(groups: dict[str, Files], more: dict[str, Files]) -> None:
    """Adds files to groups in place; two files with one name in two folders both stay."""
    for name, files in more.items():
        for word, paths in files.items():
            groups.setdefault(name, {}).setdefault(word, []).extend(paths)
