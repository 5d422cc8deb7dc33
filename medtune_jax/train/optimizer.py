"""AdamW and its learning rate over the steps of a run."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from medtune_jax.config import OptimizerConfig
from medtune_jax.model.llama import Params


class Optimizer(NamedTuple):
    """An optax transformation, and the learning rate of update number 0, 1, ... (which it applies itself)."""

    transform: optax.GradientTransformation
    schedule: optax.Schedule


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns update number -> learning rate.

    Linear from 0 over warmup_steps (update 0 has rate 0 then, as in transformers' schedules), then the decay, which
    would reach end_factor x learning_rate at update total_steps.
    """
    peak, decay_steps = config.learning_rate, max(1, total_steps - config.warmup_steps)
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.end_factor)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, peak * config.end_factor, decay_steps)
    else:
        decay = optax.constant_schedule(peak)
    if not config.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> Optimizer:
    """Returns AdamW (Loshchilov and Hutter 2019) after clipping by the global norm; decay on matrices only."""
    schedule = make_schedule(config, total_steps)
    adamw = optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mu_dtype=jnp.dtype(config.first_moment_dtype),
        mask=_matrices,
    )
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    return Optimizer(optax.chain(clip, adamw), schedule)


def _matrices(params: Params) -> Params:
    """True for each matrix; the scales of the norms, stacked over layers, are two-dimensional too."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key != "scale", params)
