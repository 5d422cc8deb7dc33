"""Rows and a model's answers to them: which way each row is answered, within which budget, and the answering itself.

Evaluation answers a split this way, and so does training with the samples of its held-out rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from medtune_jax.data.prompts import Template
from medtune_jax.errors import UserError
from medtune_jax.generate.decoding import DRAFT, FREE, Decode, Decoding, Draft
from medtune_jax.tasks.base import Allowed
from medtune_jax.tasks.registry import find_source, get_source

if TYPE_CHECKING:
    from medtune_jax.data.tokenizer import Tokenizer
    from medtune_jax.generate.engine import Engine, GrammarRequest, TemplateRequest
    from medtune_jax.generate.results import Generation, OnDone

_SPARE = 64  # tokens allowed beyond the longest well-formed output


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
      method: what was asked for; under `template`, `grammar` for a row whose task has one and cannot list its outputs,
        `greedy` for a row of free text.
      budget: tokens that an answer may have that is written freely or by a grammar; 0 where the outputs are known
        beforehand.
      draft: of `greedy`: what is proposed to the model.
    """

    method: Decode | Literal["grammar"]
    budget: int
    draft: Draft = "none"

    @property
    def free(self) -> bool:
        return self.method in FREE

    @property
    def name(self) -> str:
        return self.method if self.draft == "none" else f"{self.method}, drafted by {self.draft}"


def ways_of(rows: Sequence[Question], decoding: Decoding) -> list[Way]:
    """Returns how each row is answered; a freely written answer's budget is its task's own unless one is given.

    Raises:
      UserError: a source that the registry does not know where its task is needed; under `loglikelihood` a source
        whose outputs are not the options of one decision.
    """
    return [_way(row, decoding) for row in rows]


def _way(row: Question, decoding: Decoding) -> Way:
    source, method = find_source(row.source), decoding.method
    if method in FREE:
        if source is None and decoding.max_new_tokens is None:
            raise UserError(
                f"Source '{row.source}' is not in the registry: say how long its answers may be, --max_new_tokens."
            )
        allowed = None if source is None or decoding.draft != "template" else source.task.allowed(row.input)
        draft = "prompt" if decoding.draft == "template" and allowed is None else decoding.draft
        return Way(method, decoding.max_new_tokens or get_source(row.source).task.max_new_tokens, draft)
    if source is None:
        raise UserError(
            f"Source '{row.source}' is not in the registry, so --decode={method} does not know its outputs: "
            "choose other rows with --sources, or use --decode=greedy."
        )
    allowed = source.task.allowed(row.input)
    if method == "template":
        if allowed is not None:
            return Way("template", 0)
        has_grammar = source.task.grammar(row.input) is not None
        return Way("grammar" if has_grammar else "greedy", source.task.max_new_tokens)
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
        replace(way, budget=longest_answer(row, way, template, tokenizer)) if way.free else way
        for row, way in zip(rows, ways, strict=True)
    ]


def longest_answer(row: Question, way: Way, template: Template, tokenizer: Tokenizer) -> int:
    """Returns how many tokens a row's answer may have: its longest well-formed output and some more, or its budget."""
    source = find_source(row.source)
    allowed = None if source is None else source.task.allowed(row.input)
    if allowed is None:
        return way.budget
    longest = allowed.text(tuple(max(slot.options, key=len) for slot in allowed.slots))
    tokens = len(tokenizer.encode(template.completion(longest))) + _SPARE
    return min(way.budget, tokens) if way.free else tokens


