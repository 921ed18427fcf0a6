"""Reads XLA's text of a compiled program: its operations with their parts, bytes and, for a TPU, estimated cycles."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

BYTES = (
    dict.fromkeys(("pred", "s8", "u8"), 1)
    | dict.fromkeys(("s16", "u16", "bf16", "f16"), 2)
    | dict.fromkeys(("s32", "u32", "f32"), 4)
    | dict.fromkeys(("s64", "u64", "f64"), 8)
)
# These compute nothing: they name, tie or place values that others made.
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "iota",
}
# The largest kernel of a usual network.
LARGEST_WINDOW = 7
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .*)?\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][a-z0-9-]*)\(")
# XLA's own convolutions, and those that it leaves to cuDNN.
_CONVOLUTION = re.compile(r"\sconvolution\(|__cudnn\$conv")
_SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation that a device is asked to run.

    Attributes:
      name: in the compiled text.
      opcode: XLA's, such as "fusion" or "all-reduce".
      part: the path of JAX's scopes that it comes from; a fusion has the path of its last operation.
      cycles: the compiler's estimate for a TPU; None where it gives none.
      bytes: of its operands and its results; operands that are read in part count whole.
      times: how often it runs in one call, by the loops around it.
      text: the whole line.
    """

    name: str
    opcode: str
    part: str
    cycles: int | None
    bytes: int
    times: int
    text: str


def size(shapes: str) -> int:
    """Bytes of all the shapes in a piece of text."""
    return sum(
        BYTES.get(kind, 0) * math.prod(int(side) for side in sides.split(",") if side)
        for kind, sides in _SHAPE.findall(shapes)
    )


def operations(text: str) -> list[Operation]:
    """What the entry computation runs, and the loops and branches in it; not what fusions are made of."""
    blocks, entry = _blocks(text)
    return list(_walk(blocks, entry, 1))


def slow_forms(text: str, *, windows: bool) -> list[str]:
    """Convolutions, fused or not, in forms that a device may run at a tenth of its speed, as short descriptions.

    Args:
      text: of the compiled program.
      windows: also list those whose window has a side above 7. On a GPU, no gradient needs this form: that of a kernel
        is cuDNN's backward convolution, which has the kernel's window. For a TPU, XLA writes gradients of kernels, and
        matrix products of pictures, with the picture as the window, and this is the fast form there.

    Returns:
      One line for each: the window or the groups, and the path of JAX's scopes, or else the name.
    """
    forms = []
    for line in text.splitlines():
        found = _OPERATION.match(line)
        if not found or not _CONVOLUTION.search(line):
            continue
        reasons = []
        # The gradient of a kernel may be written so. What runs is cuDNN's backward convolution.
        written_so = "convolution_kind=wgrad" in line
        window = re.search(r"window=\{size=([\dx]+)", line)
        if windows and window and not written_so and max(int(side) for side in window[1].split("x")) > LARGEST_WINDOW:
            reasons.append(f"window {window[1]}")
        for kind, groups in re.findall(r"\b(feature|batch)_group_count=(\d+)", line):
            if int(groups) > 1:
                reasons.append(f"{groups} {kind} groups")
        if reasons:
            part = re.search(r'op_name="([^"]*)"', line)
            forms.append(f"{', '.join(reasons)}: {part[1] if part else found[1]}")
    return forms


def _blocks(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the entry."""
    blocks: dict[str, list[str]] = defaultdict(list)
    name = entry = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            entry = name if found[1] else entry
        elif line.startswith(" "):
            blocks[name].append(line)
    return blocks, entry


def _walk(blocks: dict[str, list[str]], name: str, times: int) -> Iterator[Operation]:
    sizes: dict[str, int] = {}
    for line in blocks[name]:
        found = _OPERATION.match(line)
        opcode = found and _OPCODE.search(found[2])
        if not found or not opcode:
            continue
        result = found[2][: opcode.start()]
        kind = opcode[1]
        rest = found[2][opcode.end() :]
        sizes[found[1]] = size(result)
        if kind == "while":
            yield from _walk(blocks, _called(rest, "body"), times * _trips(blocks, rest))
        elif kind == "conditional":
            for branch in re.findall(r"%([\w.-]+)", rest.partition("branch_computations={")[2].partition("}")[0]):
                yield from _walk(blocks, branch, times)
        elif kind == "call":
            yield from _walk(blocks, _called(rest, "to_apply"), times)
        elif kind not in FREE:
            operands = re.findall(r"%([\w.-]+)", rest.split("), ")[0])
            cycles = re.search(r'"estimated_cycles":"(\d+)"', rest)
            part = re.search(r'op_name="([^"]*)"', rest)
            moved = sizes[found[1]] + sum(sizes.get(operand, 0) for operand in operands)
            yield Operation(
                found[1], kind, part[1] if part else "", int(cycles[1]) if cycles else None, moved, times, line.strip()
            )


def _called(text: str, role: str) -> str:
    return text.partition(f"{role}=")[2].split(",")[0].split(" ")[0].lstrip("%")


def _trips(blocks: dict[str, list[str]], loop: str) -> int:
    """How often a loop runs: as XLA notes it or, for a TPU, the bound that its condition compares the counter with."""
    if known := re.search(r'"known_trip_count":\{"n":"?(\d+)', loop):
        return int(known[1])
    condition = "\n".join(blocks[_called(loop, "condition")])
    return max((int(bound) for bound in re.findall(r"s32\[\]\S* constant\((\d+)\)", condition)), default=1)
