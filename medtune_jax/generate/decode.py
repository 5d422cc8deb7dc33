"""What runs on the device: prefill, the decode loop, and one pass over a drafted text, all over one static cache.

Rows live in slots of a cache. Slot t of a row's cache holds its position t; a query at position p attends slots 0..p.
So what padding writes behind a row's last token is overwritten before anything attends it, and rows of one batch may
stand at any positions. Dimensions as in model/llama.py; here B are slots, T cache positions, N tokens of one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medtune_jax.generate.cache import Cache, Stored, as_stored, copy_out, fill, heads_first, write
from medtune_jax.generate.sampling import Method, request_keys
from medtune_jax.generate.weights import Weights
from medtune_jax.model.attention import attention as attend_segments
from medtune_jax.model.attention import cached_attention
from medtune_jax.model.llama import (
    LlamaConfig,
    Params,
    layer,
    mask_padding,
    rms_norm,
    rope_angles,
)
from medtune_jax.sharding import constrain

Rope = tuple[jax.Array, jax.Array]

NOT_A_TOKEN = -2

LOGITS = 512  # positions whose logits [V] are held at a time, where there are many


def most_drafts(width: int = 16) -> int | None:
    """Returns how many drafts of at least `width` tokens one pass should hold at most; None = no such limit.

    On the CPU more than 128 tokens are not faster per token: more drafts only pad shorter ones to longer ones.
    """
    return max(1, 128 // width) if jax.default_backend() == "cpu" else None


def prefill(
    weights: Weights,
    cache: Cache,
    tokens_RS: np.ndarray,
    lengths_R: np.ndarray,
    slots_R: np.ndarray,
    *,
    config: LlamaConfig,
) -> Cache:
    """Computes prompts and puts their keys and values into slots of the cache, which is donated.

    Args:
      tokens_RS: int32, right-padded prompts; lengths_R: their true lengths.
      slots_R: the slot of each; B or above: nowhere.
    """
    x_RSD, rope = _embed(weights, tokens_RS, np.zeros_like(lengths_R), config=config)
    lengths, slots = jnp.asarray(lengths_R), jnp.asarray(slots_R)

    def run(layer_weights: Params, x: jax.Array, keys: Stored, values: Stored) -> tuple[jax.Array, Stored, Stored]:
        dtype = keys.values.dtype
        x, k, v = _prefill_layer(layer_weights, x, rope=rope, lengths_R=lengths, config=config, dtype=dtype)
        return x, fill(keys, k, slots), fill(values, v, slots)

    return through(weights, x_RSD, cache, run)[1]


def prefill_behind(
    weights: Weights,
    cache: Cache,
    begun: Cache,
    entries_R: np.ndarray,
    tokens_RN: np.ndarray,
    start_R: np.ndarray,
    slots_R: np.ndarray,
    *,
    length: int,
    config: LlamaConfig,
) -> Cache:
    """Does what `prefill` does for prompts whose beginnings are computed already.

    Args:
      begun: the keys and values of beginnings, one in each slot; entries_R: the slot of each prompt's.
      tokens_RN: int32, right-padded, the rest of each prompt; start_R: tokens before it.
      length: positions that are computed with, at least those of the longest prompt.
    """
    x_RND, rope = _embed(weights, tokens_RN, start_R, config=config)
    entries, start, slots = jnp.asarray(entries_R), jnp.asarray(start_R), jnp.asarray(slots_R)
    beginnings = zip(begun.k, begun.v, strict=True)

    def run(layer_weights: Params, x: jax.Array, keys: Stored, values: Stored) -> tuple[jax.Array, Stored, Stored]:
        own = (_taken_out(layer_begun, entries, length=length) for layer_begun in next(beginnings))
        x, *own = _draft_layer(layer_weights, x, *own, rope=rope, start_B=start, config=config)
        return x, *(fill(full, part, slots) for full, part in zip((keys, values), own, strict=True))

    return through(weights, x_RND, cache, run)[1]


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
    texts_BT: jax.Array | None = None,
    enough: jax.Array | None = None,
    *,
    config: LlamaConfig,
    method: Method,
    eos_id: int,
    steps: int,
) -> tuple[Cache, jax.Array]:
    """Chooses up to `steps` tokens per slot; stops early when enough slots are done.

    A slot is done when it has chosen EOS or when its count reaches its limit; a slot without a row has count = limit.

    Args:
      token_B: the last token of each text, not yet in the cache; position_B: its position.
      count_B: tokens chosen before; limit_B: tokens allowed in all; rows_B: request numbers (for randomness).
      texts_BT: prompts and answers so far, padded with V or above; None where the method has no use for them.
      enough: of slots, int32; None = all.

    Returns:
      (cache, chosen [B, steps] int32: each slot's tokens in order, -1 where none was chosen any more, NOT_A_TOKEN
      where the logits are not finite, which ends the row).
    """
    batch = token_B.shape[0]

    def unfinished(state: tuple[Any, ...]) -> jax.Array:
        step, _, done_B, *_ = state
        return (step < steps) & (jnp.sum(done_B) < (batch if enough is None else enough))

    def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, token_B, done_B, chosen_BN, seen_BV, cache = state
        logits_BV, cache = _step(weights, config, token_B, position_B + step, cache)
        next_B = method(request_keys(seed, rows_B, count_B + step), logits_BV, seen_BV)
        next_B = jnp.where(jnp.isfinite(jnp.max(logits_BV, axis=-1)), next_B, NOT_A_TOKEN)
        chosen_BN = chosen_BN.at[:, step].set(jnp.where(done_B, -1, next_B))
        done_B |= (next_B == eos_id) | (next_B == NOT_A_TOKEN) | (count_B + step + 1 >= limit_B)
        seen_BV = None if seen_BV is None else _see(seen_BV, next_B[:, None])
        return step + 1, next_B, done_B, chosen_BN, seen_BV, cache

    seen_BV = None
    if texts_BT is not None:
        seen_BV = _see(jnp.zeros((batch, weights.head.shape[1]), bool), texts_BT)
    chosen_BN = jnp.full((batch, steps), -1, jnp.int32)
    start = (jnp.int32(0), token_B, count_B >= limit_B, chosen_BN, seen_BV, cache)
    _, _, _, chosen_BN, _, cache = jax.lax.while_loop(unfinished, advance, start)
    return cache, constrain(chosen_BN, None, None)  # whole on every process: each reads it


@jax.vmap  # and no index of the slot: by it the compiler would send every slot's tokens to all devices
def _see(seen_V: jax.Array, tokens_N: jax.Array) -> jax.Array:
    return seen_V.at[tokens_N].set(True, mode="drop")


def draft_logits(
    weights: Weights,
    cache: Cache,
    tokens_BN: np.ndarray,
    start_B: np.ndarray,
    where_BM: np.ndarray,
    columns_U: np.ndarray,
    *,
    config: LlamaConfig,
) -> tuple[Cache, jax.Array]:
    """One pass over drafted continuations; logits only where something is decided, and only of what may stand there.

    Args:
      tokens_BN: int32, tokens at positions start_B, start_B + 1, ... (right-padded); all before is in the cache, which
        is donated.
      where_BM: indices into N of the predicting positions; columns_U: token ids.

    Returns:
      (cache, float32 logits [B, M, U]).
    """
    cache, x_BND = draft_hidden(weights, cache, tokens_BN, start_B, config=config)
    return cache, _chosen_logits(weights, x_BND, where_BM, columns_U, config=config)


def draft_hidden(
    weights: Weights, cache: Cache, tokens_BN: np.ndarray, start_B: np.ndarray, *, config: LlamaConfig
) -> tuple[Cache, jax.Array]:
    """One pass over drafted continuations, arguments as of `draft_logits`: (cache, last layer's output [B, N, D])."""
    x_BND, rope = _embed(weights, tokens_BN, start_B, config=config)
    run = partial(_draft_layer, rope=rope, start_B=jnp.asarray(start_B), config=config)
    x_BND, cache = through(weights, x_BND, cache, run)
    return cache, x_BND


# Prefill and draft run layer by layer from the host: one layer is compiled instead of all, and a layer over a whole
# window is long against its dispatch. The decode loop, whose steps are short, is one program.


@partial(jax.jit, static_argnames=("config",))
def _embed(
    weights: Weights, tokens_BN: jax.typing.ArrayLike, start_B: jax.typing.ArrayLike, *, config: LlamaConfig
) -> tuple[jax.Array, Rope]:
    positions_BN = jnp.asarray(start_B)[:, None] + jnp.arange(jnp.shape(tokens_BN)[1])
    x_BND = constrain(weights.embedding[tokens_BN], "batch", "sequence", "act_embed")
    return x_BND, rope_angles(positions_BN, config)


@partial(jax.jit, static_argnames=("config", "dtype"), donate_argnames=("x_RSD",))
def _prefill_layer(
    layer_weights: Params, x_RSD: jax.Array, *, rope: Rope, lengths_R: jax.Array, config: LlamaConfig, dtype: Any
) -> tuple[jax.Array, Stored, Stored]:
    """One layer over whole prompts, and their keys and values as a cache of `dtype` holds them.

    Of int8, what is held is attended, as by prompts whose beginnings are copied: sharing changes no answer.
    """
    positions_RS = jnp.broadcast_to(jnp.arange(x_RSD.shape[1]), x_RSD.shape[:2])

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[Stored, Stored]]:
        held = as_stored(k, dtype), as_stored(v, dtype)
        if dtype == jnp.int8:
            return cached_attention(q, *heads_first(held[0]), *heads_first(held[1]), positions_RS), held
        segments_RS = (positions_RS < lengths_R[:, None]).astype(jnp.int32)
        return attend_segments(q, k, v, segments_RS, implementation="xla"), held

    x_RSD, (keys, values) = layer(x_RSD, layer_weights, config, rope, attend)
    return x_RSD, keys, values


