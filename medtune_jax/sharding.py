"""The mesh and the one dictionary that maps logical axes to it.

Arrays name their dimensions by logical axes ("embed", "heads", "batch", ...); RULES says which mesh axes each is split
over. `constrain` applies the rules to activations inside jitted code that runs under `jax.set_mesh(mesh)`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medtune_jax.config import MeshConfig
from medtune_jax.errors import UserError

MESH_AXES = ("dcn_data", "data", "fsdp", "tensor")
BATCH_AXES = ("dcn_data", "data", "fsdp")
_HOST = "pinned_host"
_AUTO = (AxisType.Auto,) * len(MESH_AXES)

RULES: dict[str, tuple[str, ...]] = {
    # parameters
    "layers": (),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "norm": (),
    # activations
    "batch": BATCH_AXES,
    "sequence": (),
    "act_embed": (),
}


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """Returns the mesh (dcn_data, data, fsdp, tensor) over `devices` (default: all of them).

    Where TPUs lie in several slices, joined by a data-center network, each index of dcn_data is one slice and the other
    axes stay within it. Elsewhere dcn_data is an axis like the others, and any axis may span hosts: GPUs are laid out
    node by node, so that the last axes keep to one node where they divide it.

    Raises:
      UserError: the axis sizes do not multiply to the number of devices, more than one is -1, or dcn_data is not the
        number of slices of TPUs.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    named = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh: {named}: sizes are at least 1, and -1 (all that remain) may stand once.")
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        if len(devices) % rest:
            raise UserError(f"mesh: {named}: {len(devices)} devices cannot be split by {rest}; change --config.mesh.*.")
        sizes[sizes.index(-1)] = len(devices) // rest
    if math.prod(sizes) != len(devices):
        raise UserError(f"mesh: {named} needs {math.prod(sizes)} devices, there are {len(devices)}.")
    slices = count_slices(devices)
    if devices[0].platform != "tpu":
        ordered = sorted(devices, key=lambda device: (_slice(device), device.process_index, device.id))
        return Mesh(np.array(ordered).reshape(sizes), MESH_AXES, axis_types=_AUTO)
    if slices == 1:
        return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=_AUTO, devices=devices)
    if sizes[0] != slices:
        raise UserError(
            f"mesh: {named}: the devices lie in {slices} slices: set --config.mesh.dcn_data={slices}, and the other "
            f"axes to share the {len(devices) // slices} devices of a slice."
        )
    within, across = (1, *sizes[1:]), (slices, *(1 for _ in sizes[1:]))
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, across, devices), MESH_AXES, axis_types=_AUTO)


def count_slices(devices: Sequence[Any]) -> int:
    """Returns in how many slices TPUs, or nodes GPUs, lie; within one they are joined by fast links."""
    return len({_slice(device) for device in devices})


def _slice(device: Any) -> int:
    """Returns the slice of a TPU, or the node of a GPU, that the device lies in."""
    return getattr(device, "slice_index", None) or 0


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Returns the PartitionSpec of an array whose dimensions have these logical axes (None = not split)."""
    return PartitionSpec(*(RULES[axis] or None if axis is not None else None for axis in axes))


def parameter_sharding(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh) -> NamedSharding:
    """Returns the sharding of one parameter.

    Key-value heads fewer than the tensor axis are replicated (logged); anything else that does not divide is an error.
    `shape` counts heads where the axis would cut one in two (`model.llama.whole_heads`).

    Raises:
      UserError: a dimension is not divisible by the mesh axes that its rule names.
    """
    parts: list[tuple[str, ...] | None] = []
    for size, axis in zip(shape, axes, strict=True):
        split = RULES[axis] if axis is not None else ()
        ways = math.prod(mesh.shape[mesh_axis] for mesh_axis in split)
        if ways > 1 and size % ways:
            if axis != "kv_heads" or size > ways:
                raise UserError(
                    f"{name}: dimension '{axis}' of size {size} cannot be split {ways} ways over mesh axis "
                    f"{'x'.join(split)}; choose a --config.mesh.{split[0]} that divides {size}."
                )
            logging.getLogger(__name__).warning("%s: %d key-value columns replicated over tensor=%d", name, size, ways)
            split = ()
        parts.append(split or None)
    return NamedSharding(mesh, PartitionSpec(*parts))


def rows_divide(rows: int) -> bool:
    """Returns whether there is a mesh of several devices in context whose data axes share out `rows` evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and rows % math.prod(mesh.shape[axis] for axis in BATCH_AXES) == 0


def by_rows(run: Callable[..., Any], *arrays: jax.Array) -> Any:
    """Returns run(*arrays), arrays [B, ...], computed by each device of the mesh in context on its own rows.

    For what a row alone decides and the compiler would not split (top_k: it gathers the rows of all devices). `run`
    sees a row's other dimensions whole; without a mesh, or where the rows do not divide, whole arrays.
    """
    if not rows_divide(arrays[0].shape[0]):
        return run(*arrays)
    rows = PartitionSpec(BATCH_AXES)
    return jax.shard_map(run, in_specs=rows, out_specs=rows, check_vma=False)(*arrays)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch [B, ...]: rows over dcn_data x data x fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def in_host_memory(sharding: NamedSharding, setting: str) -> NamedSharding:
    """Returns the sharding with every device's part in the pinned memory of its host.

    Raises:
      UserError: the devices have no such memory; names `setting`, which asks for it.
    """
    device = sharding.mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if _HOST not in kinds:
        raise UserError(
            f"{setting} needs pinned host memory, which {device.device_kind} with this version of jax does not have "
            f"(it has {', '.join(kinds)}): leave it at its default."
        )
    return sharding.with_memory_kind(_HOST)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains activation x to the rules of its logical axes; without a mesh in context, x itself.

    A dimension that its mesh axes do not divide is left to the compiler; mesh axes over which a `shard_map` already
    runs say nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    parts: list[tuple[str, ...] | None] = []
    for size, axis in zip(x.shape, axes, strict=True):
        split = tuple(a for a in (RULES[axis] if axis is not None else ()) if a not in mesh.manual_axes)
        ways = math.prod(mesh.shape[mesh_axis] for mesh_axis in split)
        parts.append(split if ways > 1 and size % ways == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))
