"""Times of this package's parts beside PyTorch doing the same work, on the device at hand.

python -m experiments.benchmark all --output=results.json

Subjects: the losses alone; the network's forward pass; a training step with cross-entropy; the proposed system's
adversarial step; inference of a case; an epoch; a whole fold, trained and predicted. PyTorch is optional (`pip install
isles-jax[bench]`). It runs in the same process and on the same number of threads, and the functions take turns. A run
counts only if other processes took less than a tenth of the machine, unless fewer than three such runs remain. The
results are medians with the smallest and the largest time, CPU time, ratios to PyTorch eager, and the share of the
largest matrix product measured.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks import loss_times, network, pipeline
from experiments.benchmarks.timing import ACCELERATOR, describe_machine, keep_memory, matrix_limit
from experiments.benchmarks.workload import DTYPES
from isles_jax.runtime import files
from isles_jax.runtime.command import run_command

SUBJECTS = {
    "agreement": network.check_agreement,
    "losses": loss_times.benchmark_losses,
    "forward": network.benchmark_forward,
    "step": network.benchmark_step,
    "adversarial": network.benchmark_adversarial,
    "inference": pipeline.benchmark_inference,
    "epoch": pipeline.benchmark_epoch,
    "fold": pipeline.benchmark_fold,
}
# The subjects that are measured at every batch size; the others use the first.
ALL_BATCHES = ("forward", "step", "adversarial")


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines as they are, and shows each flag's default."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; the default sizes suit the device: SPES's on an accelerator, a part of it on CPU."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__, formatter_class=_Help)
    add = parser.add_argument
    add("subject", choices=[*SUBJECTS, "all"], help="what is timed")
    add("--runs", type=int, default=12, help="runs of each function; a quarter of them where one run is long")
    add("--sizes", type=int, default=3, help="number of sizes for the losses, the smallest first")
    add("--losses", nargs="+", default=list(loss_times.LOSSES), help="which of the losses are timed")
    add("--seed", type=int, default=0, help="of weights, batches and the phantom")
    add("--width", type=int, default=64, help="channels of the first layers; the default is the paper's network")
    add("--conv", default="lax" if ACCELERATOR else "winograd", help="as the key model.conv")
    add("--batch", type=int, nargs="+", default=[8, 64] if ACCELERATOR else [8], help="slices in a batch, one or more")
    add("--size", type=int, nargs=2, default=(96, 128), help="sides of a slice")
    add("--cases", type=int, default=30 if ACCELERATOR else 3, help="phantom cases of epoch and fold")
    add("--shape", type=int, nargs=3, default=(96, 110, 71) if ACCELERATOR else (96, 110, 8), help="voxels of a case")
    add("--epochs", type=int, default=50 if ACCELERATOR else 1, help="epochs of the fold")
    variants = ["eager", "compiled", "compiled, autocast"] if ACCELERATOR else ["eager", "eager, channels last"]
    add("--pytorch", nargs="*", default=variants, help="PyTorch's variants; 'compiled' may be added on CPU")
    add("--no-torch", action="store_true", help="measure this package only")
    add("--output", help="write the results to this JSON file, after each subject")
    options = parser.parse_args(arguments)
    if options.no_torch:
        options.pytorch = []
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the chosen subjects, prints the times and writes them."""
    options = parse(arguments)
    if options.output:
        files.refuse_foreign(options.output, lambda content: b'"results"' in content, "a benchmark's results")
    keep_memory()
    batches = options.batch
    options.limits = {dtype: matrix_limit(dtype, 8192 if ACCELERATOR else 2048) for dtype in DTYPES}
    results = describe_machine(options) | {"results": {}}
    for subject in SUBJECTS if options.subject == "all" else [options.subject]:
        for options.batch in batches if subject in ALL_BATCHES else batches[:1]:
            print(f"\n{subject}, batch {options.batch}", flush=True)
            results["results"].setdefault(subject, {}).update(SUBJECTS[subject](options))
            if options.output:
                Path(options.output).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
