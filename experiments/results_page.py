"""The tables of RESULTS.md, filled in from results/*.csv.

python -m experiments.results_page
"""

import csv
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from isles_jax.reporting import results, statistics

PAGE = Path(__file__).with_name("RESULTS.md")
FOLDER = Path(__file__).with_name("results")
FACTORS = {
    "residual": "residual connections",
    "overlap": "Lovász-softmax and boundary losses",
    "adversarial": "adversarial training",
}


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV by the names of its columns."""
    return list(csv.DictReader(path.read_text().splitlines()))


def rows_table(path: Path) -> str:
    """A CSV of `table1.write_table` in Markdown; a star where both tests, corrected, stay below 0.05."""
    lines = {(line["row"], line["class"]): line for line in read(path)}
    names, words = dict.fromkeys(name for name, _ in lines), _classes(lines)
    # The paper's numbers belong beside its eight systems only.
    papers = words if results.PAPER.keys() <= names.keys() else []
    made = [["", *words, *(f"minus proposed: {word}" for word in words), *(f"paper: {word}" for word in papers)]]
    for name in names:
        means = [_spread(lines[name, word], "dice", "low", "high") for word in words]
        differences = [_difference(lines[name, word]) for word in words]
        made.append([name, *means, *differences, *(_paper(lines[name, word]) for word in papers)])
    return _markdown(made)


def effects_table(path: Path) -> str:
    """A CSV of `table1.write_effects` in Markdown, with the effects of the paper's own numbers beside it."""
    lines = {(line["factor"], line["class"]): line for line in read(path)}
    words = _classes(lines)
    # The paper's order of systems is that of the design's cells.
    cells = dict(zip(results.PAPER, itertools.product((False, True), repeat=3), strict=True))
    paper = {
        word: statistics.main_effects({cells[name]: [dice[word]] * 2 for name, dice in results.PAPER.items()})
        for word in words
    }
    made = [["", *words, *(f"paper: {word}" for word in words)]]
    for factor, told in FACTORS.items():
        measured = [_spread(lines[factor, word], "effect", "low", "high", "+") for word in words]
        made.append([told, *measured, *(f"{paper[word][factor][0]:+.3f}" for word in words)])
    return _markdown(made)


def _classes(lines: Iterable[tuple[str, str]]) -> list[str]:
    """The paper's classes among the keys of a table's lines; the whole lesion stays in the file."""
    return [word for word in results.PAPER["proposed"] if any(word == other for _, other in lines)]


def _spread(line: dict[str, str], middle: str, low: str, high: str, sign: str = "") -> str:
    one, *ends = (f"{float(line[key]):{sign}.3f}" for key in (middle, low, high))
    return f"{one} [{', '.join(ends)}]"


def _paper(line: dict[str, str]) -> str:
    return f"{float(line['paper_dice']):.3f}" if line["paper_dice"] else "-"


def _difference(line: dict[str, str]) -> str:
    if not line["difference"]:
        return "-"
    sure = max(float(line["p_wilcoxon_holm"]), float(line["p_bootstrap_holm"])) < 0.05
    return _spread(line, "difference", "difference_low", "difference_high", "+") + "*" * sure


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = (f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


def fill(text: str, folder: Path = FOLDER) -> str:
    """The page with each table, between `<!-- FILE.csv -->` and `<!-- end -->`, made anew from that file."""

    def made(match: re.Match[str]) -> str:
        path = folder / match[1]
        table = effects_table(path) if path.stem.endswith("effects") else rows_table(path)
        return f"<!-- {match[1]} -->\n{table}\n<!-- end -->"

    return re.sub(r"<!-- (\w+\.csv) -->.*?<!-- end -->", made, text, flags=re.DOTALL)


def main() -> None:
    """Fills the page in."""
    PAGE.write_text(fill(PAGE.read_text()))
    print(PAGE)


if __name__ == "__main__":
    main()
