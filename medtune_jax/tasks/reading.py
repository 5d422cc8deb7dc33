"""What a task reads in a row: its gold answer, and what a model wrote; and the figures of rows that were read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from medtune_jax.errors import UserError
from medtune_jax.tasks.base import Parsed, Task
from medtune_jax.tasks.registry import quoted

TOO_LONG = "prompt_too_long"  # how an answer ended that was never begun


class Gold(Protocol):
    """What of a row its gold answer is read from; `Row` of tasks/rows.py is one."""

    @property
    def source(self) -> str: ...
    @property
    def input(self) -> str: ...
    @property
    def output(self) -> str: ...
    @property
    def meta(self) -> str: ...


def read_gold(task: Task, position: int, row: Gold) -> Parsed:
    """Returns the gold annotation of a row; repairs are accepted.

    Raises:
      UserError: its meta is not a JSON object, or its gold output cannot be read.
    """
    try:
        facts = json.loads(row.meta) if row.meta else {}
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise UserError(
            f"{row.source}, row {position}: `meta` must be a JSON object or empty, found "
            f"{quoted(row.meta, row.source)}."
        )
    gold = task.gold(row.output, row.input, facts)
    if gold.annotation is None:
        raise UserError(
            f"{row.source}, row {position}: the gold output is not a well-formed {task.kind} answer "
            f"({', '.join(gold.problems) or gold.status}): {quoted(row.output, row.source)}.{_labels(task)} "
            "Mend the rows."
        )
    return gold


def _labels(task: Task) -> str:
    return f" Its labels are {', '.join(task.labels)}." if task.labels else ""


def read_answer(task: Task, text: str, input: str, finish_reason: str) -> Parsed:
    """Returns what a task reads in a model's answer to `input`; a prompt that was too long is answered wrong."""
    return Parsed(None, (TOO_LONG,)) if finish_reason == TOO_LONG else task.parse(text, input)


def corpus_metrics(task: Task, statistics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns metric name -> value in 0..1 of the rows with these statistics, of which there is at least one."""
    totals = {name: np.asarray(sum(row[name] for row in statistics)) for name in statistics[0]}
    return {name: float(value) for name, value in task.metrics(totals).items()}
