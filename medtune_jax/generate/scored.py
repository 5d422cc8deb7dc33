"""Log-likelihoods, the driver: a prompt is computed once, its candidates are passed over its keys and values."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from medtune_jax.data.prompts import Template
from medtune_jax.errors import UserError
from medtune_jax.generate import decode
from medtune_jax.generate.core import Core
from medtune_jax.generate.likelihood import Candidates
from medtune_jax.generate.results import PROMPT_TOO_LONG, Generation, Results
from medtune_jax.generate.slots import Slots, round_up
from medtune_jax.generate.template import NOT_FINITE, TemplateRequest
from medtune_jax.generate.templated import planned


def loglikelihoods(
    core: Core,
    requests: Sequence[TemplateRequest],
    template: Template,
    batch_size: int | None,
    skip: Collection[int],
    results: Results,
) -> None:
    """Computes the log-likelihood of every allowed output of each row (`Engine.loglikelihoods`)."""
    if wrong := [request.name for request in requests if len(request.allowed.slots) != 1]:
        raise ValueError(f"{wrong[0]} allows more than the options of one slot")
    for found in planned(core, requests, template, skip):
        rows = sorted((Candidates(index, row) for index, row in found), key=lambda one: -one.need)
        fitting = [one for one in rows if one.need <= core.config.max_positions]
        for one in rows[: len(rows) - len(fitting)]:
            results.add(one.index, PROMPT_TOO_LONG)
        prefixes = core.prefixes(fitting)
        size, _ = core.batch(len(fitting), core.batch_size(fitting, batch_size, most=decode.most_drafts()))
        for start in range(0, len(fitting), size):
            batch = fitting[start : start + size]
            if not all(one.index in skip for one in batch):
                slots = core.slots(batch, size, of=len(fitting), prefixes=prefixes)
                for one, generation in zip(batch, _score(core, batch, slots), strict=True):
                    results.add(one.index, generation)


def _score(core: Core, batch: Sequence[Candidates], slots: Slots[Candidates]) -> list[Generation]:
    """Computes the candidates of the rows that a batch of slots holds at once."""
    slots.admit()
    size = len(slots.rows)
    tokens = sorted({token for one in batch for candidate in one.tokens for token in candidate})
    columns_U = np.zeros(round_up(len(tokens), 8), np.int32)
    columns_U[: len(tokens)] = tokens
    longest = round_up(1 + max(len(context) for one in batch for context in one.contexts), 8)
    where_BM = np.broadcast_to(np.arange(longest, dtype=np.int32), (size, longest))
    start_B = np.zeros(size, np.int32)
    passes = []
    for turn in range(max(len(one.contexts) for one in batch)):
        tokens_BN = np.zeros((size, longest), np.int32)
        for slot, one in enumerate(batch):
            context = one.contexts[min(turn, len(one.contexts) - 1)]
            tokens_BN[slot, : 1 + len(context)] = [one.row.prompt[-1], *context]
            start_B[slot] = len(one.row.prompt) - 1
        slots.cache, logprobs_BMU = decode.draft_logits(
            core.weights, slots.cache, tokens_BN, start_B, where_BM, columns_U, config=core.config, normalised=True
        )
        core.work.passes += 1
        core.work.slot_passes += size
        core.work.busy_slot_passes += sum(turn < len(one.contexts) for one in batch)
        passes.append(np.asarray(logprobs_BMU))
        # Padding behind a context is computed too, from whatever the cache holds; no row of it is looked at.
    column = {token: index for index, token in enumerate(tokens)}
    answers = [one.answer([found[slot] for found in passes], column) for slot, one in enumerate(batch)]
    if not all(math.isfinite(value) for one in answers for value in (one.loglikelihoods or {}).values()):
        raise UserError(NOT_FINITE)
    return answers
