"""Data parallelism: the only module that knows about devices.

On several processes `pmap` takes and returns arrays on this process's devices, `jit` (of `shard_map`) and Orbax arrays
on those of all. Both views are of the same copies: going from one to the other moves nothing.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def mesh() -> Mesh:
    """All devices in one row, process by process, as pmap numbers them."""
    processes = range(jax.process_count())
    return _row([device for process in processes for device in jax.local_devices(process_index=process)])


def _row(devices: Sequence[jax.Device] | np.ndarray) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))


def replicate(tree: Any, kind: str = "pmap") -> Any:
    """Puts a tree of arrays whole on every device; the copies share nothing with the originals and may be donated.

    Args:
      tree: the same on every process.
      kind: of the step that takes it, as in `parallelize`.
    """
    # Each process puts its own copies: a placement on all devices would compare the whole data over the network.
    sharding = NamedSharding(_row(jax.local_devices()), PartitionSpec())
    return as_seen_by(kind, jax.tree.map(lambda x: jax.device_put(np.asarray(x), sharding), tree))


def as_seen_by(kind: str, tree: Any) -> Any:
    """A replicated tree as the step of `kind` ("pmap" or "shard_map") takes it; on one process, the tree itself."""
    if jax.process_count() == 1:
        return tree
    devices = _row(jax.local_devices()) if kind == "pmap" else mesh()
    sharding = NamedSharding(devices, PartitionSpec())

    def view(x: jax.Array) -> jax.Array:
        copies = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, copies)

    return jax.tree.map(view, tree)


def one_each(tree: Any) -> Any:
    """A replicated tree with one copy on each process, for Orbax: it cuts an array into a piece for each copy."""
    sharding = NamedSharding(_row(mesh().devices[:: jax.local_device_count()]), PartitionSpec())

    def view(x: jax.Array) -> jax.Array:
        return jax.make_array_from_single_device_arrays(x.shape, sharding, [x.addressable_data(0)])

    return jax.tree.map(view, tree)


def one_copy(tree: Any) -> Any:
    """A replicated tree on one device of this process, for work that the processes do not do together."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def abstract(tree: Any) -> Any:
    """Shapes, types and the replicated placement of a tree, for restoring it on all devices of all processes."""
    sharding = NamedSharding(mesh(), PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def keep_compiled() -> None:
    """Keeps what GPUs and TPUs compile for the next run, in a folder of this jaxlib and platform.

    That is below ~/.cache/isles_jax. On CPU, and for another place, set JAX_COMPILATION_CACHE_DIR.
    """
    platform = jax.default_backend()
    if platform != "cpu" and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # made at run time
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "isles_jax" / f"{platform}-jaxlib-{jax.lib.__version__}"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def memory_bytes() -> int | None:
    """Memory of the smallest device, where the devices say it (those of CPU do not)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return min((known["bytes_limit"] for known in stats if "bytes_limit" in known), default=None)


def parallelize(step: Callable[..., Any], kind: str = "pmap") -> Callable[..., Any]:
    """Compiles one device's step for all devices.

    Args:
      step: (state, data, indices) -> (state, metrics), which talks to other devices over the axis `AXIS` only and
        returns the same on each.
      kind: "pmap" or "shard_map".

    Returns:
      The same function; its indices have a first axis over the devices of all processes, its state is donated. State
      and data are as `replicate` makes them for this kind.
    """
    if kind == "pmap":
        # The inner jit keeps the traced step in jax's cache across pmaps; an outer one would be wrong on two processes.
        mapped = jax.pmap(
            jax.jit(step), axis_name=AXIS, in_axes=(None, None, 0), out_axes=None, donate_argnums=(0,)
        )  # fmt: skip
        count = jax.local_device_count()
        mine = slice(jax.process_index() * count, (jax.process_index() + 1) * count)
        return lambda state, data, indices: mapped(state, data, indices[mine])
    if kind == "shard_map":
        whole, split = PartitionSpec(), PartitionSpec(AXIS)
        # check_vma=True would sum gradients over devices, which the step does itself.
        mapped = jax.shard_map(
            lambda state, data, indices: step(state, data, indices[0]),
            mesh=mesh(), in_specs=(whole, whole, split), out_specs=whole, check_vma=False,
        )  # fmt: skip
        compiled, sharding = jax.jit(mapped, donate_argnums=(0,)), NamedSharding(mesh(), split)

        def call(state: Any, data: Any, indices: np.ndarray | jax.Array) -> Any:
            if jax.process_count() > 1:
                rows = indices
                indices = jax.make_array_from_callback(rows.shape, sharding, lambda place: rows[place])
            return compiled(state, data, indices)

        return call
    raise ValueError(f'parallel is "pmap" or "shard_map", got {kind!r}')
