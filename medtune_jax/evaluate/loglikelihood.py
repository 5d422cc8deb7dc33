"""Accuracy by log-likelihood: the candidate output that the model finds most likely is its answer.

`accuracy_ll` takes the largest summed log-probability, `accuracy_ll_norm` the largest per byte of the candidate's UTF-8
text: `acc` and `acc_bytes` of EleutherAI's lm-evaluation-harness, whose `acc_norm` divides by characters. Ties go to
the earlier candidate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from medtune_jax.errors import UserError
from medtune_jax.evaluate.predictions import Prediction
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.counts import ratio
from medtune_jax.tasks.registry import quoted

RAW, NORMALISED = "ll_correct", "ll_norm_correct"


def statistics(task: Task, prediction: Prediction, gold: Any) -> dict[str, float]:
    """Returns whether the likeliest candidate reads as the gold annotation, raw and per byte; 0 without candidates.

    Raises:
      UserError: a candidate without text, or a value that is not a finite number.
    """
    candidates = prediction.loglikelihoods or {}
    for text, value in candidates.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not text or not number or not math.isfinite(value):
            raise UserError(
                f"{prediction.source}, row {prediction.row}: the log-likelihood of candidate "
                f"{quoted(text, prediction.source)} is {value if number else type(value).__name__}; every candidate "
                "needs a text and a finite number."
            )
    if not candidates:
        return {RAW: 0, NORMALISED: 0}
    # max() keeps the first of equals, and a JSON object keeps its order.
    best = max(candidates, key=lambda text: candidates[text])
    best_per_byte = max(candidates, key=lambda text: candidates[text] / len(text.encode("utf-8", "surrogatepass")))
    correct = {text: task.parse(text, prediction.input).annotation == gold for text in {best, best_per_byte}}
    return {RAW: float(correct[best]), NORMALISED: float(correct[best_per_byte])}


def metrics(totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns accuracy_ll and accuracy_ll_norm where the rows carried log-likelihoods, else nothing."""
    if RAW not in totals:
        return {}
    return {
        "accuracy_ll": ratio(totals[RAW], totals["rows"]),
        "accuracy_ll_norm": ratio(totals[NORMALISED], totals["rows"]),
    }
