"""The bytes of a training step on one device, by arithmetic: before there is a device, and where no compiler can tell.

Dimensions: as in model/llama.py; n positions of a micro-batch on one device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax.numpy as jnp

from medtune_jax.config import Config
from medtune_jax.errors import UserError
from medtune_jax.model.llama import LlamaConfig, parameter_rows
from medtune_jax.sharding import BATCH_AXES
from medtune_jax.train.loss import chunk_size
from medtune_jax.train.precision import compute_dtype

_FLOAT32 = 4


def footprint(config: Config, model: LlamaConfig, mesh: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Returns what full fine-tuning holds on each device in each phase of a step, in bytes: phase -> name -> bytes.

    The phases follow one another, so what a device needs is the largest of their sums (`peak`): "loss" (a piece of
    logits, layers' inputs waiting), "layers" (the backward pass through them) and "update". Exact but for the
    scales of the norms: parameters, moments, gradients and their sum over micro-batches. By the shapes that the program
    names: what is kept of the layers, the largest moment of one layer (its weights in the compute dtype, their
    gradients before they are shared out, its projections and their cotangents), the head and a piece of logits. With
    model.remat="none" what is kept is our estimate. Not counted: what a compiler adds, such as the next layer's weights
    gathered while this one is computed. mesh: axis -> devices.

    Raises:
      UserError: adapters are trained: their base, which may be quantised, is not counted here.
    """
    if config.model.lora.rank:
        raise UserError("The arithmetic of memory is that of full fine-tuning: set --config.model.lora.rank=0.")
    sizes = [math.prod(row.shape(model)) for row in parameter_rows(model)]
    ways, tensor = math.prod(mesh[axis] for axis in BATCH_AXES), mesh["tensor"]
    held = _FLOAT32 * sum(sizes) // (mesh["fsdp"] * tensor)
    wide = jnp.dtype(compute_dtype(config)).itemsize
    n = config.train.batch_size // config.train.accumulation // ways * config.data.max_length
    inputs = wide * n * model.hidden_size
    projections = wide * n * (2 * model.hidden_size + sum(model.sizes[dim] for dim in ("HE", "KE", "KE", "F", "F")))
    layer = sum(math.prod(row.shape(model)[1:]) for row in parameter_rows(model) if row.path.endswith("_proj/kernel"))
    head, vocab = model.hidden_size * model.padded_vocab // tensor, model.padded_vocab // tensor
    table = 0 if model.tie_embeddings else _FLOAT32 * head // mesh["fsdp"]  # of the embedding: its gradient comes last
    kept = {"full": inputs, "offload": 0, "dots": inputs + projections, "none": 3 * projections}[config.model.remat]
    moments = held + held * jnp.dtype(config.optimizer.first_moment_dtype).itemsize // _FLOAT32
    summed = held if config.train.accumulation > 1 else 0
    waiting = {
        "parameters": held,
        "moments": 0 if config.optimizer.offload else moments,
        "sum over micro-batches": summed,
        "kept of the layers": model.num_layers * kept,
    }
    return {
        "loss": {
            **waiting,
            "head": (wide + _FLOAT32) * head,
            "logits": _FLOAT32 * vocab * chunk_size(n, vocab),
            "hidden": 3 * inputs,  # at all positions, at those that bear loss, and its gradient
        },
        "layers": {
            **waiting,
            "gradients": held - table,
            "one layer": ((wide + _FLOAT32) * layer + 3 * projections) // tensor,
        },
        "update": {"parameters": held, "moments": moments, "gradients": held},  # those of micro-batches are summed up
    }


def peak(phases: Mapping[str, Mapping[str, int]]) -> int:
    """Returns the bytes of the phase that holds most, of what `footprint` returns."""
    return max(sum(phase.values()) for phase in phases.values())
