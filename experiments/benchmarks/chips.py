"""Accelerators that a program can be compiled for without having one: what they are called, and what they offer."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from isles_jax.runtime.command import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device's published figures.

    Attributes:
      flops: bfloat16 operations in a second, at the peak.
      memory: bytes.
      bandwidth: bytes in a second from and to that memory.
      link: bytes in a second from and to the other chips.
      clock: cycles in a second; None where the compiler gives no cycles.
      cores: devices that JAX sees on a chip.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    clock: float | None
    cores: int = 1


# Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e", which give the links' bandwidth in bits. Clocks
# follow from the peak and the matrix units' operations in a cycle (v4 and v5p: 8 units of 128 x 128; v5e: 4; v6e: 4 of
# 256 x 256, though that page has also said 2). H100: NVIDIA's data sheet of the SXM version, without sparsity.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1.2e12, 300e9, 1.05e9, cores=2),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 1.5e9),
    "v5p": Chip(459e12, 95 * 2**30, 2.765e12, 600e9, 1.75e9, cores=2),
    "v6e": Chip(918e12, 32 * 2**30, 1.64e12, 448e9, 1.75e9),
    "h100": Chip(989e12, 80e9, 3.35e12, 900e9, None),
}
# What XLA has to know of an H100 where there is none.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3350000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 85520809984 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def find_devices(target: str) -> tuple[Chip, list[Any]]:
    """The chip of a target, and as many devices to compile for as it has.

    Args:
      target: "h100", or a TPU topology such as "v5e:2x4", as in Google's names.

    Raises:
      InputError: no such target; what compiles for it is not installed.
    """
    name, _, sides = target.partition(":")
    expected = "h100 or a topology such as v5e:1x1, v5e:2x4, v6e:4x4, v5p:2x2x1 or v4:2x2x1"
    if name not in CHIPS or (name == "h100") != (sides == "") or not re.fullmatch(r"(\d+x\d+(x\d+)?)?", sides):
        raise InputError(f"--target={target}: found no such target, expected {expected}")
    if name == "h100":
        return CHIPS[name], _gpu()
    if not importlib.util.find_spec("libtpu"):
        raise InputError(f"--target={target}: libtpu is not installed; pip install libtpu, or uv run --with libtpu")
    # Another process may compile at the same time. libtpu would look for this machine's own chips, and print errors
    # about not finding them. It takes any type here: `target` decides what is compiled for.
    quiet = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
    here = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
    for key, value in (quiet | here).items():
        os.environ.setdefault(key, value)
    chips = math.prod(int(side) for side in sides.split("x"))
    # A single chip is not a topology of its own, unless its host has no more.
    options = {"chips_per_host_bounds": (1, 1, 1)} if chips == 1 else {}
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=target, **options)
    except Exception as error:  # whatever libtpu raises for a name that it does not know
        reason = str(error).splitlines()[0]
        raise InputError(f"--target={target}: found no such topology ({reason}), expected {expected}") from error
    return CHIPS[name], list(topology.devices)


def cuda_plugins() -> list[str]:
    """JAX's plugins for NVIDIA GPUs that are installed."""
    plugins = (f"jax-cuda{version}-plugin" for version in (12, 13))
    return [name for name in plugins if importlib.util.find_spec(name.replace("-", "_"))]


def _gpu() -> list[Any]:
    if not cuda_plugins():
        raise InputError('--target=h100: JAX\'s CUDA plugin is not installed; pip install "jax[cuda13]" (5 GB)')
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    jax.config.update("jax_platforms", "cuda,cpu")
    options = {"topology": "1x1x1", "target_config": H100}
    return list(topologies.get_topology_desc(platform="cuda", topology_name="1x1x1", **options).devices)
