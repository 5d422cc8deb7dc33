"""The engine: prompts in, texts out, over any mesh.

Rows wait in order of length, longest first, and are answered in the slots of one cache. Whenever enough slots are free,
the next rows are prefilled into them, so the batch stays full and nothing is recompiled for it. All shapes are rounded
up to a few sizes, one compilation each.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medtune_jax.data.prompts import Template
from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.errors import UserError
from medtune_jax.generate import decode
from medtune_jax.generate.likelihood import Candidates
from medtune_jax.generate.planning import Planner
from medtune_jax.generate.results import PROMPT_TOO_LONG, FinishReason, Generation, OnDone, Results
from medtune_jax.generate.sampling import Method
from medtune_jax.generate.slots import Slots, round_up
from medtune_jax.generate.template import NOT_FINITE, Row, TemplateRequest
from medtune_jax.model.llama import LlamaConfig, Params
from medtune_jax.model.lora import LoraAdapter
from medtune_jax.sharding import BATCH_AXES

__all__ = ["Engine", "Generation", "TemplateRequest"]

_STEPS = 16  # tokens decoded between looks at which rows are done
_PLANNED = 256  # template rows planned and sorted by true length at a time


@dataclass
class _Free:
    """A prompt under free decoding; `chosen` grows."""

    index: int
    prompt: Sequence[int]
    limit: int
    number: int
    chosen: list[int]

    @property
    def filled(self) -> Sequence[int]:
        return self.prompt[:-1]

    @property
    def need(self) -> int:
        return len(self.prompt) + self.limit


@dataclass
class _Templated:
    """A row under template decoding."""

    index: int
    request: TemplateRequest
    row: Row

    @property
    def filled(self) -> Sequence[int]:
        return self.row.prompt[:-1]

    @property
    def need(self) -> int:
        return self.row.longest

    def answer(self) -> Generation:
        options, tokens = self.row.options, tuple(self.row.tokens[:-1])
        text, decisions = self.request.allowed.text(options), sum(option != "" for option in options)
        return Generation(tokens, text, "constrained", self.row.passes, decisions)


class Engine:
    """Decodes with one model.

    Args:
      params: the tree of model/llama.py; cast and placed once, the engine keeps its own copy.
      adapter: merged into that copy.
      mesh: weights and key-value heads are split over `tensor`, slots over the batch axes; None = one device.
      dtype: of weights, activations and cache; float32 is computed with matmul precision "highest".
    """

    def __init__(
        self,
        params: Params,
        config: LlamaConfig,
        tokenizer: Tokenizer,
        *,
        mesh: Mesh | None = None,
        dtype: Any = "float32",
        adapter: LoraAdapter | None = None,
    ):
        self.config = config
        self.tokenizer = tokenizer
        self.mesh = mesh
        self.dtype = jnp.dtype(dtype)
        self._weights = decode.decoding_weights(params, config, self.dtype, mesh, adapter)
        self._ways = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        method: Method,
        max_new_tokens: int | Sequence[int],
        batch_size: int = 32,
        seed: int = 0,
        rows: Sequence[int] | None = None,
        on_done: OnDone | None = None,
        progress: str | None = None,
    ) -> list[Generation]:
        """Continues prompts freely.

        Args:
          prompts: token ids, BOS included.
          max_new_tokens: tokens allowed, EOS included; one number or one per prompt.
          batch_size: slots decoded together.
          seed, rows: a prompt's randomness depends on seed and its number in `rows` (default: its index) alone.
          on_done: called as (index, generation) when a row is finished, in any order.
          progress: label of a progress line on stderr; None = none.

        Returns:
          one Generation per prompt, in order.

        Raises:
          UserError: the model's logits are not finite.
        """
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        results = Results(len(prompts), on_done, progress)
        waiting = []
        for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            room = min(limit, self.config.max_positions - len(prompt))
            if not prompt:
                raise ValueError(f"prompt {index} is empty: it must at least hold BOS")
            if self.config.max_positions - len(prompt) < 1:
                results.add(index, PROMPT_TOO_LONG)
            elif room < 1:
                results.add(index, Generation((), "", "length", 0, 0))
            else:
                waiting.append(_Free(index, prompt, room, index if rows is None else rows[index], []))
        waiting.sort(key=lambda row: -row.need)
        with self._context(), results:
            slots = self._slots(iter(waiting), len(waiting), batch_size)
            while slots.admit():
                chosen_BN = self._steps(slots, method, seed)
                if (chosen_BN == decode.NOT_A_TOKEN).any():
                    raise UserError(NOT_FINITE)
                for slot, row in slots.active():
                    row.chosen += [token for token in chosen_BN[slot].tolist() if token >= 0]
                    ended = row.chosen[-1] == self.tokenizer.eos_id
                    if ended or len(row.chosen) == row.limit:
                        tokens = tuple(row.chosen[:-1] if ended else row.chosen)
                        text = self._continuation(row.prompt, tokens)
                        reason: FinishReason = "eos" if ended else "length"
                        results.add(row.index, Generation(tokens, text, reason, len(row.chosen), len(tokens)))
                        slots.free(slot)
        return results.finished()

    def decode_template(
        self,
        requests: Sequence[TemplateRequest],
        template: Template,
        *,
        batch_size: int = 32,
        on_done: OnDone | None = None,
    ) -> list[Generation]:
        """Decodes rows whose outputs are known up to a few decisions (generate/template.py): constrained greedy.

        A row whose prompt and longest allowed output do not fit is `prompt_too_long`.

        Args:
          batch_size: drafts of one pass; `decode.most_drafts` may lower it.
          Others as in `generate`.

        Returns:
          one Generation per request, in order.
        """
        batch_size = min(batch_size, decode.most_drafts() or batch_size)
        results = Results(len(requests), on_done)
        with self._context(), results:
            slots = self._slots(self._plan(requests, template, results), len(requests), batch_size)
            while slots.admit():
                for slot, one in self._improve(slots):
                    results.add(one.index, one.answer())
                    slots.free(slot)
        return results.finished()

    def loglikelihoods(
        self,
        requests: Sequence[TemplateRequest],
        template: Template,
        *,
        batch_size: int = 32,
        skip: Collection[int] = (),
        on_done: OnDone | None = None,
    ) -> dict[int, Generation]:
        """Computes the log-likelihood of every allowed output of each row (generate/likelihood.py).

        A prompt is computed once, its candidates are passed over its keys and values; float32 log-softmax over the
        whole vocabulary. Which rows share a batch depends on all requests alone, so that a value is the same to the
        last bit whichever rows are skipped.

        Args:
          requests: each allows the options of one slot.
          batch_size: as in `decode_template`.
          skip: indices of requests that need no answer.
          on_done: called as (index, generation) when a row is finished, in any order.

        Returns:
          index -> Generation: the likeliest output (of equals the first) and the log-likelihoods of all; or
          `prompt_too_long`.

        Raises:
          UserError: the model's logits are not finite.
        """
        if wrong := [request.name for request in requests if len(request.allowed.slots) != 1]:
            raise ValueError(f"{wrong[0]} allows more than the options of one slot")
        size, chunk = self._batch(len(requests), min(batch_size, decode.most_drafts() or batch_size))
        found: dict[int, Generation] = {}

        def done(index: int, generation: Generation) -> None:
            if index not in skip:
                found[index] = generation
                if on_done is not None:
                    on_done(index, generation)

        with self._context():
            for planned in self._planned(requests, template, skip):
                rows = sorted((Candidates(index, row) for index, row in planned), key=lambda one: -one.need)
                fitting = [one for one in rows if one.need <= self.config.max_positions]
                for one in rows[: len(rows) - len(fitting)]:
                    done(one.index, PROMPT_TOO_LONG)
                for start in range(0, len(fitting), size):
                    batch = fitting[start : start + size]
                    if not all(one.index in skip for one in batch):
                        for one, generation in zip(batch, self._score(batch, size, chunk), strict=True):
                            done(one.index, generation)
        return found

    def _planned(
        self, requests: Sequence[TemplateRequest], template: Template, skip: Collection[int] = ()
    ) -> Iterator[list[tuple[int, Row]]]:
        """Yields the planned rows with their indices, some hundred at a time, about longest first; groups of which
        every row is skipped are left out."""
        planner = Planner(self.tokenizer, template)
        size = [len(template.prompt(r.instruction, r.input)) + len(r.input) for r in requests]
        order = sorted(range(len(requests)), key=lambda index: -size[index])
        for start in range(0, len(order), _PLANNED):
            group = order[start : start + _PLANNED]
            if not all(index in skip for index in group):
                yield [(index, planner.plan(requests[index])) for index in group]

    def _plan(self, requests: Sequence[TemplateRequest], template: Template, results: Results) -> Iterator[_Templated]:
        """Yields planned rows, about longest first; rows that do not fit are answered here."""
        for planned in self._planned(requests, template):
            group = [_Templated(index, requests[index], row) for index, row in planned]
            for one in sorted(group, key=lambda one: -one.need):
                if one.need > self.config.max_positions:
                    results.add(one.index, PROMPT_TOO_LONG)
                else:
                    yield one

    def _score(self, batch: Sequence[Candidates], size: int, chunk: int) -> list[Generation]:
        """Computes the candidates of up to `size` rows, prefilled `chunk` at a time."""
        slots = Slots(self._weights, self.config, self.dtype, iter(batch), size, chunk=chunk)
        slots.admit()
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
                self._weights, slots.cache, tokens_BN, start_B, where_BM, columns_U, config=self.config, normalised=True
            )
            passes.append(np.asarray(logprobs_BMU))
            # Padding behind a context is computed too, from whatever the cache holds; no row of it is looked at.
        column = {token: index for index, token in enumerate(tokens)}
        answers = [one.answer([found[slot] for found in passes], column) for slot, one in enumerate(batch)]
        if not all(math.isfinite(value) for one in answers for value in (one.loglikelihoods or {}).values()):
            raise UserError(NOT_FINITE)
        return answers

    def _improve(self, slots: Slots[_Templated]) -> list[tuple[int, _Templated]]:
        """Runs one pass over every slot's draft; returns (slot, row) of those that are final."""
        active = slots.active()
        texts = [one.row.tokens for _, one in active]
        decisions = [one.row.decisions() for _, one in active]
        allowed = sorted({token for row in decisions for _, children in row for token in children})
        batch = len(slots.rows)
        tokens_BN = np.zeros((batch, round_up(max(map(len, texts)), 64)), np.int32)
        where_BM = np.zeros((batch, round_up(max(map(len, decisions)), 64)), np.int32)
        columns_U = np.zeros(round_up(len(allowed), 8), np.int32)
        columns_U[: len(allowed)] = allowed
        start_B = np.zeros(batch, np.int32)
        for (slot, one), text, row in zip(active, texts, decisions, strict=True):
            tokens_BN[slot, : len(text)] = [one.row.prompt[-1], *text[:-1]]
            where_BM[slot, : len(row)] = [at for at, _ in row]
            start_B[slot] = len(one.row.prompt) - 1
        slots.cache, logits = decode.draft_logits(
            self._weights, slots.cache, tokens_BN, start_B, where_BM, columns_U, config=self.config
        )
        logits_BMU = np.asarray(logits)
        column = {token: index for index, token in enumerate(allowed)}
        return [(slot, one) for slot, one in active if one.row.improve(logits_BMU[slot], column)]

    def _steps(self, slots: Slots[_Free], method: Method, seed: int) -> np.ndarray:
        """Decodes up to _STEPS tokens in every slot; returns them [B, _STEPS], -1 where none."""
        batch = len(slots.rows)
        token_B, position_B, count_B, limit_B, rows_B = (np.zeros(batch, np.int32) for _ in range(5))
        for slot, row in slots.active():
            token_B[slot] = row.chosen[-1] if row.chosen else row.prompt[-1]
            position_B[slot] = len(row.prompt) + len(row.chosen) - 1
            count_B[slot], limit_B[slot], rows_B[slot] = len(row.chosen), row.limit, row.number
        slots.cache, chosen_BN = decode.decode_steps(
            self._weights,
            slots.cache,
            token_B,
            position_B,
            count_B,
            limit_B,
            rows_B,
            np.uint32(seed % 2**32),
            config=self.config,
            method=method,
            eos_id=self.tokenizer.eos_id,
            steps=_STEPS,
        )
        return np.asarray(chosen_BN)

    def _slots(self, feed: Iterator[Any], rows: int, batch_size: int) -> Slots[Any]:
        batch, chunk = self._batch(rows, batch_size)
        return Slots(self._weights, self.config, self.dtype, feed, batch, chunk=chunk)

    def _batch(self, rows: int, batch_size: int) -> tuple[int, int]:
        """Returns (slots, how many of them are prefilled together)."""
        batch = min(batch_size, 1 << max(0, rows - 1).bit_length())
        chunk = max(1, batch // 4 // self._ways) * self._ways
        return -(-batch // chunk) * chunk, chunk

    def _continuation(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Returns what `tokens` add to the prompt's text (alone, they would lose a leading space)."""
        before = self.tokenizer.decode(prompt)
        whole = self.tokenizer.decode([*prompt, *tokens])
        return whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(tokens)

    @contextlib.contextmanager
    def _context(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.mesh is not None:
                stack.enter_context(jax.set_mesh(self.mesh))
            if self.dtype == jnp.float32:
                stack.enter_context(jax.default_matmul_precision("highest"))
            yield