def answer_rows(
    engine: Engine,
    template: Template,
    rows: Sequence[Question],
    ways: Sequence[Way],
    *,
    decoding: Decoding = Decoding(),  # noqa: B008 - frozen
    prefaces: Sequence[str] | None = None,
    stop: Sequence[str] = (),
    numbers: Sequence[int] | None = None,
    only: Collection[int] | None = None,
    batch_size: int | None = None,
    on_done: OnDone,
) -> None:
    """Has the engine answer rows, each in its way; on_done(index, generation) is called as they finish, in any order.

    Args:
      decoding: of which `ways` were made.
      prefaces: per row what is written before its prompt; None = nothing.
      stop: strings before the first of which a freely written answer ends; beam search writes on, and what it writes
        there is cut off.
      numbers: what each row is called in errors, and by which its draws are its own (default: its index).
      only: indices of the rows to answer; None = all. They are batched as if all were, so that an answer is the same to
        the last bit whichever rows were answered before.
      batch_size: rows answered at once; None = as many as fit.
    """
    prefaces = [""] * len(rows) if prefaces is None else prefaces
    numbers = range(len(rows)) if numbers is None else numbers
    wanted = set(range(len(rows)) if only is None else only)
    shared: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}

    def of(chosen: Callable[[Way], bool]) -> tuple[list[int], dict[str, Any]] | None:
        """Returns the indices of rows and with what the engine is called for them; None where none is wanted."""
        found = [index for index, way in enumerate(ways) if chosen(way)]
        skip = {at for at, index in enumerate(found) if index not in wanted}
        told = {"skip": skip, "on_done": lambda at, generation: on_done(found[at], generation), **shared}
        return (found, told) if len(skip) < len(found) else None

    def requests(indices: Sequence[int]) -> list[TemplateRequest]:
        return [request_of(rows[index], numbers[index], prefaces[index]) for index in indices]

    def prompt(index: int) -> array[int]:  # 4 bytes a token, where a list has 40
        from medtune_jax.data.encode import encode_prompt

        row = rows[index]
        return array("i", encode_prompt(engine.tokenizer, template, row.instruction, row.input, prefaces[index]))

    if answered := of(lambda way: way.method == "grammar"):
        found, told = answered
        engine.decode_grammar(
            [_by_grammar(rows[index], prompt(index), ways[index].budget, numbers[index]) for index in found],
            template,
            **told,
        )
    if answered := of(lambda way: way.method == "template"):
        found, told = answered
        engine.decode_template(requests(found), template, **told)
    if answered := of(lambda way: way.method == "loglikelihood"):
        found, told = answered
        engine.loglikelihoods(requests(found), template, **told)
    for draft in DRAFT:
        if answered := of(lambda way, draft=draft: way.free and way.draft == draft):  # type: ignore[misc]
            found, told = answered
            told["max_new_tokens"] = [ways[index].budget for index in found]
            if stop and decoding.method == "beam":
                told["on_done"] = _cutting(told["on_done"], stop)
            elif stop:
                told["stop"] = stop
            if draft == "template":
                engine.speculate_template(requests(found), template, **told)
                continue
            if draft == "prompt":
                told["draft"] = draft
            engine.generate(
                [prompt(index) for index in found],
                method=decoding.chooser(),
                seed=decoding.seed,
                rows=[numbers[index] for index in found],
                **told,
            )


def _cutting(on_done: OnDone, stop: Sequence[str]) -> OnDone:
    """Returns `on_done` for answers that end before the first of the stop strings in them."""

    def cut(at: int, generation: Generation) -> None:
        ends = [end for one in stop if (end := generation.text.find(one)) >= 0]
        if ends:
            generation = replace(generation, text=generation.text[: min(ends)], finish_reason="stop")
        on_done(at, generation)

    return cut


def request_of(row: Question, number: int, preface: str) -> TemplateRequest:
    """Returns what the engine is asked of a row whose outputs are known; it holds none of them."""
    from medtune_jax.generate.engine import TemplateRequest

    name = f"{row.source}, row {number}"
    return TemplateRequest(row.instruction, row.input, partial(_allowed, row), name=name, preface=preface)


def _allowed(row: Question) -> Allowed:
    allowed = get_source(row.source).task.allowed(row.input)
    assert allowed is not None, "only rows whose outputs are known are answered so"
    return allowed


def _by_grammar(row: Question, prompt: Sequence[int], budget: int, number: int) -> GrammarRequest:
    from medtune_jax.generate.engine import GrammarRequest

    grammar = get_source(row.source).task.grammar(row.input)
    assert grammar is not None, "only rows that have a grammar are answered so"
    return GrammarRequest(prompt, grammar, budget, number)
