"""What a training step reads and writes, and where each part of it lies."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from medtune_jax.config import Config
from medtune_jax.model.llama import LlamaConfig, Params
from medtune_jax.sharding import in_host_memory, replicated
from medtune_jax.train.guard import Guard, init_guard
from medtune_jax.train.optimizer import Optimizer
from medtune_jax.train.trainable import abstract_trainable


class TrainState(NamedTuple):
    """Everything that training changes.

    Attributes:
      step: int32 scalar array, updates done.
      params: what is trained (train/trainable.py), float32.
      opt_state: optax's state; moments lie as their parameters do, with optimizer.offload in host memory.
      guard: what the judgement of a step looks back on (train/guard.py).
    """

    step: Any
    params: Params
    opt_state: Any
    guard: Guard


def abstract_state(config: Config, model: LlamaConfig, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """Returns the state as ShapeDtypeStructs with shardings; nothing is allocated.

    Raises:
      UserError: a parameter cannot be split over `mesh`; optimizer.offload where the devices have no host memory.
    """
    params = abstract_trainable(config, model, mesh)
    everywhere = replicated(mesh)

    def like(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def place(param: Any) -> Any:
        return in_host_memory(param.sharding, "optimizer.offload") if config.optimizer.offload else param.sharding

    opt_state = optax.tree_map_params(
        optimizer.transform,
        lambda leaf, param: like(leaf, place(param)),
        jax.eval_shape(optimizer.transform.init, params),
        params,
        transform_non_params=lambda leaf: like(leaf, everywhere),
    )
    guard = jax.tree.map(lambda leaf: like(leaf, everywhere), jax.eval_shape(init_guard))
    return TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere), params, opt_state, guard)


def shardings(tree: Any) -> Any:
    """Returns the sharding of each leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def init_state(params: Params, config: Config, model: LlamaConfig, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """Returns the state before the first update; `params` (what is trained, already placed) becomes part of it."""
    places = shardings(abstract_state(config, model, optimizer, mesh))
    opt_state = jax.jit(optimizer.transform.init, out_shardings=places.opt_state)(params)
    step, guard = jax.device_put((jnp.zeros((), jnp.int32), init_guard()), (places.step, places.guard))
    return TrainState(step, params, opt_state, guard)
