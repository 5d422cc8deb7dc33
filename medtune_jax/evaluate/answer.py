"""Rows and a model's answers to them: which way each row is answered, what identifies the question, the answering."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from medtune_jax.data.prompts import Template
from medtune_jax.errors import UserError
from medtune_jax.evaluate.predictions import Prediction, PredictionLog, prediction_key, unanswered
from medtune_jax.tasks.base import Allowed
from medtune_jax.tasks.registry import find_source, get_source
from medtune_jax.tasks.rows import Row

if TYPE_CHECKING:
    from medtune_jax.data.tokenizer import Tokenizer
    from medtune_jax.generate.engine import Engine, Generation, TemplateRequest

LOG = logging.getLogger(__name__)
_SPARE = 64  # tokens allowed beyond the longest well-formed output
Decode = Literal["template", "greedy", "sample", "loglikelihood"]
DECODE: tuple[Decode, ...] = ("template", "greedy", "sample", "loglikelihood")


@dataclass(frozen=True)
class Way:
    """How one row is answered.

    Attributes:
      method: what was asked for; `greedy` for a row of free text under `template`.
      budget: tokens that a freely written answer may have; 0 where the outputs are known beforehand.
    """

    method: Decode
    budget: int

    @property
    def free(self) -> bool:
        return self.method in ("greedy", "sample")


def ways_of(rows: Sequence[Row], decode: Decode, max_new_tokens: int | None) -> list[Way]:
    """Returns how each row is answered; a freely written answer's budget is max_new_tokens or else its task's own.

    Raises:
      UserError: a source that the registry does not know where its task is needed; under `loglikelihood` a source
        whose outputs are not the options of one decision.
    """
    return [_way(row, decode, max_new_tokens) for row in rows]


def _way(row: Row, decode: Decode, max_new_tokens: int | None) -> Way:
    source = find_source(row.source)
    if decode in ("greedy", "sample") and max_new_tokens is not None:
        return Way(decode, max_new_tokens)
    if source is None and decode in ("greedy", "sample"):
        raise UserError(
            f"Source '{row.source}' is not in the registry: say how long its answers may be, --max_new_tokens."
        )
    if source is None:
        raise UserError(
            f"Source '{row.source}' is not in the registry, so --decode={decode} does not know its outputs: "
            "choose other rows with --sources, or use --decode=greedy."
        )
    if decode in ("greedy", "sample"):
        return Way(decode, source.task.max_new_tokens)
    allowed = source.task.allowed(row.input)
    if decode == "template":
        return Way("template", 0) if allowed is not None else Way("greedy", source.task.max_new_tokens)
    if allowed is None or len(allowed.slots) != 1:
        raise UserError(
            f"Source '{row.source}' (task {source.task.kind}) is not answered by one of a few labels, so "
            "--decode=loglikelihood has no candidates to compare: choose other rows with --sources, or use "
            "--decode=template."
        )
    return Way("loglikelihood", 0)


def fit_budgets(rows: Sequence[Row], ways: Sequence[Way], template: Template, tokenizer: Tokenizer) -> list[Way]:
    """Returns the ways with budgets cut to the row's longest well-formed output and some more.

    The engine reserves every row's budget in its cache and attends it. Free text may be of any length: its budget
    stays.
    """
    return [
        replace(way, budget=_what_input_needs(row, template, tokenizer, way.budget)) if way.free else way
        for row, way in zip(rows, ways, strict=True)
    ]


def _what_input_needs(row: Row, template: Template, tokenizer: Tokenizer, most: int) -> int:
    allowed = get_source(row.source).task.allowed(row.input)
    if allowed is None:
        return most
    longest = allowed.text(tuple(max(slot.options, key=len) for slot in allowed.slots))
    return min(most, len(tokenizer.encode(template.completion(longest))) + _SPARE)


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

        templated = [index for index in missing if ways[index].method == "template"]
        if templated:
            engine.decode_template(
                [_request(questions[index]) for index in templated],
                template,
                batch_size=batch_size,
                on_done=lambda at, generation: done(templated[at], generation),
            )
        if decoding["method"] == "loglikelihood":
            # All rows are given, so that a value does not depend on which of them an earlier attempt has answered.
            engine.loglikelihoods(
                [_request(one) for one in questions],
                template,
                batch_size=batch_size,
                skip=frozenset(range(len(questions))) - frozenset(missing),
                on_done=done,
            )
        free = [index for index in missing if ways[index].free]
        if free:
            from medtune_jax.data.encode import encode_prompt
            from medtune_jax.generate.sampling import Greedy, Sample

            sampled = decoding["method"] == "sample"
            asked = [questions[index] for index in free]
            engine.generate(
                [encode_prompt(engine.tokenizer, template, one.instruction, one.input) for one in asked],
                method=Sample(decoding["temperature"], decoding["top_k"], decoding["top_p"]) if sampled else Greedy(),
                max_new_tokens=[ways[index].budget for index in free],
                batch_size=batch_size,
                seed=decoding["seed"] if sampled else 0,
                rows=[one.row for one in asked],  # a row's draws are its own, also where a run continues
                on_done=lambda at, generation: done(free[at], generation),
            )
    return counts


def _request(one: Prediction) -> TemplateRequest:
    from medtune_jax.generate.engine import TemplateRequest

    allowed: Allowed | None = get_source(one.source).task.allowed(one.input)
    assert allowed is not None, "only rows whose outputs are known are answered so"
    return TemplateRequest(one.instruction, one.input, allowed, name=f"{one.source}, row {one.row}")
