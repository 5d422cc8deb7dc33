"""Llama 2 and 3 as pure functions of parameters and tokens, in Hugging Face's own mathematics.

Read from top to bottom: config, the parameter table, layers, forward. Arrays carry their dimensions:
  B batch    S sequence    D model width    H query heads    K key-value heads    E width of a head
  F feed-forward width    V vocabulary, padded to a multiple of 128    L layers    HE, KE = heads x width, merged
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from medtune_jax.model import matmul
from medtune_jax.model.attention import attention as attend_segments
from medtune_jax.model.embedding import embed
from medtune_jax.model.quantize import abstract_kernel
from medtune_jax.model.remat import projected, rematerialized
from medtune_jax.sharding import constrain, parameter_sharding

Params = dict[str, Any]
_VOCAB_MULTIPLE = 128


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3's frequency scaling (Hugging Face rope_type "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class LlamaConfig:
    """The architecture, field by field what config.json says."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    initializer_range: float = 0.02
    bos_id: int = 1
    eos_id: int = 2

    @property
    def padded_vocab(self) -> int:
        return -(-self.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE

    @property
    def sizes(self) -> dict[str, int]:
        """Dimension letters to sizes."""
        return {
            "V": self.padded_vocab,
            "D": self.hidden_size,
            "F": self.intermediate_size,
            "L": self.num_layers,
            "HE": self.num_heads * self.head_dim,
            "KE": self.num_kv_heads * self.head_dim,
        }


# ---------------------------------------------------------------------------------------------- the parameter table


@dataclass(frozen=True)
class Parameter:
    """One row of the table.

    Attributes:
      path: where it lies in the tree; dims and axes: dimension letters and logical axes, one per dimension.
      hf: the Hugging Face name, `{l}` standing for the layer; transpose: Hugging Face stores the last two swapped.
    """

    path: str
    dims: tuple[str, ...]
    axes: tuple[str | None, ...]
    hf: str
    transpose: bool = False
    ones: bool = False  # initialised to ones, not from the normal distribution

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.path.split("/"))

    def shape(self, config: LlamaConfig) -> tuple[int, ...]:
        return tuple(config.sizes[dim] for dim in self.dims)


def _projection(name: str, group: str, dims: tuple[str, str], axes: tuple[str, str]) -> Parameter:
    hf = f"model.layers.{{l}}.{group}.{name}.weight"
    return Parameter(f"layers/{name}/kernel", ("L", *dims), ("layers", *axes), hf, transpose=True)


def _layer_norm(name: str) -> Parameter:
    return Parameter(
        f"layers/{name}/scale", ("L", "D"), ("layers", "norm"), f"model.layers.{{l}}.{name}.weight", ones=True
    )


PARAMETERS = (
    Parameter("embed_tokens/embedding", ("V", "D"), ("vocab", "embed"), "model.embed_tokens.weight"),
    _layer_norm("input_layernorm"),
    _projection("q_proj", "self_attn", ("D", "HE"), ("embed", "heads")),
    _projection("k_proj", "self_attn", ("D", "KE"), ("embed", "kv_heads")),
    _projection("v_proj", "self_attn", ("D", "KE"), ("embed", "kv_heads")),
    _projection("o_proj", "self_attn", ("HE", "D"), ("heads", "embed")),
    _layer_norm("post_attention_layernorm"),
    _projection("gate_proj", "mlp", ("D", "F"), ("embed", "mlp")),
    _projection("up_proj", "mlp", ("D", "F"), ("embed", "mlp")),
    _projection("down_proj", "mlp", ("F", "D"), ("mlp", "embed")),
    Parameter("norm/scale", ("D",), ("norm",), "model.norm.weight", ones=True),
    Parameter("lm_head/kernel", ("D", "V"), ("embed", "vocab"), "lm_head.weight", transpose=True),
)


def parameter_rows(config: LlamaConfig) -> tuple[Parameter, ...]:
    """Returns the rows that this architecture has (no lm_head when embeddings are tied)."""
    return tuple(row for row in PARAMETERS if not (config.tie_embeddings and row.path.startswith("lm_head")))


def build_params(config: LlamaConfig, make: Any) -> Params:
    """Returns the nested tree whose leaf for each row is make(row)."""
    tree: Params = {}
    for row in parameter_rows(config):
        node = tree
        for key in row.keys[:-1]:
            node = node.setdefault(key, {})
        node[row.keys[-1]] = make(row)
    return tree


def get_param(params: Params, row: Parameter) -> Any:
    """Returns the leaf of `params` that belongs to `row`."""
    leaf = params
    for key in row.keys:
        leaf = leaf[key]
    return leaf


