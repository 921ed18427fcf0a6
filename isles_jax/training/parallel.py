"""Data parallelism: where arrays lie, and how one device's step runs on all devices.

With several processes, `pmap` works with arrays on the devices of this process. `jit` (of `shard_map`) and Orbax work
with arrays on the devices of all processes. Both kinds of array refer to the same copies in memory, so a conversion
moves no data.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import say

AXIS = "data"
Options = dict[str, bool | str]
# How XLA compiles for an NVIDIA GPU. These are options of single programs, and no flags of the process. docs/gpu.md
# says what they gain. This one is for every program that applies a network: no kernel adds in an order that changes.
REPEATABLE: Options = {"xla_gpu_exclude_nondeterministic_ops": True}
# These are for the training step. cuDNN compiles each convolution with what stands around it.
CUDA_OPTIONS: Options = {"xla_gpu_experimental_enable_conv_fusion": True}
# All steps of a call become one CUDA graph, whose independent parts run at the same time, as the critics are. We could
# not try this with the messages between several devices.
CUDA_OPTIONS_OF_ONE_DEVICE: Options = CUDA_OPTIONS | {
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,WHILE,DYNAMIC_SLICE_FUSION"
    ),
    "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
}


def mesh() -> Mesh:
    """All devices in one row, process by process, as pmap numbers them."""
    processes = range(jax.process_count())
    return _row([device for process in processes for device in jax.local_devices(process_index=process)])


def _row(devices: Sequence[jax.Device] | np.ndarray) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))


def replicate(tree: Any, kind: str = "pmap") -> Any:
    """Copies a tree of arrays, the same on every process, to every device for a step of `kind`, as in `parallelize`.

    The copies share no memory with the originals and may be donated.
    """
    # Each process copies to its own devices. With all devices, JAX would send the values over the network to compare
    # those of all processes.
    sharding = NamedSharding(_row(jax.local_devices()), PartitionSpec())
    return as_seen_by(kind, jax.tree.map(lambda x: jax.device_put(np.asarray(x), sharding), tree))


def as_seen_by(kind: str, tree: Any) -> Any:
    """Converts a replicated tree to what a step of `kind` ("pmap" or "shard_map") takes; no data move."""
    if jax.process_count() == 1:
        return tree
    return _view(tree, _row(jax.local_devices()) if kind == "pmap" else mesh())


def one_each(tree: Any) -> Any:
    """A replicated tree with one copy for each process, because Orbax splits an array into one piece for each copy."""
    return _view(tree, _row(mesh().devices[:: jax.local_device_count()]))


def _view(tree: Any, devices: Mesh) -> Any:
    """The copies of a replicated tree on these devices, as arrays on them."""
    sharding = NamedSharding(devices, PartitionSpec())

    def view(x: jax.Array) -> jax.Array:
        copies = [shard.data for shard in x.addressable_shards if shard.device in sharding.addressable_devices]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, copies)

    return jax.tree.map(view, tree)


def one_copy(tree: Any) -> Any:
    """A replicated tree on one device of this process, for work that each process does on its own."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def abstract(tree: Any) -> Any:
    """The shapes and types of a tree, placed on all devices of all processes, as Orbax needs them to restore it."""
    sharding = NamedSharding(mesh(), PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def keep_compiled() -> None:
    """Keeps what is compiled for GPUs and TPUs on disk, so that the next run need not compile it again.

    Each platform and version of jaxlib has its own folder in ~/.cache/isles_jax. JAX_COMPILATION_CACHE_DIR names
    another. On CPU nothing is kept unless that variable is set.

    Raises:
      InputError: JAX cannot use the platform that JAX_PLATFORMS names, or an installed one.
    """
    try:
        platform = jax.default_backend()
    except (RuntimeError, AssertionError, AttributeError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        # Without an NVIDIA GPU for "cuda", an assertion of JAX's fails, and under python -O what comes after it.
        problem = str(error).partition("\n")[0] if isinstance(error, RuntimeError) else "found no NVIDIA GPU"
        raise InputError(f"JAX_PLATFORMS={asked}: {problem}; expected a device that JAX can use") from error
    if platform != "cpu" and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # made at run time
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "isles_jax" / f"{platform}-jaxlib-{jax.lib.__version__}"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def memory_bytes() -> int | None:
    """Memory of the smallest device of this process; None where devices do not report it, as on CPU."""
    reports = [device.memory_stats() or {} for device in jax.local_devices()]
    return min((report["bytes_limit"] for report in reports if "bytes_limit" in report), default=None)


def parallelize(step: Callable[..., Any], kind: str = "pmap") -> Callable[..., Any]:
    """Compiles one device's step for all devices.

    Args:
      step: (state, data, indices) -> (state, metrics). It communicates with other devices over the axis `AXIS` only.
        It returns the same values on each device.
      kind: "pmap" or "shard_map".

    Returns:
      The same function for all devices. Its indices have an additional first axis over the devices of all processes.
      State and data are placed as `replicate` places them for this kind. The state is donated.

    Raises:
      ValueError: `kind` is unknown.
    """
    if kind == "pmap":
        # The inner jit lets several pmaps share the traced step. A jit around pmap fails with several processes.
        axes = (None, None, 0)
        mapped = jax.pmap(jax.jit(step), axis_name=AXIS, in_axes=axes, out_axes=None, donate_argnums=(0,))
        options = step_options()
        if options:
            mapped = _with_options(mapped, options)
        count = jax.local_device_count()
        own = slice(jax.process_index() * count, (jax.process_index() + 1) * count)
        return lambda state, data, indices: mapped(state, data, indices[own])
    if kind != "shard_map":
        raise ValueError(f'parallel is "pmap" or "shard_map", got {kind!r}')
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    # With check_vma=True JAX would sum the gradients over the devices a second time, after the step did.
    on_devices = jax.shard_map(
        lambda state, data, indices: step(state, data, indices[0]),
        mesh=mesh(),
        in_specs=(whole, whole, split),
        out_specs=whole,
        check_vma=False,
    )
    compiled = jax.jit(on_devices, donate_argnums=(0,), compiler_options=step_options())
    sharding = NamedSharding(mesh(), split)

    def call(state: Any, data: Any, indices: np.ndarray | jax.Array) -> Any:
        if jax.process_count() > 1:
            rows = indices
            indices = jax.make_array_from_callback(rows.shape, sharding, lambda place: rows[place])
        return compiled(state, data, indices)

    return call


def step_options() -> Options:
    """The options with which XLA compiles a training step for the devices at hand."""
    faster = CUDA_OPTIONS_OF_ONE_DEVICE if jax.device_count() == 1 else CUDA_OPTIONS
    return repeatable_options(_accepted({}, faster, "make a step faster"))


def repeatable_options(others: Options | None = None) -> Options:
    """Adds to other options what makes the numbers of a program repeatable on the devices at hand."""
    return _accepted(others or {}, REPEATABLE, "make results repeatable")


def _accepted(options: Options, more: Options, gain: str) -> Options:
    """Adds more options to others on NVIDIA GPUs; where XLA refuses them, a note says so and they are left out."""
    if "cuda" not in jax.devices()[0].client.platform_version:
        return options
    # XLA may know options, and yet find no program for a convolution with all of them.
    images, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 8, 32, 32), (8, 8, 3, 3)))
    trial = jax.jit(lambda images, kernel: lax.conv(images, kernel, (1, 1), "SAME"))
    try:
        trial.lower(images, kernel).compile(compiler_options=options | more)
    except jax.errors.JaxRuntimeError as error:
        say(f"note: this version of XLA refuses options that {gain} ({str(error).splitlines()[0]})")
        return options
    return options | more


def _with_options(mapped: Any, options: Options) -> Callable[..., Any]:
    """A pmapped function, compiled with options, which `pmap` does not take itself."""
    programs: dict[Any, Callable[..., Any]] = {}

    def call(*arguments: Any) -> Any:
        shapes = tuple(x.shape for x in jax.tree.leaves(arguments[1:]))
        if shapes not in programs:
            programs[shapes] = mapped.lower(*arguments).compile(compiler_options=options)
        return programs[shapes](*arguments)

    return call
