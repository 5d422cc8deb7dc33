"""One update, and one evaluation, as pure functions of state and batch.

Dimensions: B sequences of a batch, A micro-batches, S positions, M loss targets of a sequence, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from medtune_jax.config import Config
from medtune_jax.model.llama import LlamaConfig, Params, abstract_params, forward, head
from medtune_jax.sharding import BATCH_AXES, batch_sharding, constrain, replicated
from medtune_jax.train.loss import chunk_size, linear_cross_entropy
from medtune_jax.train.optimizer import Optimizer
from medtune_jax.train.state import TrainState, abstract_state, shardings

Batch = dict[str, Any]  # arrays, or their ShapeDtypeStructs when lowering
Metrics = dict[str, jax.Array]


class Precision(NamedTuple):
    """A policy by name. Parameters, their gradients' sum and the second moment are float32 in each."""

    compute_dtype: Any  # of activations, and of parameters as matmuls read them
    matmul: str  # jax.default_matmul_precision


PRECISIONS = {
    "float32": Precision(jnp.float32, "highest"),
    "bf16_compute": Precision(jnp.bfloat16, "default"),
}


def abstract_batch(batch: dict[str, Any], mesh: Mesh) -> Batch:
    """Returns a batch's ShapeDtypeStructs, rows over the data axes of `mesh`."""
    place = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in batch.items()}


def make_train_step(config: Config, model_config: LlamaConfig, optimizer: Optimizer, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the jitted (state, batch) -> (state, metrics); the state passed in is given up (donated).

    A batch is that of data/loader.py: int32 tokens, positions, segment_ids [B, S], loss_positions, targets [B, M] and
    float32 weights [B, M]. The gradient is that of the weighted mean over the loss tokens of the whole batch, however
    it is split into micro-batches and devices. Run it, or lower it, under `jax.set_mesh(mesh)`.

    Metrics, float32 scalars: loss (nats per loss token, unweighted), weighted_loss (what is minimised), grad_norm
    (before clipping), learning_rate (of this update), loss_tokens.
    """
    sums = _make_sums(config, model_config, mesh)
    precision, accumulation = PRECISIONS[config.train.precision], config.train.accumulation
    state_shardings = shardings(abstract_state(model_config, optimizer, mesh))

    def gradients(params: Params, batch: Batch, weight: jax.Array) -> tuple[Params, jax.Array, jax.Array]:
        def objective(params: Params) -> tuple[jax.Array, jax.Array]:
            weighted, plain = sums(params, batch)
            return weighted / weight, plain

        with jax.default_matmul_precision(precision.matmul):  # around the backward pass too
            (weighted, plain), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return jax.lax.with_sharding_constraint(grads, state_shardings.params), weighted, plain

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        weight = jnp.sum(batch["weights"])
        count = jnp.sum(batch["weights"] != 0).astype(jnp.float32)
        if accumulation == 1:
            grads, weighted, plain = gradients(state.params, batch, weight)
        else:

            def add(carry: Any, micro: Batch) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, gradients(state.params, micro, weight)), None

            nothing = (jax.tree.map(jnp.zeros_like, state.params), jnp.zeros(()), jnp.zeros(()))
            (grads, weighted, plain), _ = jax.lax.scan(add, nothing, _micro_batches(batch, accumulation))
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": plain / count,
            "weighted_loss": weighted,
            "grad_norm": jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads))),
            "learning_rate": jnp.asarray(optimizer.schedule(state.step), jnp.float32),
            "loss_tokens": count,
        }
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

    return jax.jit(
        train_step,
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )


def make_eval_step(config: Config, model_config: LlamaConfig, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the jitted (params, batch) -> (sum of the unweighted loss in nats, loss tokens), float32 scalars."""
    sums = _make_sums(config, model_config, mesh)

    def eval_step(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        with jax.default_matmul_precision(PRECISIONS[config.train.precision].matmul):
            _, plain = sums(params, batch)
        return plain, jnp.sum(batch["weights"] != 0).astype(jnp.float32)

    param_shardings = shardings(abstract_params(model_config, jnp.float32, mesh))
    return jax.jit(eval_step, in_shardings=(param_shardings, batch_sharding(mesh)), out_shardings=replicated(mesh))


def _make_sums(
    config: Config, model_config: LlamaConfig, mesh: Mesh
) -> Callable[[Params, Batch], tuple[jax.Array, jax.Array]]:
    """Returns (params, batch) -> (weighted, plain) sums of the loss over the batch."""
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)

    def sums(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        hidden_BSD = forward(
            params,
            model_config,
            batch["tokens"],
            positions_BS=batch["positions"],
            segment_ids_BS=batch["segment_ids"],
            attention=config.model.attention,
            remat=config.model.remat,
            compute_dtype=PRECISIONS[config.train.precision].compute_dtype,
        )
        hidden_BMD = jnp.take_along_axis(hidden_BSD, batch["loss_positions"][..., None], axis=1)
        hidden_BMD = constrain(hidden_BMD, "batch", "sequence", "act_embed")
        rows = -(-batch["tokens"].shape[0] // ways)
        chunk = chunk_size(rows, model_config.padded_vocab // mesh.shape["tensor"])
        return linear_cross_entropy(
            hidden_BMD, head(params, model_config), batch["targets"], batch["weights"], model_config, chunk
        )

    return sums


def _micro_batches(batch: Batch, accumulation: int) -> Batch:
    """[B, ...] -> [A, B / A, ...]: micro-batch a takes rows a, a + A, ... so that each device keeps its own rows."""

    def split(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x.reshape(-1, accumulation, *x.shape[1:]), 1, 0)
        return constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    return {name: split(x) for name, x in batch.items()}
