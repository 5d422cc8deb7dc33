"""The training step before there is anything to train: compiled from shapes, for devices that need not exist.

What is compiled here is what runs: the loop lowers its step by the same function.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medtune_jax.config import Config
from medtune_jax.model.llama import LlamaConfig
from medtune_jax.train.optimizer import Optimizer, make_optimizer
from medtune_jax.train.state import abstract_state
from medtune_jax.train.step import abstract_batch, make_train_step
from medtune_jax.train.trainable import abstract_frozen


def lower_step(
    config: Config,
    model: LlamaConfig,
    mesh: Mesh,
    *,
    optimizer: Optimizer | None = None,
    batch: dict[str, Any] | None = None,
) -> jax.stages.Lowered:
    """Returns the lowered update of `config` on `mesh`; its `compile()` runs the compiler of the mesh's devices.

    Args:
      config: model.attention names a backend (`train.step.attention_backend` resolves "auto").
      mesh: of real devices, or of those that `jax.experimental.topologies.get_topology_desc` describes.
      optimizer: None = that of `config` over 1,000 steps (how many does not change the program).
      batch: arrays or ShapeDtypeStructs; None = the largest that `config` allows, `full_batch`.

    Raises:
      UserError: a parameter or the batch cannot be split over the mesh.
    """
    optimizer = optimizer or make_optimizer(config.optimizer, 1000)
    step = make_train_step(config, model, optimizer, mesh)
    shapes = (
        abstract_state(config, model, optimizer, mesh),
        abstract_frozen(config, model, mesh),
        abstract_batch(batch or full_batch(config), mesh),
    )
    with jax.set_mesh(mesh):
        return step.lower(*shapes)


def full_batch(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch in which every position bears loss (see `data.loader`)."""
    shape = (config.train.batch_size, config.data.max_length)
    integers = ("tokens", "positions", "segment_ids", "loss_positions", "targets")
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in integers}
    return {**batch, "weights": jax.ShapeDtypeStruct(shape, jnp.float32)}
