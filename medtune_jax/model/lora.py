"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): y = x W + scale (x a) b, with W frozen.

Dimensions as in model/llama.py, and R the rank. The tree is that of the projections: layers/<projection>/{a, b}.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from medtune_jax.config import LORA_TARGETS, LoraConfig
from medtune_jax.model.llama import PARAMETERS, LlamaConfig, Parameter, Params, dense, whole_heads
from medtune_jax.model.quantize import QuantizedKernel, dequantize
from medtune_jax.sharding import constrain, parameter_sharding

PROJECTIONS = {row.keys[1]: row for row in PARAMETERS if row.keys[1] in LORA_TARGETS}


def targets(lora: LoraConfig) -> tuple[Parameter, ...]:
    """Returns the table's rows that are adapted, in the table's order."""
    return tuple(row for name, row in PROJECTIONS.items() if name in lora.targets or "all" in lora.targets)


def scale(lora: LoraConfig) -> float:
    """Returns alpha / R, or alpha / sqrt(R) with rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
    return lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)


def abstract_adapter(config: LlamaConfig, lora: LoraConfig, mesh: Any = None) -> Params:
    """Returns the float32 tree of ShapeDtypeStructs, with shardings when a mesh is given; nothing is allocated.

    The rank is never split; the other dimension of a and b lies as it does in the kernel.

    Raises:
      UserError: that dimension does not divide; the parameter is named "lora/layers/<projection>/<a or b>".
    """

    def leaf(row: Parameter, part: str) -> jax.ShapeDtypeStruct:
        layers, rows, columns = row.shape(config)
        shape = (layers, rows, lora.rank) if part == "a" else (layers, lora.rank, columns)
        axes = (row.axes[0], row.axes[1], None) if part == "a" else (row.axes[0], None, row.axes[2])
        sharding = None
        if mesh is not None:
            name = f"lora/{'/'.join(row.keys[:2])}/{part}"
            sharding = parameter_sharding(name, whole_heads(shape, axes, config, mesh), axes, mesh)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    return {"layers": {row.keys[1]: {part: leaf(row, part) for part in "ab"} for row in targets(lora)}}


def num_adapter_params(config: LlamaConfig, lora: LoraConfig) -> int:
    """Returns the number of parameters of the adapters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_adapter(config, lora)))


def init_adapter(key: jax.Array, config: LlamaConfig, lora: LoraConfig) -> Params:
    """Returns fresh adapters: a uniform in +-1/sqrt(in) (PEFT's default), b zero, so that they change nothing yet."""

    def leaf(path: Any, struct: jax.ShapeDtypeStruct) -> jax.Array:
        name, part = path[-2].key, path[-1].key
        if part == "b":
            return jnp.zeros(struct.shape, struct.dtype)
        bound = 1 / math.sqrt(struct.shape[1])
        own = jax.random.fold_in(key, list(PROJECTIONS).index(name))
        return jax.random.uniform(own, struct.shape, struct.dtype, -bound, bound)

    return jax.tree.map_with_path(leaf, abstract_adapter(config, lora))


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """Adapters as `forward` takes them.

    Attributes:
      params: the tree above, float32; lora: its settings.
      dropout_keys_B: a random key for each row of the batch; None = no dropout.
    """

    params: Params
    lora: LoraConfig
    dropout_keys_B: jax.Array | None = None

    def update(self, params: Params, layer: jax.Array, name: str, x_BSi: jax.Array) -> jax.Array | None:
        """Returns scale (dropout(x) a) b in x's dtype; None where projection `name` is not adapted."""
        if name not in params:
            return None
        x_BSi = self._drop(x_BSi, layer, name)
        low_BSR = constrain(dense(x_BSi, params[name]["a"]) * scale(self.lora), "batch", "sequence", None)
        return dense(low_BSR, params[name]["b"])

    def _drop(self, x_BSi: jax.Array, layer: jax.Array, name: str) -> jax.Array:
        if self.dropout_keys_B is None or not self.lora.dropout:
            return x_BSi
        index = layer * len(PROJECTIONS) + list(PROJECTIONS).index(name)
        keep = 1.0 - self.lora.dropout

        def row(key: jax.Array, x_Si: jax.Array) -> jax.Array:
            kept_Si = jax.random.bernoulli(jax.random.fold_in(key, index), keep, x_Si.shape)
            return jnp.where(kept_Si, x_Si / keep, 0).astype(x_Si.dtype)

        return jax.vmap(row)(self.dropout_keys_B, x_BSi)


def merge(params: Params, adapter: Params, lora: LoraConfig, dtype: Any) -> Params:
    """Returns the weights with the adapters in them: W + scale a b, added in float32, rounded to `dtype`.

    params: the base in `dtype`, or quantised: W are then the dequantised kernels, as training uses them. Adapted
    kernels are given up (donated): nothing is held twice, and of float32 one layer.
    """
    layers = dict(params["layers"])
    for name in PROJECTIONS:
        kernel_Lio, parts = layers[name]["kernel"], adapter["layers"].get(name)
        place = jax.tree.leaves(kernel_Lio)[0].sharding
        if isinstance(kernel_Lio, QuantizedKernel):
            kernel_Lio = _dequantized(kernel_Lio, parts, factor=scale(lora), dtype=dtype, place=place)
        elif parts is not None:
            kernel_Lio = _merged(kernel_Lio, parts, factor=scale(lora), place=place)
        layers[name] = {"kernel": kernel_Lio}
    return {**params, "layers": layers}


@partial(jax.jit, static_argnames=("factor", "place"), donate_argnames="kernel_Lio")
def _merged(kernel_Lio: jax.Array, parts: Params, *, factor: float, place: Any) -> jax.Array:
    def add(layer: jax.Array, merged_Lio: jax.Array) -> jax.Array:
        update_io = _update(jax.tree.map(lambda leaf: leaf[layer], parts), factor)
        weight_io = merged_Lio[layer].astype(jnp.float32) + update_io
        return merged_Lio.at[layer].set(weight_io.astype(merged_Lio.dtype))

    return jax.lax.with_sharding_constraint(jax.lax.fori_loop(0, kernel_Lio.shape[0], add, kernel_Lio), place)


@partial(jax.jit, static_argnames=("factor", "dtype", "place"))
def _dequantized(
    kernel_Lio: QuantizedKernel, parts: Params | None, *, factor: float, dtype: Any, place: Any
) -> jax.Array:
    def one(inputs: tuple[QuantizedKernel, Params | None]) -> jax.Array:
        kernel_io, parts = inputs
        weight_io = dequantize(kernel_io, jnp.float32)
        return (weight_io if parts is None else weight_io + _update(parts, factor)).astype(dtype)

    return jax.lax.with_sharding_constraint(jax.lax.map(one, (kernel_Lio, parts)), place)


def _update(parts: Params, factor: float) -> jax.Array:
    """Returns scale a b of one layer, float32 [in, out]."""
    return factor * jnp.matmul(parts["a"], parts["b"], precision="highest")
