"""Times of this package's parts beside PyTorch doing the same work, on whatever device is there.

python -m experiments.benchmark all --output=results.json

Subjects: the losses alone; the network's forward pass; a training step with cross-entropy; the proposed system's
adversarial step; inference of a case; an epoch; a whole fold, trained and predicted. PyTorch is optional (`pip install
isles-jax[bench]`). It runs in the same process, on the same number of threads, and all take turns. Runs in which other
processes took more than a tenth of the machine are left out where at least three others remain. Reported are medians
with the least and the most, CPU time, ratios to PyTorch eager, and the share of the largest measured matrix product.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import PartitionSpec

from experiments import loss_times
from experiments.timing import ACCELERATOR, Functions, about, interleave, keep_memory, matrix_limit, measure
from isles_jax import config as configs
from isles_jax import inference, networks
from isles_jax.data import layouts
from isles_jax.data.case import Case, Dataset
from isles_jax.data.phantom import write_phantom
from isles_jax.data.slices import draw_batch
from isles_jax.networks import critic_channels, make_segmenter
from isles_jax.training import parallel
from isles_jax.training.fold import train_fold
from isles_jax.training.plan import prepare
from isles_jax.training.state import State, init_state
from isles_jax.training.step import make_step

CLASSES = ("penumbra", "core")
CHANNELS = 3


def make_config(options: argparse.Namespace, system: str, **keys: object) -> ml_collections.ConfigDict:
    """A resolved configuration of the paper's network: `system` is "bl5" (cross-entropy) or "proposed"."""
    full = system == "proposed"
    config = configs.baseline(residual=True, adversarial=full, overlap=full)
    sizes = {"model.width": options.width, "discriminator.width": options.width, "train.epochs": 50}
    sizes["model.conv"] = options.conv
    config.update_from_flattened_dict(sizes | {"augment.enabled": False, "train.batch_size": options.batch} | keys)
    return configs.resolve(config)


