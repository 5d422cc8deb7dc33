"""What runs on the device: prefill, the decode loop, and one pass over a drafted text, all over one static cache.

Rows live in slots of a cache. Slot t of a row's cache holds its position t; a query at position p attends slots 0..p.
So what padding writes behind a row's last token is overwritten before anything attends it, and rows of one batch may
stand at any positions. Dimensions as in model/llama.py; here B are slots, T cache positions, N tokens of one call.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medtune_jax.generate.sampling import Method, request_keys
from medtune_jax.model.attention import attention as attend_segments
from medtune_jax.model.llama import (
    LlamaConfig,
    Params,
    head,
    layer,
    mask_padding,
    param_shardings,
    rms_norm,
    rope_angles,
)
from medtune_jax.sharding import constrain

_QUERY_BLOCK = 128
_MASKED = -1e30  # finite, so that a slot without a row gives finite values


class Weights(NamedTuple):
    """Parameters for decoding: one tree per layer, so that no step slices a stack.

    Attributes:
      embedding: [V, D]; layers: per layer, model/llama.py's tree without the L dimension; norm: [D]; head: [D, V].
    """

    embedding: jax.Array
    layers: tuple[Params, ...]
    norm: jax.Array
    head: jax.Array


class Cache(NamedTuple):
    """Keys and values, one [B, K, T, E] per layer: the batched products of attention read it without a transpose."""

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]

    @property
    def length(self) -> int:
        return int(self.k[0].shape[2])


def decoding_weights(params: Params, config: LlamaConfig, dtype: Any, mesh: Mesh | None) -> Weights:
    """Returns `params` cast to `dtype` and unstacked; under a mesh split over `tensor` only.

    (FSDP's split would gather every weight again for every token.)
    """

    def unstack(params: Params) -> Weights:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        layers = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(config.num_layers))
        return Weights(params["embed_tokens"]["embedding"], layers, params["norm"]["scale"], head(params, config))

    if mesh is None:
        return jax.jit(unstack)(params)

    def tensor_only(sharding: NamedSharding) -> NamedSharding:
        parts = ["tensor" if part and "tensor" in part else None for part in sharding.spec]
        return NamedSharding(mesh, PartitionSpec(*parts))

    placed = jax.device_put(params, jax.tree.map(tensor_only, param_shardings(config, mesh)))
    with jax.set_mesh(mesh):
        return jax.jit(unstack)(placed)


@partial(jax.jit, static_argnames=("config", "batch", "length", "dtype"))
def empty_cache(config: LlamaConfig, batch: int, length: int, dtype: Any) -> Cache:
    """Returns a cache of `batch` slots with `length` positions each."""
    if jax.default_backend() == "cpu":
        dtype = jnp.float32  # XLA:CPU scatters into bfloat16 by converting the whole array there and back
    shape = (batch, config.num_kv_heads, length, config.head_dim)
    blank = [_shard(jnp.zeros(shape, dtype)) for _ in range(2 * config.num_layers)]
    return Cache(tuple(blank[: config.num_layers]), tuple(blank[config.num_layers :]))


@partial(jax.jit, static_argnames=("length",))
def resize(cache: Cache, length: int) -> Cache:
    """Returns the cache cut or lengthened to `length` positions."""
    extra = max(0, length - cache.length)
    return jax.tree.map(lambda x: _shard(jnp.pad(x[:, :, :length], ((0, 0), (0, 0), (0, extra), (0, 0)))), cache)


@partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def prefill(
    weights: Weights,
    cache: Cache,
    tokens_RS: jax.Array,
    lengths_R: jax.Array,
    slots_R: jax.Array,
    *,
    config: LlamaConfig,
) -> Cache:
    """Computes prompts and puts their keys and values into slots of the cache.

    Args:
      tokens_RS: int32, right-padded prompts; lengths_R: their true lengths.
      slots_R: the slot of each; B or above: nowhere.
    """
    sequence = tokens_RS.shape[1]
    positions_RS = jnp.broadcast_to(jnp.arange(sequence), tokens_RS.shape)
    segments_RS = (positions_RS < lengths_R[:, None]).astype(jnp.int32)

    def attend(index: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        out = attend_segments(q, k, v, segments_RS, implementation="xla")
        held = (cache.k[index], cache.v[index])
        written = [
            _shard(full.at[slots_R, :, :sequence].set(jnp.swapaxes(new, 1, 2).astype(full.dtype)))
            for full, new in zip(held, (k, v), strict=True)
        ]
        return out, (written[0], written[1])

    _, cache = _layers(weights, config, tokens_RS, positions_RS, attend)
    return cache


@partial(jax.jit, static_argnames=("config", "method", "eos_id", "steps"), donate_argnames=("cache",))
def decode_steps(
    weights: Weights,
    cache: Cache,
    token_B: jax.Array,
    position_B: jax.Array,
    count_B: jax.Array,
    limit_B: jax.Array,
    rows_B: jax.Array,
    seed: jax.Array,
    *,
    config: LlamaConfig,
    method: Method,
    eos_id: int,
    steps: int,
) -> tuple[Cache, jax.Array]:
    """Chooses up to `steps` tokens per slot; stops early when every slot is done.

    A slot is done when it has chosen EOS or when its count reaches its limit; a slot without a row has count = limit.

    Args:
      token_B: the last token of each text, not yet in the cache; position_B: its position.
      count_B: tokens chosen before; limit_B: tokens allowed in all; rows_B: request numbers (for randomness).

    Returns:
      (cache, chosen [B, steps] int32: each slot's tokens in order, -1 where none was chosen any more).
    """
    batch = token_B.shape[0]

    def unfinished(state: tuple[Any, ...]) -> jax.Array:
        step, _, done_B, _, _ = state
        return (step < steps) & ~jnp.all(done_B)

    def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, token_B, done_B, chosen_BN, cache = state
        hidden_B1D, cache = _window(weights, config, token_B[:, None], (position_B + step)[:, None], cache)
        logits_BV = mask_padding(_project(hidden_B1D[:, 0], weights.head), config)
        next_B = method(request_keys(seed, rows_B, count_B + step), logits_BV)
        chosen_BN = chosen_BN.at[:, step].set(jnp.where(done_B, -1, next_B))
        done_B |= (next_B == eos_id) | (count_B + step + 1 >= limit_B)
        return step + 1, next_B, done_B, chosen_BN, cache

    chosen_BN = jnp.full((batch, steps), -1, jnp.int32)
    start = (jnp.int32(0), token_B, count_B >= limit_B, chosen_BN, cache)
    _, _, _, chosen_BN, cache = jax.lax.while_loop(unfinished, advance, start)
    return cache, chosen_BN


@partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def draft_logits(
    weights: Weights,
    cache: Cache,
    tokens_BN: jax.Array,
    start_B: jax.Array,
    where_BM: jax.Array,
    columns_U: jax.Array,
    *,
    config: LlamaConfig,
) -> tuple[Cache, jax.Array]:
    """One pass over drafted continuations; logits only where something is decided, and only of what may stand there.

    Args:
      tokens_BN: int32, tokens at positions start_B, start_B + 1, ... (right-padded); all before is in the cache.
      where_BM: indices into N of the predicting positions; columns_U: token ids.

    Returns:
      (cache, float32 logits [B, M, U]).
    """
    positions_BN = start_B[:, None] + jnp.arange(tokens_BN.shape[1])
    hidden_BND, cache = _window(weights, config, tokens_BN, positions_BN, cache)
    hidden_BMD = jnp.take_along_axis(hidden_BND, where_BM[:, :, None], axis=1)
    return cache, jnp.matmul(hidden_BMD, weights.head[:, columns_U], preferred_element_type=jnp.float32)


def _window(
    weights: Weights, config: LlamaConfig, tokens_BN: jax.Array, positions_BN: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Runs new tokens of every slot against the cache, and writes them into it."""
    rows_B1 = jnp.arange(tokens_BN.shape[0])[:, None]

    def attend(index: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        # Out-of-range positions (padding behind a row's end) are dropped by the scatter.
        k_BKTE = _shard(cache.k[index].at[rows_B1, :, positions_BN].set(k.astype(cache.k[index].dtype)))
        v_BKTE = _shard(cache.v[index].at[rows_B1, :, positions_BN].set(v.astype(cache.v[index].dtype)))
        return _attend_cache(q, k_BKTE, v_BKTE, positions_BN), (k_BKTE, v_BKTE)

    return _layers(weights, config, tokens_BN, positions_BN, attend)


def _layers(
    weights: Weights, config: LlamaConfig, tokens_BN: jax.Array, positions_BN: jax.Array, attend: Any
) -> tuple[jax.Array, Cache]:
    """Returns (hidden [B, N, D] after the final norm, the cache that attend(layer index, q, k, v) returned)."""
    x_BND = constrain(weights.embedding[tokens_BN], "batch", "sequence", "act_embed")
    rope = rope_angles(positions_BN, config)
    held = []
    for index, layer_weights in enumerate(weights.layers):
        x_BND, written = layer(x_BND, layer_weights, config, rope, partial(attend, index))
        held.append(written)
    keys, values = zip(*held, strict=True)
    return rms_norm(x_BND, weights.norm, config.rms_norm_eps), Cache(keys, values)


def _attend_cache(q_BNHE: jax.Array, k_BKTE: jax.Array, v_BKTE: jax.Array, positions_BN: jax.Array) -> jax.Array:
    """Attention of new queries to the cache, a block of them at a time so that few scores are held at once."""
    batch, queries, heads, width = q_BNHE.shape
    kv_heads, length = k_BKTE.shape[1:3]
    groups = heads // kv_heads
    q_BKGNE = (q_BNHE * width**-0.5).reshape(batch, queries, kv_heads, groups, width).transpose(0, 2, 3, 1, 4)
    outputs = []
    for first in range(0, queries, _QUERY_BLOCK):
        block = slice(first, min(first + _QUERY_BLOCK, queries))
        q_BKnE = q_BKGNE[:, :, :, block].reshape(batch, kv_heads, -1, width)  # a group's queries share their keys
        scores_BKnT = jnp.einsum("BKnE,BKTE->BKnT", q_BKnE, k_BKTE, preferred_element_type=jnp.float32)
        visible_BnT = jnp.tile(jnp.arange(length) <= positions_BN[:, block, None], (1, groups, 1))
        scores_BKnT = jnp.where(visible_BnT[:, None], scores_BKnT, _MASKED)
        weights_BKnT = jnp.exp(scores_BKnT - scores_BKnT.max(axis=-1, keepdims=True))
        totals_BKn1 = weights_BKnT.sum(axis=-1, keepdims=True)
        o_BKnE = jnp.einsum(
            "BKnT,BKTE->BKnE", weights_BKnT.astype(v_BKTE.dtype), v_BKTE, preferred_element_type=jnp.float32
        )
        outputs.append((o_BKnE / totals_BKn1).reshape(batch, kv_heads, groups, -1, width))
    o_BKGNE = jnp.concatenate(outputs, axis=3)
    return o_BKGNE.transpose(0, 3, 1, 2, 4).reshape(q_BNHE.shape).astype(q_BNHE.dtype)


def _project(hidden_BD: jax.Array, head_DV: jax.Array) -> jax.Array:
    """Returns float32 hidden @ head."""
    rows = hidden_BD.shape[0]
    if jax.default_backend() == "cpu" and hidden_BD.dtype == jnp.bfloat16:
        # XLA:CPU has a bfloat16 product for 8 rows and more; for fewer it converts the whole head to float32 each time.
        hidden_BD = jnp.pad(hidden_BD, ((0, max(0, 8 - rows)), (0, 0)))
    return jnp.matmul(hidden_BD, head_DV, preferred_element_type=jnp.float32)[:rows]


def _shard(x_BKTE: jax.Array) -> jax.Array:
    """Under a mesh: slots over the batch axes, key-value heads over `tensor`, each where it divides."""
    return constrain(x_BKTE, "batch", "kv_heads", None, None)
