"""Decoding by a grammar, the driver: every token is the best, or a draw, among those that the grammar permits.

In each pass the host says which tokens may stand next (matcher.py) and the device chooses among them. What is forced is
no decision: it goes through the model in the pass of the next decision, or with the prompt where the text begins by it.
The host's part comes between the device's passes, not beside them: of a pass of 32 rows 4 ms, of 256 rows 22 ms (32,000
pieces, extraction's grammar, 2 cores).

The model was tuned to write `template.completion(output)`, so what the template puts around the output belongs to the
grammar; mostly it is forced. The prompt is encoded alone, as in free decoding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from medtune_jax.data.prompts import Template
from medtune_jax.errors import UserError
from medtune_jax.generate import decode
from medtune_jax.generate.budget import Step
from medtune_jax.generate.cache import Cache
from medtune_jax.generate.core import Core, groups
from medtune_jax.generate.derivation import Derivation
from medtune_jax.generate.matcher import Language, Vocabulary, vocabulary_of
from medtune_jax.generate.results import PROMPT_TOO_LONG, Generation, Results
from medtune_jax.generate.sampling import Method, request_keys
from medtune_jax.generate.slots import Slots, round_up
from medtune_jax.generate.template import NOT_FINITE
from medtune_jax.generate.weights import Weights
from medtune_jax.model.llama import LlamaConfig
from medtune_jax.sharding import constrain
from medtune_jax.tasks.base import Grammar


@dataclass(frozen=True)
class GrammarRequest:
    """One prompt to be answered by a grammar.

    Attributes:
      prompt: token ids, BOS included.
      limit: tokens allowed, those of the template around the output included, EOS not.
      number: by which its draws are its own.
    """

    prompt: Sequence[int]
    grammar: Grammar
    limit: int
    number: int


@dataclass(eq=False)
class _Row:
    """A request on its way.

    Attributes:
      text: from the moment on at which the row's group is begun.
      sent: tokens of `text` that are in the cache or that the next pass brings there.
    """

    index: int
    request: GrammarRequest
    language: Language
    text: Derivation | None = None
    sent: int = 0
    passes: int = 0

    @property
    def begin(self) -> Sequence[int]:
        return self.language.begin[: self.request.limit]

    @property
    def filled(self) -> Sequence[int]:
        return [*self.request.prompt, *self.begin][:-1]

    @property
    def need(self) -> int:
        return len(self.request.prompt) + self.request.limit


def decode_grammar(
    core: Core,
    requests: Sequence[GrammarRequest],
    template: Template | None,
    method: Method,
    batch_size: int | None,
    seed: int,
    skip: Collection[int],
    results: Results,
) -> None:
    """Answers requests by their grammars (`Engine.decode_grammar`)."""
    if method.repetition_penalty != 1:
        raise UserError("A grammar's marks must be repeated: decode by a grammar without repetition penalty.")
    before, after = ("", "") if template is None else template.completion_form.split("{output}")
    vocabulary = vocabulary_of(core.tokenizer)
    rows = []
    for index, request in enumerate(requests):
        language = vocabulary.language(request.grammar, before, after)
        least = max(1, len(language.least))
        room = core.config.max_positions - len(request.prompt)
        if room < least:
            results.add(index, PROMPT_TOO_LONG)
        elif request.limit < least:
            results.add(index, Generation((), "", "length", 0, 0))
        else:
            rows.append(_Row(index, replace(request, limit=min(request.limit, room)), language))
    step = Step(max((row.request.limit for row in rows), default=1))
    batch_size, prefixes = core.batch_size(rows, batch_size, step=step), core.prefixes(rows)
    frame = slice(len(before), -len(after) or None)
    for group in groups(rows, batch_size, skip):
        for row in group:
            row.text, row.sent = Derivation(vocabulary, row.language, row.request.limit), len(row.begin)
        Derivation.settle(vocabulary, [row.text for row in group if row.text])
        waiting = []
        for row in group:
            if _text(row).done:
                results.add(row.index, _answer(row, vocabulary, frame))
            else:
                waiting.append(row)
        if not waiting:
            continue
        slots = core.slots(waiting, batch_size, of=len(group), prefixes=prefixes)
        while slots.admit():
            active = slots.active()
            for (_, row), token in zip(active, _pass(core, vocabulary, slots, method, seed), strict=True):
                _text(row).choose(token)
            Derivation.settle(vocabulary, [_text(row) for _, row in active if not _text(row).done])
            for slot, row in active:
                if _text(row).done:
                    results.add(row.index, _answer(row, vocabulary, frame))
                    slots.free(slot)


def _text(row: _Row) -> Derivation:
    assert row.text is not None, "a group's texts are begun before its slots"
    return row.text


def _unsent(row: _Row) -> Sequence[int]:
    """Returns the tokens that the next pass brings into the cache: at least the prompt's last or the one chosen."""
    tokens = _text(row).tokens
    return tokens[row.sent - 1 :] if row.sent else [row.request.prompt[-1], *tokens]


