"""The study of RESULTS.md in one command: Table 1, the ablation and other tools on a phantom of 60 patients.

python -m experiments.phantom_study --workdir=runs/study

The sizes are chosen so that two CPU cores need less than two hours. Run the command again to resume. Needs the extras
`peers` and `report`.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments import ablation, peers, results_page, rows, study, table1
from isles_jax.runtime.command import Parser, run_command

# 60 patients of 8 slices. A fold trains on about 320 slices and sees each eight times.
SIZE = [
    "--config.data.phantom.cases=60", "--config.data.phantom.shape=(64,64,8)", "--config.train.epochs=8",
]  # fmt: skip
# A quarter of the paper's width for the many rows. Half of it beside other tools, which run at their own width.
NARROW, WIDE = ["--config.model.width=16"], ["--config.model.width=32"]
# The rows that one seed cannot tell apart, and the number of seeds for them.
REPEATED, SEEDS = ("proposed", "adversarial 1e-1", "boundary 5"), 3
TITLES = {
    "table1": "the eight systems",
    "peers": "other tools on the same folds",
    "ablation": "proposed, one choice changed",
    "seeds": f"{len(REPEATED)} of them, {SEEDS} seeds",
}


def draw(output: Path) -> None:
    """Draws output/dice.png: the mean Dice of each row of the tables with its 95% interval."""
    from matplotlib import pyplot as plt

    tables = {stem: results_page.read(output / f"{stem}.csv") for stem in TITLES}
    heights = [len({line["row"] for line in lines}) for lines in tables.values()]
    figure, axes = plt.subplots(
        len(tables), 2, figsize=(10, 0.3 * sum(heights) + 2), sharex="col", height_ratios=heights, layout="constrained"
    )
    for pair, (stem, lines) in zip(axes, tables.items(), strict=True):
        for axis, class_name in zip(pair, ("penumbra", "core"), strict=True):
            lines_of_class = [line for line in lines if line["class"] == class_name]
            for place, line in enumerate(lines_of_class):
                mean, low, high = (float(line[key]) for key in ("dice", "low", "high"))
                colour = {"proposed": "#c0392b", "clinical rule": "#888888"}.get(line["row"], "#2c5d8a")
                axis.plot([low, high], [place, place], color=colour, linewidth=2)
                axis.plot(mean, place, "o", color=colour)
            names = [line["row"] if class_name == "penumbra" else "" for line in lines_of_class]
            axis.set_yticks(range(len(names)), names)
            axis.invert_yaxis()
            axis.grid(axis="x", alpha=0.3)
            axis.set_title(f"{class_name}: {TITLES[stem]}", fontsize=10, loc="left")
    for axis in axes[-1]:
        axis.set_xlabel("Dice on the phantom, mean over 60 cases, 95% interval")
    figure.savefig(output / "dice.png", dpi=110)
    plt.close(figure)


def repeat(workdir: Path) -> None:
    """Runs the rows `REPEATED` with `SEEDS` seeds and writes seeds.csv."""
    choices = ablation.ablation_rows([*SIZE, *NARROW])
    runs = rows.run_rows({name: choices[name] for name in REPEATED}, workdir, seeds=SEEDS)
    assert runs, "run_rows returns None only if it was given a part"
    study.finish(runs, workdir, "seeds")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparisons, writes their tables and figure to experiments/results, and fills them in in RESULTS.md."""
    parser = Parser(prog="python -m experiments.phantom_study", description=main.__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs and reports go")
    parser.add_argument(
        "--output", type=Path, default=results_page.FOLDER,
        help="where tables and figure go (default %(default)s; RESULTS.md changes only with the default)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    for module in (table1, ablation):
        module.main([f"--workdir={options.workdir}", *SIZE, *NARROW])
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
