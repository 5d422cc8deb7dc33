"""What identifies the question that a row asks of a model, and the answering of all of them into a log."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medtune_jax.data.prompts import Template
from medtune_jax.evaluate.predictions import Prediction, PredictionLog, prediction_key, unanswered
from medtune_jax.generate.answering import Way, answer_rows, request_of
from medtune_jax.generate.decoding import Decoding
from medtune_jax.tasks.registry import get_source
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
                {**decoding, **_deciding(row, way)},
                template.sha256,
            ),
        )
        for (position, row), way, preface in zip(rows, ways, prefaces, strict=True)
    ]


def _deciding(row: Row, way: Way) -> dict[str, Any]:
    """Returns what of a row's way decides its answer, JSON-ready, beside what the decoding says of all rows.

    The outputs that a built-in source allows are its input's alone; those of a user's source are as it is defined now.
    """
    told: dict[str, Any] = {"max_new_tokens": way.budget}
    if way.free:
        return told
    source = get_source(row.source)
    if way.method == "grammar":
        grammar = source.task.grammar(row.input)
        assert grammar is not None, "only rows that have a grammar are answered so"
        return told | {"method": way.method, "grammar": [grammar.kind, grammar.text]}
    if source.definition is not None and (allowed := source.task.allowed(row.input)) is not None:
        follows = None if allowed.follows is None else sorted(allowed.follows, key=str)
        told["allowed"] = [[part if isinstance(part, str) else part.options for part in allowed.parts], follows]
    return told


def decided(ways: Sequence[Way]) -> str:
    """Returns the name of what the model decides."""
    free = {way.free for way in ways}
    return "token" if free == {True} else "label" if free == {False} else "decision"


def answer(
    engine: Engine,
    template: Template,
    questions: Sequence[Prediction],
    ways: Sequence[Way],
    log: PredictionLog | None,
    decoding: Decoding,
    *,
    prefaces: Sequence[str],
    stop: Sequence[str] = (),
    batch_size: int | None = None,
    to_check: int = 0,
) -> tuple[dict[str, Counter[str]], dict[int, Generation]]:
    """Has the engine answer what the log still misses, and records each answer as it comes; see `answer_rows`.

    Args:
      log: None in a process other than the first, which answers what the first one's log misses.
      to_check: how many of the answers decoded by template are returned for `check`, spread over those of now.

    Returns:
      (way -> {"rows", "tokens", "decisions", "passes", "drafted", "accepted"}: rows answered now, and summed over them
      tokens written, what the model chose (labels where the outputs are known, else tokens), forward passes, and tokens
      drafted and kept; question -> the answer that is to be checked).
    """
    from tqdm import tqdm

    from medtune_jax.processes import everyones

    if log is not None and log.dropped_torn:
        LOG.warning("A line that was cut off when the last attempt stopped is dropped; its row is answered again.")
    missing = everyones("missing", None if log is None else log.missing)[0]
    counts: dict[str, Counter[str]] = {}
    kept = _spread([index for index in missing if ways[index].method == "template"], to_check)
    written: dict[int, Generation] = {}
    if not missing:
        return counts, written
    if batch_size is None:  # batches depend on what is free: a run that was stopped continues in those it began with
        free = engine.free_bytes
        engine.keep_budget(everyones("memory", None if log is None else log.first_memory(free))[0])
    if len(missing) < len(questions):
        LOG.info("%d of %d rows are answered already.", len(questions) - len(missing), len(questions))
    started, unit, chosen = time.monotonic(), decided(ways), 0
    # On a terminal the line moves; in a log file it is written twice a minute.
    pause = 0.5 if sys.stderr.isatty() else 30
    with tqdm(
        total=len(questions),
        initial=len(questions) - len(missing),
        unit="row",
        file=sys.stderr,
        mininterval=pause,
        disable=log is None,
    ) as bar:

        def done(index: int, generation: Generation) -> None:
            nonlocal chosen
            tokens = len(generation.tokens)
            if log is not None:
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
            if index in kept:
                written[index] = generation
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
    return counts, written


def _spread(found: Sequence[int], count: int) -> set[int]:
    """Returns up to `count` of them, evenly spread."""
    return {found[turn * len(found) // count] for turn in range(count)} if found else set()


def check(
    engine: Engine,
    template: Template,
    questions: Sequence[Prediction],
    prefaces: Sequence[str],
    written: Mapping[int, Generation],
    asked: int,
) -> dict[str, Any]:
    """Returns how rows decoded by template agree with the same constraint token by token, JSON-ready.

    Args:
      written: of `answer`; asked: how many are to be checked; those that an earlier attempt answered cannot be.
    """
    before = {"answered_before": asked - len(written)}
    if not written:
        return {"rows": 0, "decisions": 0, "differences": [], **before}
    requests = [request_of(questions[index], questions[index].row, prefaces[index]) for index in written]
    found = engine.check_template(requests, template, list(written.values()))
    rows = [questions[index].row for index in written]
    differences = [
        {"row": rows[one.row], "slot": one.decision, "options": list(one.options), "gap": round(one.gap, 6)}
        for one in found.differences
    ]
    return {"rows": found.rows, "decisions": found.decisions, "differences": differences, **before}
