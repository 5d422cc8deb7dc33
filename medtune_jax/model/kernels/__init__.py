"""Attention kernels written for one accelerator each, and what they share: how one call is laid out over a mesh.

Each module has `attend(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS) -> o_BSHE`, one device's share of the work under the
contract of `medtune_jax.model.attention.attention`.

Dimensions: B batch, S sequence, H query heads, K key-value heads, G = H / K, E width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from medtune_jax.sharding import RULES

KERNELS = ("splash", "cudnn", "triton")
Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def over_mesh(
    attend: Attend, q_BSHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, segment_ids_BS: jax.Array
) -> jax.Array:
    """Returns attend's result, computed by each device of the mesh in context on its own rows and heads.

    The compiler cannot split a kernel by itself. Rows and query heads are split by the rules of sharding.py where they
    divide. Key-value heads that do not divide are held whole by every device, which then picks those of its query
    heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS)
    batch, heads = _split("batch", q_BSHE.shape[0], mesh), _split("heads", q_BSHE.shape[2], mesh)
    kv_heads = _split("kv_heads", k_BSKE.shape[2], mesh) if heads else None
    groups = q_BSHE.shape[2] // k_BSKE.shape[2]

    def local(q_BSHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
        if heads and not kv_heads:
            own = _own_kv_heads(jax.lax.axis_index(heads), q_BSHE.shape[2], groups)
            k_BSKE, v_BSKE = k_BSKE[:, :, own], v_BSKE[:, :, own]
        return attend(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS)

    q_spec, kv_spec = PartitionSpec(batch, None, heads, None), PartitionSpec(batch, None, kv_heads, None)
    mapped = jax.shard_map(
        local,
        in_specs=(q_spec, kv_spec, kv_spec, PartitionSpec(batch, None)),
        out_specs=q_spec,
        check_vma=False,  # a kernel does not say over which axes its result varies
    )
    return mapped(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS)


def pad_sequence(x_BS: jax.Array, multiple: int) -> jax.Array:
    """Returns [B, S, ...] with zeros after S, up to a multiple of `multiple`: rows of segment 0, which is padding."""
    after = -x_BS.shape[1] % multiple
    return jnp.pad(x_BS, ((0, 0), (0, after), *((0, 0),) * (x_BS.ndim - 2))) if after else x_BS


def _split(axis: str, size: int, mesh: AbstractMesh) -> tuple[str, ...] | None:
    """Returns the mesh axes that split a dimension of this logical axis and size, None where they do not divide it."""
    ways = math.prod(mesh.shape[mesh_axis] for mesh_axis in RULES[axis])
    return RULES[axis] if ways > 1 and size % ways == 0 else None


def _own_kv_heads(shard: jax.Array, heads: int, groups: int) -> jax.Array:
    """Returns which key-value heads the query heads shard * heads + (0 .. heads - 1) read, as few as possible.

    Runs of gcd(heads, groups) query heads never straddle two key-value heads.
    """
    run = math.gcd(heads, groups)
    return (shard * heads + jnp.arange(0, heads, run)) // groups
