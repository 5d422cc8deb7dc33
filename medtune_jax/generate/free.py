"""Free decoding, host side: every token is the model's own choice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from medtune_jax.errors import UserError
from medtune_jax.generate import decode
from medtune_jax.generate.core import Core, groups
from medtune_jax.generate.results import PROMPT_TOO_LONG, FinishReason, Generation, Results
from medtune_jax.generate.sampling import Method
from medtune_jax.generate.slots import Slots
from medtune_jax.generate.template import NOT_FINITE
from medtune_jax.generate.writing import Writing

_STEPS = 16  # tokens decoded at most between looks at which rows are done
_STREAMED = 4  # the same where the text is read as it is written

OnText = Callable[[int, str], None]


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
    batch_size: int | None,
    seed: int,
    skip: Collection[int],
    results: Results,
    *,
    stop: Sequence[str] = (),
    on_text: OnText | None = None,
) -> None:
    """Answers prompts freely (`Engine.generate`)."""
    batch_size, prefixes = core.batch_size(rows, batch_size), core.prefixes(rows)
    for group in groups(rows, batch_size, skip):
        slots = core.slots(group, batch_size, prefixes=prefixes)
        writings: dict[int, Writing] = {}
        while slots.admit():
            chosen_BN = _steps(core, slots, method, seed, _STREAMED if on_text else _STEPS)
            if (chosen_BN == decode.NOT_A_TOKEN).any():
                raise UserError(NOT_FINITE)
            for slot, row in slots.active():
                new = [token for token in chosen_BN[slot].tolist() if token >= 0]
                writing = writings.setdefault(row.index, Writing(core.continuation, row.prompt, stop))
                piece, answer = advance(row, new, writing, core.tokenizer.eos_id, watched=bool(stop or on_text))
                if on_text and piece and row.index not in skip:
                    on_text(row.index, piece)
                if answer:
                    core.work.busy_slot_passes -= len(row.chosen) - answer.passes  # those behind a stop string
                    results.add(row.index, answer)
                    slots.free(slot)
                    del writings[row.index]


def advance(
    row: Prompt, new: list[int], writing: Writing, eos_id: int, *, watched: bool
) -> tuple[str, Generation | None]:
    """Returns what became final of a row's text by more tokens, and the answer once it is whole.

    watched: whether the text is asked for before it is whole.
    """
    row.chosen += new
    ended = row.chosen[-1] == eos_id
    written = new[:-1] if ended else new
    writing.add(written)
    piece = writing.settle(len(written)) if watched else ""
    if (ended or len(row.chosen) == row.limit) and not writing.stopped:
        piece += writing.end()
    elif not writing.stopped:
        return piece, None
    tokens, passes = len(row.chosen) - ended, len(row.chosen)
    reason: FinishReason = "eos" if ended else "length"
    if writing.stopped:
        reason, (tokens, passes) = "stop", writing.counts()
    return piece, Generation(tuple(row.chosen[:tokens]), writing.text, reason, passes, tokens)


def _steps(core: Core, slots: Slots[Prompt], method: Method, seed: int, steps: int) -> np.ndarray:
    """Decodes up to `steps` tokens in every slot; returns them [B, steps], -1 where none."""
    batch = len(slots.rows)
    token_B, position_B, count_B, limit_B, rows_B = (np.zeros(batch, np.int32) for _ in range(5))
    texts_BT = None
    if method.repetition_penalty != 1:
        # Sent anew each time: little beside a step, and nothing has to be kept as rows come and go.
        texts_BT = np.full((batch, slots.length), core.config.padded_vocab, np.int32)
    for slot, row in slots.active():
        token_B[slot] = row.chosen[-1] if row.chosen else row.prompt[-1]
        position_B[slot] = len(row.prompt) + len(row.chosen) - 1
        count_B[slot], limit_B[slot], rows_B[slot] = len(row.chosen), row.limit, row.number
        if texts_BT is not None:
            texts_BT[slot, : position_B[slot] + 1] = [*row.prompt, *row.chosen]
    slots.cache, chosen_BN = decode.decode_steps(
        core.weights,
        slots.cache,
        token_B,
        position_B,
        count_B,
        limit_B,
        rows_B,
        np.uint32(seed % 2**32),
        texts_BT,
        np.int32(slots.enough),
        config=core.config,
        method=method,
        eos_id=core.tokenizer.eos_id,
        steps=steps,
    )
    chosen = np.asarray(chosen_BN)
    used = (chosen != -1).sum(axis=1)
    core.work.passes += int(used.max())
    core.work.slot_passes += int(used.max()) * batch
    core.work.busy_slot_passes += int(used.sum())
    return chosen
