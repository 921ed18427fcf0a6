"""Systems on real cases of ISLES-2022, each left out once, with and without the help of a phantom.

python -m experiments.real_cases --workdir=DIR --config.data.root=/data/isles2022

Four cases show whether the software works on patients, and cannot show how well. So the table has every case, and no
mean. The sizes are for four cases and two CPU cores. Three rows also learn from a phantom: it alone, before the
patients, or beside them.
"""

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from experiments import nnunet, peers
from experiments.best import AUGMENTED
from experiments.rows import Rows, changed_rows, run_rows
from experiments.study import Seeds, refuse_table
from isles_jax import predict
from isles_jax.config import baseline
from isles_jax.cross_validation import cross_validate
from isles_jax.data import layouts
from isles_jax.data.case import Case
from isles_jax.runtime import files
from isles_jax.runtime.command import Parser, run_command
from isles_jax.runtime.overrides import override
from isles_jax.scoring import folders, scores
from isles_jax.scoring.run_files import Run, read_run

# A quarter of the paper's width. A fold trains on about 200 slices and sees each of them twenty times.
SIZE = [
    "--config.folds=4",
    "--config.model.width=16",
    "--config.discriminator.width=8",
    "--config.train.epochs=20",
]
NOT_ADVERSARIAL = ["--config.discriminator.enabled=False", "--config.loss.adversarial=0"]
# Name of the row: what differs from configs/proposed.py.
SYSTEMS = {
    "bl1": [
        *NOT_ADVERSARIAL,
        "--config.model.residual=False",
        "--config.loss.lovasz=0",
        "--config.loss.boundary=0",
    ],
    "bl6": NOT_ADVERSARIAL,
    "proposed": [],
    "augmented": [*NOT_ADVERSARIAL, *AUGMENTED],
    "unet": [*NOT_ADVERSARIAL, "--config.model.network=unet"],
    "best": [*NOT_ADVERSARIAL, *AUGMENTED, "--config.model.network=unet", "--config.model.batch_norm=all"],
}
# 18 phantom cases as large as the real ones. The first fold trains on twelve of them.
PHANTOM = [
    *NOT_ADVERSARIAL,
    "--config.model.width=16",
    "--config.data.phantom.layout=isles2022",
    "--config.data.phantom.cases=18",
    "--config.data.phantom.shape=(112,112,72)",
    "--config.train.epochs=8",
    "--config.fold=0",
]
# With phantom cases beside the real ones there are about four times as many slices.
BESIDE_EPOCHS = "--config.train.epochs=5"
# Of the table of real and phantom cases together.
BOTH = ("case", "patient", "DWI", "ADC", "label")
COLUMNS = ("row", "seed", "case", "dice", "lesion_f1", "volume_pred_ml", "volume_true_ml")


def real_rows(overrides: Sequence[str]) -> Rows:
    """The configuration of each row, by name; `overrides` are applied to all."""
    proposed = baseline(residual=True, adversarial=True, overlap=True)
    return changed_rows(proposed, SYSTEMS, [*SIZE, *overrides])


def write(path: epath.Path, runs: Seeds) -> None:
    """Writes a CSV with one line for each row, seed and case: Dice, F1 of the lesions, and volumes in ml."""
    refuse_table(path)
    lines = [
        {"row": name, "seed": str(seed)} | line
        for name, seeds in runs.items()
        for seed, run in enumerate(seeds)
        for line in run.rows
    ]
    scores.write_csv(path, COLUMNS, lines)


