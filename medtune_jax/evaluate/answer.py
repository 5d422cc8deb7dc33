"""What identifies the question that a row asks of a model, and the answering of all of them into a log."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medtune_jax.data.prompts import Template
from medtune_jax.evaluate.predictions import Prediction, PredictionLog, prediction_key, unanswered
from medtune_jax.generate.answering import Way, answer_rows
from medtune_jax.generate.decoding import Decoding
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
    prefaces: Sequence[str],
) -> list[Prediction]:
    """Returns one prediction per row with its key and nothing generated yet.

    Args:
      identity: hashes that identify the model.
      decoding: JSON-ready; all that decides an answer beside model, prompt and template.
      prefaces: per row what is written before its prompt.
    """
    return [
        unanswered(
            position,
            row,
            key=prediction_key(
                position,
                row.id,
                row.source,
                " ".join(identity.values()),
                preface + template.prompt(row.instruction, row.input),
                {**decoding, "max_new_tokens": way.budget},
                template.sha256,
            ),
        )
        for (position, row), way, preface in zip(rows, ways, prefaces, strict=True)
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
    decoding: Decoding,
    *,
    prefaces: Sequence[str],
    stop: Sequence[str] = (),
    batch_size: int | None = None,
) -> dict[str, Counter[str]]:
    """Has the engine answer what the log still misses, and records each answer as it comes; see `answer_rows`.

    Returns way -> {"rows", "tokens", "decisions", "passes", "drafted", "accepted"}: rows answered now, and summed over
    them tokens written, what the model chose (labels where the outputs are known, else tokens), forward passes, and
    tokens drafted and kept.
    """
    from tqdm import tqdm

    if log.dropped_torn:
        LOG.warning("A line that was cut off when the last attempt stopped is dropped; its row is answered again.")
    missing = log.missing
    counts: dict[str, Counter[str]] = {}
    if not missing:
        return counts
    if len(missing) < len(questions):
        LOG.info("%d of %d rows are answered already.", len(questions) - len(missing), len(questions))
    started, unit, chosen = time.monotonic(), decided(ways), 0
    # On a terminal the line moves; in a log file it is written twice a minute.
    pause = 0.5 if sys.stderr.isatty() else 30
    with tqdm(
        total=len(questions), initial=len(questions) - len(missing), unit="row", file=sys.stderr, mininterval=pause
    ) as bar:

        def done(index: int, generation: Generation) -> None:
            nonlocal chosen
            tokens = len(generation.tokens)
            log.add(index, generation.text, generation.finish_reason, tokens, generation.loglikelihoods)
            counts.setdefault(ways[index].name, Counter()).update(
                rows=1,
                tokens=tokens,
                decisions=generation.decisions,
                passes=generation.passes,
                drafted=generation.drafted,
                accepted=generation.accepted,
            )
            chosen += generation.decisions
            speed = chosen / (time.monotonic() - started)
            bar.set_postfix_str(f"{speed:,.0f} {unit}s/s", refresh=False)
            bar.update()

        answer_rows(
            engine,
            template,
            questions,
            ways,
            decoding=decoding,
            prefaces=prefaces,
            stop=stop,
            numbers=[one.row for one in questions],  # a row's draws are its own, also where a run continues
            only=frozenset(missing),
            batch_size=batch_size,
            on_done=done,
        )
    return counts
