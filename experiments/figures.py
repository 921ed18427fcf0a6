"""The figures of RESULTS.md, drawn from the tables beside them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.results_page import FACTORS, read
from isles_jax.scoring.comparison import RULE

# Stands in the files of the figures and shows whose they are.
SOFTWARE = "isles_jax: experiments.figures"
CLASSES = {"penumbra": "#2c5d8a", "core": "#c0392b"}
# Tables of the same rows after trainings of so many epochs.
LENGTHS = {"shorter": 2, "peers": 8, "longer": 32}


def findings(folder: Path) -> None:
    """findings.png: the differences that the page is about, with their intervals over seeds and cases."""
    lines = {
        title: [line for line in read(folder / "table1_effects.csv") if line["factor"] == factor]
        for factor, title in FACTORS.items()
    }
    # These tables hold the other row minus the reference; the figure shows the reference minus the other row.
    for title, name, row in (
        ("augmented bl6 minus nnU-Net (5 epochs)", "nnunet_5epochs.csv", "nnU-Net"),
        ("first bias 1 instead of 0 (bl1)", "first_weights.csv", "bl1, first bias 0"),
    ):
        lines[title] = [line for line in read(folder / name) if line["row"].startswith(row)]
    order = ["augmented bl6 minus nnU-Net (5 epochs)", "first bias 1 instead of 0 (bl1)", *FACTORS.values()]
    figure, axis = _axes(figsize=(8, 3.2))
    for place, title in enumerate(order):
        for shift, (class_name, colour) in zip((-0.12, 0.12), CLASSES.items(), strict=True):
            [line] = [line for line in lines[title] if line["class"] == class_name]
            sign = -1 if "difference" in line else 1
            middle = sign * float(line["difference" if sign < 0 else "effect"])
            ends = sorted(sign * float(line[key]) for key in ("crossed_low", "crossed_high"))
            axis.plot(ends, [place + shift] * 2, color=colour, linewidth=2)
            axis.plot(middle, place + shift, "o", color=colour, label=class_name if place == 0 else None)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(order)), order)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("gain in mean Dice on the phantom, 95% interval over seeds and cases")
    axis.legend(loc="best")
    _save(figure, folder / "findings.png")


def lengths(folder: Path) -> None:
    """lengths.png: the mean Dice of each row against the passes over the training slices."""
    tables = {epochs: read(folder / f"{name}.csv") for name, epochs in LENGTHS.items()}
    names = dict.fromkeys(line["row"] for line in next(iter(tables.values())) if line["row"] != RULE)
    figure, axes = _axes(1, 2, figsize=(10, 3.5), sharey=True)
    for axis, class_name in zip(axes, CLASSES, strict=True):
        for name in names:
            found = [
                next(line for line in table if (line["row"], line["class"]) == (name, class_name))
                for table in tables.values()
            ]
            dice, low, high = ([float(line[key]) for line in found] for key in ("dice", "low", "high"))
            spread = [[d - e for d, e in zip(dice, low, strict=True)], [e - d for d, e in zip(dice, high, strict=True)]]
            axis.errorbar(list(tables), dice, spread, marker="o", capsize=3, label=name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(tables), [str(epochs) for epochs in tables])
        axis.set_xlabel("epochs of training")
        axis.set_title(class_name, fontsize=10, loc="left")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean Dice on the phantom")
    axes[1].legend()
    _save(figure, folder / "lengths.png")


def critics(folder: Path) -> None:
    """critics.png: how often critics are right, and what their gradient weighs, over a training."""
    lines = read(folder / "critics.csv")
    figure, axes = _axes(1, 2, figsize=(10, 3.5))
    for axis, key in zip(axes, ("accuracy", "gradient"), strict=True):
        for name in dict.fromkeys(line["row"] for line in lines):
            chosen = [line for line in lines if line["row"] == name]
            steps, values = ([float(line[column]) for line in chosen] for column in ("until_step", key))
            axis.plot(steps, [100 * value for value in values], marker="o", label=name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].axhline(50, color="black", linewidth=0.8)
    axes[0].set_ylabel("pairs ranked rightly, %")
    axes[1].set_yscale("log")
    axes[1].set_ylabel("gradient, % of the other losses'")
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, folder / "critics.png")


# What each figure is drawn from.
FIGURES: dict[Callable[[Path], None], tuple[str, ...]] = {
    findings: ("nnunet_5epochs.csv", "first_weights.csv", "table1_effects.csv"),
    lengths: tuple(f"{name}.csv" for name in LENGTHS),
    critics: ("critics.csv",),
}


def draw(folder: Path) -> None:
    """Draws the figures whose tables are in the folder."""
    for figure, needed in FIGURES.items():
        if all((folder / name).exists() for name in needed):
            figure(folder)


def _axes(*shape: int, **options: Any) -> Any:
    """A figure and its axes. Matplotlib is of an extra, so it is imported where it is used."""
    from matplotlib import pyplot as plt

    return plt.subplots(*shape, layout="constrained", **options)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.savefig(path, dpi=110, metadata={"Software": SOFTWARE})
    plt.close(figure)
