"""The one entry to attention, and the XLA path behind it.

Dimensions: B batch, S queries, T keys, H query heads, K key-value heads, G = H / K, E width of a head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_SMALLEST_BLOCK = 64  # query rows whose scores are held at once; also the grain of causal skipping
_MOST_BLOCKS = 16  # bounds what is unrolled into the program
_MASKED = -1e30  # finite, so that a fully masked (padding) row gives finite values and gradients


def attention(
    q_BSHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, segment_ids_BS: jax.Array, *, implementation: str
) -> jax.Array:
    """Causal self-attention within segments.

    Args:
      q_BSHE, k_BSKE, v_BSKE: rotated queries and keys, and values; query head h reads key-value head h // G.
      segment_ids_BS: int32; a position attends earlier positions of its own segment only. 0 is padding.
      implementation: "xla".

    Returns:
      [B, S, H, E] in q's dtype; softmax in float32, scores scaled by 1/sqrt(E).
    """
    return _IMPLEMENTATIONS[implementation](q_BSHE, k_BSKE, v_BSKE, segment_ids_BS)


def cached_attention(q_BSHE: jax.Array, k_BTKE: jax.Array, v_BTKE: jax.Array, positions_BS: jax.Array) -> jax.Array:
    """Attention of new queries to a cache whose slot t holds position t: a query at position p sees slots 0..p."""
    slots_T = jnp.arange(k_BTKE.shape[1])
    visible_BST = slots_T[None, None, :] <= positions_BS[:, :, None]
    return _attend(q_BSHE, k_BTKE, v_BTKE, visible_BST)


def _xla(q_BSHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
    """Blocks of queries against the keys at or before them: no [S, S] scores, and half the work of a full mask."""
    sequence = q_BSHE.shape[1]
    block = max(_SMALLEST_BLOCK, sequence // _MOST_BLOCKS)
    index_S = jnp.arange(sequence)
    outputs = []
    for start in range(0, sequence, block):
        stop = min(start + block, sequence)
        same_Bqt = segment_ids_BS[:, start:stop, None] == segment_ids_BS[:, None, :stop]
        causal_qt = index_S[None, :stop] <= index_S[start:stop, None]
        outputs.append(_attend(q_BSHE[:, start:stop], k_BSKE[:, :stop], v_BSKE[:, :stop], same_Bqt & causal_qt))
    return jnp.concatenate(outputs, axis=1)


def _attend(q_BSHE: jax.Array, k_BTKE: jax.Array, v_BTKE: jax.Array, visible_BST: jax.Array) -> jax.Array:
    """Softmax attention; the [.., S, T] weights are left unnormalised and the [.., S, E] output divided instead."""
    batch, queries, heads, width = q_BSHE.shape
    kv_heads = k_BTKE.shape[2]
    groups = heads // kv_heads
    q_BKGSE = (q_BSHE * width**-0.5).reshape(batch, queries, kv_heads, groups, width).transpose(0, 2, 3, 1, 4)
    q_BKsE = q_BKGSE.reshape(batch, kv_heads, groups * queries, width)  # the queries of a group share their keys
    scores_BKsT = jnp.einsum("BKsE,BTKE->BKsT", q_BKsE, k_BTKE, preferred_element_type=jnp.float32)
    visible_BKsT = jnp.tile(visible_BST, (1, groups, 1))[:, None]
    scores_BKsT = jnp.where(visible_BKsT, scores_BKsT, _MASKED)
    highest = jax.lax.stop_gradient(scores_BKsT.max(axis=-1, keepdims=True))
    weights_BKsT = jnp.exp(scores_BKsT - highest)
    totals_BKs1 = weights_BKsT.sum(axis=-1, keepdims=True)
    o_BKsE = jnp.einsum(
        "BKsT,BTKE->BKsE", weights_BKsT.astype(v_BTKE.dtype), v_BTKE, preferred_element_type=jnp.float32
    )
    o_BKGSE = (o_BKsE / totals_BKs1).reshape(batch, kv_heads, groups, queries, width)
    return o_BKGSE.transpose(0, 3, 1, 2, 4).reshape(q_BSHE.shape).astype(q_BSHE.dtype)


_IMPLEMENTATIONS = {"xla": _xla}
