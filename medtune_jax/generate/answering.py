"""Rows and a model's answers to them: which way each row is answered, within which budget, and the answering itself.

Evaluation answers a split this way, and so does training with the samples of its held-out rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from medtune_jax.data.prompts import Template
from medtune_jax.errors import UserError
from medtune_jax.tasks.base import Allowed
from medtune_jax.tasks.registry import find_source, get_source

if TYPE_CHECKING:
    from medtune_jax.data.tokenizer import Tokenizer
    from medtune_jax.generate.engine import Engine, TemplateRequest
    from medtune_jax.generate.results import OnDone
    from medtune_jax.generate.sampling import Method

_SPARE = 64  # tokens allowed beyond the longest well-formed output
Decode = Literal["template", "greedy", "sample", "loglikelihood"]
DECODE: tuple[Decode, ...] = ("template", "greedy", "sample", "loglikelihood")


class Question(Protocol):
    """What of a row its answer depends on; `Row` of tasks/rows.py is one."""

    @property
    def instruction(self) -> str: ...
    @property
    def input(self) -> str: ...
    @property
    def source(self) -> str: ...


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


def ways_of(rows: Sequence[Question], decode: Decode, max_new_tokens: int | None) -> list[Way]:
    """Returns how each row is answered; a freely written answer's budget is max_new_tokens or else its task's own.

    Raises:
      UserError: a source that the registry does not know where its task is needed; under `loglikelihood` a source
        whose outputs are not the options of one decision.
    """
    return [_way(row, decode, max_new_tokens) for row in rows]


def _way(row: Question, decode: Decode, max_new_tokens: int | None) -> Way:
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


def fit_budgets(rows: Sequence[Question], ways: Sequence[Way], template: Template, tokenizer: Tokenizer) -> list[Way]:
    """Returns the ways with budgets cut to the row's longest well-formed output and some more.

    The engine reserves every row's budget in its cache and attends it. Free text may be of any length: its budget
    stays.
    """
    return [
        replace(way, budget=_what_input_needs(row, template, tokenizer, way.budget)) if way.free else way
        for row, way in zip(rows, ways, strict=True)
    ]


def _what_input_needs(row: Question, template: Template, tokenizer: Tokenizer, most: int) -> int:
    allowed = get_source(row.source).task.allowed(row.input)
    if allowed is None:
        return most
    longest = allowed.text(tuple(max(slot.options, key=len) for slot in allowed.slots))
    return min(most, len(tokenizer.encode(template.completion(longest))) + _SPARE)


def answer_rows(
    engine: Engine,
    template: Template,
    rows: Sequence[Question],
    ways: Sequence[Way],
    *,
    numbers: Sequence[int] | None = None,
    only: Collection[int] | None = None,
    method: Method | None = None,
    seed: int = 0,
    batch_size: int = 32,
    on_done: OnDone,
) -> None:
    """Has the engine answer rows, each in its way; on_done(index, generation) is called as they finish, in any order.

    Args:
      numbers: what each row is called in errors, and by which its draws are its own (default: its index).
      only: indices of the rows to answer; None = all. They are batched as if all were, so that an answer is the same to
        the last bit whichever rows were answered before.
      method, seed: of free decoding; None = greedy.
    """
    numbers = range(len(rows)) if numbers is None else numbers
    wanted = set(range(len(rows)) if only is None else only)

    def of(*methods: Decode) -> tuple[list[int], set[int], OnDone]:
        """Returns (indices of the rows answered so, positions among them that need no answer, their on_done)."""
        found = [index for index, way in enumerate(ways) if way.method in methods]
        skip = {at for at, index in enumerate(found) if index not in wanted}
        return found, skip, lambda at, generation: on_done(found[at], generation)

    ways_of_known: dict[Decode, Any] = {"template": engine.decode_template, "loglikelihood": engine.loglikelihoods}
    for name, answer in ways_of_known.items():
        found, skip, done = of(name)
        if len(skip) < len(found):
            requests = [_request(rows[index], numbers[index]) for index in found]
            answer(requests, template, batch_size=batch_size, skip=skip, on_done=done)
    free, skip, done = of("greedy", "sample")
    if len(skip) < len(free):
        from medtune_jax.data.encode import encode_prompt
        from medtune_jax.generate.sampling import Greedy

        asked = [rows[index] for index in free]
        engine.generate(
            [encode_prompt(engine.tokenizer, template, one.instruction, one.input) for one in asked],
            method=Greedy() if method is None else method,
            max_new_tokens=[ways[index].budget for index in free],
            batch_size=batch_size,
            seed=seed,
            rows=[numbers[index] for index in free],
            skip=skip,
            on_done=done,
        )


def _request(row: Question, number: int) -> TemplateRequest:
    from medtune_jax.generate.engine import TemplateRequest

    allowed: Allowed | None = get_source(row.source).task.allowed(row.input)
    assert allowed is not None, "only rows whose outputs are known are answered so"
    return TemplateRequest(row.instruction, row.input, allowed, name=f"{row.source}, row {number}")
