"""Other tools' networks on the folds of Table 1: PyTorch's SUMNet and MONAI's BasicUNet.

python -m experiments.peers --workdir=DIR

DIR is the workdir of an `experiments.table1` whose rows `bl1` and `proposed` are finished, for each of --seeds. The
data, the folds and the settings are read from there. Each network sees the slices that our systems see, augmented in
the same way, for the same number of steps, with the same Adam and schedule, and is scored as by `isles_jax.evaluate`.
Needs the extra `peers`.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments.rows import average, read_seeds, seconds_file
from experiments.study import write_table
from isles_jax.data.case import Case, Dataset
from isles_jax.data.grid import Target
from isles_jax.data.layouts import load
from isles_jax.data.nifti import write_labels
from isles_jax.data.slices import Slices, draw_batch, largest_sides, make_slices
from isles_jax.prediction import inference
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError, Parser, run_command
from isles_jax.scoring import folders, scores, table
from isles_jax.scoring.run_files import Run
from isles_jax.training.augment import augment
from isles_jax.training.optimizers import learning_rate
from isles_jax.training.step import augment_options
from isles_jax.training.task import Task


def require(*libraries: str) -> dict[str, str]:
    """The versions of libraries of the extra `peers`; an InputError if one is not installed."""
    try:
        return {name: version(name) for name in libraries}
    except PackageNotFoundError as error:
        raise InputError(f"found no {error.name}, expected the extra `peers`: pip install isles-jax[peers]") from error


def torch_sumnet(config: ml_collections.ConfigDict, channels: int, outputs: int) -> tuple[Any, Callable]:
    """SUMNet without residual connections, at the width of our systems, with cross-entropy."""
    import torch.nn.functional as F  # noqa: N812

    from experiments.benchmarks.torch_networks import SUMNet

    network = SUMNet(channels, outputs, residual=False, width=config.model.width)
    return network, lambda logits, labels: F.cross_entropy(logits, labels, ignore_index=-1)


def monai_unet(config: ml_collections.ConfigDict, channels: int, outputs: int) -> tuple[Any, Callable]:
    """BasicUNet with its default features, and MONAI's Dice + cross-entropy as in its tutorials."""
    from monai.losses import DiceCELoss
    from monai.networks.nets import BasicUNet

    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    network = BasicUNet(spatial_dims=2, in_channels=channels, out_channels=outputs)
    # MONAI's loss cannot ignore pixels, so padding counts as background.
    return network, lambda logits, labels: loss(logits, labels.clamp(min=0)[:, None])


# Makes a network and its loss from our settings, the channels of an image and the classes.
Maker = Callable[[ml_collections.ConfigDict, int, int], tuple[Any, Callable]]
PEERS: dict[str, Maker] = {"PyTorch SUMNet, CE": torch_sumnet, "MONAI BasicUNet, Dice+CE": monai_unet}


