"""What lies in a folder of cases: its NIfTI files, and what looks like an image and is not read."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from isles_jax.data.case import Case
from isles_jax.runtime.command import InputError

SUFFIXES = (".nii", ".nii.gz")
# Where the way from the scanner to a case is described.
GUIDE = "docs/dicom.md"
_OTHER_FORMAT = "in a format that is not read; {} converts it to NIfTI"
_PACKED = "packed; unpack it"
# What an image in another format is told by, and the reason why it is not read.
_UNREAD = {
    (".dcm", ".ima"): f"{_OTHER_FORMAT.format('dcm2niix')} ({GUIDE})",
    (".mgz", ".mgh"): _OTHER_FORMAT.format("mri_convert"),
    (".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".img", ".img.gz"): _OTHER_FORMAT.format("SimpleITK"),
    (".nii.bz2", ".nii.xz", ".nii.zst", ".zip", ".tar", ".tar.gz", ".tgz", ".7z"): _PACKED,
}
_DICOM = _UNREAD[".dcm", ".ima"]
# The class of a DICOM object (0002,0002) stands at the beginning of a file.
_DICOM_START = 1024
_DICOM_CLASS = re.compile(rb"\x02\x00\x02\x00UI..([0-9.]+)", re.DOTALL)
# Labels in DICOM. dcm2niix leaves out empty slices of the first, and writes nothing of the second.
_DICOM_LABELS = {
    b"1.2.840.10008.5.1.4.1.1.66.4": f"a segmentation in DICOM; segimage2itkimage converts it to NIfTI ({GUIDE})",
    b"1.2.840.10008.5.1.4.1.1.481.3": f"contours in DICOM (RTSTRUCT); plastimatch converts it to NIfTI ({GUIDE})",
}
_LINK = "a link to nowhere; 'git annex get' or 'datalad get' fetches its content"
# How a file begins in place of its content.
_POINTERS = {
    b"version https://git-lfs": "a pointer of Git LFS; 'git lfs pull' fetches its content",
    b"/annex/objects/": "a pointer of git-annex; 'git annex get' or 'datalad get' fetches its content",
}
# A file without an ending, or with a number in its place, such as the names that scanners give.
_NO_ENDING = re.compile(r"[^.]+|.*\.\d+")
# What a message on a case without one of the sequences says of it.
MISSING = "--config.data.missing=zero (check: --missing=zero) trains without some"
# So many names stand in a sentence.
_NAMED = 3


def list_folder(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden, sorted by name; an InputError if it cannot be read."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read as a folder ({error.strerror or error})") from error


def is_nifti(path: Path) -> bool:
    """True for a file, or a link to one, whose name ends in .nii or .nii.gz, in upper or lower case."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def stem(path: Path) -> str:
    """The file's name without .nii or .nii.gz."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return name[:-4]


def volumes_by_name(folder: Path) -> dict[str, Path]:
    """The NIfTI files of a folder by their names without suffix; an InputError if two have the same name."""
    paths: dict[str, Path] = {}
    for path in filter(is_nifti, list_folder(folder)):
        other = paths.setdefault(stem(path), path)
        if other != path:
            raise InputError(f"{path}: found beside {other.name}, expected one file for a case")
    return paths


def only(folder: Path, what: str, files: Sequence[Path], name: str, others: Sequence[Path] = ()) -> Path:
    """The only one of `files`; an InputError if there are several or none.

    Args:
      folder: for the message.
      what: the file is; its first word stands in the names of such files.
      files: found.
      name: what one would be called.
      others: the NIfTI files of the case.
    """
    if not files:
        raise InputError(_no_file(folder, what, name, others))
    if len(files) > 1:
        first, second = (path.relative_to(folder) if path.is_relative_to(folder) else path for path in files[:2])
        raise InputError(
            f"{folder}: {len(files)} files for {what} ({first}, {second}); expected one: move the others to another "
            "folder, or name the right ones in a table (docs/data.md)"
        )
    return files[0]


def only_if_there(
    folder: Path, what: str, files: Sequence[Path], name: str, others: Sequence[Path], *, missing: bool
) -> Path | None:
    """As `only`, for the file of a sequence; None with `missing` if the case has no such file.

    A file of the sequence that cannot be read, such as a link to nowhere, is not a missing one.
    """
    if files:
        return only(folder, what, files, name, others)
    unread = hint(_place(folder, others), what.split()[0].lower())
    if missing and not unread:
        return None
    raise InputError(_no_file(folder, what, name, others) + f"; {MISSING}" * (not unread))


def _place(folder: Path, others: Sequence[Path]) -> Path:
    """Where the files of a case lie together."""
    return Path(os.path.commonpath([path.parent for path in others])) if others else folder


def _no_file(folder: Path, what: str, name: str, others: Sequence[Path]) -> str:
    found = ", ".join(path.name for path in others) or "no NIfTI file"
    place = _place(folder, others)
    return f"{folder}: no {name}; found {found}{hint(place, what.split()[0].lower()) or hint(place)}"


def hint(folder: Path, word: str = "") -> str:
    """The end of a message about a missing file.

    It names a file below the folder that looks like an image, has the word in its name and is not read; "" if there is
    none.
    """
    unread = (f"; {path.name} is {reason}" for path, reason in walk(folder) if reason and word in path.name.lower())
    return next(unread, "")


def pointer(start: bytes) -> str:
    """What a file is that begins so, if it stands for content that lies elsewhere; "" for any other file."""
    return next((reason for mark, reason in _POINTERS.items() if start.startswith(mark)), "")


def of_other_format(name: str) -> str:
    """Why a file with this name is not read; "" for the name of a NIfTI file or of no image."""
    return next((reason for endings, reason in _UNREAD.items() if name.lower().endswith(endings)), "")


def why_unread(path: Path) -> str:
    """Why a file that looks like an image is not read; "" for a NIfTI file, and for a file that is no image."""
    if is_nifti(path):
        return ""
    other = of_other_format(path.name)
    if (other or path.name.lower().endswith(SUFFIXES)) and path.is_symlink() and not path.exists():
        return _LINK
    if other and other != _DICOM:
        return other
    if (other or _NO_ENDING.fullmatch(path.name)) and path.is_file():
        with path.open("rb") as file:
            start = file.read(_DICOM_START)
        if start[128:132] == b"DICM":
            found = _DICOM_CLASS.search(start)
            return _DICOM_LABELS.get(found[1], _DICOM) if found else _DICOM
    return other


def check_format(root: Path) -> None:
    """Raises an InputError if a folder holds images, and no NIfTI file among them."""
    unread: dict[str, list[str]] = {}
    for path, reason in walk(root):
        if not reason:
            return
        unread.setdefault(reason, []).append(str(path.relative_to(root)))
    if unread:
        raise InputError(f"{root}: holds no NIfTI file; {'; '.join(note(*item) for item in unread.items())}")


def notes(folders: Iterable[Path], case_folders: Iterable[Path], cases: Sequence[Case], wanted: str) -> tuple[str, ...]:
    """Notes on what looks like an image, a label or a case and is not read, one for each reason.

    Args:
      folders: in which everything that is not read is looked for, and in the folders below them.
      case_folders: those of the cases; one without any image is named.
      cases: what was read.
      wanted: what is read, for the reason why another NIfTI file is not read.
    """
    used = {os.path.abspath(path) for case in cases for path in case.files}
    unused: dict[str, list[str]] = {}
    for folder in folders:
        for path, reason in walk(folder):
            if reason or os.path.abspath(path) not in used:
                reason = reason or f"by its name and folder none of {wanted}"
                unused.setdefault(reason, []).append(str(path.relative_to(folder)))
    empty = [path.name for path in case_folders if not holds_images(path)]
    if empty:
        unused["a folder without an image"] = empty
    return tuple(note(reason, names) for reason, names in unused.items())


def notes_of_volumes(folder: Path, *, below: bool) -> tuple[str, ...]:
    """Notes on what looks like an image in a folder of volumes and is not read, one for each reason.

    Args:
      folder: whose own NIfTI files are read, and no others.
      below: name the NIfTI files in the folders below it, too.
    """
    unread: dict[str, list[str]] = {}
    for path, reason in walk(folder):
        if reason or (below and path.parent != folder):
            reason = reason or "in a folder below, expected beside the others"
            unread.setdefault(reason, []).append(str(path.relative_to(folder)))
    return tuple(note(reason, names) for reason, names in unread.items())


def holds_images(folder: Path) -> bool:
    """Whether anything below a folder looks like an image."""
    return any(True for _ in walk(folder))


def note(reason: str, names: Sequence[str]) -> str:
    """A note on files that are not read, for one reason."""
    each = "each of them " if len(names) > 1 else ""
    return f"not read: {listed(names)}; {each}{reason}"


def listed(names: Sequence[str], between: str = ", ") -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return between.join(names[:_NAMED]) + more


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[tuple[Path, str]]:
    """What looks like an image below a folder, each with the reason of `why_unread`; "" for a NIfTI file."""
    # A link may lead to a folder above.
    here = os.path.realpath(folder)
    if here in above:
        return
    try:
        entries = list_folder(folder)
    except InputError as error:
        yield folder, "a folder that" + str(error).removeprefix(f"{folder}:").replace(" as a folder", "")
        return
    for path in entries:
        try:
            found = walk(path, (*above, here)) if path.is_dir() else _alone(path)
        except OSError as error:
            found = iter([(path, f"a file that cannot be read ({error.strerror})")])
        yield from found


def _alone(path: Path) -> Iterator[tuple[Path, str]]:
    """A file as `walk` gives it, or nothing."""
    reason = why_unread(path)
    return iter([(path, reason)] if reason or is_nifti(path) else [])
