"""Other tools' networks on the folds of Table 1: PyTorch's SUMNet and MONAI's BasicUNet.

python -m experiments.peers --workdir=DIR

DIR is the workdir of an `experiments.table1` whose rows `bl1` and `proposed` are finished, for each of --seeds. The
data, the folds and the settings are read from there. Each network sees the slices that our systems see, augmented in
the same way, for the same number of steps, with the same Adam and schedule, and is scored as ours are.
Needs the extra `peers`.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np

from experiments.rows import average, read_seeds, seconds_file
from experiments.study import write_table
from isles_jax.data import layouts
from isles_jax.data.case import Case, Dataset
from isles_jax.data.grid import Target
from isles_jax.data.nifti import read_labels, write_labels
from isles_jax.data.slices import Slices, draw_batch, largest_sides, make_slices
from isles_jax.prediction import inference
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError, Parser, run_command
from isles_jax.scoring import scores, table
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


class Network(Protocol):
    """A network that `train` and `segment` can use."""

    def update(self, images: np.ndarray, labels: np.ndarray, rate: float) -> None:
        """Trains one step on images [B, H, W, M] and labels [B, H, W], -1 outside, at a learning rate."""

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The class probabilities [B, H, W, C] of images [B, H, W, M]."""


class TorchNetwork:
    """A network of PyTorch, trained by its Adam, on the GPU if there is one.

    Args:
      make: makes the network and its loss from our settings, the channels of an image and the classes.
      config: the settings of our row.
      channels: of an image.
      outputs: the classes, background included.
      seed: of the first weights.
    """

    def __init__(
        self,
        make: Callable[[ml_collections.ConfigDict, int, int], tuple[Any, Callable]],
        config: ml_collections.ConfigDict,
        channels: int,
        outputs: int,
        seed: int,
    ) -> None:
        import torch

        torch.manual_seed(seed)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        network, self.loss = make(config, channels, outputs)
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(network.parameters(), weight_decay=config.optimizer.weight_decay)

    def _placed(self, images: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(images.copy()).movedim(-1, 1).to(self.device, memory_format=torch.channels_last)

    def update(self, images: np.ndarray, labels: np.ndarray, rate: float) -> None:
        """See `Network.update`."""
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.network(self._placed(images)), torch.from_numpy(labels.astype(np.int64)).to(self.device))
        loss.backward()
        self.optimizer.step()

    def predict(self, images: np.ndarray) -> np.ndarray:
        """See `Network.predict`."""
        import torch

        self.network.eval()
        with torch.inference_mode():
            return self.network(self._placed(images)).softmax(1).movedim(1, -1).cpu().numpy()


# Starts a network from our settings, the channels of an image, the classes and the seed.
Starter = Callable[[ml_collections.ConfigDict, int, int, int], Network]
PEERS: dict[str, Starter] = {
    "PyTorch SUMNet, CE": partial(TorchNetwork, torch_sumnet),
    "MONAI BasicUNet, Dice+CE": partial(TorchNetwork, monai_unet),
}


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
    data = config.data
    dataset = layouts.load(data.root, tuple(data.channels), **data.labels, how=layouts.read_options(config, run.data))
    dataset = dataclasses.replace(dataset, cases=tuple(case for case in dataset.cases if case.labels is not None))
    target = Target(**run.data.get("grid", {}))
    size = largest_sides(dataset.cases, target)
    task = Task(config, dataset.channels, dataset.classes, dataset.label_values, target, size)
    slices = make_slices(dataset.cases, task.padded(size), target, config.data.dtype)
    return Job(task, run.folds, dataset, slices, run.curves[0][-1]["step"])


