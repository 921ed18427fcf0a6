"""Compiles a configuration's training step and inference for TPUs or a GPU that are not there, and reads the result.

python -m experiments.benchmarks.ahead --target=v5e:2x4 --config=configs/proposed.py --config.dtype=bfloat16

Run it before you pay for a machine. It says whether the step compiles, whether it fits, and what it would cost. All
numbers are estimates, from XLA's compiler and from published peaks. Nothing is run or measured.
"""

import argparse
import datetime
import json
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks.chips import CHIPS, Chip, cuda_plugins, find_devices
from experiments.benchmarks.compiled_text import Operation, operations, slow_forms
from isles_jax import config as configs
from isles_jax.runtime import files, overrides
from isles_jax.runtime.command import InputError, Parser, run_command
from isles_jax.training.networks import BATCH, make_forward
from isles_jax.training.parallel import AXIS, CUDA_OPTIONS_OF_ONE_DEVICE, REPEATABLE, Options
from isles_jax.training.state import init_state
from isles_jax.training.step import make_step
from isles_jax.training.task import Task

CHANNELS = ("Tmax", "TTP", "DWI")
CLASSES = ("penumbra", "core")
# Every network takes slices whose sides are multiples of this.
SIDES = 32
# A step's parts, by the first of these that stands in the path of JAX's scopes.
PARTS = ("optimiser", "augmentation", "losses", "critics", "SUMNet", "UNet")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# The compiler gives these no cycles, though they take time. All others without cycles take none.
UNESTIMATED = ("reduce-window", "select-and-scatter", "gather", "scatter", "sort", "fusion", "convolution")
# A gather of fewer numbers is not of pixels: a loss gathers one number for each class.
PICTURE = 32 * 32
# What a GPU is asked to launch.
LAUNCHES = (
    "fusion",
    "custom-call",
    "copy",
    "convolution",
    "sort",
    "gather",
    "scatter",
    "reduce-window",
    "reduce",
    "transpose",
    "select-and-scatter",
    "dynamic-update-slice",
    "dynamic-slice",
    "concatenate",
)


