"""The study of RESULTS.md in one command, all on phantoms.

python -m experiments.phantom_study --workdir=runs/study

The sizes are chosen for two CPU cores, which need about eight hours. Run the command again to resume; --parts selects a
part of the work. Needs the extras `peers` and `report`.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments import (
    ablation,
    best,
    critics,
    figures,
    first_weights,
    ideas,
    nnunet,
    peers,
    results_page,
    study,
    table1,
)
from experiments.rows import read_seeds
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError, Parser, run_command

# The name of each result in experiments/results, and the file that a part has made.
Tables = dict[str, Path]

# 60 patients of 8 slices. A fold trains on about 320 slices and sees each eight times.
SIZE = ["--config.data.phantom.cases=60", "--config.data.phantom.shape=(64,64,8)"]
EPOCHS = figures.LENGTHS["peers"]
# A quarter of the paper's width for the many rows. Half of it beside other tools, which run at their own width.
NARROW = 16
WIDE = 32
SEEDS = 3
MORE_SEEDS = 5
# The default phantom has 24 patients of 16 slices. 72 epochs of ours take about as long as five of nnU-Net's, or a
# quarter of twenty. They show fewer slices: 88 would show as many as five.
EQUAL = ["--config.train.epochs=72"]
# A phantom that served no choice.
SECOND = [
    "--config.seed=7",
    "--config.data.phantom.cases=30",
    "--config.data.phantom.shape=(80,64,12)",
    "--config.data.phantom.difficulty=1.5",
]
# Another one, on which nnU-Net trains for twenty epochs. It has fewer slices, so that they take an hour.
THIRD = [
    "--config.seed=11",
    "--config.data.phantom.cases=18",
    "--config.data.phantom.shape=(64,64,12)",
    "--config.data.phantom.difficulty=1.5",
]


def _arguments(workdir: Path, seeds: int = SEEDS, epochs: int = EPOCHS, width: int = NARROW) -> list[str]:
    sizes = [*SIZE, f"--config.train.epochs={epochs}", f"--config.model.width={width}"]
    return [f"--workdir={workdir}", f"--seeds={seeds}", *sizes]


def _by_name(*paths: Path) -> Tables:
    return {path.name: path for path in paths}


def run_table1(workdir: Path) -> Tables:
    """The eight systems on several seeds."""
    table1.main(_arguments(workdir))
    return _by_name(workdir / "table1.csv", workdir / "table1_effects.csv")


def run_first_weights(workdir: Path) -> Tables:
    """bl1 and PyTorch's SUMNet, on more seeds."""
    table1.main([*_arguments(workdir, MORE_SEEDS), "--rows=bl1"])
    first_weights.main([f"--workdir={workdir}", f"--seeds={MORE_SEEDS}"])
    return _by_name(workdir / "first_weights.csv")


def run_ablation(workdir: Path) -> Tables:
    """Proposed with one choice changed at a time, and its critics."""
    ablation.main(_arguments(workdir))
    critics.write(workdir / "critics.csv", read_seeds(workdir, ablation.CRITICS, SEEDS))
    return _by_name(workdir / "ablation.csv", workdir / "critics.csv")


def run_best(workdir: Path) -> Tables:
    """bl6 with one choice changed at a time."""
    best.main(_arguments(workdir))
    return _by_name(workdir / "best.csv")


def run_peers(workdir: Path) -> Tables:
    """Other tools on the same batches."""
    table1.main([*_arguments(workdir / "wide", width=WIDE), "--rows=bl1,proposed"])
    peers.main([f"--workdir={workdir / 'wide'}", f"--seeds={SEEDS}"])
    return _by_name(workdir / "wide" / "peers.csv")


def run_longer(workdir: Path) -> Tables:
    """The same with four times the steps, and with a quarter."""
    tables = {}
    for name in ("shorter", "longer"):
        folder = workdir / name
        table1.main([*_arguments(folder, 1, figures.LENGTHS[name], WIDE), "--rows=bl1,proposed"])
        peers.main([f"--workdir={folder}"])
        tables[f"{name}.csv"] = folder / "peers.csv"
    return tables


