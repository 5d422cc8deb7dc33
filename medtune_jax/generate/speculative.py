"""Exact speculation, the driver: greedy's own text in fewer passes.

One pass over a drafted continuation gives the model's scores behind every beginning of it. As long as the draft's next
token is the one that greedy chooses, it is accepted; greedy's choice behind the last accepted token is written too, so
that every pass writes at least one token (Leviathan, Kalman and Matias 2023, with the target's argmax and a draft that
no model made). What is written is therefore what greedy writes, whatever was drafted.

That holds for equal scores. A pass over many tokens may round otherwise than passes over one: in float32 the difference
is about 1e-6 of a logit and shows only where two tokens tie to that; in bfloat16 it is about 1e-2, and one text in many
does differ.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from medtune_jax.errors import UserError
from medtune_jax.generate import decode
from medtune_jax.generate.budget import Step
from medtune_jax.generate.core import Core, groups
from medtune_jax.generate.drafts import Guess
from medtune_jax.generate.free import OnText, Prompt, advance
from medtune_jax.generate.results import Generation, Results
from medtune_jax.generate.sampling import Beam, Greedy, Method, first_maximum
from medtune_jax.generate.slots import Slots
from medtune_jax.generate.template import NOT_FINITE, Row, common_prefix
from medtune_jax.generate.writing import Writing
from medtune_jax.model.llama import LlamaConfig, mask_padding, rms_norm
from medtune_jax.sharding import constrain

_WIDTH = 16  # tokens of a pass that has any draft, at least


@dataclass(eq=False)
class _Speculated:
    """A prompt under speculation."""

    row: Prompt
    guess: Guess
    writing: Writing
    passes: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def filled(self) -> Sequence[int]:
        return self.row.filled

    @property
    def need(self) -> int:
        return self.row.need

    def write(
        self, draft: Sequence[int], greedy: Sequence[int], eos_id: int, *, watched: bool
    ) -> tuple[str, Generation | None]:
        """Writes what a pass showed; returns what became final of the text, and the answer once it is whole.

        Args:
          greedy: greedy's choice behind each beginning of the draft, from the empty one to the whole.
          watched: whether the text is asked for before it is whole.

        Raises:
          UserError: the model's logits are not finite.
        """
        agreed = common_prefix(draft, greedy)
        new = list(greedy[: agreed + 1])
        if decode.NOT_A_TOKEN in new:
            raise UserError(NOT_FINITE)
        if eos_id in new:
            new = new[: new.index(eos_id) + 1]
        self.passes += 1
        self.drafted += len(draft)
        self.accepted += min(agreed, len(new))
        self.guess.learn(draft, greedy, new)
        piece, answer = advance(self.row, new, self.writing, eos_id, watched=watched)
        if answer is not None:
            answer = replace(answer, passes=self.passes, drafted=self.drafted, accepted=self.accepted)
        return piece, answer


def check(method: Method | Beam) -> None:
    """Raises UserError where a method has no drafts: only what is greedy can be foreseen."""
    if method != Greedy():
        raise UserError(f"Drafts serve greedy decoding, not {method}: leave --draft out, or use --decode=greedy.")


def generate(
    core: Core,
    rows: Sequence[Prompt],
    batch_size: int | None,
    skip: Collection[int],
    results: Results,
    *,
    stop: Sequence[str] = (),
    on_text: OnText | None = None,
    plan: Callable[[int], Row] | None = None,
) -> None:
    """Answers prompts with greedy's text (`Engine.generate`, `Engine.speculate_template`).

    plan: the index of a prompt -> its row as template decoding would have it, which is drafted from; None = drafts are
      looked up.
    """
    step = Step(_width(max((row.limit for row in rows), default=1)), block=decode.LOGITS)
    batch_size = core.batch_size(rows, batch_size, step=step, most=decode.most_drafts())
    prefixes = core.prefixes(rows)
    for group in groups(rows, batch_size, skip):
        speculated = [
            _Speculated(
                row,
                Guess(row.prompt, None if plan is None else plan(row.index)),
                Writing(core.continuation, row.prompt, stop),
            )
            for row in group
        ]
        slots = core.slots(speculated, batch_size, prefixes=prefixes)
        while slots.admit():
            active, drafts, greedy_BN = _verify(core, slots)
            for (slot, one), draft in zip(active, drafts, strict=True):
                accepted = one.accepted
                greedy = greedy_BN[slot, : 1 + len(draft)].tolist()
                piece, answer = one.write(draft, greedy, core.tokenizer.eos_id, watched=bool(stop or on_text))
                core.work.drafted += len(draft)
                core.work.accepted += one.accepted - accepted
                if on_text and piece and one.row.index not in skip:
                    on_text(one.row.index, piece)
                if answer:
                    results.add(one.row.index, answer)
                    slots.free(slot)


def _verify(core: Core, slots: Slots[_Speculated]) -> tuple[list[tuple[int, _Speculated]], list[list[int]], np.ndarray]:
    """Passes a draft in every taken slot; returns (slots and rows, their drafts, greedy's choices [B, N])."""
    active, batch = slots.active(), len(slots.rows)
    # The pass gives one token more than it is given.
    drafts = [one.guess.draft(one.row.limit - len(one.row.chosen) - 1) for _, one in active]
    tokens_BN = np.zeros((batch, _width(1 + max(map(len, drafts)))), np.int32)
    start_B = np.zeros(batch, np.int32)
    for (slot, one), draft in zip(active, drafts, strict=True):
        written = one.row.chosen[-1:] or one.row.prompt[-1:]
        tokens_BN[slot, : 1 + len(draft)] = [*written, *draft]
        start_B[slot] = len(one.row.prompt) + len(one.row.chosen) - 1
    slots.cache, x_BND = decode.draft_hidden(core.weights, slots.cache, tokens_BN, start_B, config=core.config)
    core.work.passes += 1
    core.work.slot_passes += batch
    core.work.busy_slot_passes += len(active)
    return active, drafts, np.asarray(_choices(core.weights, x_BND, config=core.config))


def _width(tokens: int) -> int:
    """Returns the width of a pass: 1 where nothing was drafted, else a power of two, so that programs are few."""
    return 1 if tokens <= 1 else max(_WIDTH, 1 << (tokens - 1).bit_length())


@partial(jax.jit, static_argnames=("config",))
def _choices(weights: decode.Weights, x_BND: jax.Array, *, config: LlamaConfig) -> jax.Array:
    """Returns greedy's token behind every position, int32 [B, N]; NOT_A_TOKEN where the logits are not finite."""

    def choose(x_BsD: jax.Array) -> jax.Array:
        hidden_BsD = rms_norm(x_BsD, weights.norm, config.rms_norm_eps)
        logits_BsV = mask_padding(jnp.matmul(hidden_BsD, weights.head, preferred_element_type=jnp.float32), config)
        finite_Bs = jnp.isfinite(jnp.max(logits_BsV, axis=-1))
        return jnp.where(finite_Bs, first_maximum(logits_BsV), decode.NOT_A_TOKEN)

    return constrain(decode.in_blocks(choose, x_BND), None, None)  # whole on every process: each reads it
