"""From a folder to patterns: what its names say, which file is the label, and what is not sure.

`templates` reads the names. Here, templates become patterns with the names of channels, a look into some files tells
the label, and the patterns are tried. What may be otherwise is said in a sentence, a doubt.
"""

import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import nibabel as nib
import numpy as np

from isles_jax.data import table
from isles_jax.data.dcm2niix import channel_of, of_series
from isles_jax.data.folder import listed, stem, walk
from isles_jax.data.patterns import match, parse
from isles_jax.data.templates import KNOWN, LABEL_WORD, SESSION, Names, Reading, read, readings, tells, words_of
from isles_jax.runtime.command import InputError

# Words of a mask that is no label, and names of the parts of a data set, which are no sites.
_NO_LESION = re.compile(
    r"\w*brain\w*|bet|skull|head|hirn|wm|gm|csf|tissue|ventricles?|vessels?|fov|background", re.IGNORECASE
)
_SPLIT = re.compile(r"(images?|labels?)?(tr|ts|train|training|test|testing|val|valid|validation)", re.IGNORECASE)
# What is no channel of a patient: scans for the orientation, and what ANTs writes beside Warped.nii.gz.
_NO_CHANNEL = re.compile(r"\w*(locali[sz]er|scout|survey)\w*|InverseWarped", re.IGNORECASE)
# A label's slice holds at most so many numbers. It may cover this share of what an image's slice covers.
_VALUES = 10
_BRAIN_SHARE = 0.3
# The patterns may leave out this share of all files without a reason.
_LEFT_SHARE = 0.1


class Proposal(NamedTuple):
    """Patterns for a folder.

    Attributes:
      images: {channel: pattern}.
      label: the pattern of the label volumes; "" if none were found.
      doubts: one sentence for each thing that may be otherwise.
    """

    images: dict[str, str]
    label: str
    doubts: tuple[str, ...] = ()


EXAMPLE = Proposal({"DWI": "{case}/dwi.nii.gz"}, "")


def propose(root: Path) -> Proposal | None:
    """Patterns that explain nearly all NIfTI files of a folder for at least two cases; None if there are none.

    The proposal has been tried: `patterns.match` takes it, and a doubt names every NIfTI file that it leaves out.
    """
    paths = [path for path, reason in walk(root) if not reason]
    files = {_name(path.relative_to(root)): path for path in paths}
    if len(files) < len(paths):
        return None  # one file is there as X.nii and as X.nii.gz
    for names, reading in readings(list(files)):
        proposal = _proposal(root, files, names, reading)
        if proposal:
            return proposal
    return None


def command(root: Path, proposal: Proposal) -> str:
    """The command, quoted for a POSIX shell, that writes the table of a proposal."""
    images = [f"{channel}={pattern}" for channel, pattern in proposal.images.items()]
    label = ["--label", proposal.label] if proposal.label else []
    output = str(root / table.NAME)
    return shlex.join(["isles-jax", "check", str(root), "--images", *images, *label, "--output", output])


def described(root: Path, *, with_label: bool = False) -> list[str]:
    """Lines with the patterns that the files of a folder seem to have, and the command that writes their table.

    Args:
      root: the folder.
      with_label: only if a pattern of labels is found.

    Returns:
      No lines if no patterns are found.
    """
    found = propose(root)
    if found is None or (with_label and not found.label):
        return []
    columns = {**found.images, **({table.LABEL: found.label} if found.label else {})}
    width = max(map(len, columns))
    return [
        f"The files of {root} seem to be these, for each case:",
        *(f"  {name:{width}}  {pattern}" for name, pattern in columns.items()),
        *(f"doubt: {doubt}" for doubt in found.doubts),
        "If so, this command writes a table of them:",
        command(root, found),
    ]


def _name(path: Path) -> str:
    return unicodedata.normalize("NFC", path.with_name(stem(path)).as_posix())


