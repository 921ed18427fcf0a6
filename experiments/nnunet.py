"""nnU-Net (Isensee et al., Nature Methods 2021) on the data and folds of our finished runs.

python -m experiments.nnunet --workdir=DIR --rows=proposed --trainer=nnUNetTrainer_5epochs

DIR is the workdir of an `experiments.table1` whose rows are finished. Planning, preprocessing, augmentation, loss,
schedule, mirroring and post-processing are nnU-Net's own, in its configuration 2d. The data (in its own layout), the
folds and the scores are ours. Its users train for 1000 epochs; here one of its trainers for fewer epochs does. Needs
the extra `peers`.
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import peers
from experiments.rows import average, read_seeds
from experiments.study import write_table
from isles_jax.data import nnunet
from isles_jax.data.layouts import load
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError, Parser, run_command
from isles_jax.scoring import folders, table
from isles_jax.scoring.run_files import Run

DATASET = "Dataset001_ISLES"
PLANS = "nnUNetPlans"


@dataclasses.dataclass(frozen=True)
class Workplace:
    """The folders that nnU-Net works in, below one folder; each seed has its own trainings."""

    root: Path
    seed: int

    @property
    def raw(self) -> Path:
        """The data set in nnU-Net's layout."""
        return self.root / "raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        """What nnU-Net plans and prepares, and the folds that it reads."""
        return self.root / "preprocessed" / DATASET

    def trained(self, trainer: str) -> Path:
        """What a trainer has trained."""
        return self.root / f"seed_{self.seed}" / DATASET / f"{trainer}__{PLANS}__2d"

    def call(self, command: str, *arguments: Any) -> None:
        """Runs one of nnU-Net's commands; what it prints goes to a log.

        Raises:
          InputError: the command failed.
        """
        cores = os.cpu_count() or 2
        settings = {
            "nnUNet_raw": self.root / "raw",
            "nnUNet_preprocessed": self.root / "preprocessed",
            "nnUNet_results": self.root / f"seed_{self.seed}",
            "nnUNet_compile": "f",
            # Its loaders are processes of their own. They share the cores with the training.
            "nnUNet_n_proc_DA": max(1, cores // 2),
            "nnUNet_def_n_proc": cores,
        }
        environment = os.environ | {name: str(value) for name, value in settings.items()}
        log = self.root / f"seed_{self.seed}" / f"{command}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [str(Path(sys.executable).parent / command), *map(str, arguments)]
        with log.open("a") as output:
            if subprocess.run(words, env=environment, stdout=output, stderr=output, check=False).returncode:
                raise InputError(f"{command} failed; its last lines are in {log}")


def torch_threads() -> int:
    """The CPU threads that PyTorch, and so nnU-Net, computes with."""
    import torch

    return torch.get_num_threads()


def splits(folds: Sequence[Sequence[str]]) -> list[dict[str, list[str]]]:
    """The held-out cases of our folds, as nnU-Net's splits_final.json holds them."""
    names = sorted(name for fold in folds for name in fold)
    return [{"train": [name for name in names if name not in fold], "val": sorted(fold)} for fold in folds]


def prepare(run: Run, place: Workplace) -> None:
    """Writes the data of a run in nnU-Net's layout, and lets nnU-Net plan and preprocess them, once."""
    if not place.raw.exists():
        data = run.config.data
        dataset = load(Path(data.root), tuple(data.channels), **data.labels)
        labelled = tuple(case for case in dataset.cases if case.labels is not None)
        nnunet.write(dataclasses.replace(dataset, cases=labelled), place.raw)
    if not (place.preprocessed / f"{PLANS}.json").exists():
        place.call("nnUNetv2_plan_and_preprocess", "-d", 1, "-c", "2d", "-np", 2, "--verify_dataset_integrity")


