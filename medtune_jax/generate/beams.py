"""Beam search, host side: which texts the beams wrote, of what the device tells of its steps (beam_steps.py)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from medtune_jax.errors import UserError
from medtune_jax.generate.beam_steps import NEVER, Steps, beam_steps
from medtune_jax.generate.budget import Step, default_slots
from medtune_jax.generate.core import Core, groups
from medtune_jax.generate.free import Prompt
from medtune_jax.generate.results import Alternative, FinishReason, Generation, Results
from medtune_jax.generate.sampling import Beam
from medtune_jax.generate.slots import Slots
from medtune_jax.generate.template import NOT_FINITE

_STEPS = 16  # tokens written between looks at which rows are done
_MOST_DOUBLINGS = 90  # of a score by its length: NEVER times so much is still a float32, and a divisor by it no zero


@dataclass
class Search:
    """A prompt under beam search, n beams.

    Attributes:
      limit: tokens that it may be given, EOS included; written: tokens written so far.
      text_nL, beam_nL: the unfinished texts, and which beam computed each position of their past; [n, limit], of which
        the first `written` are set. score_n: sums of their log-probabilities.
      finished: (score, tokens), best first.
    """

    index: int
    prompt: Sequence[int]
    limit: int
    text_nL: np.ndarray
    beam_nL: np.ndarray
    score_n: np.ndarray
    finished: list[tuple[float, tuple[int, ...]]]
    written: int = 0

    @property
    def filled(self) -> Sequence[int]:
        return self.prompt[:-1]

    @property
    def need(self) -> int:
        return len(self.prompt) - 1 + self.limit * len(self.score_n)


def search(
    core: Core, prompts: Sequence[Prompt], method: Beam, batch_size: int | None, skip: Collection[int], results: Results
) -> None:
    """Answers prompts by beam search (`Engine.generate`).

    Args:
      batch_size: prompts searched together; None = so many that their beams are a usual batch, where they fit.
    """
    if 2 * method.num_beams > core.config.vocab_size:
        raise UserError(f"num_beams {method.num_beams} is more than half of the {core.config.vocab_size} tokens.")
    _check_length_penalty(method.length_penalty, max((prompt.limit for prompt in prompts), default=1))
    rows = [_begun(prompt, method.num_beams) for prompt in prompts]
    usual = max(1, default_slots(core.ways) // method.num_beams) if batch_size is None else None
    step = Step(method.num_beams, method.num_beams)
    batch_size, prefixes = core.batch_size(rows, batch_size, step=step, most=usual), core.prefixes(rows)
    for group in groups(rows, batch_size, skip):
        slots = core.slots(group, batch_size, prefixes=prefixes)
        while slots.admit():
            steps = _advance(core, slots, method)
            for slot, row in slots.active():
                _follow(row, slot, steps)
                if steps.done_B[slot]:
                    results.add(row.index, _answer(core, row, method))
                    slots.free(slot)


def _check_length_penalty(penalty: float, longest: int) -> None:
    most = _MOST_DOUBLINGS / math.log2(max(2, longest))
    if abs(penalty) > most:
        raise UserError(
            f"length_penalty {penalty}: a text of up to {longest} tokens would be scored by {longest} ** {penalty}, "
            f"which float32 does not hold. Choose one from {-most:.1f} to {most:.1f}; 1 scores by the mean."
        )


def _begun(prompt: Prompt, beams: int) -> Search:
    blank_nL = np.zeros((beams, prompt.limit), np.int32)
    score_n = np.full(beams, NEVER, np.float32)
    score_n[0] = 0
    return Search(prompt.index, prompt.prompt, prompt.limit, blank_nL, blank_nL.copy(), score_n, [])


def _advance(core: Core, slots: Slots[Search], method: Beam) -> Steps:
    """Continues the beams in every slot by up to _STEPS tokens."""
    batch, beams = len(slots.rows), method.num_beams
    start_B, count_B, limit_B = (np.zeros(batch, np.int32) for _ in range(3))
    token_Bn, score_Bn = np.zeros((batch, beams), np.int32), np.zeros((batch, beams), np.float32)
    best_Bn = np.full((batch, beams), -np.inf, np.float32)
    penalty_BN, hope_BN = np.ones((batch, _STEPS), np.float32), np.ones((batch, _STEPS), np.float32)
    visible_BnT = np.zeros((batch, beams, slots.length), bool)
    for slot, row in slots.active():
        start = len(row.prompt) - 1
        start_B[slot], count_B[slot], limit_B[slot] = start, row.written, row.limit
        token_Bn[slot] = row.text_nL[:, row.written - 1] if row.written else row.prompt[-1]
        score_Bn[slot] = row.score_n
        best_Bn[slot, : len(row.finished)] = [score for score, _ in row.finished]
        length_N = np.arange(row.written + 1, row.written + 1 + _STEPS, dtype=np.float64)
        penalty_BN[slot] = length_N**method.length_penalty
        farthest = method.early_stopping == "never" and method.length_penalty > 0
        hope_BN[slot] = float(row.limit) ** method.length_penalty if farthest else penalty_BN[slot]
        past_nt = start + beams * np.arange(row.written) + row.beam_nL[:, : row.written]
        visible_BnT[slot, :, :start] = True
        visible_BnT[slot, np.arange(beams)[:, None], past_nt] = True
    slots.cache, on_device = beam_steps(
        core.weights,
        slots.cache,
        token_Bn,
        visible_BnT,
        score_Bn,
        best_Bn,
        start_B,
        count_B,
        limit_B,
        penalty_BN,
        hope_BN,
        np.int32(slots.enough),
        config=core.config,
        # One beam ends with its first EOS, whatever is asked: it is greedy decoding.
        at_once=method.early_stopping is True or beams == 1,
        eos_id=core.tokenizer.eos_id,
    )
    steps: Steps = jax.device_get(on_device)
    if not np.all(steps.finite_B):
        raise UserError(NOT_FINITE)
    most = int(np.max(steps.used_B))
    core.work.passes += most
    core.work.slot_passes += most * batch
    core.work.busy_slot_passes += int(np.sum(steps.used_B))
    return steps


def _follow(row: Search, slot: int, steps: Steps) -> None:
    """Writes down what the steps did with a row's texts."""
    beams, written, used = len(row.score_n), row.written, int(steps.used_B[slot])
    parent_Nc, token_Nc, kept_Nn = (np.asarray(x[slot]) for x in (steps.parent_BNc, steps.token_BNc, steps.kept_BNn))
    old_nL = row.text_nL

    def traced(beam_n: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (the beams before the first step that these were after `count` steps, tokens and beams between)."""
        token_ns, parent_ns = np.zeros((2, len(beam_n), count), np.int32)
        for step in reversed(range(count)):
            chosen_n = kept_Nn[step, beam_n]
            token_ns[:, step], parent_ns[:, step] = token_Nc[step, chosen_n], parent_Nc[step, chosen_n]
            beam_n = parent_ns[:, step]
        return beam_n, token_ns, parent_ns

    def ended(step: int, rank: int) -> tuple[int, ...]:
        first_n, token_ns, _ = traced(parent_Nc[step, rank : rank + 1], step)
        return (*old_nL[first_n[0], :written].tolist(), *token_ns[0].tolist(), int(token_Nc[step, rank]))

    finished = []
    for score, origin in zip(steps.best_Bn[slot], steps.origin_Bn[slot].tolist(), strict=True):
        if score > -np.inf:
            text = row.finished[origin][1] if origin < beams else ended(*divmod(origin - beams, beams))
            finished.append((float(score), text))
    first_n, token_ns, parent_ns = traced(np.arange(beams), used)
    for held_nL, new_ns in ((row.text_nL, token_ns), (row.beam_nL, parent_ns)):
        held_nL[:, :written] = held_nL[first_n, :written]
        held_nL[:, written : written + used] = new_ns
    row.written += used
    row.score_n = np.asarray(steps.score_Bn[slot])
    row.finished = finished


def _answer(core: Core, row: Search, method: Beam) -> Generation:
    eos_id = core.tokenizer.eos_id
    best = []
    for score, tokens in row.finished[: method.n_best]:
        kept = tokens[:-1] if tokens[-1] == eos_id else tokens
        best.append(Alternative(kept, core.continuation(row.prompt, kept), score))
    reason: FinishReason = "eos" if row.finished[0][1][-1] == eos_id else "length"
    chosen = best[0]
    return Generation(chosen.tokens, chosen.text, reason, row.written, len(chosen.tokens), alternatives=tuple(best))
