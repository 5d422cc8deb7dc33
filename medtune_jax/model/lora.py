"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): y = x W + scale (x a) b, with W frozen.

Dimensions as in model/llama.py, and R the rank. The tree is that of the projections: layers/<projection>/{a, b}.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from medtune_jax.config import LoraConfig
from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.model import matmul
from medtune_jax.model.llama import PARAMETERS, LlamaConfig, Parameter, Params
from medtune_jax.sharding import parameter_sharding

PROJECTIONS = {row.keys[1]: row for row in PARAMETERS if row.path.endswith("_proj/kernel")}


def targets(lora: LoraConfig) -> tuple[Parameter, ...]:
    """Returns the table's rows that are adapted, in the table's order; raises UserError for an unknown name."""
    names = set(PROJECTIONS) if "all" in lora.targets else set(lora.targets)
    for name in sorted(names - set(PROJECTIONS)):
        raise UserError(
            f"model.lora.targets: no projection is called '{name}'.{did_you_mean(name, PROJECTIONS)} "
            f"There are {', '.join(PROJECTIONS)}, and all."
        )
    if not names:
        raise UserError(f"model.lora.targets is empty: name some of {', '.join(PROJECTIONS)}, or all.")
    return tuple(row for name, row in PROJECTIONS.items() if name in names)


def scale(lora: LoraConfig) -> float:
    """Returns alpha / R, or alpha / sqrt(R) with rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
    return lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)


def abstract_adapter(config: LlamaConfig, lora: LoraConfig, mesh: Any = None) -> Params:
    """Returns the float32 tree of ShapeDtypeStructs, with shardings when a mesh is given; nothing is allocated.

    The rank is never split; the other dimension of a and b lies as it does in the kernel.
    """

    def leaf(row: Parameter, part: str) -> jax.ShapeDtypeStruct:
        layers, rows, columns = row.shape(config)
        shape = (layers, rows, lora.rank) if part == "a" else (layers, lora.rank, columns)
        axes = (row.axes[0], row.axes[1], None) if part == "a" else (row.axes[0], None, row.axes[2])
        name = f"lora/{'/'.join(row.keys[:2])}/{part}"
        sharding = None if mesh is None else parameter_sharding(name, shape, axes, mesh)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    return {"layers": {row.keys[1]: {part: leaf(row, part) for part in "ab"} for row in targets(lora)}}


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
        batch, sequence, width = x_BSi.shape
        a_iR, b_Ro = params[name]["a"], params[name]["b"]
        low_nR = matmul.dense(x_BSi.reshape(batch * sequence, width), a_iR)
        y_no = matmul.dense(low_nR, b_Ro) * scale(self.lora)
        return y_no.reshape(batch, sequence, -1).astype(x_BSi.dtype)

    def _drop(self, x_BSi: jax.Array, layer: jax.Array, name: str) -> jax.Array:
        if self.dropout_keys_B is None or not self.lora.dropout:
            return x_BSi
        index = layer * len(PROJECTIONS) + list(PROJECTIONS).index(name)
        keep = 1.0 - self.lora.dropout

        def row(key: jax.Array, x_Si: jax.Array) -> jax.Array:
            kept_Si = jax.random.bernoulli(jax.random.fold_in(key, index), keep, x_Si.shape)
            return jnp.where(kept_Si, x_Si / keep, 0).astype(x_Si.dtype)

        return jax.vmap(row)(self.dropout_keys_B, x_BSi)