def abstract_params(
    config: LlamaConfig, dtype: Any = jnp.float32, mesh: Any = None, *, quantize: str | None = None
) -> Params:
    """Returns the tree of ShapeDtypeStructs, with shardings when a mesh is given; nothing is allocated.

    quantize: a kind of model/quantize.py, in which the kernels of the projections are then.
    """
    shardings = param_shardings(config, mesh) if mesh is not None else None

    def leaf(row: Parameter) -> Any:
        sharding = None if shardings is None else get_param(shardings, row)
        if quantize is not None and row.path.endswith("_proj/kernel"):
            return abstract_kernel(row.path, row.shape(config), quantize, sharding)
        return jax.ShapeDtypeStruct(row.shape(config), dtype, sharding=sharding)

    return build_params(config, leaf)


def param_shardings(config: LlamaConfig, mesh: Any) -> Params:
    """Returns the tree of NamedShardings; raises UserError naming the parameter that does not divide."""

    def leaf(row: Parameter) -> Any:
        shape = whole_heads(row.shape(config), row.axes, config, mesh)
        return parameter_sharding(row.path, shape, row.axes, mesh)

    return build_params(config, leaf)


def whole_heads(
    shape: tuple[int, ...], axes: tuple[str | None, ...], config: LlamaConfig, mesh: Any
) -> tuple[int, ...]:
    """Returns `shape` as it is split: where the tensor axis would cut a head in two, its columns count as heads."""
    counted = list(shape)
    for axis, heads in (("heads", config.num_heads), ("kv_heads", config.num_kv_heads)):
        if axis in axes and heads % mesh.shape["tensor"]:
            counted[axes.index(axis)] = heads
    return tuple(counted)


def num_params(config: LlamaConfig) -> int:
    """Returns the number of parameters, vocabulary padding not counted."""
    unpadded = {**config.sizes, "V": config.vocab_size}
    total = 0
    for row in parameter_rows(config):
        size = 1
        for dim in row.dims:
            size *= unpadded[dim]
        total += size
    return total


def init_params(key: jax.Array, config: LlamaConfig, dtype: Any = jnp.float32) -> Params:
    """Returns freshly drawn parameters: normal(0, initializer_range), norms at one; each row has its own stream."""

    def leaf(row: Parameter) -> jax.Array:
        index = [other.path for other in PARAMETERS].index(row.path)
        return initializer(row, config)(jax.random.fold_in(key, index), row.shape(config), dtype)

    return build_params(config, leaf)


def initializer(row: Parameter, config: LlamaConfig) -> Any:
    """Returns the (key, shape, dtype) -> array function that draws this row."""
    return jax.nn.initializers.ones if row.ones else jax.nn.initializers.normal(config.initializer_range)


# --------------------------------------------------------------------------------------------------------- layers


def dense(x_BSi: jax.Array, kernel_io: jax.Array) -> jax.Array:
    """x @ kernel in x's dtype: [B, S, in] x [in, out] -> [B, S, out].

    Rows are flattened to two dimensions: XLA:CPU is twice as slow on the weight gradient of the three-dimensional form.
    """
    batch, sequence, width = x_BSi.shape
    return matmul.dense(x_BSi.reshape(batch * sequence, width), kernel_io).reshape(batch, sequence, -1)


def rms_norm(x_BSD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square normalisation in float32, result in x's dtype."""
    x32 = x_BSD.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * scale_D.astype(jnp.float32)).astype(x_BSD.dtype)