def learn_from_phantom(workdir: Path, bl6: Sequence[Run], overrides: Sequence[str]) -> dict[str, list[Run]]:
    """Three rows: bl6 on a phantom alone, on patients after the phantom, and on both together."""
    config = baseline(residual=True, adversarial=True, overlap=True)
    alone = override(copy.deepcopy(config), PHANTOM)
    alone.name = "phantom"
    cross_validate(alone, workdir / "phantom")
    root = Path(bl6[0].config.data.root)
    labels = workdir / "phantom_labels"
    # A call that was stopped may have left some of them.
    places = [f"--workdir={workdir / 'phantom'}", f"--input={root}", f"--output={labels}"]
    predict.main([*places, "--folds=0", "--overwrite"])
    rows, _ = folders.score_folders(labels, root)
    runs = {"bl6 on the phantom alone": [dataclasses.replace(bl6[0], rows=rows)]}
    after = {"bl6 after the phantom": [*NOT_ADVERSARIAL, f"--config.train.init={workdir / 'phantom'}"]}
    runs |= run_rows(changed_rows(config, after, [*SIZE, *overrides]), epath.Path(workdir))
    real = [name for fold in bl6[0].folds for name in fold]
    folds = put_together(root, workdir / "phantom" / "phantom", bl6[0].folds, workdir / "both")
    options = [*NOT_ADVERSARIAL, f"--config.folds_by={folds}", BESIDE_EPOCHS]
    beside = changed_rows(config, {"both": options}, [*SIZE, *overrides, f"--config.data.root={workdir / 'both'}"])
    cross_validate(beside["both"], workdir / "bl6 beside the phantom")
    run = read_run(workdir / "bl6 beside the phantom")
    run = dataclasses.replace(run, rows=[row for row in run.rows if row["case"] in real])
    return runs | {"bl6 beside the phantom": [run]}


def put_together(real: Path, phantom: Path, folds: Sequence[Sequence[str]], folder: Path) -> Path:
    """Writes a table of real and phantom cases, cases.csv, to a folder, and returns the file with its folds.

    Each fold holds out the real cases that it did, and its share of the phantom's patients.
    """
    cases = [case for root in (real, phantom) for case in layouts.load(root).cases]
    patients = defaultdict(list)
    for case in cases:
        if not any(case.name in fold for fold in folds):
            patients[case.patient].append(case.name)
    mixed = [list(fold) for fold in folds]
    for number, names in enumerate(patients.values()):
        mixed[number % len(mixed)] += names
    folder.mkdir(exist_ok=True)
    scores.write_csv(folder / "cases.csv", BOTH, [_paths(case) for case in cases])
    files.write_json(folder / "folds.json", mixed)
    return folder / "folds.json"


def refuse_outputs(workdir: epath.Path) -> None:
    """Raises an InputError if one of the tables that this study writes is there and is not an earlier one."""
    refuse_table(workdir / "real_cases.csv")
    starts_so = ",".join(BOTH).encode()
    files.refuse_foreign(workdir / "both" / "cases.csv", lambda content: content.startswith(starts_so), "a table")


def _paths(case: Case) -> dict[str, str]:
    dwi, adc, label = (str(path.resolve()) for path in case.files)
    return {"case": case.name, "patient": case.patient, "DWI": dwi, "ADC": adc, "label": label}


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains systems, and nnU-Net if asked to, on all real cases but one at a time, and scores each case."""
    parser = Parser(prog="python -m experiments.real_cases", description=main.__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs and real_cases.csv are written")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default 1)")
    parser.add_argument("--trainer", help="also run nnU-Net with this one of its trainers (needs the extra `peers`)")
    options, overrides = parser.parse_known_args(arguments)
    if options.trainer:
        peers.require("nnunetv2", "torch")
    workdir = epath.Path(options.workdir)
    refuse_outputs(workdir)
    runs = run_rows(real_rows(overrides), workdir, seeds=options.seeds)
    runs |= learn_from_phantom(options.workdir, runs["bl6"], overrides)
    if options.trainer:
        theirs = []
        for seed, run in enumerate(runs["bl6"]):
            place = nnunet.Workplace(options.workdir / "nnunet", seed)
            nnunet.train(run, place, options.trainer, "cpu")
            theirs.append(nnunet.score(run, place, options.trainer))
        runs[theirs[0].name] = theirs
    write(workdir / "real_cases.csv", runs)
    print(f"\n{workdir / 'real_cases.csv'}")


if __name__ == "__main__":
    run_command(main)
