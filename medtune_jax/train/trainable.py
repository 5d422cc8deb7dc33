"""What of a model is trained and what is frozen: all weights, or adapters on a frozen base.

The trainable tree is differentiated, optimised and checkpointed; the frozen tree is read only (empty where all weights
are trained).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medtune_jax.config import Config
from medtune_jax.convert.hf_import import load_params
from medtune_jax.convert.peft_adapter import read_matching_adapter
from medtune_jax.model.llama import LlamaConfig, Params, abstract_params
from medtune_jax.model.lora import LoraAdapter, abstract_adapter, init_adapter
from medtune_jax.train.precision import compute_dtype


def abstract_trainable(config: Config, model: LlamaConfig, mesh: Mesh) -> Params:
    """Returns the trainable tree as float32 ShapeDtypeStructs with shardings; nothing is allocated."""
    if config.model.lora.rank:
        return abstract_adapter(model, config.model.lora, mesh)
    return abstract_params(model, jnp.float32, mesh)


def abstract_frozen(config: Config, model: LlamaConfig, mesh: Mesh) -> Params:
    """Returns the frozen tree as ShapeDtypeStructs with shardings; nothing is allocated."""
    if not config.model.lora.rank:
        return {}
    return abstract_params(model, compute_dtype(config), mesh, quantize=_quantize(config))


def load_frozen(config: Config, model: LlamaConfig, source: Path, mesh: Mesh) -> Params:
    """Reads the frozen weights of the Hugging Face directory `source`."""
    if not config.model.lora.rank:
        return {}
    return load_params(source, model, compute_dtype(config), mesh, quantize=_quantize(config))


def init_trainable(config: Config, model: LlamaConfig, source: Path, mesh: Mesh) -> Params:
    """Returns what is trained as it is before the first update.

    It is the weights of `source`, or adapters: fresh ones, or those of model.lora.path.
    """
    lora = config.model.lora
    if not lora.rank:
        return load_params(source, model, jnp.float32, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_adapter(model, lora, mesh))
    if lora.path:
        start = read_matching_adapter(lora, model)
        return jax.tree.map(lambda x, place: jax.make_array_from_callback(x.shape, place, x.__getitem__), start, places)
    make = jax.jit(lambda key: init_adapter(key, model, lora), out_shardings=places)
    return make(jax.random.key(config.train.seed))


def assemble(config: Config, trainable: Params, frozen: Params, dropout_keys_B: Any = None) -> dict[str, Any]:
    """Returns the arguments `params` and `adapter` of `forward`; dropout_keys_B: a key per row, None = no dropout."""
    lora = config.model.lora
    if not lora.rank:
        return {"params": trainable, "adapter": None}
    return {"params": frozen, "adapter": LoraAdapter(trainable, lora, dropout_keys_B)}


def _quantize(config: Config) -> str | None:
    base = config.model.lora.base
    return None if base == "compute" else base
