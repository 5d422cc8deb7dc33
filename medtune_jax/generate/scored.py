"""Log-likelihoods, the driver: a prompt is computed once, its candidates are passed over its keys and values."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from medtune_jax.data.prompts import Template
from medtune_jax.errors import UserError
from medtune_jax.generate import decode
from medtune_jax.generate.budget import Step
from medtune_jax.generate.core import Core, fitting
from medtune_jax.generate.likelihood import Candidates
from medtune_jax.generate.results import Generation, Results
from medtune_jax.generate.slots import Slots, round_up
from medtune_jax.generate.template import NOT_FINITE, TemplateRequest
from medtune_jax.generate.templated import planned
from medtune_jax.model.llama import LlamaConfig, mask_padding, rms_norm
from medtune_jax.sharding import constrain


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
    with closing(planned(core, requests, template, skip)) as groups:
        for found in groups:
            rows = fitting(core, (Candidates(index, row) for index, row in found), results)
            prefixes = core.prefixes(rows)
            step = Step(max((_width([one]) for one in rows), default=1), block=decode.LOGITS)
            most = decode.most_drafts(step.tokens)
            size, _ = core.batch(len(rows), core.batch_size(rows, batch_size, step=step, most=most))
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                if not all(one.index in skip for one in batch):
                    slots = core.slots(batch, size, of=len(rows), prefixes=prefixes)
                    for one, generation in zip(batch, _score(core, batch, slots), strict=True):
                        results.add(one.index, generation)


def _score(core: Core, batch: Sequence[Candidates], slots: Slots[Candidates]) -> list[Generation]:
    """Computes the candidates of the rows that a batch of slots holds at once."""
    slots.admit()
    size = len(slots.rows)
    columns = [{token: index for index, token in enumerate(sorted(set().union(*one.tokens)))} for one in batch]
    targets_BU = np.zeros((size, round_up(max(map(len, columns)), 8)), np.int32)
    for slot, column in enumerate(columns):
        targets_BU[slot, : len(column)] = list(column)
    width, start_B = _width(batch), np.zeros(size, np.int32)
    passes = []
    for turn in range(max(len(one.contexts) for one in batch)):
        tokens_BN = np.zeros((size, width), np.int32)
        for slot, one in enumerate(batch):
            context = one.contexts[min(turn, len(one.contexts) - 1)]
            tokens_BN[slot, : 1 + len(context)] = [one.row.prompt[-1], *context]
            start_B[slot] = len(one.row.prompt) - 1
        slots.cache, x_BND = decode.draft_hidden(core.weights, slots.cache, tokens_BN, start_B, config=core.config)
        logprobs_BNU = _logprobs(core.weights, x_BND, targets_BU, config=core.config)
        core.work.passes += 1
        core.work.slot_passes += size
        core.work.busy_slot_passes += sum(turn < len(one.contexts) for one in batch)
        passes.append(np.asarray(logprobs_BNU))
        # Padding behind a context is computed too, from whatever the cache holds; no row of it is looked at.
    answers = [one.answer([found[slot] for found in passes], columns[slot]) for slot, one in enumerate(batch)]
    if not all(math.isfinite(value) for one in answers for value in (one.loglikelihoods or {}).values()):
        raise UserError(NOT_FINITE)
    return answers


def _width(batch: Sequence[Candidates]) -> int:
    """Returns how many tokens a pass over any context of these rows holds; 1 where all candidates are single tokens."""
    longest = 1 + max(len(context) for one in batch for context in one.contexts)
    return 1 if longest == 1 else round_up(longest, 8)


@partial(jax.jit, static_argnames=("config",))
def _logprobs(weights: decode.Weights, x_BND: jax.Array, targets_BU: jax.Array, *, config: LlamaConfig) -> jax.Array:
    """Returns float32 log-probabilities [B, N, U] behind every position: of each row, those of its own tokens."""

    def score(x_BsD: jax.Array) -> jax.Array:
        hidden_BsD = rms_norm(x_BsD, weights.norm, config.rms_norm_eps)
        logits_BsV = mask_padding(jnp.matmul(hidden_BsD, weights.head, preferred_element_type=jnp.float32), config)
        total_Bs1 = jax.nn.logsumexp(logits_BsV, axis=-1, keepdims=True)
        return jnp.take_along_axis(logits_BsV, targets_BU[:, None], axis=-1) - total_Bs1

    return constrain(decode.in_blocks(score, x_BND), None, None, None)  # whole on every process: each reads it
