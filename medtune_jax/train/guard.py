"""Bad steps: an update whose loss or gradient is not finite, or far above those before it, is not applied.

The judgement is part of the jitted step and of the checkpointed state, so that a resumed run judges as an undisturbed
one. What then happens is the host's: `train.bad_step`. Gradient norm and loss are both judged: a bad batch shows in the
norm first, a model that has collapsed onto a constant answer in the loss alone. How far above is bad
(`train.spike_factor`, 10), is our choice: a healthy run of a tiny model, 400 updates and 50 epochs from a loss of 6.2
to 0.04, was never above 2.4 times its running mean.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

WARM_UP = 20  # good steps before any is judged by its size; our choice
WINDOW = 100  # good steps that the running means look back on, roughly; our choice
SKIPS_IN_A_ROW = 10  # the run ends at so many: no single batch is to blame; our choice


class Guard(NamedTuple):
    """What is remembered of the steps before. Scalars.

    Attributes:
      good, skipped: int32, steps of each kind; skipped_in_a_row: int32, those since the last good one.
      loss, grad_norm: float32, running means over the good steps.
    """

    good: Any
    skipped: Any
    skipped_in_a_row: Any
    loss: Any
    grad_norm: Any


def init_guard() -> Guard:
    """Returns what is known before the first step; arrays of their own, since the state is donated."""
    count, mean = jnp.int32, jnp.float32
    return Guard(*(jnp.zeros((), dtype) for dtype in (count, count, count, mean, mean)))


def judge(guard: Guard, loss: jax.Array, grad_norm: jax.Array, spike_factor: float | None) -> tuple[jax.Array, Guard]:
    """Returns whether a step of this loss and gradient norm (float32 scalars) is good, and what is remembered of it.

    Bad is what is not finite and, with spike_factor, what exceeds spike_factor x its running mean over the good steps:
    the arithmetic mean of the first WINDOW, then an exponential one of weight 1 / WINDOW.
    """
    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if spike_factor is not None:
        spike = (loss > spike_factor * guard.loss) | (grad_norm > spike_factor * guard.grad_norm)
        good &= ~(spike & (guard.good >= WARM_UP))
    share = 1.0 / jnp.minimum(guard.good + 1, WINDOW).astype(jnp.float32)
    after_good = Guard(
        good=guard.good + 1,
        skipped=guard.skipped,
        skipped_in_a_row=jnp.zeros_like(guard.skipped_in_a_row),
        loss=guard.loss + share * (loss - guard.loss),
        grad_norm=guard.grad_norm + share * (grad_norm - guard.grad_norm),
    )
    after_bad = guard._replace(skipped=guard.skipped + 1, skipped_in_a_row=guard.skipped_in_a_row + 1)
    return good, choose(good, after_good, after_bad)


def choose(good: jax.Array, new: Any, old: Any) -> Any:
    """Returns the tree `new` where `good`, else `old`, bit for bit; elementwise, so that it fuses into the update."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
