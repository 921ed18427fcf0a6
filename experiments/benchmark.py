"""Times of this package's parts beside PyTorch doing the same work, on the device at hand.

python -m experiments.benchmark all --output=results.json

Subjects: the command for a new case; the losses alone; a training step with cross-entropy; the proposed system's
adversarial step; the training loop of a fold, and where its time goes; inference of a case; the adversarial step beside
PyTorch's compiled forms; the network's forward pass; whether PyTorch computes the same. On an accelerator, "all" leaves
out the last two, and nothing new is begun after --minutes. On a CPU, it leaves out PyTorch's compiled forms.

PyTorch (`pip install isles-jax[bench]`) runs in the same process and on the same number of threads, and the functions
take turns. A run counts only if other processes took less than a tenth of the machine, unless fewer than three such
runs remain. The results are medians with the smallest and the largest time, CPU time, seconds to the end of the first
run, ratios to the fastest PyTorch eager and to the fastest PyTorch, and the share of the largest matrix product
measured. What fails has its reason in place of times.
"""

import argparse
import importlib.util
import math
import time
from collections.abc import Sequence
from typing import Any

from experiments.benchmarks import loss_times, network, pipeline
from experiments.benchmarks.timing import ACCELERATOR, describe_machine, keep_memory, matrix_limit, one_line
from experiments.benchmarks.workload import DTYPES
from isles_jax.runtime import files
from isles_jax.runtime.command import Parser, run_command
from isles_jax.training import parallel

# The order is that of worth for its time on a GPU, where compilation is most of it. What comes last may be left out.
SUBJECTS = {
    "predict": pipeline.benchmark_predict,
    "losses": loss_times.benchmark_losses,
    "step": network.benchmark_step,
    "adversarial": network.benchmark_adversarial,
    "fold": pipeline.benchmark_fold,
    "inference": pipeline.benchmark_inference,
    "compiled": network.benchmark_compiled,
    "forward": network.benchmark_forward,
    "agreement": network.check_agreement,
}
# Inference shows what the forward pass takes, too. On a GPU, products of float32 are less exact, which hides mistakes.
NOT_IN_ALL = ("forward", "agreement") if ACCELERATOR else ("compiled",)
# The subjects that are measured at every batch size; the others use the first.
ALL_BATCHES = ("forward", "step", "adversarial") if not ACCELERATOR else ("adversarial",)

FASTEST = "compiled, channels last, autocast"
EAGER = ["eager", "eager, channels last, autocast"] if ACCELERATOR else ["eager", "eager, channels last"]


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines as they are, and shows each flag's default."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; the default sizes suit the device: SPES's on an accelerator, a part of it on CPU."""
    parser = Parser(prog="python -m experiments.benchmark")
    parser.description, parser.formatter_class = __doc__, _Help
    add = parser.add_argument
    add("subject", choices=[*SUBJECTS, "all"], help="what is timed")
    add("--runs", type=int, default=12, help="runs of each function")
    add("--seconds", type=float, default=8.0 if ACCELERATOR else 60.0, help="after which there are no more than 3 runs")
    minutes = 6.5 if ACCELERATOR else None
    add("--minutes", type=float, default=minutes, help="after which nothing new is begun; None: no limit")
    add("--sizes", type=int, default=1 if ACCELERATOR else 3, help="number of sizes for the losses, smallest first")
    losses = ["lovasz", "dice", "band"] if ACCELERATOR else list(loss_times.LOSSES)
    add("--losses", nargs="+", default=losses, help=f"which of the losses are timed: {', '.join(loss_times.LOSSES)}")
    add("--seed", type=int, default=0, help="of weights, batches and the phantom")
    add("--width", type=int, default=64, help="channels of the first layers; the default is the paper's network")
    add("--conv", default="lax" if ACCELERATOR else "winograd", help="as the key model.conv")
    add("--batch", type=int, nargs="+", default=[8, 64] if ACCELERATOR else [8], help="slices in a batch, one or more")
    add("--size", type=int, nargs=2, default=(96, 128), help="sides of a slice")
    add("--cases", type=int, default=6 if ACCELERATOR else 3, help="phantom cases of the fold")
    add("--shape", type=int, nargs=3, default=(96, 110, 71) if ACCELERATOR else (96, 110, 8), help="voxels of a case")
    add("--epochs", type=int, default=50, help="of the fold's training, to which its rates are extrapolated")
    add("--steps", type=int, default=1200 if ACCELERATOR else 20, help="of the fold's training that are measured")
    words = "as in 'compiled, channels last, autocast, CUDA graphs'; the default depends on the subject"
    add("--pytorch", nargs="+", metavar="VARIANT", dest="variants", help=f"PyTorch's variants, {words}")
    add("--no-torch", action="store_true", help="measure this package only")
    add("--output", help="write the results to this JSON file, after each subject and batch size")
    options = parser.parse_args(arguments)
    if not options.no_torch and options.subject != "predict" and not importlib.util.find_spec("torch"):
        parser.error("PyTorch is not installed: pip install isles-jax[bench], or add --no-torch")
    for variant in options.variants or ():
        first, *others = variant.split(", ")
        if first not in ("eager", "compiled") or not set(others) <= {"channels last", "autocast", "CUDA graphs"}:
            parser.error(f"--pytorch: found {variant!r}, expected {words.partition(';')[0]}, or 'eager'")
    return options


def variants(options: argparse.Namespace, subject: str) -> list[str]:
    """PyTorch's variants beside a subject. Each that is compiled takes a minute, so a subject of their own has them."""
    if options.no_torch:
        return []
    if options.variants:
        return options.variants
    if subject == "fold":
        return ["eager"]
    if subject == "compiled":
        return [FASTEST, f"{FASTEST}, CUDA graphs"]
    return EAGER


def measure_subject(options: argparse.Namespace, subject: str) -> dict[str, Any]:
    """The results of a subject, or the reason why there are none."""
    name = f"batch {options.batch}"
    if time.monotonic() > options.deadline:
        print(f"{subject} skipped: no time was left", flush=True)
        return {name: {"skipped": "no time was left"}}
    options.pytorch = variants(options, subject)
    try:
        return SUBJECTS[subject](options)
    except Exception as error:  # the other subjects are measured all the same
        print(f"{subject} failed: {one_line(error)}", flush=True)
        return {name: {"failed": one_line(error)}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the chosen subjects, prints the times and writes them."""
    start = time.monotonic()
    options = parse(arguments)
    if options.output:
        files.refuse_foreign(options.output, lambda content: b'"results"' in content, "a benchmark's results")
    keep_memory()
    parallel.keep_compiled()
    options.deadline = math.inf if options.minutes is None else start + 60 * options.minutes
    options.limits = {dtype: matrix_limit(dtype, 8192 if ACCELERATOR else 2048) for dtype in DTYPES}
    # After the matrix products, the clocks are those of a device at work.
    results = describe_machine(options) | {"results": {}}
    batches = options.batch
    chosen = [name for name in SUBJECTS if name not in NOT_IN_ALL] if options.subject == "all" else [options.subject]
    if options.output:
        files.write_json(options.output, results)  # a file that cannot be written ends the command now
    for subject in chosen:
        for options.batch in batches if subject in ALL_BATCHES else batches[:1]:
            options.fastest_alone = options.batch != batches[0] or subject == "compiled"
            print(f"\n{subject}, batch {options.batch}", flush=True)
            results["results"].setdefault(subject, {}).update(measure_subject(options, subject))
            if options.output:
                files.write_json(options.output, results)


if __name__ == "__main__":
    run_command(main)
