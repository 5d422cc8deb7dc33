"""The one entry to attention, and the XLA path behind it. Which backend runs where is decided in model/backends.py.

Dimensions: B batch, S queries, T keys, H query heads, K key-value heads, G = H / K, E width of a head.
"""

from __future__ import annotations

from importlib import import_module

import jax
import jax.numpy as jnp

from medtune_jax.model.kernels import KERNELS, over_mesh

_SMALLEST_BLOCK = 64  # query rows whose scores are held at once; also the grain of causal skipping
_CACHED_BLOCK = 32  # the same of queries against a cache
_MOST_BLOCKS = 16  # bounds what is unrolled into the program
_MASKED = -1e30  # finite, so that a fully masked (padding) row gives finite values and gradients


def attention(
    q_BSHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, segment_ids_BS: jax.Array, *, implementation: str
) -> jax.Array:
    """Causal self-attention within segments.

    Args:
      q_BSHE, k_BSKE, v_BSKE: rotated queries and keys, and values; query head h reads key-value head h // G.
      segment_ids_BS: int32; a position attends earlier positions of its own segment only, whose positions lie
        together. 0 is padding.
      implementation: a backend by the name that `backends.resolve` gives. A kernel ("splash", "cudnn", "triton") runs
        on each device of the mesh in context for its own rows and heads.

    Returns:
      [B, S, H, E] in q's dtype; softmax in float32, scores scaled by 1/sqrt(E). Rows of padding hold finite values.

    Raises:
      ValueError: no backend of that name; "auto" among them, since here the devices are not known.
    """
    if implementation == "xla":
        return _xla(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS)
    if implementation not in KERNELS:
        raise ValueError(f"no attention backend '{implementation}': resolve it first (model/backends.py)")
    kernel = import_module(f"medtune_jax.model.kernels.{implementation}")  # only where it is used: imports are slow
    return over_mesh(kernel.attend, q_BSHE, k_BSKE, v_BSKE, segment_ids_BS)


def cached_attention(q_BSHE: jax.Array, k_BKTE: jax.Array, v_BKTE: jax.Array, positions_BS: jax.Array) -> jax.Array:
    """Attention of new queries to a cache whose slot t holds position t: a query at position p sees slots 0..p.

    Blocks of queries come one after another, so that the scores of one are held at a time.
    """
    slots_T = jnp.arange(k_BKTE.shape[2])
    batch, queries = positions_BS.shape
    if queries % _CACHED_BLOCK:
        return _attend(q_BSHE, k_BKTE, v_BKTE, slots_T <= positions_BS[:, :, None])

    def blocks(x_BS: jax.Array) -> jax.Array:
        return jnp.swapaxes(x_BS.reshape(batch, -1, _CACHED_BLOCK, *x_BS.shape[2:]), 0, 1)

    def attend(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _attend(block[0], k_BKTE, v_BKTE, slots_T <= block[1][:, :, None])

    o_nBsHE = jax.lax.map(attend, (blocks(q_BSHE), blocks(positions_BS)))
    return jnp.swapaxes(o_nBsHE, 0, 1).reshape(q_BSHE.shape)


def _xla(q_BSHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
    """Blocks of queries against the keys at or before them: no [S, S] scores, and half the work of a full mask."""
    k_BKSE, v_BKSE = jnp.swapaxes(k_BSKE, 1, 2), jnp.swapaxes(v_BSKE, 1, 2)
    index_S = jnp.arange(q_BSHE.shape[1])
    outputs = []
    for rows in _blocks(q_BSHE.shape[1]):
        keys = slice(0, rows.stop)
        same_BST = segment_ids_BS[:, rows, None] == segment_ids_BS[:, None, keys]
        causal_ST = index_S[None, keys] <= index_S[rows, None]
        outputs.append(_attend(q_BSHE[:, rows], k_BKSE[:, :, keys], v_BKSE[:, :, keys], same_BST & causal_ST))
    return jnp.concatenate(outputs, axis=1)


def _blocks(sequence: int) -> list[slice]:
    block = max(_SMALLEST_BLOCK, sequence // _MOST_BLOCKS)
    return [slice(start, min(start + block, sequence)) for start in range(0, sequence, block)]


def _attend(q_BSHE: jax.Array, k_BKTE: jax.Array, v_BKTE: jax.Array, visible_BST: jax.Array) -> jax.Array:
    """Softmax attention; the [.., S, T] weights are left unnormalised and the [.., S, E] output divided instead."""
    batch, queries, heads, width = q_BSHE.shape
    kv_heads = k_BKTE.shape[1]
    groups = heads // kv_heads
    q_BKGSE = (q_BSHE * width**-0.5).reshape(batch, queries, kv_heads, groups, width).transpose(0, 2, 3, 1, 4)
    q_BKsE = q_BKGSE.reshape(batch, kv_heads, groups * queries, width)  # the queries of a group share their keys
    scores_BKsT = jnp.einsum("BKsE,BKTE->BKsT", q_BKsE, k_BKTE, preferred_element_type=jnp.float32)
    visible_BKsT = jnp.tile(visible_BST, (1, groups, 1))[:, None]
    scores_BKsT = jnp.where(visible_BKsT, scores_BKsT, _MASKED)
    highest_BKs1 = jax.lax.stop_gradient(scores_BKsT.max(axis=-1, keepdims=True))
    weights_BKsT = jnp.exp(scores_BKsT - highest_BKs1)
    totals_BKs1 = weights_BKsT.sum(axis=-1, keepdims=True)
    weights_BKsT = weights_BKsT.astype(v_BKTE.dtype)
    o_BKsE = jnp.einsum("BKsT,BKTE->BKsE", weights_BKsT, v_BKTE, preferred_element_type=jnp.float32)
    o_BKGSE = (o_BKsE / totals_BKs1).reshape(batch, kv_heads, groups, queries, width)
    return o_BKGSE.transpose(0, 3, 1, 2, 4).reshape(q_BSHE.shape).astype(q_BSHE.dtype)
