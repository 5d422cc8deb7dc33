"""The one entry to attention, and the XLA path behind it.

Dimensions: B batch, S queries, T keys, H query heads, K key-value heads, G = H / K, E width of a head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_QUERY_BLOCK = 128  # rows of scores held at once; also the grain of causal skipping
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
    index_S = jnp.arange(sequence)
    outputs = []
    for start in range(0, sequence, _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, sequence)
        same_Bqt = segment_ids_BS[:, start:stop, None] == segment_ids_BS[:, None, :stop]
        causal_qt = index_S[None, :stop] <= index_S[start:stop, None]
        outputs.append(_attend(q_BSHE[:, start:stop], k_BSKE[:, :stop], v_BSKE[:, :stop], same_Bqt & causal_qt))
    return jnp.concatenate(outputs, axis=1)


def _attend(q_BSHE: jax.Array, k_BTKE: jax.Array, v_BTKE: jax.Array, visible_BST: jax.Array) -> jax.Array:
    batch, queries, heads, width = q_BSHE.shape
    kv_heads = k_BTKE.shape[2]
    q_BSKGE = q_BSHE.reshape(batch, queries, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum("BSKGE,BTKE->BKGST", q_BSKGE, k_BTKE, preferred_element_type=jnp.float32) * width**-0.5
    weights = jax.nn.softmax(jnp.where(visible_BST[:, None, None], scores, _MASKED), axis=-1)
    return jnp.einsum("BKGST,BTKE->BSKGE", weights.astype(v_BTKE.dtype), v_BTKE).reshape(q_BSHE.shape)


_IMPLEMENTATIONS = {"xla": _xla}