def _answer(row: _Row, vocabulary: Vocabulary, frame: slice) -> Generation:
    text = _text(row)
    if not text.complete:
        return Generation((), "", "length", row.passes, text.decisions)
    written = vocabulary.text(text.tokens)[frame]
    return Generation(tuple(text.tokens), written, "constrained", row.passes, text.decisions)


def _pass(core: Core, vocabulary: Vocabulary, slots: Slots[_Row], method: Method, seed: int) -> list[int]:
    """Brings what was written since the last pass into the cache; returns what is chosen next in every taken slot."""
    batch, active = len(slots.rows), slots.active()
    new = {slot: _unsent(row) for slot, row in active}
    widest = max(map(len, new.values()))
    tokens_BN = np.zeros((batch, 1 if widest == 1 else round_up(widest, 8)), np.int32)
    start_B, last_B, number_B, step_B = (np.zeros(batch, np.int32) for _ in range(4))
    mask_BW = np.zeros((batch, vocabulary.words), np.int32)
    for slot, row in active:
        text = _text(row)
        tokens_BN[slot, : len(new[slot])] = new[slot]
        start_B[slot] = len(row.request.prompt) + row.sent - 1
        last_B[slot] = len(new[slot]) - 1
        number_B[slot], step_B[slot] = row.request.number, text.decisions
        mask_BW[slot] = text.mask
        row.sent = len(text.tokens) + 1
        row.passes += 1
    choose = _choose_at_once if tokens_BN.shape[1] == 1 else _choose
    slots.cache, chosen_B = choose(
        core.weights,
        slots.cache,
        tokens_BN,
        start_B,
        last_B,
        mask_BW,
        number_B,
        step_B,
        np.uint32(seed % 2**32),
        config=core.config,
        method=method,
    )
    core.work.passes += 1
    core.work.slot_passes += batch
    core.work.busy_slot_passes += len(active)
    chosen = np.asarray(chosen_B)[[slot for slot, _ in active]].tolist()
    if decode.NOT_A_TOKEN in chosen:
        raise UserError(NOT_FINITE)
    return chosen


def _choose(
    weights: Weights,
    cache: Cache,
    tokens_BN: np.ndarray,
    start_B: np.ndarray,
    last_B: np.ndarray,
    mask_BW: np.ndarray,
    number_B: np.ndarray,
    step_B: np.ndarray,
    seed: np.uint32,
    *,
    config: LlamaConfig,
    method: Method,
) -> tuple[Cache, jax.Array]:
    """One pass over new tokens; chooses what follows the last of each row, among what its mask permits.

    Args:
      tokens_BN, start_B: as `decode.draft_logits` takes them; last_B: index into N of each row's last token.
      mask_BW: int32, a bit per token, the lowest first.
      number_B, step_B: of `request_keys`.

    Returns:
      (cache, int32 [B]; NOT_A_TOKEN where the logits are not finite).
    """
    cache, x_BND = decode.draft_hidden(weights, cache, tokens_BN, start_B, config=config)
    return cache, _pick(weights, x_BND, last_B, mask_BW, number_B, step_B, seed, config=config, method=method)


# A step of one token is short against the dispatch of its layers: it is one program.
_choose_at_once = jax.jit(_choose, static_argnames=("config", "method"), donate_argnames=("cache",))


@partial(jax.jit, static_argnames=("config", "method"))
def _pick(
    weights: Weights,
    x_BND: jax.Array,
    last_B: jax.Array,
    mask_BW: jax.Array,
    number_B: jax.Array,
    step_B: jax.Array,
    seed: jax.Array,
    *,
    config: LlamaConfig,
    method: Method,
) -> jax.Array:
    x_BD = jnp.take_along_axis(x_BND, last_B[:, None, None], axis=1)[:, 0]
    logits_BV = decode.vocabulary_logits(weights, x_BD, config)
    bits_BV = (mask_BW[:, :, None] >> jnp.arange(32) & 1).reshape(len(mask_BW), -1)
    missing = max(0, logits_BV.shape[1] - bits_BV.shape[1])  # embeddings beyond the tokenizer are never chosen
    permitted_BV = jnp.pad(bits_BV, ((0, 0), (0, missing)))[:, : logits_BV.shape[1]] == 1
    chosen_B = method(request_keys(seed, number_B, step_B), jnp.where(permitted_BV, logits_BV, -jnp.inf))
    finite_B = jnp.isfinite(jnp.max(logits_BV, axis=-1))
    return constrain(jnp.where(finite_B, chosen_B, decode.NOT_A_TOKEN), None)  # whole on every process: each reads it
