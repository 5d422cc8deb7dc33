"""Template decoding held against what it stands for: the same constraint, one new token in each pass.

In exact arithmetic the two write the same (template.py). In float32 they do; in bfloat16 a pass over many tokens rounds
otherwise than one over one, so that a close decision may fall otherwise. How often, and how close, is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medtune_jax.data.prompts import Template
from medtune_jax.errors import UserError
from medtune_jax.generate import decode
from medtune_jax.generate.core import Core
from medtune_jax.generate.planning import Planner
from medtune_jax.generate.results import Generation
from medtune_jax.generate.slots import Slots, round_up
from medtune_jax.generate.template import NOT_FINITE, Row, TemplateRequest, Walk


@dataclass(frozen=True)
class Difference:
    """Where a row decoded by template first differs from the row decoded token by token.

    Attributes:
      row: index of its request; position: of the token, from the first behind the prompt; decision: of the slot.
      tokens, options: what stands there by template, and token by token.
      gap: by how much the best token's logit was above the second best's, of those allowed there, token by token.
    """

    row: int
    position: int
    decision: int
    tokens: tuple[int, int]
    options: tuple[str, str]
    gap: float


@dataclass(frozen=True)
class TemplateCheck:
    """How template decoding agrees with constrained greedy, token by token.

    Attributes:
      rows: compared; decisions: places in them at which more than one token was allowed.
      differences: the first of each row that differs.
    """

    rows: int
    decisions: int
    differences: tuple[Difference, ...]


@dataclass(eq=False)
class _Walked:
    """A row under constrained greedy; gaps: place -> see Difference, of every decision."""

    index: int
    row: Row
    walk: Walk
    tokens: list[int] = field(default_factory=list)
    gaps: dict[int, float] = field(default_factory=dict)

    @property
    def filled(self) -> Sequence[int]:
        return self.row.prompt[:-1]

    @property
    def need(self) -> int:
        return self.row.longest

    def take(self, logits_U: np.ndarray, children: Sequence[int]) -> None:
        """Writes the best of the allowed tokens, of equals the lowest id; logits_U: in their order."""
        if not np.isfinite(logits_U).all():
            raise UserError(NOT_FINITE)
        if len(children) > 1:
            second, best = np.sort(logits_U)[-2:]
            self.gaps[len(self.tokens)] = float(best - second)
        self.tokens.append(children[int(np.argmax(logits_U))])
        self.walk.take(self.tokens[-1])


def check_template(
    core: Core,
    requests: Sequence[TemplateRequest],
    template: Template,
    answers: Sequence[Generation],
    batch_size: int,
) -> TemplateCheck:
    """Decodes requests again, token by token, and compares (`Engine.check_template`)."""
    planner = Planner(core.tokenizer, template)
    rows = []
    for index, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        if answer.finish_reason != "prompt_too_long":
            row = planner.plan(request)
            rows.append(_Walked(index, row, Walk(row.pieces)))
    rows.sort(key=lambda one: -one.need)
    if not rows:
        return TemplateCheck(0, 0, ())
    slots = core.slots(rows, core.batch_size(rows, batch_size))
    while slots.admit():
        _step(core, slots)
        for slot, one in slots.active():
            if not one.walk.children:
                slots.free(slot)
    rows.sort(key=lambda one: one.index)
    found = [_difference(one, answers[one.index], core.tokenizer.eos_id) for one in rows]
    return TemplateCheck(len(rows), sum(len(one.gaps) for one in rows), tuple(filter(None, found)))


def _step(core: Core, slots: Slots[_Walked]) -> None:
    """Writes one token in every slot."""
    active = slots.active()
    children = [one.walk.children for _, one in active]
    allowed = sorted(set().union(*children))
    column = {token: index for index, token in enumerate(allowed)}
    tokens_B1 = np.zeros((len(slots.rows), 1), np.int32)
    start_B = np.zeros(len(slots.rows), np.int32)
    columns_U = np.zeros(round_up(len(allowed), 64), np.int32)
    columns_U[: len(allowed)] = allowed
    for slot, one in active:
        tokens_B1[slot] = one.tokens[-1] if one.tokens else one.row.prompt[-1]
        start_B[slot] = len(one.row.prompt) + len(one.tokens) - 1
    slots.cache, logits_B1U = decode.draft_logits(
        core.weights, slots.cache, tokens_B1, start_B, np.zeros_like(tokens_B1), columns_U, config=core.config
    )
    logits_BU = np.asarray(logits_B1U)[:, 0]
    for (slot, one), mine in zip(active, children, strict=True):
        one.take(logits_BU[slot, [column[token] for token in mine]], mine)


def _difference(one: _Walked, answer: Generation, eos_id: int) -> Difference | None:
    by_template = [*answer.tokens, eos_id]
    pairs = enumerate(zip(by_template, one.tokens, strict=False))  # EOS ends each: none begins the other
    at = next((i for i, (a, b) in pairs if a != b), None)
    if at is None:
        return None
    options = list(zip(_options(one.row, by_template), _options(one.row, one.tokens), strict=True))
    decision = next(i for i, (a, b) in enumerate(options) if a != b)
    return Difference(one.index, at, decision, (by_template[at], one.tokens[at]), options[decision], one.gaps[at])


def _options(row: Row, tokens: Sequence[int]) -> tuple[str, ...]:
    """Returns the option that an allowed sequence has in each slot."""
    walk = Walk(row.pieces)
    for token in tokens:
        walk.take(token)
    row.draft = walk.chosen
    return row.options
