"""The engine: prompts in, texts out, over any mesh.

Rows are answered in the slots of one cache, longest first. Whenever enough slots are free, the next rows are prefilled
into them, so the batch stays full and nothing is recompiled for it. All shapes are rounded up to a few sizes, one
compilation each. The ways of answering are modules of their own; core.py names them.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax.numpy as jnp
from jax.sharding import Mesh

from medtune_jax.data.encode import encode_prompt
from medtune_jax.data.prompts import Template
from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.errors import UserError
from medtune_jax.generate import agreement, beams, free, grammar, scored, speculative, templated
from medtune_jax.generate.agreement import TemplateCheck
from medtune_jax.generate.core import Core, Work
from medtune_jax.generate.free import OnText
from medtune_jax.generate.grammar import GrammarRequest
from medtune_jax.generate.planning import Planner
from medtune_jax.generate.results import Generation, OnDone, Results
from medtune_jax.generate.sampling import Beam, Greedy, Method
from medtune_jax.generate.template import Row, TemplateRequest
from medtune_jax.generate.weights import decoding_weights
from medtune_jax.generate.writing import stop_strings
from medtune_jax.model.llama import LlamaConfig, Params
from medtune_jax.model.lora import LoraAdapter

__all__ = ["Engine", "Generation", "GrammarRequest", "TemplateRequest"]


class Engine:
    """Decodes with one model.

    Args:
      params: the tree of model/llama.py; cast and placed once, the engine keeps its own copy.
      donate: give `params` up for it, so that they are not held twice.
      adapter: merged into that copy.
      mesh: weights and key-value heads are split over `tensor`, slots over the batch axes; None = one device.
      dtype: of weights, activations and cache; float32 is computed with matmul precision "highest".
      cache_dtype: "int8" holds keys and values in a byte each (generate/cache.py); None = `dtype`.
      cache_bytes: what the cache may take of each device; None = what is free beside the weights (generate/budget.py).
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
        donate: bool = False,
        cache_dtype: str | None = None,
        cache_bytes: int | None = None,
    ):
        if cache_dtype not in (None, "int8"):
            raise UserError(f"cache_dtype '{cache_dtype}' is not known: int8, or none for the model's own dtype.")
        self.config = config
        self.tokenizer = tokenizer
        weights = decoding_weights(params, config, jnp.dtype(dtype), mesh, adapter, donate=donate)
        self._core = Core(
            weights, config, tokenizer, mesh, jnp.dtype(dtype), cache_dtype=cache_dtype, cache_bytes=cache_bytes
        )

    @property
    def work(self) -> Work:
        """What was computed so far."""
        return self._core.work

    @property
    def free_bytes(self) -> float:
        """What caches may take of each device, found when it is first asked for; by all processes together."""
        return self._core.budget.size

    def keep_budget(self, free_bytes: float) -> None:
        """Sizes caches as if so much were free: as at the first start of a run that is continued.

        Where they no longer fit, that is refused as a batch size would be. A cache of given bytes is what it is.
        """
        if self._core.cache_bytes is None:
            self._core = replace(self._core, kept_budget=free_bytes)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        method: Method | Beam,
        max_new_tokens: int | Sequence[int],
        batch_size: int | None = None,
        seed: int = 0,
        rows: Sequence[int] | None = None,
        stop: Sequence[str] = (),
        draft: Literal["prompt"] | None = None,
        skip: Collection[int] = (),
        on_done: OnDone | None = None,
        on_text: OnText | None = None,
        progress: str | None = None,
    ) -> list[Generation]:
        """Continues prompts freely.

        Args:
          prompts: token ids, BOS included.
          max_new_tokens: tokens allowed, EOS included; one number or one per prompt.
          batch_size: slots decoded together; None = as many as fit, up to a default of the device (budget.py).
          seed, rows: a prompt's randomness depends on seed and its number in `rows` (default: its index) alone.
          stop: strings that end a text: it goes up to the first that is complete, wherever the borders of its tokens
            lie. What stands in the prompt ends nothing.
          draft: "prompt" = write greedy's text in fewer passes, by verifying what stood behind the same tokens before
            (generate/speculative.py).
          skip: indices of prompts that need no answer. Which rows share a batch does not depend on it (core.py), so
            that an answer is the same to the last bit whichever rows are skipped.
          on_done: called as (index, generation) when a row is finished, in any order.
          on_text: called as (index, new text) while rows are written. The pieces of a row make up its text; none holds
            half a character or what may become a stop string.
          progress: label of a progress line on stderr; None = none.

        Returns:
          one Generation per prompt that is not skipped, in order.

        Raises:
          UserError: the cache does not fit (budget.py); the model's logits are not finite; a draft for another method
            than plain greedy; an empty stop string; stop strings or on_text with beam search.
        """
        if draft is not None:
            speculative.check(method)
        stop = stop_strings(stop)
        if (stop or on_text) and isinstance(method, Beam):
            raise UserError("Beam search knows its text at the end only: it takes no stop strings and streams nothing.")
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        results = Results(len(prompts), skip, on_done, progress)
        with self._core.context(), results:
            waiting = free.fitting(self._core, prompts, limits, range(len(prompts)) if rows is None else rows, results)
            if draft is not None:
                speculative.generate(self._core, waiting, batch_size, skip, results, stop=stop, on_text=on_text)
            elif isinstance(method, Beam):
                beams.search(self._core, waiting, method, batch_size, skip, results)
            else:
                free.generate(self._core, waiting, method, batch_size, seed, skip, results, stop=stop, on_text=on_text)
        return results.finished()

    def speculate_template(
        self,
        requests: Sequence[TemplateRequest],
        template: Template,
        *,
        max_new_tokens: int | Sequence[int],
        batch_size: int | None = None,
        stop: Sequence[str] = (),
        skip: Collection[int] = (),
        on_done: OnDone | None = None,
    ) -> list[Generation]:
        """Writes greedy's text, whatever it is, with the rows' allowed outputs as drafts (generate/speculative.py).

        Args:
          Others, what is returned and what is raised, as in `generate`.
        """
        prompts = [
            array("i", encode_prompt(self.tokenizer, template, r.instruction, r.input, r.preface)) for r in requests
        ]
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        results = Results(len(prompts), skip, on_done)
        with self._core.context(), results:
            waiting = free.fitting(self._core, prompts, limits, range(len(prompts)), results)
            planner = Planner(self.tokenizer, template)

            def plan(index: int) -> Row:
                return planner.plan(requests[index])

            speculative.generate(self._core, waiting, batch_size, skip, results, stop=stop_strings(stop), plan=plan)
        return results.finished()

    def decode_template(
        self,
        requests: Sequence[TemplateRequest],
        template: Template,
        *,
        batch_size: int | None = None,
        skip: Collection[int] = (),
        on_done: OnDone | None = None,
    ) -> list[Generation]:
        """Decodes rows whose outputs are known up to a few decisions (generate/template.py): constrained greedy.

        A row whose prompt and longest allowed output do not fit is `prompt_too_long`.

        Args:
          batch_size: drafts of one pass; `decode.most_drafts` may lower it. None as in `generate`.
          Others, and what is returned, as in `generate`.
        """
        results = Results(len(requests), skip, on_done)
        with self._core.context(), results:
            templated.decode_template(self._core, requests, template, batch_size, skip, results)
        return results.finished()

    def check_template(
        self,
        requests: Sequence[TemplateRequest],
        template: Template,
        answers: Sequence[Generation],
        *,
        batch_size: int = 8,
    ) -> TemplateCheck:
        """Decodes rows again under the same constraint, one token in each pass, and compares (generate/agreement.py).

        Args:
          requests, answers: of `decode_template`, in the same order; a sample, for there are as many passes as tokens.
        """
        with self._core.context():
            return agreement.check_template(self._core, requests, template, answers, batch_size)

    def decode_grammar(
        self,
        requests: Sequence[GrammarRequest],
        template: Template | None,
        *,
        method: Method = Greedy(),  # noqa: B008 - frozen
        batch_size: int | None = None,
        seed: int = 0,
        skip: Collection[int] = (),
        on_done: OnDone | None = None,
        progress: str | None = None,
    ) -> list[Generation]:
        """Decodes token by token within a grammar (generate/grammar.py): `constrained` answers are texts of it.

        A text that reaches its limit is closed within it. Where the limit does not hold the grammar's least text (as
        found: a short one) the answer is empty and its reason `length`; where the positions do not, `prompt_too_long`.

        Args:
          template: whose completion is written around the output, and is no part of the answer's text; None = nothing.
          method: greedy, or a draw from what the grammar permits; no repetition penalty.
          Others, and what is returned, as in `generate`.

        Raises:
          UserError: as in `generate`; llguidance is missing or does not take a grammar; no text of a grammar was
            found, to close by; a tokenizer whose pieces are not parts of a text.
        """
        results = Results(len(requests), skip, on_done, progress)
        with self._core.context(), results:
            grammar.decode_grammar(self._core, requests, template, method, batch_size, seed, skip, results)
        return results.finished()

    def loglikelihoods(
        self,
        requests: Sequence[TemplateRequest],
        template: Template,
        *,
        batch_size: int | None = None,
        skip: Collection[int] = (),
        on_done: OnDone | None = None,
    ) -> list[Generation]:
        """Computes the log-likelihood of every allowed output of each row (generate/likelihood.py).

        float32 log-softmax over the whole vocabulary.

        Args:
          requests: each allows the options of one slot.
          batch_size: as in `decode_template`.
          Others as in `generate`.

        Returns:
          per request that is not skipped, in order: the likeliest output (of equals the first) and the log-likelihoods
          of all; or `prompt_too_long`.

        Raises:
          UserError: the model's logits are not finite.
        """
        results = Results(len(requests), skip, on_done)
        with self._core.context(), results:
            scored.loglikelihoods(self._core, requests, template, batch_size, skip, results)
        return results.finished()
