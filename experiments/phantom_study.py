"""All that RESULTS.md shows, in one command: Table 1, the ablation and the peers on a phantom of 60 patients.

python -m experiments.phantom_study --workdir=runs/study

The sizes are chosen so that two CPU cores need less than two hours. Needs the extras `peers` and `report`. Run again,
it goes on.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments import ablation, peers, results_page, table1
from isles_jax.runtime.command import Parser, run_command

# 60 patients of 8 slices; a training fold has about 320 of them, and sees each eight times.
SIZE = [
    "--config.data.phantom.cases=60", "--config.data.phantom.shape=(64,64,8)", "--config.train.epochs=8",
]  # fmt: skip
# A quarter of the paper's width for the many rows; for the one beside other tools, which run at their own width, half.
NARROW, WIDE = ["--config.model.width=16"], ["--config.model.width=32"]
# The rows that one seed cannot tell apart, and how many seeds they get.
REPEATED, SEEDS = ("proposed", "adversarial 1e-1", "boundary 5"), 3
TITLES = {
    "table1": "the eight systems",
    "peers": "other tools on the same folds",
    "ablation": "proposed, one choice changed",
    "seeds": f"{len(REPEATED)} of them, {SEEDS} seeds",
}


def draw(output: Path) -> None:
    """The mean Dice of each row of the tables with its 95% interval, as output/dice.png."""
    from matplotlib import pyplot as plt

    tables = {stem: results_page.read(output / f"{stem}.csv") for stem in TITLES}
    heights = [len({row["row"] for row in rows}) for rows in tables.values()]
    figure, axes = plt.subplots(
        len(tables), 2, figsize=(10, 0.3 * sum(heights) + 2), sharex="col", height_ratios=heights, layout="constrained"
    )
    for line, (stem, rows) in zip(axes, tables.items(), strict=True):
        for axis, word in zip(line, ("penumbra", "core"), strict=True):
            chosen = [row for row in rows if row["class"] == word]
            for place, row in enumerate(chosen):
                mean, low, high = (float(row[key]) for key in ("dice", "low", "high"))
                colour = {"proposed": "#c0392b", "clinical rule": "#888888"}.get(row["row"], "#2c5d8a")
                axis.plot([low, high], [place, place], color=colour, linewidth=2)
                axis.plot(mean, place, "o", color=colour)
            names = [row["row"] for row in chosen] if word == "penumbra" else [""] * len(chosen)
            axis.set_yticks(range(len(chosen)), names)
            axis.invert_yaxis()
            axis.grid(axis="x", alpha=0.3)
            axis.set_title(f"{word}: {TITLES[stem]}", fontsize=10, loc="left")
    for axis in axes[-1]:
        axis.set_xlabel("Dice on the phantom, mean over 60 cases, 95% interval")
    figure.savefig(output / "dice.png", dpi=110)
    plt.close(figure)


def repeat(workdir: Path) -> None:
    """The rows `REPEATED` on `SEEDS` seeds, as seeds.csv."""
    rows = ablation.ablation_rows([*SIZE, *NARROW])
    runs = table1.run_rows({name: rows[name] for name in REPEATED}, workdir, seeds=SEEDS)
    assert runs, "all rows were asked for"
    table1.finish(runs, workdir, SEEDS, "seeds")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparisons and puts their tables and figure where RESULTS.md has them, and the tables into it."""
    parser = Parser(prog="python -m experiments.phantom_study", description=main.__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs and reports go")
    parser.add_argument(
        "--output", type=Path, default=results_page.FOLDER,
        help="where tables and figure go (default %(default)s; with another folder RESULTS.md stays as it is)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    where = f"--workdir={options.workdir}"
    for run in (table1, ablation):
        run.main([where, *SIZE, *NARROW])
    repeat(options.workdir)
    wide = options.workdir / "wide"
    table1.main([f"--workdir={wide}", "--rows=bl1,proposed", *SIZE, *WIDE])
    peers.main([f"--workdir={wide}"])
    options.output.mkdir(parents=True, exist_ok=True)
    for stem in (*TITLES, "table1_effects"):
        shutil.copy((wide if stem == "peers" else options.workdir) / f"{stem}.csv", options.output)
    draw(options.output)
    if options.output.resolve() == results_page.FOLDER.resolve():
        results_page.main()
    print(f"\n{options.output}")


if __name__ == "__main__":
    run_command(main)