# The rest of a prompt is computed in a small cache of its own, so that its program does not depend on the length of the
# slots; copying out of one cache and into another are programs of one line, which compile fast.
_taken_out = jax.jit(copy_out, static_argnames=("length",))


@partial(jax.jit, static_argnames=("config",), donate_argnames=("x_BND", "keys", "values"))
def _draft_layer(
    layer_weights: Params,
    x_BND: jax.Array,
    keys: Stored,
    values: Stored,
    *,
    rope: Rope,
    start_B: jax.Array,
    config: LlamaConfig,
) -> tuple[jax.Array, Stored, Stored]:
    positions_BN = start_B[:, None] + jnp.arange(x_BND.shape[1])
    return _cached_layer(layer_weights, x_BND, keys, values, rope=rope, positions_BN=positions_BN, config=config)


@partial(jax.jit, static_argnames=("config",))
def _chosen_logits(
    weights: Weights,
    x_BND: jax.Array,
    where_BM: jax.Array,
    columns_U: jax.Array,
    *,
    config: LlamaConfig,
) -> jax.Array:
    x_BMD = jnp.take_along_axis(x_BND, where_BM[:, :, None], axis=1)
    hidden_BMD = rms_norm(x_BMD, weights.norm, config.rms_norm_eps)
    logits_BMU = jnp.matmul(hidden_BMD, weights.head[:, columns_U], preferred_element_type=jnp.float32)
    return constrain(logits_BMU, None, None, None)  # whole on every process: each reads it