def train(job: Job, fold: int, network: Network) -> None:
    """Trains a network in place on the batches that our own systems see in this fold."""
    config = job.config
    slices = job.slices
    training_cases = [i for i, case in enumerate(job.dataset.cases) if case.name not in job.folds[fold]]
    pool = np.flatnonzero(np.isin(slices.case, training_cases))
    schedule = learning_rate(config, job.steps)
    augment_batch = jax.jit(partial(augment, **augment_options(config)))
    for step in range(job.steps):
        rows = draw_batch(pool, slices.lesion, config.train.batch_size, (config.seed, fold, step))
        images = slices.images[rows].astype(np.float32)
        labels = slices.labels[rows].astype(np.int32)
        if config.augment.enabled:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed + fold), step), len(rows))
            images, labels = map(np.asarray, augment_batch(keys, images, labels))
        network.update(images, labels, float(schedule(step)))


def segment(network: Network, case: Case, job: Job) -> np.ndarray:
    """The labels of a case, uint8 [X, Y, Z]: on the grid, with the mirror images and the least lesion of our row."""

    def forward(network: Network, images: np.ndarray) -> np.ndarray:
        return network.predict(images)

    settings = job.config.predict
    mirror = job.task.mirror_axes(settings.flips)
    probabilities = inference.predict_case(forward, [network], case, job.task, mirror=mirror)
    return inference.predict_labels(probabilities, case, settings.min_volume_ml)


def run_peer(name: str, start: Starter, job: Job, directory: Path) -> tuple[list[scores.Row], float]:
    """Trains, predicts and scores a network, fold by fold; finished folds are kept.

    Args:
      name: for what it prints.
      start: makes the network of a fold.
      job: from `read_job`.
      directory: where its predictions go.

    Returns:
      Its rows of scores, and the seconds that all folds took.
    """
    cases = {case.name: case for case in job.dataset.cases}
    values = job.dataset.label_values
    seconds = 0.0
    rows: list[scores.Row] = []
    for fold, held_out in enumerate(job.folds):
        paths = {name: directory / "predictions" / f"{name}.nii.gz" for name in held_out}
        finished = directory / f"fold_{fold}.json"
        if not finished.exists():
            print(f"--- {name}, fold {fold}: {job.steps} steps; to {directory}", flush=True)
            begin = time.monotonic()
            network = start(job.config, job.task.planes, job.task.outputs, job.config.seed + fold)
            train(job, fold, network)
            for case_name, path in paths.items():
                case = cases[case_name]
                write_labels(path, segment(network, case, job), case, values)
            files.write_json(finished, {"seconds": round(time.monotonic() - begin, 1)})
        seconds += files.read_json(finished)["seconds"]
        for case_name, path in paths.items():
            case = cases[case_name]
            found = read_labels(path, case, values)
            sizes = case.spacing_mm, job.dataset.classes, case.voxel_ml
            rows += scores.score_case(case_name, fold, found, case.labels, *sizes)
    return rows, seconds


def other_tool(run: Run, name: str, workdir: Path, rows: Sequence[scores.Row]) -> Run:
    """A run of another tool on the data and the folds of a run of ours, with these scores."""
    location = files.location(workdir)
    return dataclasses.replace(run, name=name, workdir=location, rows=list(rows), curves=[], calibration=None)


def run_seeds(name: str, start: Starter, ours: Sequence[Run], workdir: Path) -> tuple[list[Run], list[float]]:
    """A network on the task of each of our runs, one for each seed, in `workdir`/peers: its runs, and their seconds."""
    runs = []
    times = []
    for seed, run in enumerate(ours):
        directory = workdir / "peers" / f"seed_{seed}" / name.split(",")[0].replace(" ", "_")
        rows, seconds = run_peer(name, start, read_job(run), directory)
        runs.append(other_tool(run, name, directory, rows))
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
    for name, start in PEERS.items():
        rows[name], times[name] = run_seeds(name, start, rows["proposed"], options.workdir)
    print(table.table([average(runs) for runs in rows.values()], "proposed"))
    seconds = ", ".join(f"{name} {np.mean(each):.0f}" for name, each in times.items() if each)
    print(f"seconds for all folds, mean over seeds: {seconds}")
    write_table(options.workdir / "peers.csv", rows, "proposed")
    print(f"\n{options.workdir / 'peers.csv'}")


if __name__ == "__main__":
    run_command(main)
