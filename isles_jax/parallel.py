"""Data parallelism: the only module that knows about devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def mesh() -> Mesh:
    """All devices in one row."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def replicate(tree: Any) -> Any:
    """Puts a tree of arrays whole on every device; the copies share nothing with the originals and may be donated."""
    sharding = NamedSharding(mesh(), PartitionSpec())
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x), sharding), tree)


def abstract(tree: Any) -> Any:
    """Shapes, types and the replicated placement of a tree, for restoring it."""
    sharding = NamedSharding(mesh(), PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def parallelize(step: Callable[..., Any], kind: str = "pmap") -> Callable[..., Any]:
    """Compiles one device's step for all devices.

    Args:
      step: (state, data, indices) -> (state, metrics), which talks to other devices over the axis `AXIS` only and
        returns the same on each.
      kind: "pmap" or "shard_map".

    Returns:
      The same function; its indices have a first axis over devices, its state is donated.
    """
    if kind == "pmap":
        # The inner jit keeps the traced step in jax's cache across pmaps; an outer one would be wrong on two processes.
        return jax.pmap(
            jax.jit(step), axis_name=AXIS, in_axes=(None, None, 0), out_axes=None, donate_argnums=(0,)
        )  # fmt: skip
    if kind == "shard_map":
        whole, split = PartitionSpec(), PartitionSpec(AXIS)
        # check_vma=True would sum gradients over devices, which the step does itself.
        mapped = jax.shard_map(
            lambda state, data, indices: step(state, data, indices[0]),
            mesh=mesh(), in_specs=(whole, whole, split), out_specs=whole, check_vma=False,
        )  # fmt: skip
        return jax.jit(mapped, donate_argnums=(0,))
    raise ValueError(f'parallel is "pmap" or "shard_map", got {kind!r}')