def make_batch(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """A batch of random slices, padded on one side, with a lesion: images [B, H, W, M] and labels [B, H, W]."""
    height, width = options.size
    rng = np.random.default_rng(options.seed)
    labels = np.zeros((options.batch, height, width), np.int8)
    labels[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    labels[:, height // 3 : height // 2, width // 3 : width // 2] = 2
    labels[:, :, : width // 16] = -1
    return rng.standard_normal((*labels.shape, CHANNELS), np.float32) + (labels > 0)[..., None], labels


def our_step(config: ml_collections.ConfigDict, batch: tuple[np.ndarray, ...]) -> Callable[[], dict[str, jax.Array]]:
    """One call of the compiled step (`steps_per_call` steps) on one batch, waited for; it returns the metrics."""
    per_call = config.train.steps_per_call
    step = parallel.parallelize(make_step(config, CLASSES, 1000, parallel.AXIS), config.train.parallel)
    held = [parallel.replicate(init_state(config, CLASSES, CHANNELS, 1000, 0))]
    placed = parallel.replicate(batch)
    indices = np.tile(np.arange(len(batch[0]), dtype=np.int32), (per_call, 1))
    indices = np.moveaxis(indices.reshape(per_call, jax.device_count(), -1), 1, 0)

    def run() -> dict[str, jax.Array]:
        held[0], metrics = step(held[0], placed, indices)
        return jax.block_until_ready((held[0], metrics))[1]

    return run


def step_flops(config: ml_collections.ConfigDict, batch: tuple[np.ndarray, ...]) -> float:
    """Arithmetic of one step with direct convolutions, as XLA counts it before it optimises anything."""
    config = config.copy_and_resolve_references()
    config.train.steps_per_call, config.model.conv = 1, "lax"
    step = make_step(config, CLASSES, 1000, parallel.AXIS)
    whole = PartitionSpec()
    mapped = jax.shard_map(step, mesh=parallel.mesh(), in_specs=whole, out_specs=whole, check_vma=False)
    state = init_state(config, CLASSES, CHANNELS, 1000, 0)
    indices = np.arange(len(batch[0]), dtype=np.int32)[None]
    return jax.jit(mapped).lower(state, batch, indices).cost_analysis()["flops"]


def check_agreement(options: argparse.Namespace) -> dict:
    """That PyTorch's networks and steps compute what ours do, from the same weights and batch: relative differences."""
    if not options.pytorch:
        return {}
    from experiments import torch_runs

    batch, results = make_batch(options), {}
    for system in ("bl5", "proposed"):
        config, setup = make_config(options, system), state_of(options, system)
        forward = jax.jit(make_segmenter(config, len(CLASSES) + 1).apply)
        ours, theirs = np.asarray(forward(setup[0].segmenter.variables, batch[0])), torch_runs.logits(setup[0], batch)
        results[f"{system}, logits"] = float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours))
        losses, theirs = our_step(config, batch)(), torch_runs.first_loss(setup, batch)
        results[f"{system}, loss"] = abs(float(losses["loss"][0]) - theirs) / theirs
    print(json.dumps(results, indent=1))
    return results


def benchmark_forward(options: argparse.Namespace) -> dict:
    """Logits of a batch, as inference computes them."""
    images, _ = batch = make_batch(options)
    functions: Functions = {}
    for dtype in _dtypes():
        config = make_config(options, "bl5", dtype=dtype)
        variables = init_state(config, CLASSES, CHANNELS, 1, 0).segmenter.variables
        forward = networks.make_forward(make_segmenter(config, len(CLASSES) + 1))
        variables, x = jax.device_put(variables), jnp.asarray(images)
        functions[f"ours, {dtype}"] = lambda f=forward, v=variables, x=x: f(v, x).block_until_ready()
    if options.pytorch:
        from experiments import torch_runs

        functions |= torch_runs.forward_functions(options.pytorch, state_of(options, "bl5"), batch)
    return {f"batch {options.batch}": measure(functions, options, step_flops(config, batch) / 3)}


def benchmark_step(options: argparse.Namespace, system: str = "bl5") -> dict:
    """A training step of Residual-SUMNet with cross-entropy and Adam."""
    batch = make_batch(options)
    variants = [{"dtype": dtype} for dtype in _dtypes()]
    if ACCELERATOR:
        variants.append({"dtype": "bfloat16", "train.steps_per_call": 10})
    functions, calls = {}, {}
    for keys in variants:
        name = ", ".join(["ours", *(f"{key.split('.')[-1]}={value}" for key, value in keys.items())])
        functions[name] = our_step(make_config(options, system, **keys), batch)
        calls[name] = keys.get("train.steps_per_call", 1)
    if options.pytorch:
        from experiments import torch_runs

        functions |= torch_runs.step_functions(options.pytorch, state_of(options, system), batch)
    return {
        f"batch {options.batch}": measure(functions, options, step_flops(make_config(options, system), batch), calls)
    }


def benchmark_adversarial(options: argparse.Namespace) -> dict:
    """A step of the proposed system: four losses, three critics, one forward pass of the segmenter."""
    return benchmark_step(options, "proposed")


def state_of(options: argparse.Namespace, system: str) -> tuple[State, list[slice]]:
    """The initial state of a system and what its critics see."""
    config = make_config(options, system)
    return init_state(config, CLASSES, CHANNELS, 1000, 0), list(critic_channels(config, CLASSES).values())


def _dtypes() -> tuple[str, ...]:
    return ("float32", "bfloat16") if ACCELERATOR else ("float32",)


def phantom(options: argparse.Namespace, folder: str) -> Dataset:
    """A phantom data set of the wanted size, read as any other."""
    root = Path(folder) / "phantom"
    write_phantom(root, cases=options.cases, shape=tuple(options.shape), difficulty=1.0, seed=options.seed)
    return layouts.load(root, penumbra=1, core=2)


def benchmark_epoch(options: argparse.Namespace) -> dict:
    """An epoch of the proposed system as training runs it: batches drawn, augmented, metrics read at the end."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = phantom(options, folder)
    config = make_config(options, "proposed", **_fold_keys(1))
    plan = prepare(config, dataset)
    held = [parallel.replicate(init_state(config, CLASSES, CHANNELS, plan.steps, 0))]

    def run() -> None:
        kept, per_call, pool = [], config.train.steps_per_call, np.arange(len(plan.slices.labels))
        for start in range(0, plan.steps, per_call):
            rows = [draw_batch(pool, plan.slices.lesion, options.batch, (start + i,)) for i in range(per_call)]
            indices = np.moveaxis(np.reshape(rows, (per_call, jax.device_count(), -1)), 1, 0)
            held[0], metrics = plan.run_steps(held[0], plan.data, indices)
            kept.append(metrics["loss"])
        jax.device_get(kept)

    functions: Functions = {"ours": run}
    if options.pytorch:
        from experiments import torch_runs

        functions |= torch_runs.epoch_functions(options.pytorch, state_of(options, "proposed"), plan)
    name = f"{plan.steps} steps of {options.batch}, {plan.slices.labels.shape[1:]}"
    return {name: interleave(functions, max(1, options.runs // 4)) | {"steps": plan.steps}}


def _fold_keys(epochs: int) -> dict[str, object]:
    """What a run would choose on this device."""
    fast = {"dtype": "bfloat16", "train.steps_per_call": 10} if ACCELERATOR else {}
    return {"train.epochs": epochs, "augment.enabled": True, **fast}


def benchmark_fold(options: argparse.Namespace) -> dict:
    """A fold of the proposed system through the package, once: compiled, trained, saved, held-out cases predicted."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = phantom(options, folder)
        config = make_config(options, "proposed", **_fold_keys(options.epochs))
        names = [case.name for case in dataset.cases]
        held_out, directory = names[: len(names) // config.folds], epath.Path(folder) / "fold_0"
        start = time.perf_counter()
        plan = prepare(config, dataset)
        train_fold(plan, 0, held_out, directory)
        trained = time.perf_counter() - start
        inference.predict_fold(config, dataset, held_out, directory)
        total = time.perf_counter() - start
    entry = {"training_s": round(trained, 2), "total_s": round(total, 2), "steps": plan.steps}
    # The proposed system is the slowest of the eight, so this is more than Table 1 takes.
    entry["table1_at_most_min"] = round(24 * total / 60, 1)
    if options.pytorch:
        from experiments import torch_runs

        entry |= torch_runs.fold_seconds(state_of(options, "proposed"), plan, held_out)
    print(json.dumps(entry, indent=1))
    return {f"{options.cases} cases of {options.shape}, {options.epochs} epochs": entry}


def benchmark_inference(options: argparse.Namespace) -> dict:
    """A case of the wanted shape: normalised volume in, labels out."""
    rng = np.random.default_rng(options.seed)
    images = rng.gamma(2.0, 3.0, (*options.shape, CHANNELS)).astype(np.float32)
    case = Case("case", images, None, np.eye(4), None)
    functions: Functions = {}
    for dtype in _dtypes():
        config = make_config(options, "bl5", dtype=dtype)
        folds = [jax.device_put(init_state(config, CLASSES, CHANNELS, 1, 0).segmenter.variables)]
        forward = networks.make_forward(make_segmenter(config, len(CLASSES) + 1))
        functions[f"ours, {dtype}"] = lambda f=forward, v=folds: inference.predict_case(f, v, case).argmax(-1)
    if options.pytorch:
        from experiments import torch_runs

        functions |= torch_runs.inference_functions(options.pytorch, state_of(options, "bl5"), case)
    return {f"one case of {tuple(options.shape)}": measure(functions, options)}


SUBJECTS = {
    "agreement": check_agreement,
    "losses": loss_times.benchmark_losses,
    "forward": benchmark_forward,
    "step": benchmark_step,
    "adversarial": benchmark_adversarial,
    "inference": benchmark_inference,
    "epoch": benchmark_epoch,
    "fold": benchmark_fold,
}


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, and each flag's default."""


def parse() -> argparse.Namespace:
    """The command line; sizes that are not given suit the device: SPES's on an accelerator, a sample of it on CPU."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__, formatter_class=_Help)
    add = parser.add_argument
    add("subject", choices=[*SUBJECTS, "all"], help="what is timed")
    add("--runs", type=int, default=12, help="runs of each function, a quarter where one takes long")
    add("--sizes", type=int, default=3, help="how many of the losses' sizes, the small ones first")
    add("--seed", type=int, default=0, help="of weights, batches and the phantom")
    add("--width", type=int, default=64, help="channels of the first layers, the paper's network by default")
    add("--conv", default="lax" if ACCELERATOR else "winograd", help="as the key model.conv")
    add("--batch", type=int, nargs="+", default=[8, 64] if ACCELERATOR else [8], help="slices in a batch, one or more")
    add("--size", type=int, nargs=2, default=(96, 128), help="sides of a slice")
    add("--cases", type=int, default=30 if ACCELERATOR else 3, help="phantom cases of epoch and fold")
    add("--shape", type=int, nargs=3, default=(96, 110, 71) if ACCELERATOR else (96, 110, 8), help="voxels of a case")
    add("--epochs", type=int, default=50 if ACCELERATOR else 1, help="epochs of the fold")
    variants = ["eager", "compiled", "compiled, autocast"] if ACCELERATOR else ["eager", "eager, channels last"]
    add("--pytorch", nargs="*", default=variants, help="PyTorch's variants; on CPU compiled is one more")
    add("--no-torch", action="store_true", help="this package and the floor only")
    add("--output", help="write the results to this JSON file, after each subject")
    options = parser.parse_args()
    if options.no_torch:
        options.pytorch = []
    return options


def main() -> None:
    keep_memory()
    options = parse()
    batches = options.batch
    options.limits = {dtype: matrix_limit(dtype, 8192 if ACCELERATOR else 2048) for dtype in _dtypes()}
    results = about(options) | {"results": {}}
    for subject in SUBJECTS if options.subject == "all" else [options.subject]:
        # The network's own speed alone is asked at several batch sizes.
        for options.batch in batches if subject in ("forward", "step", "adversarial") else batches[:1]:
            print(f"\n{subject}, batch {options.batch}", flush=True)
            results["results"].setdefault(subject, {}).update(SUBJECTS[subject](options))
            if options.output:
                Path(options.output).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
