"""From the names of files to templates: which text in them is the case, which the session, and which does not matter.

Some text in the path of each file names its case. With {case} in its place, the files of one channel have equal names:
the template of the channel. So each place in the paths is tried as that of the case, and then each other place as that
of the session, or of what does not matter (a star), such as a date. The reading that loses the fewest files and needs
the fewest texts is taken.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

# What stands between two words of a name. A date and a name of BIDS (sub-01) are one word, and so is a person's name.
_DELIMITERS = (r"[_.]+", r"[_. ]+", r"[_. -]+")
# Between two words or delimiters; no name has it.
_EDGE = "\0"
# Words that say what a file holds, and words that name a session: those of BIDS, of follow-up, and dates.
_SEQUENCES = "DWI ADC FLAIR T1 T2 T1w T2w T1c Tmax TTP CBF CBV MTT rCBF rCBV PWI SWI GRE CT NCCT CTA CTP TOF"
KNOWN = {name.lower(): name for name in _SEQUENCES.split()}
LABEL_WORD = re.compile(
    r"[^\W\d]*(mask|msk|seg|label|lesion|läsion|truth|annot)[^\W\d]*\d?|rois?|vois?|ot|gt|manual|stroke|infar[ck]t",
    re.IGNORECASE,
)
SESSION = re.compile(
    r"ses-\w+|(ses|session|visit|tp|timepoint|day|week|month|baseline|follow-?up|fu|acute|chronic)[-_ ]?\d*"
    r"|(19|20)\d\d-?(0[1-9]|1[0-2])-?([0-2]\d|3[01])",
    re.IGNORECASE,
)
# A word of a file's name without a digit is more likely a channel than a date or a number that does not matter.
_NO_CHANNEL = re.compile(rf".*\d.*|{SESSION.pattern}", re.IGNORECASE).fullmatch
# A reading is chosen by the files of so many cases.
_SAMPLE = 60


class Names(NamedTuple):
    """The names of the files, without endings.

    Attributes:
      runs: {name: its words, and what neighbouring words of a folder's or the file's name are together}.
      edged: {name or run: the same with `_EDGE` around its words}.
      frequency: of each run, the number of names that have it.
      folders: the runs that stand in the name of a folder.
      places: the texts that stand in one place of names of one form, for each place.
    """

    runs: dict[str, frozenset[str]]
    edged: dict[str, str]
    frequency: Counter[str]
    folders: set[str]
    places: list[frozenset[str]]

    def text(self, name: str, texts: frozenset[str]) -> str:
        """Which of the texts is in a name: the rarest one; "" for none."""
        return min(self.runs[name] & texts, key=lambda run: (self.frequency[run], run), default="")


class Reading(NamedTuple):
    """One way to read the names.

    Attributes:
      roles: (placeholder, its texts); {case} comes first.
      templates: {template: {(case, session): name}}, each of at least two cases.
      lost: the names that belong to no template.
      texts: the number of different texts in the places of placeholders.
    """

    roles: tuple[tuple[str, frozenset[str]], ...]
    templates: dict[str, dict[tuple[str, str], str]]
    lost: list[str]
    texts: int

    @property
    def cases(self) -> list[str]:
        """The texts in the place of {case}, sorted."""
        return sorted({case for files in self.templates.values() for case, _ in files})

    @property
    def names(self) -> list[str]:
        """The names that belong to a template."""
        return [name for files in self.templates.values() for name in files.values()]

    @property
    def size(self) -> tuple[float, float]:
        """The share of lost files; how many texts and templates there are for a file."""
        files = len(self.lost) + len(self.names)
        return len(self.lost) / files, (self.texts + len(self.templates)) / files

    @property
    def cost(self) -> tuple[float, int, float]:
        """What a good reading has little of: lost files, cases like sessions or the reverse, texts and templates."""
        dated = sum(any(map(SESSION.fullmatch, re.split(r"[_ ]", case))) for case in self.cases)
        sessions = {session for files in self.templates.values() for _, session in files if session}
        odd = (dated > len(self.cases) / 2) + (not all(map(SESSION.fullmatch, sessions)))
        return self.size[0], odd, self.size[1]


def readings(names: Sequence[str]) -> Iterator[tuple[Names, Reading]]:
    """The names, and their best reading, for each set of characters that may separate words.

    Args:
      names: paths with "/", without the endings of the files.
    """
    for delimiters in _DELIMITERS:
        split = _split(names, delimiters)
        reading = _best(split)
        if reading:
            yield split, reading


def _split(names: Iterable[str], delimiters: str) -> Names:
    """The names with their words and places; `delimiters` is a regular expression for what separates two words."""
    runs: dict[str, frozenset[str]] = {}
    edged: dict[str, str] = {}
    folders = set()
    places: dict[tuple[object, ...], set[str]] = defaultdict(set)
    for name in names:
        parts = [re.split(f"({delimiters})", part) for part in name.split("/")]
        form = tuple(map(len, parts))
        mine = set()
        for depth, pieces in enumerate(parts):
            for length in range(1, len(pieces) + 1, 2):
                for start in range(0, len(pieces) - length + 1, 2):
                    run = "".join(pieces[start : start + length])
                    mine.add(run)
                    edged[run] = _EDGE.join(["", *pieces[start : start + length], ""])
                    if depth < len(parts) - 1:
                        folders.add(run)
                    # A sequence or a label is never the name of a case or a session.
                    if not any(map(tells, words_of(run))):
                        places[form, depth, length, start].add(run)
        runs[name] = frozenset(mine)
        edged[name] = "/".join(_EDGE.join(["", *pieces, ""]) for pieces in parts)
    frequency = Counter(run for mine in runs.values() for run in mine)
    return Names(runs, edged, frequency, folders, list(dict.fromkeys(map(frozenset, places.values()))))


def words_of(text: str) -> list[str]:
    """The words of a name or a template."""
    return re.findall(r"[^\W_]+", re.sub(r"\{\w+\}", "/", text))


def tells(word: str) -> bool:
    """Whether a word says what a file holds."""
    return word.lower() in KNOWN or bool(LABEL_WORD.fullmatch(word))


def read(names: Names, some: Iterable[str], roles: tuple[tuple[str, frozenset[str]], ...]) -> Reading:
    """Reads some of the names with these roles."""
    found: dict[str, list[tuple[tuple[str, str], str]]] = defaultdict(list)
    seen = set()
    for name in some:
        template, role_texts = names.edged[name], {}
        for placeholder, texts in roles:
            text = role_texts[placeholder] = names.text(name, texts)
            if text:
                template = template.replace(names.edged[text], f"{_EDGE}{placeholder}{_EDGE}")
                seen.add(text)
        key = role_texts["{case}"], role_texts.get("{session}", "")
        found[template.replace(_EDGE, "")].append((key, name))
    templates, lost = {}, []
    for template, files in found.items():
        keyed = dict(files)
        cases = {case for case, _ in keyed if case}
        # A file whose whole name is a star may be anything.
        if len(cases) > 1 and len(keyed) == len(files) and not template.endswith("/*"):
            templates[template] = keyed
        else:
            lost += [name for _, name in files]
    return Reading(roles, templates, lost, len(seen))


def _best(names: Names) -> Reading | None:
    """The best reading of all names; None if no text can be that of the case."""
    best: Reading | None = None
    for place in names.places:
        cases = {name: case for name in names.runs if (case := names.text(name, place))}
        chosen = sorted(set(cases.values()))
        # What is in few of the names is no case, and need not be tried.
        if len(chosen) < 2 or len(cases) < 0.8 * len(names.runs):
            continue
        sample = set(chosen[:: 1 + len(chosen) // _SAMPLE])
        some = [name for name in names.runs if cases.get(name, chosen[0]) in sample]
        reading = _with_more_roles(names, some, read(names, some, (("{case}", place),)))
        if reading.templates and (best is None or reading.cost < best.cost):
            best = reading
    return read(names, names.runs, best.roles) if best else None


def _with_more_roles(names: Names, some: Sequence[str], reading: Reading) -> Reading:
    """The reading with stars and sessions in the places where they bring templates together."""
    while len(reading.roles) < 4:
        taken = frozenset[str]().union(*(texts for _, texts in reading.roles))
        better = reading
        for place in names.places:
            texts = frozenset(text for text in place - taken if text in names.folders or _NO_CHANNEL(text))
            for placeholder in ("*", "{session}"):
                other = read(names, some, (*reading.roles, (placeholder, texts)))
                gains = len(other.lost) < len(better.lost) or len(other.templates) < len(better.templates)
                if gains and other.size <= better.size and (placeholder == "*" or _may_be_sessions(other, texts)):
                    better = other
        if better is reading:
            return reading
        reading = better
    return reading


def _may_be_sessions(reading: Reading, texts: Iterable[str]) -> bool:
    """Whether texts of which a case has several may be its sessions, and not its channels: labels have them, too."""
    labels = [template for template in reading.templates if any(map(LABEL_WORD.fullmatch, words_of(template)))]
    return all(map(SESSION.fullmatch, texts)) or any("{session}" in template for template in labels)
