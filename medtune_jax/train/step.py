"""One update, and one evaluation, as pure functions of state and batch.

Dimensions: B sequences of a batch, A micro-batches, S positions, M loss targets of a sequence, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from medtune_jax.config import Config
from medtune_jax.errors import UserError
from medtune_jax.model import backends
from medtune_jax.model.llama import LlamaConfig, Params, forward, head
from medtune_jax.sharding import BATCH_AXES, batch_sharding, constrain, in_host_memory, replicated
from medtune_jax.train.guard import choose, judge
from medtune_jax.train.loss import linear_cross_entropy
from medtune_jax.train.optimizer import Optimizer
from medtune_jax.train.precision import PRECISIONS
from medtune_jax.train.state import TrainState, abstract_state, shardings
from medtune_jax.train.trainable import abstract_frozen, abstract_trainable, assemble

Batch = dict[str, Any]  # arrays, or their ShapeDtypeStructs when lowering
Metrics = dict[str, jax.Array]


def abstract_batch(batch: dict[str, Any], mesh: Mesh) -> Batch:
    """Returns a batch's ShapeDtypeStructs, rows over the data axes of `mesh`."""
    place = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in batch.items()}


def check_batch(config: Config, mesh: Mesh) -> None:
    """Raises UserError where the rows of a micro-batch cannot be shared out over the data axes of `mesh`."""
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    micro = config.train.batch_size // config.train.accumulation
    if micro % ways:
        raise UserError(
            f"A micro-batch of {micro} sequences (train.batch_size / train.accumulation) cannot be split over {ways} "
            "devices (mesh dcn_data x data x fsdp): make batch_size a multiple of accumulation x that number."
        )


