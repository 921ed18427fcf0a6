"""Fills in the tables of RESULTS.md and of docs/scores.md from results/*.csv.

python -m experiments.results_page
"""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.intervals import CHOSEN, RATIO
from isles_jax.runtime.command import Parser, run_command
from isles_jax.scoring import comparison, statistics

PAGE = Path(__file__).with_name("RESULTS.md")
PAGES = (PAGE, Path(__file__).parents[1] / "docs" / "scores.md")
FOLDER = Path(__file__).with_name("results")
FACTORS = {
    "residual": "residual connections",
    "overlap": "Lovász-softmax and boundary losses",
    "adversarial": "adversarial training",
}


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV, each as {column: cell}."""
    return list(csv.DictReader(path.read_text().splitlines()))


def rows_table(path: Path) -> str:
    """A CSV of `study.write_table` in Markdown.

    A star marks corrected p values below 0.05 in both tests over cases. With several seeds, the star and the intervals
    of differences are those over seeds and cases, and the standard deviation over seeds follows.
    """
    lines = {(line["row"], line["class"]): line for line in read(path)}
    names = dict.fromkeys(name for name, _ in lines)
    classes = _classes(lines)
    # The paper's numbers stand beside its eight systems only.
    in_paper = classes if comparison.PAPER.keys() <= names.keys() else []
    reference = next(name for (name, _), line in lines.items() if not line["difference"])
    head = ["", *classes, *(f"minus {reference}: {name}" for name in classes), *(f"paper: {name}" for name in in_paper)]
    rows = [head]
    for name in names:
        means = [_spread(lines[name, class_name], "dice", "low", "high") for class_name in classes]
        differences = [_difference(lines[name, class_name]) for class_name in classes]
        rows.append([name, *means, *differences, *(_paper(lines[name, class_name]) for class_name in in_paper)])
    return _markdown(rows)


def effects_table(path: Path) -> str:
    """A CSV of `study.write_effects` in Markdown, beside the effects computed from the paper's own numbers."""
    lines = {(line["factor"], line["class"]): line for line in read(path)}
    classes = _classes(lines)
    cells = comparison.CELLS.items()
    paper = {
        name: statistics.main_effects({cell: [comparison.PAPER[system][name]] * 2 for system, cell in cells})
        for name in classes
    }
    rows = [["", *classes, *(f"paper: {name}" for name in classes)]]
    for factor, title in FACTORS.items():
        measured = [_effect(lines[factor, name]) for name in classes]
        rows.append([title, *measured, *(f"{paper[name][factor][0]:+.3f}" for name in classes)])
    return _markdown(rows)


def critics_table(path: Path) -> str:
    """A CSV of `critics.write` in Markdown: accuracy, and the gradient in brackets."""
    lines = {(line["row"], line["until_step"]): line for line in read(path)}
    steps = list(dict.fromkeys(step for _, step in lines))
    rows = [["until step", *steps]]
    for name in dict.fromkeys(name for name, _ in lines):
        found = [lines[name, step] for step in steps]
        rows.append([name, *(f"{float(line['accuracy']):.0%} ({float(line['gradient']):.1%})" for line in found)])
    return _markdown(rows)


def intervals_table(path: Path) -> str:
    """How often the interval of the package holds a mean, and the least that other intervals do, in Markdown."""
    lines = read(path)
    sizes = list(dict.fromkeys(line["cases"] for line in lines))
    rows = [["cases", *sizes]]
    for name in dict.fromkeys(line["distribution"] for line in lines):
        found = [line for line in lines if (line["distribution"], line["method"]) == (name, CHOSEN)]
        rows.append([name, *(f"{float(line['coverage']):.0%}" for line in found)])
    for method in dict.fromkeys(line["method"] for line in lines):
        of_method = [line for line in lines if line["method"] == method]
        least = [min(float(line["coverage"]) for line in of_method if line["cases"] == size) for size in sizes]
        rows.append([f"least: {method}", *(f"{share:.0%}" for share in least)])
    return _markdown(rows)


