"""Template decoding, the driver: passes over the drafts of a batch until none changes (see template.py)."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from threading import Event

import numpy as np

from medtune_jax.data.prompts import Template
from medtune_jax.generate import decode
from medtune_jax.generate.budget import Step
from medtune_jax.generate.core import Core, fitting, groups
from medtune_jax.generate.planning import Planner
from medtune_jax.generate.results import Generation, Results
from medtune_jax.generate.slots import Slots, few_widths, round_up
from medtune_jax.generate.template import Row, TemplateRequest

Planned = list[tuple[int, Row]]  # rows with their indices


@dataclass(frozen=True, eq=False)
class _Templated:
    """A row under template decoding."""

    index: int
    row: Row

    @property
    def filled(self) -> Sequence[int]:
        return self.row.prompt[:-1]

    @property
    def need(self) -> int:
        return self.row.longest

    def answer(self) -> Generation:
        options, tokens = self.row.options, tuple(self.row.tokens[:-1])
        text, decisions = self.row.pieces[0].allowed.text(options), sum(option != "" for option in options)
        return Generation(tokens, text, "constrained", self.row.passes, decisions)


@dataclass(frozen=True)
class _Unplanned:
    """A row before it is planned; need: characters of its prompt, and of its input again, which many outputs echo."""

    index: int
    need: int


def planned(
    core: Core, requests: Sequence[TemplateRequest], template: Template, skip: Collection[int] = ()
) -> Generator[Planned, None, None]:
    """Yields the planned rows with their indices in groups, about longest first; groups of which every row is skipped
    are left out.

    The next group is planned in a thread while the caller works on this one; no more are held. The thread ends with the
    generator, which is therefore to be closed.
    """
    planner, closed = Planner(core.tokenizer, template), Event()
    rows = [_Unplanned(i, len(r.preface) + len(r.instruction) + 2 * len(r.input)) for i, r in enumerate(requests)]

    def plan(group: Sequence[_Unplanned]) -> Planned:
        return [(one.index, planner.plan(requests[one.index])) for one in group if not closed.is_set()]

    with ThreadPoolExecutor(1, "planning") as thread:
        try:
            ahead: Future[Planned] | None = None
            for group in groups(rows, 1, skip):  # the least group: planned rows take memory
                ahead, ready = thread.submit(plan, group), ahead
                if ready is not None:
                    yield ready.result()
            if ahead is not None:
                yield ahead.result()
        finally:
            closed.set()


def decode_template(
    core: Core,
    requests: Sequence[TemplateRequest],
    template: Template,
    batch_size: int | None,
    skip: Collection[int],
    results: Results,
) -> None:
    """Answers requests by template (`Engine.decode_template`)."""
    with closing(planned(core, requests, template, skip)) as found_groups:
        for found in found_groups:
            group = fitting(core, (_Templated(index, row) for index, row in found), results)
            if group:
                step = Step(few_widths(max(one.need - len(one.filled) for one in group)))
                size = core.batch_size(group, batch_size, step=step, most=decode.most_drafts(64))
                _decode(core, group, size, results)


def _decode(core: Core, group: Sequence[_Templated], batch_size: int, results: Results) -> None:
    slots = core.slots(group, batch_size)
    while slots.admit():
        for slot, one in _improve(core, slots):
            results.add(one.index, one.answer())
            slots.free(slot)


def _improve(core: Core, slots: Slots[_Templated]) -> list[tuple[int, _Templated]]:
    """Runs one pass over what is not settled of every slot's draft; returns (slot, row) of those that are final."""
    active = slots.active()
    # Keys and values of what is settled are in the cache, those of its last token excepted.
    texts = [[one.row.prompt[-1], *one.row.tokens[:-1]][one.row.settled :] for _, one in active]
    decisions = [one.row.decisions() for _, one in active]
    allowed = sorted({token for row in decisions for _, children in row for token in children})
    batch = len(slots.rows)
    tokens_BN = np.zeros((batch, few_widths(max(map(len, texts)))), np.int32)
    where_BM = np.zeros((batch, round_up(max(map(len, decisions)), 64)), np.int32)
    columns_U = np.zeros(round_up(len(allowed), 8), np.int32)
    columns_U[: len(allowed)] = allowed
    start_B = np.zeros(batch, np.int32)
    for (slot, one), text, row in zip(active, texts, decisions, strict=True):
        tokens_BN[slot, : len(text)] = text
        where_BM[slot, : len(row)] = [at - one.row.settled for at, _ in row]
        start_B[slot] = len(one.row.prompt) - 1 + one.row.settled
    slots.cache, logits = decode.draft_logits(
        core.weights, slots.cache, tokens_BN, start_B, where_BM, columns_U, config=core.config
    )
    core.work.passes += 1
    core.work.slot_passes += batch
    core.work.busy_slot_passes += len(active)
    logits_BMU = np.asarray(logits)
    column = {token: index for index, token in enumerate(allowed)}
    return [(slot, one) for slot, one in active if one.row.improve(logits_BMU[slot], column)]