def lower_step(config: ml_collections.ConfigDict, devices: Sequence[Any], slices: int, size: tuple[int, int]) -> Any:
    """The training step of a configuration, lowered for devices that need not be there.

    Args:
      config: resolved; `train.batch_size` is that of all devices together.
      devices: from `find_devices`.
      slices: of the data set, which lies on each device.
      size: of a slice.

    Raises:
      InputError: the batch does not divide over the devices.
    """
    batch = config.train.batch_size
    count = len(devices)
    if batch % count:
        raise InputError(f"--config.train.batch_size: found {batch}, expected a multiple of the {count} devices")
    platform = {"cuda": "gpu"}.get(devices[0].platform, devices[0].platform)
    steps = fold_steps(config, slices)
    task = Task(config, CHANNELS, CLASSES, size=size)
    step = make_step(task, steps, AXIS, platform)
    mesh = Mesh(np.array(devices), (AXIS,))

    def shaped(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    whole = PartitionSpec()
    split = PartitionSpec(AXIS)
    state = shaped(init_state(task, steps, 0), whole)
    images = jax.ShapeDtypeStruct((slices, *size, task.planes), jnp.float32)
    labels = jax.ShapeDtypeStruct((slices, *size), jnp.int8)
    indices = jax.ShapeDtypeStruct((count, config.train.steps_per_call, batch // count), jnp.int32)
    if config.train.parallel == "pmap":
        mapped = jax.pmap(
            step, axis_name=AXIS, in_axes=(None, None, 0), out_axes=None, donate_argnums=(0,), devices=list(devices)
        )
        return mapped.lower(state, shaped((images, labels), whole), shaped(indices, split))
    mapped = jax.shard_map(
        lambda state, data, indices: step(state, data, indices[0]),
        mesh=mesh,
        in_specs=(whole, whole, split),
        out_specs=whole,
        check_vma=False,
    )
    compiled = jax.jit(mapped, donate_argnums=(0,))
    return compiled.lower(state, shaped((images, labels), whole), shaped(indices, split))


def lower_inference(config: ml_collections.ConfigDict, devices: Sequence[Any], size: tuple[int, int]) -> Any:
    """The segmenter's probabilities for a batch of slices, lowered for the first of the devices."""
    task = Task(config, CHANNELS, CLASSES, size=size)
    segmenter = task.segmenter()
    images = jnp.zeros((BATCH, *size, task.planes))
    variables = jax.eval_shape(lambda: segmenter.init(jax.random.key(0), images))
    sharding = NamedSharding(Mesh(np.array(devices[:1]), (AXIS,)), PartitionSpec())
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), (variables, jax.typeof(images))
    )
    return make_forward(segmenter).lower(*arguments)


def fold_steps(config: ml_collections.ConfigDict, slices: int) -> int:
    """Steps of a fold's whole training."""
    return config.train.epochs * epoch_steps(config, slices)


def epoch_steps(config: ml_collections.ConfigDict, slices: int) -> int:
    """Steps of a pass over the training slices of a fold."""
    return math.ceil(slices * (config.folds - 1) / config.folds / config.train.batch_size)


def describe(lowered: Any, flops: float, chip: Chip, calls: int, devices: int, options: Options) -> dict[str, Any]:
    """Compiles, and says what the compiler says.

    Args:
      lowered: from `lower_step` or `lower_inference`.
      flops: of a step or of inference, on one device.
      chip: to whose peaks its arithmetic and bytes are set.
      calls: steps in a call; what is reported is for one.
      devices: that share the collectives.
      options: of the compiler.
    """
    start = time.perf_counter()
    compiled = lowered.compile(compiler_options=options)
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    costs = compiled.cost_analysis()
    memory = compiled.memory_analysis()
    found = operations(text)
    # XLA counts the body of a loop once: that is right for the loop over steps, and not for one inside a step.
    repeated = sum(o.bytes * (o.times / calls - 1) for o in found if o.times > calls)
    # Without a GPU, XLA gives no costs for one: there, all operands and results count.
    moved = costs["bytes accessed"] + repeated if costs else sum(o.bytes * o.times for o in found) / calls
    report: dict[str, Any] = {
        "compile_s": seconds,
        "memory_bytes": {
            "arguments": memory.argument_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
            "device": chip.memory / chip.cores,
        },
        "flops": flops,
        "bytes": moved,
        "seconds_at_peak": {
            "arithmetic": flops * chip.cores / chip.flops,
            "bytes": moved * chip.cores / chip.bandwidth,
        },
        "pixel_gathers": len(_pixelwise(text)),
        "operations": _counts(found, calls),
        "wide": _wide(text),
        # Without the compiler's cycles, on a GPU, nothing else shows a slow convolution.
        "slow_forms": slow_forms(text, windows=not chip.clock),
        "collectives": _collectives(found, calls, chip, devices),
    }
    if chip.clock:
        report |= _cycles(found, calls, chip)
    else:
        launched = [o for o in found if o.opcode in LAUNCHES]
        report["launches"] = sum(o.times for o in launched) / calls
        report["step_s"] = max(report["seconds_at_peak"].values())
    return report


def _cycles(found: list[Operation], calls: int, chip: Chip) -> dict[str, Any]:
    """The compiler's estimates by part; what has none counts with its bytes at the memory's bandwidth, apart."""
    parts: dict[str, float] = defaultdict(float)
    for o in found:
        parts["copies" if o.opcode == "copy" else _part(o)] += (o.cycles or 0) * o.times / calls
    missing = [o for o in found if o.cycles is None and o.opcode in UNESTIMATED]
    by_bytes = sum(o.bytes * o.times for o in missing) / calls / chip.bandwidth * chip.clock * chip.cores
    total = sum(parts.values())
    return {
        "cycles": total,
        "cycles_by_part": dict(sorted(parts.items(), key=lambda item: -item[1])),
        "convolution_cycles": sum((o.cycles or 0) * o.times for o in found if "conv_general" in o.part) / calls,
        "without_estimate": dict(Counter(o.opcode for o in missing)),
        "cycles_without_estimate_by_bytes": by_bytes,
        "step_s": (total + by_bytes) / chip.clock,
    }


def _part(operation: Operation) -> str:
    found = next((part for part in PARTS if part in operation.part), "other")
    return "segmenter" if found in ("SUMNet", "UNet") else found


def _counts(found: list[Operation], calls: int) -> dict[str, float]:
    counts: dict[str, float] = defaultdict(float)
    for o in found:
        kind = o.opcode
        if kind == "custom-call" and (name := o.text.partition('custom_call_target="')[2].partition('"')[0]):
            kind = f"{kind} {name}"
        counts[kind] += o.times / calls
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _collectives(found: list[Operation], calls: int, chip: Chip, devices: int) -> dict[str, Any]:
    """Their number and bytes in a step, and the time of a ring over the links at their peak."""
    shared = [o for o in found if o.opcode.removesuffix("-start") in COLLECTIVES]
    sent = sum(o.bytes / 2 * o.times for o in shared) / calls
    # A ring sends each byte twice, less one part in the number of devices.
    return {
        "count": sum(o.times for o in shared) / calls,
        "bytes": sent,
        "seconds_at_peak": 2 * (devices - 1) / devices * sent / chip.link,
    }


def _pixelwise(text: str) -> list[str]:
    """Gathers and scatters of a picture's size, fused or not, that take fewer than eight numbers at a place."""
    lines = []
    for line in text.splitlines():
        found = re.search(r" = \w+\[([\d,]*)\]\S* (gather|scatter)\(", line)
        if not found or math.prod(int(side) for side in found[1].split(",") if side) < PICTURE:
            continue
        if found[2] == "gather":
            sides = line.partition("slice_sizes={")[2].partition("}")[0]
            if math.prod(int(side) for side in sides.split(",") if side) < 8:
                lines.append(line)
        elif "update_window_dims={}" in line:
            lines.append(line)
    return lines


def _wide(text: str) -> list[str]:
    """The types 64 bits wide in a program; a TPU works on pairs of 32 for each."""
    return [kind for kind in ("s64", "u64", "f64") if f" {kind}[" in text]


def bounds(config: ml_collections.ConfigDict, slices: int, step_s: float) -> dict[str, float]:
    """Seconds of an epoch, a fold, and the 24 trainings of Table 1 (as if all systems cost this one), by a step's."""
    epoch = epoch_steps(config, slices) * step_s
    return {"epoch_s": epoch, "fold_s": epoch * config.train.epochs, "table1_s": epoch * config.train.epochs * 24}


def examine(options: argparse.Namespace, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The report on one target: the step's and inference's."""
    chip, devices = find_devices(options.target)
    # "auto" looks at the machine that compiles.
    config.model.conv = "lax" if config.model.conv == "auto" else config.model.conv
    config.train.steps_per_call = config.train.steps_per_call or 1
    report: dict[str, Any] = {"target": options.target, "devices": len(devices), "config": configs.flatten(config)}
    # Arithmetic is counted in the form for a CPU, which has no loop inside a step.
    cpu = jax.devices("cpu")[:1]
    # Without a GPU, XLA finds no program for the convolutions of a step with REPEATABLE, too. On an H200 it did.
    faster, repeatable = ({}, {}) if chip.clock else (CUDA_OPTIONS_OF_ONE_DEVICE, REPEATABLE)
    if not options.inference:
        calls = config.train.steps_per_call
        count = len(devices)
        lowered = lower_step(config, devices, options.slices, options.size)
        share = config.copy_and_resolve_references()
        share.train.batch_size //= count
        flops = lower_step(share, cpu, options.slices, options.size).cost_analysis()["flops"]
        report["step"] = describe(lowered, flops, chip, calls, count, faster)
        report["lower_bounds"] = bounds(config, options.slices, report["step"]["step_s"])
    flops = lower_inference(config, cpu, options.size).cost_analysis()["flops"]
    report["inference"] = describe(lower_inference(config, devices, options.size), flops, chip, 1, 1, repeatable)
    return report


def summary(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    lines = [f"{report['target']}, {report['devices']} devices: estimated by the compiler, nothing was run"]
    for name in ("step", "inference"):
        if name in report:
            lines += ["", name, *(f"  {line}" for line in _lines(report[name]))]
    if "lower_bounds" in report:
        epoch, fold, table = (_time(value) for value in report["lower_bounds"].values())
        lines += ["", f"not less than: epoch {epoch}, fold {fold}, Table 1's 24 trainings {table} (all as this one)"]
    return "\n".join(lines)


def _lines(part: dict[str, Any]) -> list[str]:
    memory = part["memory_bytes"]
    peak = part["seconds_at_peak"]
    shared = part["collectives"]
    needed = memory["arguments"] + memory["temporary"] + memory["code"]
    lines = [
        f"compiled in {part['compile_s']:.0f} s",
        f"memory {needed / 1e9:.2f} of {memory['device'] / 1e9:.1f} GB: state and data "
        f"{memory['arguments'] / 1e9:.2f}, temporary {memory['temporary'] / 1e9:.2f}, code {memory['code'] / 1e9:.3f}",
        f"{part['flops'] / 1e9:.0f} GFLOP, {1e3 * peak['arithmetic']:.2f} ms at the peak; "
        f"{part['bytes'] / 1e9:.2f} GB in all memories, {1e3 * peak['bytes']:.2f} ms if all were the main one",
    ]
    if "cycles" in part:
        parts = ", ".join(f"{name} {cycles / 1e6:.2f}" for name, cycles in part["cycles_by_part"].items())
        lines.append(f"{part['cycles'] / 1e6:.2f} million cycles: {parts}")
        lines.append(f"convolutions {part['convolution_cycles'] / 1e6:.2f} of them")
        missing = ", ".join(f"{count} {name}" for name, count in part["without_estimate"].items()) or "nothing"
        by_bytes = part["cycles_without_estimate_by_bytes"] / 1e6
        lines.append(f"without an estimate: {missing}; {by_bytes:.2f} million cycles by their bytes")
    else:
        lines.append(f"{part['launches']:.0f} launches")
    counts = ", ".join(f"{part['operations'].get(kind, 0):.0f} {kind}" for kind in ("gather", "scatter", "sort"))
    lines.append(f"{counts}; {part['pixel_gathers']} of single pixels")
    slow = part["slow_forms"]
    lines += [f"convolutions in slow forms: {len(slow)}", *(f"  {form}" for form in slow)]
    lines.append(
        f"{shared['count']:.0f} collectives, {shared['bytes'] / 1e6:.1f} MB, {1e3 * shared['seconds_at_peak']:.2f} ms "
        f"on the links; not less than {1e3 * part['step_s']:.2f} ms in all"
    )
    return lines


def _time(seconds: float) -> str:
    return next(
        (f"{seconds / unit:.1f} {name}" for unit, name in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= unit),
        f"{1e3 * seconds:.1f} ms",
    )


def _size(text: str) -> tuple[int, int]:
    height, width = (int(side) for side in text.split("x"))
    if height % SIDES or width % SIDES:
        raise ValueError
    return height, width


def _is_list_of_reports(content: bytes) -> bool:
    try:
        return not files.misfit(json.loads(content), [{"target": str, "devices": int, "config": {}}])
    except ValueError:
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    settings = "--config=FILE and --config.KEY=VALUE as for python -m isles_jax.main"
    parser = Parser(prog="python -m experiments.benchmarks.ahead", description=__doc__, epilog=settings)
    parser.add_argument("--config", default=overrides.DEFAULT, help="as of the main command")
    parser.add_argument("--target", required=True, help=f"{', '.join(CHIPS)}; a TPU with its topology, as in v5e:2x4")
    parser.add_argument("--slices", type=int, default=2130, help="slices of the data set; SPES's 30 cases have 2130")
    parser.add_argument("--size", type=_size, default=(96, 128), help="of a slice, multiples of 32, as in 96x128")
    parser.add_argument("--inference", action="store_true", help="compile inference alone")
    parser.add_argument("--output", type=Path, help="also append the report to this JSON file, a list of reports")
    options, rest = parser.parse_known_args(arguments)
    if options.output:
        files.refuse_foreign(options.output, _is_list_of_reports, "a list of reports")
    chosen = overrides.read(options.config, rest)
    for key, values in configs.BY_DATA.items():  # the sizes for patients' data, not those for the phantom
        if configs.flatten(chosen)[key] is None:
            chosen.update_from_flattened_dict({key: values[0]})
    jax.config.update("jax_platforms", "cpu")
    print(f"compiling for {options.target}; the paper's network takes several minutes", flush=True)
    report = examine(options, configs.resolve(chosen))
    compilers = cuda_plugins() if options.target == "h100" else ["libtpu"]
    packages = ("jax", "jaxlib", *compilers)
    report |= {"date": datetime.date.today().isoformat(), "versions": {name: version(name) for name in packages}}
    if options.output:
        before = json.loads(options.output.read_text()) if options.output.exists() else []
        files.write_atomic(options.output, json.dumps([*before, report], indent=1) + "\n")
    print(summary(report))


if __name__ == "__main__":
    run_command(main)
