"""What the host does about a step that the device judged bad and did not apply (train/guard.py): stop, or say so."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from medtune_jax.config import TrainConfig
from medtune_jax.errors import UserError
from medtune_jax.train.guard import SKIPS_IN_A_ROW
from medtune_jax.train.inputs import Inputs
from medtune_jax.train.records.progress import Line

_ROWS_NAMED = 64
_log = logging.getLogger(__name__)
BadStep = Callable[[int, Line], None]


def bad_step_policy(train: TrainConfig, inputs: Inputs, saved: Callable[[], Sequence[int]]) -> BadStep:
    """Returns what is called with (updates done, metrics) of each bad step; `saved` tells which checkpoints there are.

    It raises UserError, which names the step and its rows, where train.bad_step is "stop", and at SKIPS_IN_A_ROW bad
    steps in a row; else it warns of the step. A run that stopped may go on with "skip": what was applied is the same.
    """

    def stop(done: int, metrics: Line) -> None:
        told = _told(done, metrics, train, inputs)
        steps = saved()
        kept = f"Checkpoint {steps[-1]} was saved before it." if steps else "No checkpoint was saved before it."
        raise UserError(
            f"{told} {kept} Look at these rows; go on past the step with --config.train.bad_step=skip, or train in "
            "another --workdir at a lower --config.optimizer.learning_rate."
        )

    def skip(done: int, metrics: Line) -> None:
        told, row = _told(done, metrics, train, inputs), int(metrics["skipped_in_a_row"])
        if row >= SKIPS_IN_A_ROW:
            raise UserError(
                f"{told} That is {row} bad steps in a row, so no single batch is to blame: training diverged. Train in "
                "another --workdir at a lower --config.optimizer.learning_rate."
            )
        _log.warning("%s It is skipped.", told)

    return stop if train.bad_step == "stop" else skip


def _told(done: int, metrics: Line, train: TrainConfig, inputs: Inputs) -> str:
    values = f"the loss ({metrics['loss']:.6g}) or the norm of its gradient ({metrics['grad_norm']:.6g})"
    if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
        what = f"is more than train.spike_factor={train.spike_factor:g} times its running mean"
    else:
        what = "is not finite"
    rows = inputs.data.rows_in(done - 1)
    named = []
    for row in rows[:_ROWS_NAMED]:
        number, identifier = inputs.row_numbers[row], inputs.row_ids[row]
        named.append(f"{number} ({identifier})" if identifier else str(number))
    more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
    return (
        f"Step {done}: {values} {what}. Rows of this step (index in the training rows, and id): "
        f"{', '.join(named)}{more}."
    )
