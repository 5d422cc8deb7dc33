"""What the host does about a step that the device judged bad and did not apply (train/guard.py): stop, or say so.

A step is read while the next one runs, so a run that stops at step N has done N + 1 too. Its state is good, the bad
update left out, and it is saved: nothing is lost. It is the state of a run that skips. For the same reason `stop` does
not go on from it by itself, as a restart by machinery would: the person who looked at the rows says `skip`.
"""

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
_LATE = 2  # updates done at most since the last one whose reading is known, when a run stops
_log = logging.getLogger(__name__)
BadStep = Callable[[int, Line], str]


def bad_step_policy(train: TrainConfig, inputs: Inputs) -> BadStep:
    """Returns what is called with (updates done, metrics) of each bad step, and returns why the run is to end.

    That names the step and its rows, where train.bad_step is "stop", and at SKIPS_IN_A_ROW bad steps in a row. Else it
    is "", and a warning says the same.
    """

    def bad_step(done: int, metrics: Line) -> str:
        told, row = _told(done, metrics, train, inputs), int(metrics["skipped_in_a_row"])
        if row >= SKIPS_IN_A_ROW:
            return (
                f"{told} That is {row} bad steps in a row, so no single batch is to blame: training diverged. Train in "
                "another --workdir at a lower --config.optimizer.learning_rate."
            )
        if train.bad_step == "stop":
            return f"{told} Look at these rows; {_MEND}"
        _log.warning("%s It is skipped.", told)
        return ""

    return bad_step


_MEND = (
    "go on without the step with --config.train.bad_step=skip (and, where it was no mishap, a higher "
    "--config.train.spike_factor), or train in another --workdir at a lower --config.optimizer.learning_rate."
)


def refuse_to_pass(train: TrainConfig, lines: Sequence[Line], first: int) -> None:
    """Raises UserError where train.bad_step is "stop" and the run would go on, after `first`, right behind a bad step.

    lines: of metrics.jsonl.
    """
    bad = [line["step"] for line in lines if line.get("skipped") and first - _LATE < line["step"] <= first]
    if train.bad_step == "stop" and bad:
        raise UserError(
            f"The run stopped at step {bad[-1]:,}, which was bad and not applied; checkpoint {first} is the state "
            f"without it. {_MEND[0].upper()}{_MEND[1:]}"
        )


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
        f"Step {done}: {values} {what}; its update was not applied. Rows of this step (index in the training rows, and "
        f"id): {', '.join(named)}{more}."
    )
