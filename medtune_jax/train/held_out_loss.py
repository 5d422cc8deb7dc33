"""The loss on rows that are not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from medtune_jax.config import Config
from medtune_jax.errors import UserError
from medtune_jax.model.llama import Params
from medtune_jax.train.feed import put
from medtune_jax.train.inputs import Inputs
from medtune_jax.train.step import make_eval_step


def make_evaluate(
    config: Config, inputs: Inputs, frozen: Params, mesh: Mesh
) -> Callable[[int, Params], dict[str, Any]] | None:
    """Returns (step, trained parameters) -> {eval_loss: nats per loss token of the held-out rows, eval_loss_tokens}.

    None where it is not asked for or there are no such rows. That raises UserError where the loss is not finite.
    """
    if not inputs.evaluation:
        return None
    eval_step = make_eval_step(config, inputs.model, mesh)

    def evaluate(step: int, params: Params) -> dict[str, Any]:
        sums = jax.device_get([eval_step(params, frozen, put(batch, mesh)) for batch in inputs.evaluation])
        total, count = (float(sum(part)) for part in zip(*sums, strict=True))
        if not math.isfinite(total):
            raise UserError(
                f"Step {step}: the loss on the held-out rows is {total}: training diverged in this step. Lower "
                "--config.optimizer.learning_rate and train in another --workdir."
            )
        return {"eval_loss": total / count, "eval_loss_tokens": int(count)}

    return evaluate
