"""Free decoding, host side: every token is the model's own choice."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from medtune_jax.errors import UserError
from medtune_jax.generate import decode
from medtune_jax.generate.core import Core, groups
from medtune_jax.generate.results import PROMPT_TOO_LONG, FinishReason, Generation, Results
from medtune_jax.generate.sampling import Method
from medtune_jax.generate.slots import Slots
from medtune_jax.generate.template import NOT_FINITE

_STEPS = 16  # tokens decoded between looks at which rows are done


@dataclass
class Prompt:
    """A prompt under free decoding; `chosen` grows.

    Attributes:
      limit: tokens that it may be given, EOS included; number: by which its draws are its own.
    """

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


def fitting(
    core: Core, prompts: Sequence[Sequence[int]], limits: Sequence[int], numbers: Sequence[int], results: Results
) -> list[Prompt]:
    """Returns the prompts that have room for an answer; the others are answered here."""
    rows = []
    for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        room = min(limit, core.config.max_positions - len(prompt))
        if not prompt:
            raise ValueError(f"prompt {index} is empty: it must at least hold BOS")
        if core.config.max_positions - len(prompt) < 1:
            results.add(index, PROMPT_TOO_LONG)
        elif room < 1:
            results.add(index, Generation((), "", "length", 0, 0))
        else:
            rows.append(Prompt(index, prompt, room, numbers[index], []))
    return rows


def generate(
    core: Core,
    rows: Sequence[Prompt],
    method: Method,
    batch_size: int,
    seed: int,
    skip: Collection[int],
    results: Results,
) -> None:
    """Answers prompts freely (`Engine.generate`)."""
    for group in groups(rows, batch_size, skip):
        _generate(core, group, method, batch_size, seed, results)


def _generate(
    core: Core, group: Sequence[Prompt], method: Method, batch_size: int, seed: int, results: Results
) -> None:
    slots = core.slots(group, batch_size)
    while slots.admit():
        chosen_BN = _steps(core, slots, method, seed)
        if (chosen_BN == decode.NOT_A_TOKEN).any():
            raise UserError(NOT_FINITE)
        for slot, row in slots.active():
            row.chosen += [token for token in chosen_BN[slot].tolist() if token >= 0]
            ended = row.chosen[-1] == core.tokenizer.eos_id
            if ended or len(row.chosen) == row.limit:
                tokens = tuple(row.chosen[:-1] if ended else row.chosen)
                text = core.continuation(row.prompt, tokens)
                reason: FinishReason = "eos" if ended else "length"
                results.add(row.index, Generation(tokens, text, reason, len(row.chosen), len(tokens)))
                slots.free(slot)


def _steps(core: Core, slots: Slots[Prompt], method: Method, seed: int) -> np.ndarray:
    """Decodes up to _STEPS tokens in every slot; returns them [B, _STEPS], -1 where none."""
    batch = len(slots.rows)
    token_B, position_B, count_B, limit_B, rows_B = (np.zeros(batch, np.int32) for _ in range(5))
    for slot, row in slots.active():
        token_B[slot] = row.chosen[-1] if row.chosen else row.prompt[-1]
        position_B[slot] = len(row.prompt) + len(row.chosen) - 1
        count_B[slot], limit_B[slot], rows_B[slot] = len(row.chosen), row.limit, row.number
    slots.cache, chosen_BN = decode.decode_steps(
        core.weights,
        slots.cache,
        token_B,
        position_B,
        count_B,
        limit_B,
        rows_B,
        np.uint32(seed % 2**32),
        config=core.config,
        method=method,
        eos_id=core.tokenizer.eos_id,
        steps=_STEPS,
    )
    chosen = np.asarray(chosen_BN)
    used = (chosen != -1).sum(axis=1)
    core.work.passes += int(used.max())
    core.work.slot_passes += int(used.max()) * batch
    core.work.busy_slot_passes += int(used.sum())
    return chosen