@dataclasses.dataclass(frozen=True)
class Job:
    """What the networks share: the task, the folds, the data and the steps of a fold.

    Attributes:
      task: of our finished row.
      folds: the names of the held-out cases of each fold.
      dataset: its labelled cases.
      slices: of these cases, for training.
      steps: of each fold.
    """

    task: Task
    folds: list[list[str]]
    dataset: Dataset
    slices: Slices
    steps: int

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The settings of our row."""
        return self.task.config


def read_job(run: Run) -> Job:
    """The job that a finished run of ours had."""
    config = run.config
    dataset = load(Path(config.data.root), tuple(config.data.channels), **config.data.labels)
    dataset = dataclasses.replace(dataset, cases=tuple(case for case in dataset.cases if case.labels is not None))
    target = Target(**run.data.get("grid", {}))
    size = largest_sides(dataset.cases, target)
    task = Task(config, dataset.channels, dataset.classes, dataset.label_values, target, size)
    slices = make_slices(dataset.cases, task.padded(size), target)
    return Job(task, run.folds, dataset, slices, run.curves[0][-1]["step"])


def train(job: Job, fold: int, network: object, loss: Callable, device: str) -> None:
    """Trains a network in place on the batches that our own systems see in this fold."""
    import torch

    config, slices = job.config, job.slices
    training_cases = [i for i, case in enumerate(job.dataset.cases) if case.name not in job.folds[fold]]
    pool = np.flatnonzero(np.isin(slices.case, training_cases))
    schedule = learning_rate(config, job.steps)
    augment_batch = jax.jit(partial(augment, **augment_options(config)))
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=config.optimizer.weight_decay)
    for step in range(job.steps):
        rows = draw_batch(pool, slices.lesion, config.train.batch_size, (config.seed, fold, step))
        images, labels = slices.images[rows], slices.labels[rows].astype(np.int32)
        if config.augment.enabled:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed + fold), step), len(rows))
            images, labels = (np.array(array) for array in augment_batch(keys, images, labels))
        x = torch.from_numpy(images).movedim(-1, 1).to(device, memory_format=torch.channels_last)
        y = torch.from_numpy(labels.astype(np.int64)).to(device)
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(step))
        optimizer.zero_grad(set_to_none=True)
        loss(network(x), y).backward()
        optimizer.step()


def segment(network: object, case: Case, job: Job, device: str) -> np.ndarray:
    """The labels of a case, uint8 [X, Y, Z]: on the grid, with the mirror images and the least lesion of our row."""
    import torch

    def forward(network: object, images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.from_numpy(images.copy()).movedim(-1, 1).to(device, memory_format=torch.channels_last)
            return network(x).softmax(1).movedim(1, -1).cpu().numpy()

    settings = job.config.predict
    mirror = job.task.mirror_axes(settings.flips)
    probabilities = inference.predict_case(forward, [network], case, job.task, mirror=mirror)
    return inference.predict_labels(probabilities, case, settings.min_volume_ml)


def run_peer(name: str, make: Maker, job: Job, directory: Path) -> tuple[list[scores.Row], float]:
    """Trains, predicts and scores a network, fold by fold; finished folds are kept.

    Args:
      name: for what it prints.
      make: makes the network of a fold.
      job: from `read_job`.
      directory: where its predictions go.

    Returns:
      Its rows of scores, and the seconds that all folds took.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds = 0.0
    for fold, held_out in enumerate(job.folds):
        finished = directory / f"fold_{fold}.json"
        if not finished.exists():
            print(f"--- {name}, fold {fold}: {job.steps} steps on {device}; to {directory}", flush=True)
            torch.manual_seed(job.config.seed + fold)
            start = time.monotonic()
            network, loss = make(job.config, job.task.planes, job.task.outputs)
            network = network.to(device, memory_format=torch.channels_last)
            train(job, fold, network, loss, device)
            network.eval()
            for case in job.dataset.cases:
                if case.name in held_out:
                    path = directory / "predictions" / f"{case.name}.nii.gz"
                    write_labels(path, segment(network, case, job, device), case, job.dataset.label_values)
            files.write_json(finished, {"seconds": round(time.monotonic() - start, 1)})
        seconds += json.loads(finished.read_text())["seconds"]
    values = {} if (job.dataset.root / "dataset.json").exists() else {"values": job.dataset.label_values}
    rows = folders.score_folders(directory / "predictions", job.dataset.root, **values)
    fold_of = {case: fold for fold, names in enumerate(job.folds) for case in names}
    return [row | {"fold": fold_of[row["case"]]} for row in rows], seconds


def run_seeds(name: str, make: Maker, ours: Sequence[Run], workdir: Path) -> tuple[list[Run], list[float]]:
    """A network on the task of each of our runs, one for each seed, in `workdir`/peers: its runs, and their seconds."""
    runs, times = [], []
    for seed, run in enumerate(ours):
        directory = workdir / "peers" / f"seed_{seed}" / name.split(",")[0].replace(" ", "_")
        rows, seconds = run_peer(name, make, read_job(run), directory)
        runs.append(dataclasses.replace(run, name=name, workdir=directory, rows=rows, curves=[], calibration=None))
        times.append(seconds)
    return runs, times


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains other tools' networks on the folds of experiments.table1 and compares them with its bl1 and proposed."""
    parser = Parser(prog="python -m experiments.peers", description=main.__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="workdir of experiments.table1; peers/ is added")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default 1)")
    options = parser.parse_args(arguments)
    require("torch", "monai")
    rows = read_seeds(options.workdir, ("bl1", "proposed"), options.seeds)
    times = {
        name: [files.read_json(seconds_file(run.workdir)) for run in runs if seconds_file(run.workdir).exists()]
        for name, runs in rows.items()
    }
    for name, make in PEERS.items():
        rows[name], times[name] = run_seeds(name, make, rows["proposed"], options.workdir)
    print(table.table([average(runs) for runs in rows.values()], "proposed"))
    print("seconds for all folds, mean over seeds: "
          + ", ".join(f"{name} {np.mean(each):.0f}" for name, each in times.items() if each))  # fmt: skip
    write_table(options.workdir / "peers.csv", rows, "proposed")
    print(f"\n{options.workdir / 'peers.csv'}")


if __name__ == "__main__":
    run_command(main)
