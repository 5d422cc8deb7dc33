"""What identifies the question that a row asks of a model, and the answering of all of them into a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medtune_jax.data.prompts import Template
from medtune_jax.evaluate.predictions import Prediction, PredictionLog, prediction_key, unanswered
from medtune_jax.generate.answering import Way, answer_rows
from medtune_jax.tasks.rows import Row

if TYPE_CHECKING:
    from medtune_jax.generate.engine import Engine, Generation

LOG = logging.getLogger(__name__)


def ask(
    rows: Sequence[tuple[int, Row]],
    template: Template,
    identity: dict[str, str],
    decoding: dict[str, Any],
    ways: Sequence[Way],
) -> list[Prediction]:
    """Returns one prediction per row with its key and nothing generated yet."""
    return [
        unanswered(
            position,
            row,
            key=prediction_key(
                position,
                row.id,
                row.source,
                " ".join(identity.values()),
                template.prompt(row.instruction, row.input),
                {**decoding, "max_new_tokens": way.budget},
                template.sha256,
            ),
        )
        for (position, row), way in zip(rows, ways, strict=True)
    ]


def decided(ways: Sequence[Way]) -> str:
    """Returns the name of what the model decides."""
    free = {way.free for way in ways}
    return "token" if free == {True} else "label" if free == {False} else "decision"


def answer(
    engine: Engine,
    template: Template,
    questions: Sequence[Prediction],
    ways: Sequence[Way],
    log: PredictionLog,
    decoding: Mapping[str, Any],
    batch_size: int,
) -> dict[str, int]:
    """Has the engine answer what the log still misses, and records each answer as it comes.

    Returns {"rows", "tokens", "decisions", "passes"}: rows answered now, and summed over them tokens written, what the
    model chose (labels where the outputs are known, else tokens), forward passes.
    """
    from tqdm import tqdm

    if log.dropped_torn:
        LOG.warning("A line that was cut off when the last attempt stopped is dropped; its row is answered again.")
    missing = log.missing
    counts = {"rows": 0, "tokens": 0, "decisions": 0, "passes": 0}
    if not missing:
        return counts
    if len(missing) < len(questions):
        LOG.info("%d of %d rows are answered already.", len(questions) - len(missing), len(questions))
    started, unit = time.monotonic(), decided(ways)
    # On a terminal the line moves; in a log file it is written twice a minute.
    pause = 0.5 if sys.stderr.isatty() else 30
    with tqdm(
        total=len(questions), initial=len(questions) - len(missing), unit="row", file=sys.stderr, mininterval=pause
    ) as bar:

        def done(index: int, generation: Generation) -> None:
            tokens = len(generation.tokens)
            log.add(index, generation.text, generation.finish_reason, tokens, generation.loglikelihoods)
            counts["rows"] += 1
            counts["tokens"] += tokens
            counts["passes"] += generation.passes
            counts["decisions"] += generation.decisions
            speed = counts["decisions"] / (time.monotonic() - started)
            bar.set_postfix_str(f"{speed:,.0f} {unit}s/s", refresh=False)
            bar.update()

        method = None
        if sampled := decoding["method"] == "sample":
            from medtune_jax.generate.sampling import Sample

            method = Sample(decoding["temperature"], decoding["top_k"], decoding["top_p"])
        answer_rows(
            engine,
            template,
            questions,
            ways,
            numbers=[one.row for one in questions],  # a row's draws are its own, also where a run continues
            only=frozenset(missing),
            method=method,
            seed=decoding["seed"] if sampled else 0,
            batch_size=batch_size,
            on_done=done,
        )
    return counts