def train(run: Run, place: Workplace, trainer: str, device: str) -> dict[str, Any]:
    """Trains and predicts the folds that are not finished, and lets nnU-Net find its post-processing.

    Returns:
      The seconds and the CPU threads of each fold, and the largest memory of one of nnU-Net's processes, in GB.
    """
    prepare(run, place)
    facts = place.trained(trainer) / "facts.json"
    # The folds of this seed. nnU-Net reads them whenever a training starts.
    files.write_json(place.preprocessed / "splits_final.json", splits(run.folds))
    found = files.read_json(facts) if facts.exists() else {"seconds": {}, "threads": {}, "memory_gb": 0.0}
    for fold in range(len(run.folds)):
        if str(fold) in found["seconds"]:
            continue
        print(f"--- {trainer}, seed {place.seed}, fold {fold}", flush=True)
        start = time.monotonic()
        place.call("nnUNetv2_train", 1, "2d", fold, "-tr", trainer, "-device", device)
        found["seconds"][str(fold)] = round(time.monotonic() - start, 1)
        found["threads"][str(fold)] = torch_threads()
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        found["memory_gb"] = round(max(found["memory_gb"], peak), 2)
        files.write_json(facts, found)
    if not (_postprocessed(run, place, trainer) / "summary.json").exists():
        choice = ["-c", "2d", "-tr", trainer, "-f", *range(len(run.folds))]
        place.call("nnUNetv2_find_best_configuration", 1, *choice, "--disable_ensembling")
    return found


def _postprocessed(run: Run, place: Workplace, trainer: str) -> Path:
    """Where nnU-Net puts the predictions of all held-out cases."""
    folds = "_".join(map(str, range(len(run.folds))))
    return place.trained(trainer) / f"crossval_results_folds_{folds}" / "postprocessed"


def score(run: Run, place: Workplace, trainer: str) -> Run:
    """nnU-Net's post-processed predictions of the held-out cases, scored as our own are, as a run beside `run`."""
    rows, _ = folders.score_folders(_postprocessed(run, place, trainer), place.raw)
    fold_of = {case: fold for fold, names in enumerate(run.folds) for case in names}
    rows = [row | {"fold": fold_of[row["case"]]} for row in rows]
    return peers.other_tool(run, trainer.replace("nnUNetTrainer_", "nnU-Net "), place.trained(trainer), rows)


def is_record(content: bytes) -> bool:
    """Whether a file with this content is the JSON file that this command writes."""
    try:
        return not files.misfit(json.loads(content), {"versions": {}, "trainer": str, "folds": list, "plan": {}})
    except ValueError:
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains nnU-Net on the data and folds of finished rows of experiments.table1, and compares it with them."""
    parser = Parser(prog="python -m experiments.nnunet", description=main.__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="workdir of experiments.table1; nnunet/ is added")
    parser.add_argument("--rows", default="proposed", help="the finished rows; the first is compared with the others")
    parser.add_argument("--trainer", default="nnUNetTrainer_5epochs", help="of nnU-Net (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    options = parser.parse_args(arguments)
    versions = peers.require("nnunetv2", "torch")
    names = options.rows.split(",")
    rows = read_seeds(options.workdir, names, options.seeds)
    facts = []
    theirs = []
    for seed, run in enumerate(rows[names[0]]):
        place = Workplace(options.workdir / "nnunet", seed)
        facts.append(train(run, place, options.trainer, options.device))
        theirs.append(score(run, place, options.trainer))
    rows = {theirs[0].name: theirs, **rows}
    print(table.table([average(runs) for runs in rows.values()], names[0]))
    stem = f"nnunet_{options.trainer.removeprefix('nnUNetTrainer_')}"
    plan = json.loads((place.preprocessed / f"{PLANS}.json").read_text())["configurations"]["2d"]
    record = {
        "versions": versions,
        "trainer": options.trainer,
        "folds": [run.folds for run in theirs],
        "plan": {key: plan[key] for key in ("batch_size", "patch_size", "spacing")},
        "seeds": facts,
    }
    path = options.workdir / f"{stem}.json"
    files.refuse_foreign(path, is_record, "a record of nnU-Net's trainings")
    files.write_json(path, record)
    write_table(options.workdir / f"{stem}.csv", rows, names[0])
    print(f"\n{options.workdir / stem}.csv, {stem}.json")


if __name__ == "__main__":
    run_command(main)
