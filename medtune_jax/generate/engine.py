"""The engine: prompts in, texts out, over any mesh.

Rows wait in order of length, longest first, and are answered in the slots of one cache. Whenever enough slots are free,
the next rows are prefilled into them, so the batch stays full and nothing is recompiled for it. All shapes are rounded
up to a few sizes; `Engine.shapes` holds those met, one compilation each.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medtune_jax.data.prompts import Template
from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.errors import UserError
from medtune_jax.generate import decode
from medtune_jax.generate.planning import Planner
from medtune_jax.generate.sampling import Method
from medtune_jax.generate.slots import Slots, round_up
from medtune_jax.generate.template import NOT_FINITE, Row, TemplateRequest
from medtune_jax.model.llama import LlamaConfig, Params
from medtune_jax.sharding import BATCH_AXES

__all__ = ["Engine", "Generation", "TemplateRequest"]

_STEPS = 16  # tokens decoded between looks at which rows are done
_PLANNED = 256  # template rows planned and sorted by true length at a time

FinishReason = Literal["eos", "length", "constrained", "prompt_too_long"]
OnDone = Callable[[int, "Generation"], None]


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
      tokens: the ids written, EOS not included.
      text: what they add to the text of the prompt; under template decoding the row's output, without the template's
        frame around it.
      finish_reason: `eos`; `length` (max_new_tokens, or no position left); `constrained` (decoded by template);
        `prompt_too_long` (nothing was written).
      passes: forward passes after the prompt's: one per token in free decoding, one per draft in template decoding.
    """

    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    passes: int


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


class Engine:
    """Decodes with one model.

    Args:
      params: the tree of model/llama.py; cast and placed once, the engine keeps its own copy.
      mesh: weights and key-value heads are split over `tensor`, slots over the batch axes; None = one device.
      dtype: of weights, activations and cache; float32 is computed with matmul precision "highest".

    Attributes:
      shapes: the distinct shapes run so far, each compiled once: (function, sizes...).
    """

    def __init__(
        self,
        params: Params,
        config: LlamaConfig,
        tokenizer: Tokenizer,
        *,
        mesh: Mesh | None = None,
        dtype: Any = "float32",
    ):
        self.config = config
        self.tokenizer = tokenizer
        self.mesh = mesh
        self.dtype = jnp.dtype(dtype)
        self.shapes: set[tuple[Any, ...]] = set()
        self._weights = decode.decoding_weights(params, config, self.dtype, mesh)
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
        max_length: int | None = None,
        on_done: OnDone | None = None,
        progress: str | None = None,
    ) -> list[Generation]:
        """Continues prompts freely.

        Args:
          prompts: token ids, BOS included.
          max_new_tokens: tokens allowed, EOS included; one number or one per prompt.
          batch_size: slots decoded together.
          seed, rows: a prompt's randomness depends on seed and its number in `rows` (default: its index) alone.
          max_length: positions of prompt and answer together; default and most: config.max_positions.
          on_done: called as (index, generation) when a row is finished, in any order.
          progress: label of a progress line on stderr; None = none.

        Returns:
          one Generation per prompt, in order.

        Raises:
          UserError: the model's logits are not finite.
        """
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        most = min(max_length or self.config.max_positions, self.config.max_positions)
        results = _Results(len(prompts), on_done, progress)
        waiting = []
        for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            room = min(limit, most - len(prompt))
            if not prompt:
                raise ValueError(f"prompt {index} is empty: it must at least hold BOS")
            if most - len(prompt) < 1:
                results.add(index, Generation((), "", "prompt_too_long", 0))
            elif room < 1:
                results.add(index, Generation((), "", "length", 0))
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
                        results.add(row.index, Generation(tokens, text, "eos" if ended else "length", len(row.chosen)))
                        slots.free(slot)
        return results.finished()

    def decode_template(
        self,
        requests: Sequence[TemplateRequest],
        template: Template,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        on_done: OnDone | None = None,
        progress: str | None = None,
    ) -> list[Generation]:
        """Decodes rows whose outputs are known up to a few decisions (generate/template.py): constrained greedy.

        A row whose prompt and longest allowed output do not fit is `prompt_too_long`.

        Args:
          batch_size: drafts of one pass; `decode.most_drafts` may lower it.
          max_length: positions of prompt and output together, EOS included; default and most: config.max_positions.
          Others as in `generate`.

        Returns:
          one Generation per request, in order.
        """
        most = min(max_length or self.config.max_positions, self.config.max_positions)
        batch_size = min(batch_size, decode.most_drafts() or batch_size)
        results = _Results(len(requests), on_done, progress)
        with self._context(), results:
            feed = self._plan(requests, template, most, results)
            slots = self._slots(feed, len(requests), batch_size)
            while slots.admit():
                for slot, one in self._improve(slots):
                    text = one.request.allowed.text(one.row.options)
                    results.add(one.index, Generation(tuple(one.row.tokens[:-1]), text, "constrained", one.row.passes))
                    slots.free(slot)
        return results.finished()

    def _plan(
        self, requests: Sequence[TemplateRequest], template: Template, most: int, results: _Results
    ) -> Iterator[_Templated]:
        """Yields planned rows, about longest first; rows that do not fit are answered here."""
        planner = Planner(self.tokenizer, template)
        size = [len(template.prompt(r.instruction, r.input)) + len(r.input) for r in requests]
        order = sorted(range(len(requests)), key=lambda index: -size[index])
        for start in range(0, len(order), _PLANNED):
            planned = [_Templated(i, requests[i], planner.plan(requests[i])) for i in order[start : start + _PLANNED]]
            for one in sorted(planned, key=lambda one: -one.need):
                if one.need > most:
                    results.add(one.index, Generation((), "", "prompt_too_long", 0))
                else:
                    yield one

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
        self.shapes.add(("draft", *tokens_BN.shape, slots.length, where_BM.shape[1], len(columns_U)))
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
        self.shapes.add(("decode", batch, slots.length))
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
        batch = min(batch_size, 1 << max(0, rows - 1).bit_length())
        chunk = max(1, batch // 4 // self._ways) * self._ways
        batch = -(-batch // chunk) * chunk
        return Slots(self._weights, self.config, self.dtype, feed, batch, shapes=self.shapes, chunk=chunk)

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


class _Results:
    """Collects answers, tells `on_done`, and keeps the progress line."""

    def __init__(self, count: int, on_done: OnDone | None, label: str | None):
        self._answers: list[Generation | None] = [None] * count
        self._on_done = on_done
        self._label = label
        self._bar: Any = None
        self._tokens = 0
        self._started = time.monotonic()

    def __enter__(self) -> _Results:
        if self._label is not None:
            from tqdm import tqdm

            # On a terminal the line moves; in a log file it is written twice a minute.
            pause = 0.5 if sys.stderr.isatty() else 30
            self._bar = tqdm(total=len(self._answers), desc=self._label, unit="row", file=sys.stderr, mininterval=pause)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, index: int, answer: Generation) -> None:
        self._answers[index] = answer
        self._tokens += len(answer.tokens)
        if self._bar is not None:
            rate = self._tokens / max(1e-9, time.monotonic() - self._started)
            self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            self._bar.update()
        if self._on_done is not None:
            self._on_done(index, answer)

    def finished(self) -> list[Generation]:
        missing = [index for index, answer in enumerate(self._answers) if answer is None]
        assert not missing, f"rows {missing} were never answered"
        return [answer for answer in self._answers if answer is not None]