def in_blocks(run: Callable[[jax.Array], jax.Array], x_BND: jax.Array) -> jax.Array:
    """Returns run(x [B, s, D]) of blocks of positions one after another, put together to [B, N, ...].

    A block is of LOGITS positions of all slots together, or one in each slot where there are more slots: what `run`
    makes of the vocabulary is never [B, N, V].
    """
    batch, width, size = x_BND.shape
    block = math.gcd(width, max(1, LOGITS // batch))
    blocks_nBsD = jnp.swapaxes(x_BND.reshape(batch, width // block, block, size), 0, 1)
    found_nBs = jax.lax.map(run, blocks_nBsD)
    return jnp.swapaxes(found_nBs, 0, 1).reshape(batch, width, *found_nBs.shape[3:])


def through(weights: Weights, x_BND: jax.Array, cache: Cache, run: Any) -> tuple[jax.Array, Cache]:
    """Calls run(layer weights, x, k, v) -> (x, k, v) for every layer in turn."""
    keys, values = [], []
    for layer_weights, k, v in zip(weights.layers, cache.k, cache.v, strict=True):
        x_BND, k, v = run(layer_weights, x_BND, k, v)
        keys.append(k)
        values.append(v)
    return x_BND, Cache(tuple(keys), tuple(values))


def _step(
    weights: Weights, config: LlamaConfig, token_B: jax.Array, position_B: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Returns (float32 logits [B, V] behind one more token of every slot, the cache that holds it)."""
    x_B1D, rope = _embed(weights, token_B[:, None], position_B, config=config)
    run = partial(_cached_layer, rope=rope, positions_BN=position_B[:, None], config=config)
    x_B1D, cache = through(weights, x_B1D, cache, run)
    return vocabulary_logits(weights, x_B1D[:, 0], config), cache


def _cached_layer(
    layer_weights: Params,
    x_BND: jax.Array,
    keys: Stored,
    values: Stored,
    *,
    rope: Rope,
    positions_BN: jax.Array,
    config: LlamaConfig,
) -> tuple[jax.Array, Stored, Stored]:
    """Runs one layer over new tokens of every slot against the cache, and writes them into it."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[Stored, Stored]]:
        new_keys, new_values = write(keys, k, positions_BN), write(values, v, positions_BN)
        read = (*heads_first(new_keys), *heads_first(new_values))
        return cached_attention(q, *read, positions_BN), (new_keys, new_values)

    x_BND, (keys, values) = layer(x_BND, layer_weights, config, rope, attend)
    return x_BND, keys, values


def vocabulary_logits(weights: Weights, x_BD: jax.Array, config: LlamaConfig) -> jax.Array:
    """Returns float32 logits [B, V] of the last layer's output."""
    hidden_BD = rms_norm(x_BD, weights.norm, config.rms_norm_eps)
    rows = x_BD.shape[0]
    if jax.default_backend() == "cpu" and hidden_BD.dtype == jnp.bfloat16:
        # XLA:CPU has a bfloat16 product for 8 rows and more; for fewer it converts the whole head to float32 each time.
        hidden_BD = jnp.pad(hidden_BD, ((0, max(0, 8 - rows)), (0, 0)))
    logits_BV = jnp.matmul(hidden_BD, weights.head, preferred_element_type=jnp.float32)[:rows]
    return mask_padding(logits_BV, config)