def make_train_step(config: Config, model: LlamaConfig, optimizer: Optimizer, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the jitted (state, frozen, batch) -> (state, metrics); the state passed in is given up (donated).

    `frozen` is what is not trained (train/trainable.py). A batch is that of data/loader.py: int32 tokens, positions,
    segment_ids [B, S], loss_positions, targets [B, M] and float32 weights [B, M]. The gradient is that of the weighted
    mean over the loss tokens of the whole batch, however it is split into micro-batches and devices. Dropout is decided
    by (seed, step, row of the batch), so neither does it depend on the layout. Run it, or lower it, under
    `jax.set_mesh(mesh)`.

    A bad update (train/guard.py) changes nothing but `step` and `guard`; the schedule of the learning rate waits too.

    Metrics, float32 scalars: loss (nats per loss token, unweighted), weighted_loss (what is minimised), grad_norm
    (before clipping), learning_rate (of this update), loss_tokens; skipped (1 where the update was bad, else 0),
    skipped_in_a_row (bad ones since the last good one).

    Raises:
      UserError: a parameter or a micro-batch cannot be split over the mesh, the attention backend cannot run on it, or
        what is to wait in host memory cannot.
    """
    if config.model.remat == "offload":
        in_host_memory(replicated(mesh), "model.remat=offload")
    sums = _make_sums(config, model, mesh)
    precision, accumulation = PRECISIONS[config.train.precision], config.train.accumulation
    state_shardings = shardings(abstract_state(config, model, optimizer, mesh))

    def gradients(state: TrainState, frozen: Params, batch: Batch, weight: jax.Array) -> Any:
        def objective(params: Params) -> tuple[jax.Array, jax.Array]:
            weighted, plain = sums(params, frozen, batch)
            return weighted / weight, plain

        with jax.default_matmul_precision(precision.matmul):  # around the backward pass too
            (weighted, plain), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        return jax.lax.with_sharding_constraint(grads, state_shardings.params), weighted, plain

    def train_step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Metrics]:
        weight = jnp.sum(batch["weights"])
        count = jnp.sum(batch["weights"] != 0).astype(jnp.float32)
        if config.model.lora.dropout:
            batch = {**batch, "dropout_keys": _dropout_keys(config.train.seed, state.step, batch["tokens"].shape[0])}
        if accumulation == 1:
            grads, weighted, plain = gradients(state, frozen, batch, weight)
        else:

            def add(carry: Any, micro: Batch) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, gradients(state, frozen, micro, weight)), None

            nothing = (jax.tree.map(jnp.zeros_like, state.params), jnp.zeros(()), jnp.zeros(()))
            (grads, weighted, plain), _ = jax.lax.scan(add, nothing, _micro_batches(batch, accumulation))
        loss = plain / count
        grad_norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)))
        good, guard = judge(state.guard, loss, grad_norm, config.train.spike_factor)
        before = (state.params, _on_device(config, state.opt_state, state_shardings.opt_state))
        updates, opt_state = optimizer.transform.update(grads, before[1], state.params)
        params, opt_state = choose(good, (optax.apply_updates(state.params, updates), opt_state), before)
        metrics = {
            "loss": loss,
            "weighted_loss": weighted,
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(optimizer.schedule(state.step - state.guard.skipped), jnp.float32),
            "loss_tokens": count,
            "skipped": 1.0 - good.astype(jnp.float32),
            "skipped_in_a_row": guard.skipped_in_a_row.astype(jnp.float32),
        }
        return TrainState(state.step + 1, params, opt_state, guard), metrics

    return jax.jit(
        train_step,
        in_shardings=(state_shardings, shardings(abstract_frozen(config, model, mesh)), batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )


def _on_device(config: Config, opt_state: Any, places: Any) -> Any:
    """Brings moments that wait in host memory to the devices; the step's output shardings send them back.

    All of them at once: waiting lowers what lies on a device while gradients are computed, not during the update.
    """
    if not config.optimizer.offload:
        return opt_state
    return jax.device_put(opt_state, jax.tree.map(lambda place: place.with_memory_kind("device"), places))


def make_eval_step(config: Config, model: LlamaConfig, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the jitted (params, frozen, batch) -> (sum of the unweighted loss in nats, loss tokens), float32."""
    sums = _make_sums(config, model, mesh)

    def eval_step(params: Params, frozen: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        with jax.default_matmul_precision(PRECISIONS[config.train.precision].matmul):
            _, plain = sums(params, frozen, batch)
        return plain, jnp.sum(batch["weights"] != 0).astype(jnp.float32)

    places = (shardings(make(config, model, mesh)) for make in (abstract_trainable, abstract_frozen))
    return jax.jit(eval_step, in_shardings=(*places, batch_sharding(mesh)), out_shardings=replicated(mesh))


def attention_backend(config: Config, model: LlamaConfig, mesh: Mesh, documents: int | None = None) -> backends.Backend:
    """Returns the attention backend of a run on `mesh`, which need not be attached, and why it is that one.

    Args:
      documents: the most documents that any sequence of the run holds, where that is known.

    Raises:
      UserError: the backend that the configuration names cannot run there.
    """
    return backends.choose(
        config.model.attention,
        mesh,
        sequence=config.data.max_length,
        head_dim=model.head_dim,
        dtype=PRECISIONS[config.train.precision].compute_dtype,
        documents=documents,
    )


def _make_sums(
    config: Config, model: LlamaConfig, mesh: Mesh
) -> Callable[[Params, Params, Batch], tuple[jax.Array, jax.Array]]:
    """Returns (trainable, frozen, batch) -> (weighted, plain) sums of the loss over the batch."""
    check_batch(config, mesh)
    backend = attention_backend(config, model, mesh)

    def sums(params: Params, frozen: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        weights = assemble(config, params, frozen, batch.get("dropout_keys"))
        hidden_BSD = forward(
            config=model,
            tokens_BS=batch["tokens"],
            positions_BS=batch["positions"],
            segment_ids_BS=batch["segment_ids"],
            attention=backend.name,
            remat=config.model.remat,
            compute_dtype=PRECISIONS[config.train.precision].compute_dtype,
            **weights,
        )
        hidden_BMD = jnp.take_along_axis(hidden_BSD, batch["loss_positions"][..., None], axis=1)
        hidden_BMD = constrain(hidden_BMD, "batch", "sequence", "act_embed")
        return linear_cross_entropy(
            hidden_BMD, head(weights["params"], model), batch["targets"], batch["weights"], model
        )

    return sums


def _dropout_keys(seed: int, step: jax.Array, rows: int) -> jax.Array:
    """Returns a random key for each row of the batch, [B]."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(rows))


def _micro_batches(batch: Batch, accumulation: int) -> Batch:
    """[B, ...] -> [A, B / A, ...]: micro-batch a takes rows a, a + A, ... so that each device keeps its own rows."""

    def split(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x.reshape(-1, accumulation, *x.shape[1:]), 1, 0)
        return constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    return {name: split(x) for name, x in batch.items()}
