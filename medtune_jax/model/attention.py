"""The one entry to attention, and the XLA path behind it. Which backend runs where is decided in model/backends.py.

Dimensions: B batch, S queries, T keys, H query heads, K key-value heads, G = H / K, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

from medtune_jax.model.kernels import KERNELS, over_mesh

_SMALLEST_BLOCK = 64  # query rows whose scores are held at once; also the grain of causal skipping
_CACHED_BLOCK = 32  # the same of queries against a cache
_MOST_BLOCKS = 16  # bounds what is unrolled into the program
_CONVERTED_PARTS = 8  # of an int8 cache, converted one after another
_TPU_ROWS = 8  # queries of a key-value head that a TPU's matrix unit takes at least
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


def cached_attention(
    q_BSHE: jax.Array,
    k_BKTE: jax.Array,
    k_scale_BKT: jax.Array | None,
    v_BKTE: jax.Array,
    v_scale_BKT: jax.Array | None,
    positions_BS: jax.Array,
) -> jax.Array:
    """Attention of new queries to a cache whose slot t holds position t: a query at position p sees slots 0..p.

    Blocks of queries come one after another, so that the scores of one are held at a time. int8 keys and values have a
    float32 scale for each position, which scores and weights are multiplied by.
    """
    attend_cache = partial(attend_visible, k_scale_BKT=k_scale_BKT, v_scale_BKT=v_scale_BKT)
    slots_T = jnp.arange(k_BKTE.shape[2])
    batch, queries = positions_BS.shape
    if queries % _CACHED_BLOCK:
        return attend_cache(q_BSHE, k_BKTE, v_BKTE, slots_T <= positions_BS[:, :, None])

    def blocks(x_BS: jax.Array) -> jax.Array:
        return jnp.swapaxes(x_BS.reshape(batch, -1, _CACHED_BLOCK, *x_BS.shape[2:]), 0, 1)

    def attend(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        return attend_cache(block[0], k_BKTE, v_BKTE, slots_T <= block[1][:, :, None])

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
        outputs.append(attend_visible(q_BSHE[:, rows], k_BKSE[:, :, keys], v_BKSE[:, :, keys], same_BST & causal_ST))
    return jnp.concatenate(outputs, axis=1)


def _blocks(sequence: int) -> list[slice]:
    block = max(_SMALLEST_BLOCK, sequence // _MOST_BLOCKS)
    return [slice(start, min(start + block, sequence)) for start in range(0, sequence, block)]


def attend_visible(
    q_BSHE: jax.Array,
    k_BKTE: jax.Array,
    v_BKTE: jax.Array,
    visible_BST: jax.Array,
    k_scale_BKT: jax.Array | None = None,
    v_scale_BKT: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention of each query to the keys that are visible to it; scales are those of int8 keys and values.

    The [.., S, T] weights are left unnormalised and the [.., S, E] output divided instead.
    """
    batch, queries, heads, width = q_BSHE.shape
    kv_heads = k_BKTE.shape[1]
    groups = heads // kv_heads
    q_BKGSE = (q_BSHE * width**-0.5).reshape(batch, queries, kv_heads, groups, width).transpose(0, 2, 3, 1, 4)
    rows = groups * queries  # the queries of a group share their keys
    q_BKsE = q_BKGSE.reshape(batch, kv_heads, rows, width)
    visible_BsT = jnp.tile(visible_BST, (1, groups, 1))
    if jax.default_backend() == "tpu" and rows < _TPU_ROWS:
        # Fewer rows are no matrix product to its compiler but elementwise ones, with scores padded to 32 times their
        # size: a step of decoding takes it five times as long (its own estimate; bfloat16, 1,024 positions).
        q_BKsE, visible_BsT = (
            jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, _TPU_ROWS - rows), (0, 0)]) for x in (q_BKsE, visible_BsT)
        )
    scores_BKsT = _scores(q_BKsE, k_BKTE, k_scale_BKT)
    scores_BKsT = jnp.where(visible_BsT[:, None], scores_BKsT, _MASKED)
    highest_BKs1 = jax.lax.stop_gradient(scores_BKsT.max(axis=-1, keepdims=True))
    weights_BKsT = jnp.exp(scores_BKsT - highest_BKs1)
    totals_BKs1 = weights_BKsT.sum(axis=-1, keepdims=True)
    o_BKsE = _weighted(weights_BKsT, v_BKTE, v_scale_BKT, q_BSHE.dtype)
    o_BKGSE = (o_BKsE / totals_BKs1)[:, :, :rows].reshape(batch, kv_heads, groups, queries, width)
    return o_BKGSE.transpose(0, 3, 1, 2, 4).reshape(q_BSHE.shape).astype(q_BSHE.dtype)