def rope_angles(positions_BS: jax.Array, config: LlamaConfig) -> tuple[jax.Array, jax.Array]:
    """Returns (cos, sin), each float32 [B, S, E/2], of rotary embedding with Llama-3's scaling where configured."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        turns = scaling.original_max_positions * frequency / (2 * jnp.pi)  # over the pretrained context
        smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        smooth = jnp.clip(smooth, 0.0, 1.0)
        frequency = smooth * frequency + (1.0 - smooth) * frequency / scaling.factor
    angles = positions_BS[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BShE: jax.Array, cos_BSe: jax.Array, sin_BSe: jax.Array) -> jax.Array:
    """Rotates the two halves of each head (Hugging Face's half-split layout), in float32, result in x's dtype."""
    first, second = jnp.split(x_BShE.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BSe[:, :, None], sin_BSe[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BShE.dtype)


def layer(
    x_BSD: jax.Array,
    weights: Params,
    config: LlamaConfig,
    rope: tuple[jax.Array, jax.Array],
    attend: Any,
    adapt: Callable[[str, jax.Array], jax.Array | None] | None = None,
) -> Any:
    """One decoder layer.

    Args:
      attend: (q_BSHE, k_BSKE, v_BSKE) -> (o_BSHE, extra).
      adapt: (name of a projection, its input) -> what an adapter adds to its output, None where it adds nothing.

    Returns:
      (x_BSD, extra).
    """
    batch, sequence, _ = x_BSD.shape

    def project(name: str, h_BSi: jax.Array) -> jax.Array:
        y_BSo = projected(dense(h_BSi, weights[name]["kernel"]))
        update_BSo = adapt(name, h_BSi) if adapt is not None else None
        return y_BSo if update_BSo is None else y_BSo + update_BSo

    def heads(name: str, count: int, axis: str) -> jax.Array:
        y = project(name, h_BSD).reshape(batch, sequence, count, config.head_dim)
        return constrain(y, "batch", "sequence", axis, None)

    h_BSD = rms_norm(x_BSD, weights["input_layernorm"]["scale"], config.rms_norm_eps)
    q_BSHE = rotate(heads("q_proj", config.num_heads, "heads"), *rope)
    k_BSKE = rotate(heads("k_proj", config.num_kv_heads, "kv_heads"), *rope)
    o_BSHE, extra = attend(q_BSHE, k_BSKE, heads("v_proj", config.num_kv_heads, "kv_heads"))
    o_BSD = project("o_proj", o_BSHE.reshape(batch, sequence, -1))
    x_BSD = constrain(x_BSD + o_BSD, "batch", "sequence", "act_embed")

    h_BSD = rms_norm(x_BSD, weights["post_attention_layernorm"]["scale"], config.rms_norm_eps)
    gate_BSF = project("gate_proj", h_BSD)
    f_BSF = constrain(jax.nn.silu(gate_BSF) * project("up_proj", h_BSD), "batch", "sequence", "mlp")
    x_BSD = x_BSD + project("down_proj", f_BSF)
    return constrain(x_BSD, "batch", "sequence", "act_embed"), extra


# -------------------------------------------------------------------------------------------------------- forward


class Adapter(Protocol):
    """What `forward` asks of low-rank adapters (model/lora.py has them).

    Attributes:
      params: their tree; leaves below "layers" are stacked [L, ...].
    """

    params: Params

    def update(self, params: Params, layer: jax.Array, name: str, x_BSi: jax.Array) -> jax.Array | None:
        """Returns what is added to projection `name` of input x, None where nothing; params: of one layer."""


def forward(
    params: Params,
    config: LlamaConfig,
    tokens_BS: jax.Array,
    *,
    positions_BS: jax.Array,
    segment_ids_BS: jax.Array | None = None,
    attention: str = "xla",
    remat: str = "none",
    compute_dtype: Any = jnp.float32,
    adapter: Adapter | None = None,
) -> jax.Array:
    """Runs the decoder.

    Args:
      tokens_BS, positions_BS: int32. Positions restart in each document.
      segment_ids_BS: int32; a token attends earlier tokens of its own segment; None = one segment.
      attention: backend of the entry in model/attention.py.
      remat: what of each layer is kept for the backward pass, a name of model/remat.py.
      compute_dtype: dtype of activations and of the parameters as they are used.
      adapter: low-rank updates of the projections; None = the parameters as they are.

    Returns:
      hidden [B, S, D] after the final norm, in compute_dtype.
    """
    x_BSD = embed(params["embed_tokens"]["embedding"], tokens_BS, compute_dtype)
    rope = rope_angles(positions_BS, config)

    segments_BS = jnp.ones_like(tokens_BS) if segment_ids_BS is None else segment_ids_BS
    attend = partial(attend_segments, segment_ids_BS=segments_BS, implementation=attention)

    def body(x_BSD: jax.Array, inputs: tuple[Params, Params, jax.Array]) -> tuple[jax.Array, None]:
        weights, low_rank, index = inputs
        adapt = None if adapter is None else partial(adapter.update, low_rank, index)
        return layer(x_BSD, weights, config, rope, lambda q, k, v: (attend(q, k, v), None), adapt)

    low_rank = {} if adapter is None else adapter.params["layers"]
    x_BSD, _ = jax.lax.scan(
        rematerialized(body, remat), x_BSD, (params["layers"], low_rank, jnp.arange(config.num_layers))
    )
    return rms_norm(x_BSD, params["norm"]["scale"], config.rms_norm_eps)


def head(params: Params, config: LlamaConfig) -> jax.Array:
    """Returns the output projection [D, V]: lm_head, or the embedding transposed where tied."""
    return params["embed_tokens"]["embedding"].T if config.tie_embeddings else params["lm_head"]["kernel"]


def logits(params: Params, config: LlamaConfig, hidden: jax.Array) -> jax.Array:
    """Returns float32 logits [..., V] of hidden [..., D]; columns of vocabulary padding are -inf."""
    kernel_DV = head(params, config).astype(hidden.dtype)
    return mask_padding(jnp.matmul(hidden, kernel_DV, preferred_element_type=jnp.float32), config)


def mask_padding(logits_V: jax.Array, config: LlamaConfig) -> jax.Array:
    """Sets the columns of vocabulary padding to -inf."""
    if config.padded_vocab == config.vocab_size:
        return logits_V
    return jnp.where(jnp.arange(config.padded_vocab) < config.vocab_size, logits_V, -jnp.inf)
