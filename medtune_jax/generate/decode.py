"""What runs on the device: prefill, the decode loop, and one pass over a drafted text, all over one static cache.

Rows live in slots of a cache. Slot t of a row's cache holds its position t; a query at position p attends slots 0..p.
So what padding writes behind a row's last token is overwritten before anything attends it, and rows of one batch may
stand at any positions. Dimensions as in model/llama.py; here B are slots, T cache positions, N tokens of one call.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medtune_jax.config import LoraConfig
from medtune_jax.generate.cache import Cache, Stored, copy_in, copy_out, fill, write
from medtune_jax.generate.sampling import Method, request_keys
from medtune_jax.model.attention import attention as attend_segments
from medtune_jax.model.attention import cached_attention
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
from medtune_jax.model.lora import LoraAdapter, scale
from medtune_jax.model.quantize import QuantizedKernel, dequantize
from medtune_jax.sharding import constrain

Rope = tuple[jax.Array, jax.Array]

NOT_A_TOKEN = -2


class Weights(NamedTuple):
    """Parameters for decoding: one tree per layer, so that no step slices a stack.

    Attributes:
      embedding: [V, D]; layers: per layer, model/llama.py's tree without the L dimension; norm: [D]; head: [D, V].
    """

    embedding: jax.Array
    layers: tuple[Params, ...]
    norm: jax.Array
    head: jax.Array


def decoding_mesh(mesh: Mesh, config: LlamaConfig) -> Mesh:
    """Returns a mesh to decode on over the devices of another, in their order.

    As much `tensor` as the model's heads and widths divide by and a slice holds; the rest is `data`.
    """
    slices = mesh.shape["dcn_data"]
    within = mesh.size // slices
    tensor = math.gcd(within, config.num_heads, config.num_kv_heads, config.intermediate_size, config.padded_vocab)
    return Mesh(mesh.devices.reshape(slices, within // tensor, 1, tensor), mesh.axis_names, axis_types=mesh.axis_types)


def decoding_weights(
    params: Params, config: LlamaConfig, dtype: Any, mesh: Mesh | None, adapter: LoraAdapter | None = None
) -> Weights:
    """Returns `params`, with the adapter merged into them, cast to `dtype` and unstacked; `params` stay as they are.

    Under a mesh they are split over its `tensor` only (FSDP's split would gather every weight again for every token).
    They may come from another mesh over the same devices: they are cast where they lie, then moved.
    """
    lora = None if adapter is None else adapter.lora
    weights = _unstack(params, None if adapter is None else adapter.params, config=config, dtype=dtype, lora=lora)
    if mesh is None:
        return weights

    def tensor_only(sharding: NamedSharding, first: int) -> Any:
        parts = ["tensor" if part and "tensor" in part else None for part in sharding.spec[first:]]
        return NamedSharding(mesh, PartitionSpec(*parts))

    places = param_shardings(config, mesh)
    layer_places = jax.tree.map(lambda place: tensor_only(place, 1), places["layers"])
    vocab = tensor_only(places["embed_tokens"]["embedding"], 0)
    norm = tensor_only(places["norm"]["scale"], 0)
    head_place: Any = NamedSharding(mesh, PartitionSpec(*vocab.spec[::-1]))
    return jax.device_put(weights, Weights(vocab, (layer_places,) * config.num_layers, norm, head_place))


@partial(jax.jit, static_argnames=("config", "dtype", "lora"))
def _unstack(
    params: Params, adapter: Params | None, *, config: LlamaConfig, dtype: Any, lora: LoraConfig | None
) -> Weights:
    """Merges layer by layer in float32, so that no second copy of the stack is ever whole."""

    def projection(name: str, number: int, kernel_Lio: Any) -> jax.Array:
        kernel_io = jax.tree.map(lambda leaf: leaf[number], kernel_Lio)
        if isinstance(kernel_io, QuantizedKernel):
            kernel_io = dequantize(kernel_io, jnp.float32)
        if adapter is not None and lora is not None and name in adapter["layers"]:
            part = adapter["layers"][name]
            update_io = jnp.matmul(part["a"][number], part["b"][number], precision="highest")
            kernel_io = kernel_io.astype(jnp.float32) + scale(lora) * update_io
        return kernel_io.astype(dtype)

    def one(number: int) -> Params:
        return {
            name: {key: projection(name, number, leaf) for key, leaf in group.items()}
            for name, group in params["layers"].items()
        }

    layers = tuple(one(number) for number in range(config.num_layers))
    embedding, norm = params["embed_tokens"]["embedding"], params["norm"]["scale"]
    return Weights(embedding.astype(dtype), layers, norm.astype(dtype), head(params, config).astype(dtype))


def most_drafts() -> int | None:
    """Returns how many drafts one pass should hold at most; None = no such limit.

    On the CPU more than 8 are not faster per row: they only pad shorter drafts to longer ones.
    """
    return 8 if jax.default_backend() == "cpu" else None


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
        x, k_RSKE, v_RSKE = _prefill_layer(layer_weights, x, rope=rope, lengths_R=lengths, config=config)
        return x, fill(keys, k_RSKE, slots), fill(values, v_RSKE, slots)

    return _through(weights, x_RSD, cache, run)[1]


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
      (cache, chosen [B, steps] int32: each slot's tokens in order, -1 where none was chosen any more, NOT_A_TOKEN
      where the logits are not finite, which ends the row).
    """
    batch = token_B.shape[0]

    def unfinished(state: tuple[Any, ...]) -> jax.Array:
        step, _, done_B, _, _ = state
        return (step < steps) & ~jnp.all(done_B)

    def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, token_B, done_B, chosen_BN, cache = state
        logits_BV, cache = _step(weights, config, token_B, position_B + step, cache)
        next_B = method(request_keys(seed, rows_B, count_B + step), logits_BV)
        next_B = jnp.where(jnp.isfinite(jnp.max(logits_BV, axis=-1)), next_B, NOT_A_TOKEN)
        chosen_BN = chosen_BN.at[:, step].set(jnp.where(done_B, -1, next_B))
        done_B |= (next_B == eos_id) | (next_B == NOT_A_TOKEN) | (count_B + step + 1 >= limit_B)
        return step + 1, next_B, done_B, chosen_BN, cache

    chosen_BN = jnp.full((batch, steps), -1, jnp.int32)
    start = (jnp.int32(0), token_B, count_B >= limit_B, chosen_BN, cache)
    _, _, _, chosen_BN, cache = jax.lax.while_loop(unfinished, advance, start)
    return cache, constrain(chosen_BN, None, None)  # whole on every process: each reads it


def draft_logits(
    weights: Weights,
    cache: Cache,
    tokens_BN: np.ndarray,
    start_B: np.ndarray,
    where_BM: np.ndarray,
    columns_U: np.ndarray,
    *,
    config: LlamaConfig,
    normalised: bool = False,
) -> tuple[Cache, jax.Array]:
    """One pass over drafted continuations; logits only where something is decided, and only of what may stand there.

    Args:
      tokens_BN: int32, tokens at positions start_B, start_B + 1, ... (right-padded); all before is in the cache, which
        is donated.
      where_BM: indices into N of the predicting positions; columns_U: token ids.
      normalised: return log-probabilities over the whole vocabulary instead.

    Returns:
      (cache, float32 logits [B, M, U]).
    """
    cache, x_BND = draft_hidden(weights, cache, tokens_BN, start_B, config=config)
    return cache, _chosen_logits(weights, x_BND, where_BM, columns_U, config=config, normalised=normalised)


def draft_hidden(
    weights: Weights, cache: Cache, tokens_BN: np.ndarray, start_B: np.ndarray, *, config: LlamaConfig
) -> tuple[Cache, jax.Array]:
    """One pass over drafted continuations, arguments as of `draft_logits`: (cache, last layer's output [B, N, D])."""
    x_BND, rope = _embed(weights, tokens_BN, start_B, config=config)
    run = partial(_draft_layer, rope=rope, start_B=jnp.asarray(start_B), config=config)
    x_BND, cache = _through(weights, x_BND, cache, run)
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


@partial(jax.jit, static_argnames=("config",), donate_argnames=("x_RSD",))
def _prefill_layer(
    layer_weights: Params, x_RSD: jax.Array, *, rope: Rope, lengths_R: jax.Array, config: LlamaConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    segments_RS = (jnp.arange(x_RSD.shape[1]) < lengths_R[:, None]).astype(jnp.int32)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return attend_segments(q, k, v, segments_RS, implementation="xla"), (k, v)

    x_RSD, (k_RSKE, v_RSKE) = layer(x_RSD, layer_weights, config, rope, attend)
    return x_RSD, k_RSKE, v_RSKE


@partial(jax.jit, static_argnames=("config",), donate_argnames=("x_BND", "k_BKTE", "v_BKTE"))
def _draft_layer(
    layer_weights: Params,
    x_BND: jax.Array,
    k_BKTE: jax.Array,
    v_BKTE: jax.Array,
    *,
    rope: Rope,
    start_B: jax.Array,
    config: LlamaConfig,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    positions_BN = start_B[:, None] + jnp.arange(x_BND.shape[1])
    return _cached_layer(layer_weights, x_BND, k_BKTE, v_BKTE, rope=rope, positions_BN=positions_BN, config=config)


@partial(jax.jit, static_argnames=("config", "normalised"))
def _chosen_logits(
    weights: Weights,
    x_BND: jax.Array,
    where_BM: jax.Array,
    columns_U: jax.Array,
    *,
    config: LlamaConfig,
    normalised: bool,
) -> jax.Array:
    x_BMD = jnp.take_along_axis(x_BND, where_BM[:, :, None], axis=1)
    hidden_BMD = rms_norm(x_BMD, weights.norm, config.rms_norm_eps)
    if normalised:
        logits_BMV = jnp.matmul(hidden_BMD, weights.head, preferred_element_type=jnp.float32)
        logits_BMU = jax.nn.log_softmax(mask_padding(logits_BMV, config), axis=-1)[:, :, columns_U]
    else:
        logits_BMU = jnp.matmul(hidden_BMD, weights.head[:, columns_U], preferred_element_type=jnp.float32)
    return constrain(logits_BMU, None, None, None)  # whole on every process: each reads it


def _through(weights: Weights, x_BND: jax.Array, cache: Cache, run: Any) -> tuple[jax.Array, Cache]:
    """Calls run(layer weights, x, k, v) -> (x, k, v) for every layer in turn."""
    keys, values = [], []
    for layer_weights, k_BKTE, v_BKTE in zip(weights.layers, cache.k, cache.v, strict=True):
        x_BND, k_BKTE, v_BKTE = run(layer_weights, x_BND, k_BKTE, v_BKTE)
        keys.append(k_BKTE)
        values.append(v_BKTE)
    return x_BND, Cache(tuple(keys), tuple(values))


def _step(
    weights: Weights, config: LlamaConfig, token_B: jax.Array, position_B: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Returns (float32 logits [B, V] behind one more token of every slot, the cache that holds it)."""
    x_B1D, rope = _embed(weights, token_B[:, None], position_B, config=config)
    run = partial(_cached_layer, rope=rope, positions_BN=position_B[:, None], config=config)
    x_B1D, cache = _through(weights, x_B1D, cache, run)
    hidden_BD = rms_norm(x_B1D[:, 0], weights.norm, config.rms_norm_eps)
    return mask_padding(_project(hidden_BD, weights.head), config), cache


def _cached_layer(
    layer_weights: Params,
    x_BND: jax.Array,
    k_BKTE: jax.Array,
    v_BKTE: jax.Array,
    *,
    rope: Rope,
    positions_BN: jax.Array,
    config: LlamaConfig,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs one layer over new tokens of every slot against the cache, and writes them into it."""
    rows_B1 = jnp.arange(x_BND.shape[0])[:, None]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        # Out-of-range positions (padding behind a row's end) are dropped by the scatter.
        keys = _shard(k_BKTE.at[rows_B1, :, positions_BN].set(k.astype(k_BKTE.dtype)))
        values = _shard(v_BKTE.at[rows_B1, :, positions_BN].set(v.astype(v_BKTE.dtype)))
        return cached_attention(q, keys, values, positions_BN), (keys, values)

    x_BND, (keys, values) = layer(x_BND, layer_weights, config, rope, attend)
    return x_BND, keys, values


def _project(hidden_BD: jax.Array, head_DV: jax.Array) -> jax.Array:
    """Returns float32 hidden @ head."""
    rows = hidden_BD.shape[0]
    if jax.default_backend() == "cpu" and hidden_BD.dtype == jnp.bfloat16:
        # XLA:CPU has a bfloat16 product for 8 rows and more; for fewer it converts the whole head to float32 each time.
        hidden_BD = jnp.pad(hidden_BD, ((0, max(0, 8 - rows)), (0, 0)))
    return jnp.matmul(hidden_BD, head_DV, preferred_element_type=jnp.float32)[:rows]