def _scores(q_BKsE: jax.Array, k_BKTE: jax.Array, scale_BKT: jax.Array | None) -> jax.Array:
    """Returns float32 [B, K, s, T]."""
    if scale_BKT is None:
        return jnp.einsum("BKsE,BKTE->BKsT", q_BKsE, k_BKTE, preferred_element_type=jnp.float32)
    dtype = _beside_int8(q_BKsE.dtype)

    def some(k_BKtE: jax.Array, scale_BKt: jax.Array) -> jax.Array:
        products = partial(jnp.einsum, "BKsE,BKtE->BKst", preferred_element_type=jnp.float32)
        return products(q_BKsE.astype(dtype), k_BKtE.astype(dtype)) * scale_BKt[:, :, None]

    parts_nBKst = _by_positions(some, k_BKTE, scale_BKT)
    return jnp.moveaxis(parts_nBKst, 0, 3).reshape(*q_BKsE.shape[:3], -1)


def _weighted(weights_BKsT: jax.Array, v_BKTE: jax.Array, scale_BKT: jax.Array | None, dtype: Any) -> jax.Array:
    """Returns the sum of values by weights, float32 [B, K, s, E]; dtype: of the products where values are int8."""
    if scale_BKT is None:
        weights_BKsT = weights_BKsT.astype(v_BKTE.dtype)
        return jnp.einsum("BKsT,BKTE->BKsE", weights_BKsT, v_BKTE, preferred_element_type=jnp.float32)
    dtype = _beside_int8(dtype)
    weights_BKTs = jnp.swapaxes(weights_BKsT * scale_BKT[:, :, None], 2, 3).astype(dtype)

    def some(v_BKtE: jax.Array, weights_BKts: jax.Array) -> jax.Array:
        products = partial(jnp.einsum, "BKts,BKtE->BKsE", preferred_element_type=jnp.float32)
        return products(weights_BKts, v_BKtE.astype(dtype))

    return _by_positions(some, v_BKTE, weights_BKTs).sum(axis=0)


def _by_positions(run: Callable[..., jax.Array], *parts_BKT: jax.Array) -> jax.Array:
    """Returns run(parts) of blocks of positions, stacked in front.

    Accelerators convert int8 as they multiply: one block. XLA:CPU writes the converted array first: several, one after
    another, so that it is small.
    """
    positions = parts_BKT[0].shape[2]
    if jax.default_backend() != "cpu" or positions % _CONVERTED_PARTS:
        return run(*parts_BKT)[None]
    size = positions // _CONVERTED_PARTS

    def block(start: jax.Array) -> jax.Array:
        return run(*(jax.lax.dynamic_slice_in_dim(part, start, size, axis=2) for part in parts_BKT))

    return jax.lax.map(block, jnp.arange(0, positions, size))


def _beside_int8(dtype: Any) -> Any:
    """Returns the dtype of products with int8: activations' own, which holds every int8 exactly."""
    return jnp.float32 if jax.default_backend() == "cpu" else dtype  # XLA:CPU's bfloat16 products of this form are slow