def _with_sites(names: Names, reading: Reading) -> tuple[Reading, list[str]]:
    """The reading with {site} in the place of a star that groups the cases, and doubts on cases, sessions and stars."""
    doubts = []
    cases = reading.cases
    words = [words_of(case) for case in cases]
    parts = zip(*words, strict=True) if len(set(map(len, words))) == 1 else ()
    repeated = next((part for part in parts if 1 < len(set(part)) < len(cases)), ())
    if repeated:
        doubts.append(f"{_some(repeated)} are taken as a part of the cases' names; they may be patients or sites")
    roles = [reading.roles[0]]
    for placeholder, texts in reading.roles[1:]:
        found = {text for name in reading.names if (text := names.text(name, texts))}
        shown = _some(found)
        dates = all(map(SESSION.fullmatch, found))
        numbers = dates or all(text.isdigit() or SESSION.fullmatch(text) for text in found)
        starred = [template.split("/")[-1] for template in reading.templates if "*" in template]
        # A number at the end, or as the only word, may be that of the channel.
        may_tell = any(not words_of(name) or (name.endswith("*") and not dates) for name in starred)
        if placeholder == "{session}":
            many = len(reading.names) > len(cases) ** 2 * len(reading.templates)
            if many or not dates:
                doubts.append(f"{_some(cases)} are taken as patients, {shown} as their sessions; it may be otherwise")
        elif all(map(_SPLIT.fullmatch, found)):
            doubts.append(f"{shown} are read together; to read one of them alone, write it in the place of the star")
        elif not numbers and found <= names.folders and 2 * len(found) <= len(cases) and "{site}" not in dict(roles):
            placeholder = "{site}"
            doubts.append(f"{shown} are taken as sites; if they are none, write * in the place of {{site}}")
        elif may_tell or not numbers:
            doubts.append(f"files that differ by {shown} are taken as the same channel; they may be different ones")
        roles.append((placeholder, texts))
    return read(names, names.runs, tuple(roles)), doubts


def _proposal(root: Path, files: Mapping[str, Path], names: Names, reading: Reading) -> Proposal | None:
    """The proposal of a reading; None if it explains too little, or if `match` refuses it."""
    reading, doubts = _with_sites(names, reading)
    paths = {template: [files[name] for name in keyed.values()] for template, keyed in reading.templates.items()}
    patterns = {template: template + _ending(paths[template]) for template in paths}
    told = {template: channel_of(paths[template][0]) for template in paths}
    own = _own_words(list(patterns)) | {template: [channel] for template, channel in told.items() if channel}
    channels, label, more = _channels_and_label(paths, patterns, own)
    tell = any(tells(word) for words in own.values() for word in words)
    if not channels or (len(paths) == 1 and not tell):
        return None
    named = dict(zip(_channel_names(channels, own), channels, strict=True))
    doubts += more + _doubts_on_channels(named, paths, own)
    if not tell:
        shown = f"{_some(reading.cases)} are taken as cases and {', '.join(named)} as channels"
        doubts.append(f"{shown}; nothing in the names says which is which")
    try:
        images = parse([f"{name}={patterns[template]}" for name, template in named.items()])
        rows, _ = match(root, images, patterns.get(label, ""))
    except InputError:
        return None
    used = {_name(Path(path)) for row in rows for path in row.files.values()}
    strange = sorted(used - set(reading.names))
    if strange:
        doubts.append(f"{_some(strange)} fit a pattern, too; they may be no cases")
    explained = set(used)
    for template in paths.keys() - {label, *channels}:
        explained |= set(reading.templates[template].values())
    left = sorted(files.keys() - explained)
    if len(left) > _LEFT_SHARE * len(files):
        return None
    if left:
        doubts.append(f"left out, since no pattern fits: {_some(files[name].relative_to(root) for name in left)}")
    return Proposal(images, patterns.get(label, ""), tuple(doubts))


def _doubts_on_channels(
    named: Mapping[str, str], paths: Mapping[str, Sequence[Path]], own: Mapping[str, list[str]]
) -> list[str]:
    """Doubts on channels that few cases have, and on those of which there is another one."""
    most = max(map(len, paths.values()))
    few = {name: len(paths[template]) for name, template in named.items() if 2 * len(paths[template]) <= most}
    doubts = [f"{name} is there for {count} of {most} cases" for name, count in few.items()]
    for known in KNOWN.values():
        same = [name for name, template in named.items() if known in map(_usual, own[template])]
        if len(same) > 1:
            doubts.append(f"{' and '.join(same)} are taken as different channels; each may be the {known}")
    return doubts


def _ending(paths: Iterable[Path]) -> str:
    """The ending of these files, as a pattern."""
    endings = {path.name[len(stem(path)) :] for path in paths}
    return endings.pop() if len(endings) == 1 else ".*"