def volume_intervals_table(path: Path) -> str:
    """How often the interval of a volume holds the true one, and its median width, in Markdown."""
    lines = read(path)
    sizes = list(dict.fromkeys(line["cases"] for line in lines))
    groups = list(dict.fromkeys(line["distribution"] for line in lines))
    rows = [["error", "cases", *groups]]
    for method in dict.fromkeys(line["method"] for line in lines):
        for size in sizes:
            found = [line for line in lines if (line["method"], line["cases"]) == (method, size)]
            cells = [f"{float(line['coverage']):.0%}, {_ml(float(line['width']))} ml" for line in found]
            rows.append([method + ", used here" * (method == RATIO), size, *cells])
    return _markdown(rows)


def real_cases_table(path: Path) -> str:
    """A CSV of `real_cases.write` in Markdown: Dice, F1 of the lesions and predicted ml, each a mean over the seeds."""
    lines = read(path)
    cases = sorted({line["case"] for line in lines})
    volumes = {line["case"]: float(line["volume_true_ml"]) for line in lines}
    rows = [["", *(f"{_short(case)}, {_ml(volumes[case])} ml" for case in cases)]]
    for name in dict.fromkeys(line["row"] for line in lines):
        cells = []
        for case in cases:
            found = [line for line in lines if (line["row"], line["case"]) == (name, case)]
            dice, f1, volume = (_mean(found, key) for key in ("dice", "lesion_f1", "volume_pred_ml"))
            cells.append(f"{dice:.2f}, {f1:.2f}, {_ml(volume)} ml")
        rows.append([name, *cells])
    return _markdown(rows)


def _short(case: str) -> str:
    """The number in a name such as sub-strokecase0003_ses-0001."""
    return re.sub(r"^sub-strokecase|_ses-\d+$", "", case)


def _mean(lines: Sequence[dict[str, str]], key: str) -> float:
    return sum(float(line[key]) for line in lines) / len(lines)


def _ml(volume: float) -> str:
    return f"{volume:.0f}" if volume >= 10 else f"{volume:.1f}"


def _classes(lines: Iterable[tuple[str, str]]) -> list[str]:
    """The paper's classes among a table's (row, class); the whole lesion is left out."""
    present = {class_name for _, class_name in lines}
    return [class_name for class_name in comparison.PAPER["proposed"] if class_name in present]


def _spread(line: dict[str, str], middle: str, low: str, high: str, sign: str = "") -> str:
    interval = (float(line[low]), float(line[high])) if line[low] else None
    return comparison.format_mean(float(line[middle]), interval, sign)


def _effect(line: dict[str, str]) -> str:
    if not line["seed_std"]:
        return _spread(line, "effect", "low", "high", "+")
    return _spread(line, "effect", "crossed_low", "crossed_high", "+") + f" ± {float(line['seed_std']):.3f}"


def _paper(line: dict[str, str]) -> str:
    return f"{float(line['paper_dice']):.3f}" if line["paper_dice"] else "-"


def _difference(line: dict[str, str]) -> str:
    if not line["difference"]:
        return f"(± {float(line['seed_std']):.3f} by seed)" if line["seeds"] else "-"
    if line["seeds"]:
        cell = _spread(line, "difference", "crossed_low", "crossed_high", "+")
        return cell + "*" * (float(line["p_crossed_holm"]) < 0.05) + f" ± {float(line['seed_std']):.3f}"
    significant = max(float(line["p_wilcoxon_holm"]), float(line["p_bootstrap_holm"])) < 0.05
    return _spread(line, "difference", "difference_low", "difference_high", "+") + "*" * significant


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = (f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


# The tables that `rows_table` does not make.
KINDS = {
    "table1_effects": effects_table,
    "critics": critics_table,
    "intervals": intervals_table,
    "volume_intervals": volume_intervals_table,
    "real_cases": real_cases_table,
}


def fill(text: str, folder: Path = FOLDER) -> str:
    """The page with every table between `<!-- FILE.csv -->` and `<!-- end -->` replaced by that file's table."""

    def table_of(match: re.Match[str]) -> str:
        path = folder / match[1]
        table = KINDS.get(path.stem, rows_table)(path)
        return f"<!-- {match[1]} -->\n{table}\n<!-- end -->"

    return re.sub(r"<!-- (\w+\.csv) -->.*?<!-- end -->", table_of, text, flags=re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the tables into the pages anew."""
    Parser(prog="python -m experiments.results_page", description=main.__doc__).parse_args(arguments)
    for page in PAGES:
        page.write_text(fill(page.read_text()))
        print(page)


if __name__ == "__main__":
    run_command(main)