def run_nnunet(workdir: Path) -> Tables:
    """bl6 with the augmentation of configs/best.py, and nnU-Net, on the default phantom, on several seeds."""
    folder = workdir / "default"
    best.main([f"--workdir={folder}", f"--seeds={SEEDS}", "--rows=augmented", *EQUAL])
    nnunet.main([f"--workdir={folder}", f"--seeds={SEEDS}", "--rows=augmented"])
    return _by_name(folder / "nnunet_5epochs.csv", folder / "nnunet_5epochs.json")


def run_longer_nnunet(workdir: Path) -> Tables:
    """configs/best.py, and nnU-Net after four times the epochs, on the default phantom."""
    folder = workdir / "default"
    ideas.main([f"--workdir={folder}", "--rows=best", *EQUAL])
    nnunet.main([f"--workdir={folder}", "--rows=best", "--trainer=nnUNetTrainer_20epochs"])
    return _by_name(folder / "nnunet_20epochs.csv", folder / "nnunet_20epochs.json")


def run_second(workdir: Path) -> Tables:
    """The eight systems, bl6 with the augmentation of configs/best.py, and nnU-Net, on another phantom."""
    folder = workdir / "second"
    sizes = [*SECOND, f"--config.model.width={NARROW}"]
    table1.main([f"--workdir={folder}", *sizes])
    best.main([f"--workdir={folder}", "--rows=augmented", *sizes])
    names = ",".join(["proposed", "augmented", *(name for name in table1.table_rows([]) if name != "proposed")])
    nnunet.main([f"--workdir={folder}", f"--rows={names}", "--trainer=nnUNetTrainer_1epoch"])
    return {f"second.{kind}": folder / f"nnunet_1epoch.{kind}" for kind in ("csv", "json")}


def run_third(workdir: Path) -> Tables:
    """configs/best.py, and nnU-Net after twenty epochs, on a third phantom."""
    folder = workdir / "third"
    ideas.main([f"--workdir={folder}", "--rows=best", *THIRD, *EQUAL])
    nnunet.main([f"--workdir={folder}", "--rows=best", "--trainer=nnUNetTrainer_20epochs"])
    return {f"third.{kind}": folder / f"nnunet_20epochs.{kind}" for kind in ("csv", "json")}


PARTS: dict[str, Callable[[Path], Tables]] = {
    "table1": run_table1,
    "first_weights": run_first_weights,
    "ablation": run_ablation,
    "best": run_best,
    "peers": run_peers,
    "longer": run_longer,
    "nnunet": run_nnunet,
    "longer_nnunet": run_longer_nnunet,
    "second": run_second,
    "third": run_third,
}


def refuse_outputs(folder: Path) -> None:
    """Raises an InputError if a table, a record or a picture in the folder is none of this study."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix == ".csv":
            study.refuse_table(path)
        elif path.suffix == ".json":
            files.refuse_foreign(path, nnunet.is_record, "a record of nnU-Net's trainings")
        elif path.suffix == ".png":
            files.refuse_foreign(path, lambda content: figures.SOFTWARE.encode() in content, "a figure")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparisons, writes their tables and figures to experiments/results, and fills them in in RESULTS.md."""
    parser = Parser(prog="python -m experiments.phantom_study", description=main.__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs and reports go")
    parser.add_argument("--parts", default=",".join(PARTS), help="which to run, in this order (default %(default)s)")
    output = "where tables and figures go (default %(default)s; RESULTS.md changes only with the default)"
    parser.add_argument("--output", type=Path, default=results_page.FOLDER, help=output)
    options = parser.parse_args(arguments)
    names = options.parts.split(",")
    for name in names:
        if name not in PARTS:
            raise InputError(f"--parts={name}: expected some of {','.join(PARTS)}")
    refuse_outputs(options.output)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in names:
        for table, path in PARTS[name](options.workdir).items():
            shutil.copy(path, options.output / table)
    figures.draw(options.output)
    if options.output.resolve() == results_page.FOLDER.resolve():
        results_page.main([])
    print(f"\n{options.output}")


if __name__ == "__main__":
    run_command(main)