def _own_words(templates: Sequence[str]) -> dict[str, list[str]]:
    """The words of each template that not all have: those of the file's name, or else those of the folders."""
    words = {template: set(words_of(template)) for template in templates}
    common = set.intersection(*words.values()) if len(words) > 1 else set()
    own = {}
    for template in templates:
        folder, _, file = template.rpartition("/")
        choices = ([word for word in words_of(part) if word not in common] for part in (file, folder))
        own[template] = next(filter(None, choices), ["image"])
    return own


def _usual(word: str) -> str:
    """A known sequence in its usual spelling; any other word as it is."""
    return KNOWN.get(word.lower(), word)


def _channel_names(channels: Sequence[str], own: Mapping[str, list[str]]) -> list[str]:
    """The only known sequence among the own words of a channel, or these words; all words where two have the same."""
    everywhere = set.intersection(*(set(words_of(template)) for template in channels))
    short, long = [], []
    for template in channels:
        known = [word for word in map(_usual, own[template]) if word in KNOWN.values()]
        short.append(known[0] if len(known) == 1 else "_".join(own[template]))
        long.append("_".join(word for word in words_of(template) if word not in everywhere))
    return [one if short.count(one) == 1 else other for one, other in zip(short, long, strict=True)]


def _channels_and_label(
    paths: Mapping[str, Sequence[Path]], patterns: Mapping[str, str], own: Mapping[str, list[str]]
) -> tuple[list[str], str, list[str]]:
    """The templates of the channels and that of the label ("" for none), by their words and content, and doubts."""
    channels: list[str] = []
    named: list[str] = []
    unnamed: list[str] = []
    doubts: list[str] = []
    shares: dict[str, float] = {}
    for template, pattern in patterns.items():
        content, shares[template] = _content(paths[template])
        word = any(LABEL_WORD.fullmatch(word) for word in own[template])
        if any(map(_NO_CHANNEL.fullmatch, own[template])):
            doubts.append(f"{pattern} is left out: by its name it is no channel")
        elif content == "volume":
            channels.append(template)
            if word:
                doubts.append(f"{pattern} is taken as a channel: its name is that of a label, its numbers are not")
        elif content != "label":
            doubts.append(f"{pattern} is left out: {content}")
        elif any(_NO_LESION.fullmatch(word) for word in own[template]):
            doubts.append(f"{pattern} is left out: by its name it is a mask of something else than lesions")
        else:
            (named if word else unnamed).append(template)
    label, *others = [*named, *unnamed] or [""]
    if others:
        left = " and ".join(patterns[template] for template in others)
        doubts.append(f"{patterns[label]} is taken as the label; {left} may be it, too, and is left out")
    if label and not named:
        doubts.append(f"{patterns[label]} is taken as the label: its numbers are those of one, its name is not")
    if label and channels and shares[label] > _BRAIN_SHARE * max(shares[template] for template in channels):
        doubts.append(f"{patterns[label]} is taken as the label; it covers so much that it may be the mask of a brain")
    return channels, label, doubts


def _content(paths: Sequence[Path]) -> tuple[str, float]:
    """What three of the files hold, by their middle slices, and the mean share of voxels that are not 0.

    It is "volume", "label" for few whole numbers, or the reason why they are neither.
    """
    slices = []
    for path in paths[:: max(1, len(paths) // 3)][:3]:
        try:
            image = cast(nib.Nifti1Image, nib.load(path))
            if len(image.shape) == 4 and image.shape[3] > 1:
                return f"{path.name} {of_series(path, image.shape[3])}", 0
            if len(image.shape) < 3 or any(side > 1 for side in image.shape[3:]):
                return "expected one volume of three axes in a file", 0
            slices.append(np.asarray(image.dataobj[:, :, image.shape[2] // 2], np.float32))
        except Exception:  # what nibabel and gzip raise for damaged files has no common class
            return f"{path.name} cannot be read as NIfTI", 0
    with np.errstate(invalid="ignore"):
        few = all(len(np.unique(one)) <= _VALUES and (abs(one - np.rint(one)) < 0.01).all() for one in slices)
    return "label" if few else "volume", float(np.mean([(one != 0).mean() for one in slices]))


def _some(texts: Iterable[object]) -> str:
    """The first of the different texts, sorted, and how many more there are."""
    return listed(sorted(set(map(str, texts))))
