"""The bytes of a training step on one device, by arithmetic: before there is a device, and where no compiler can tell.

Dimensions: as in model/llama.py; n positions of a micro-batch on one device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax.numpy as jnp

from medtune_jax.config import Config
from medtune_jax.model.llama import LlamaConfig, parameter_rows
from medtune_jax.sharding import BATCH_AXES
from medtune_jax.train.loss import PIECE_BYTES
from medtune_jax.train.precision import compute_dtype

_FLOAT32 = 4


def footprint(config: Config, model: LlamaConfig, mesh: Mapping[str, int]) -> dict[str, int]:
    """Returns what full fine-tuning holds on each device, in bytes, by name; mesh: axis -> devices.

    Exact but for the scales of the norms: the state and its gradients. By the shapes that the program names: what is
    kept of the layers, the largest moment of one layer (its weights in the compute dtype, their gradients before they
    are shared out, its projections and their cotangents), the head and a piece of logits. With model.remat="none" what
    is kept is our estimate. Not counted: what a compiler adds for its own ends.
    """
    sizes = [math.prod(row.shape(model)) for row in parameter_rows(model)]
    ways, tensor = math.prod(mesh[axis] for axis in BATCH_AXES), mesh["tensor"]
    held = _FLOAT32 * sum(sizes) // (mesh["fsdp"] * tensor)
    wide = jnp.dtype(compute_dtype(config)).itemsize
    n = config.train.batch_size // config.train.accumulation // ways * config.data.max_length
    inputs = wide * n * model.hidden_size
    projections = wide * n * (2 * model.hidden_size + sum(model.sizes[dim] for dim in ("HE", "KE", "KE", "F", "F")))
    layer = sum(math.prod(row.shape(model)[1:]) for row in parameter_rows(model) if row.path.endswith("_proj/kernel"))
    head = model.hidden_size * model.padded_vocab
    kept = {"full": inputs, "offload": 0, "dots": inputs + projections, "none": 3 * projections}[config.model.remat]
    first = held * jnp.dtype(config.optimizer.first_moment_dtype).itemsize // _FLOAT32
    return {
        "parameters": held,
        "moments": 0 if config.optimizer.offload else first + held,
        "gradients": held,
        "sum over micro-batches": held if config.train.accumulation > 1 else 0,
        "kept of the layers": model.num_layers * kept,
        "one layer": ((wide + _FLOAT32) * layer + 3 * projections) // tensor,
        "head": (wide + _FLOAT32) * head // tensor,
        "logits": 3 * PIECE_BYTES,
    }
