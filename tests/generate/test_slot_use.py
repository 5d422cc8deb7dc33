"""How many slots do useful work, counted as `Work.slot_use` does over rows of real lengths, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_engine import LongestMatch, tiny_engine

from medtune_jax.data.encode import encode_prompt
from medtune_jax.data.prompts import get_template
from medtune_jax.data.tokenizer import load_tokenizer
from medtune_jax.generate import decode
from medtune_jax.generate.answering import fit_budgets, ways_of
from medtune_jax.generate.core import Work
from medtune_jax.generate.decoding import Decoding
from medtune_jax.generate.sampling import Greedy
from medtune_jax.generate.slots import Slots
from medtune_jax.tasks.registry import get_source

TOKENIZER = LongestMatch()
_A_TOKEN = 5

Lengths = Sequence[tuple[int, int, int]]  # of prompt, of answer with EOS, budget


def synthetic() -> Lengths:
    """Returns the lengths of rows like a named-entity test set's: an answer is longer than its prompt's sentence."""
    random = np.random.default_rng(0)
    answers = np.clip(random.lognormal(4.7, 0.5, 940), 15, 492).astype(int)
    return [(60 + 2 * int(n) // 3, int(n), int(n) + 62 + int(random.integers(0, n // 10 + 1))) for n in answers]


def simulated(monkeypatch: pytest.MonkeyPatch, lengths: Lengths, batch_size: int) -> Work:
    """Returns the work of free decoding where row i writes EOS as its token number lengths[i][1]."""
    answers = np.array([answer for _, answer, _ in lengths])

    def steps_as_they_would_be(*arguments: Any, eos_id: int, steps: int, **_: Any) -> tuple[None, np.ndarray]:
        count_B, limit_B, rows_B, enough = (arguments[at] for at in (4, 5, 6, 9))
        left_B = np.where(count_B < limit_B, answers[rows_B] - count_B, 0)
        chosen_BN = np.full((len(left_B), steps), -1)
        for step in range(steps):
            if (left_B <= 0).sum() >= enough:
                break
            chosen_BN[left_B > 0, step] = _A_TOKEN
            chosen_BN[left_B == 1, step] = eos_id
            left_B -= 1
        return None, chosen_BN

    def fit(slots: Any) -> None:
        slots.cache = None

    monkeypatch.setattr(decode, "decode_steps", steps_as_they_would_be)
    monkeypatch.setattr(Slots, "_fit", fit)
    monkeypatch.setattr(Slots, "_prefill", lambda *_: None)
    engine, _ = tiny_engine(TOKENIZER, max_positions=1024)
    prompts = [[1, *[_A_TOKEN] * (prompt - 1)] for prompt, _, _ in lengths]
    budgets = [budget for _, _, budget in lengths]
    found = engine.generate(prompts, method=Greedy(), max_new_tokens=budgets, batch_size=batch_size)
    assert [answer.passes for answer in found] == answers.tolist()
    return engine.work


@pytest.mark.parametrize(("batch_size", "least"), [(8, 0.97), (32, 0.95), (64, 0.94)])
def test_slots_are_in_use(batch_size: int, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    work = simulated(monkeypatch, synthetic(), batch_size)
    assert work.busy_slot_passes == sum(answer for _, answer, _ in synthetic())
    assert work.slot_use >= least


@pytest.mark.parametrize("batch_size", [8, 32, 64])
def test_slots_are_in_use_over_the_gold_answers_of_ncbi_disease(
    batch_size: int, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_prep.collect import locate, read_split

    source, template = get_source("NCBI-disease"), get_template("alpaca")
    rows, _ = read_split(locate(source, shared_data / "raw", {}), "test", 0, "association")
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "llama2")
    ways = fit_budgets(rows, ways_of(rows, Decoding("greedy")), template, tokenizer)
    lengths = []
    for row, way in zip(rows, ways, strict=True):
        whole = template.prompt(row.instruction, row.input) + template.completion(row.output)
        prompt = len(encode_prompt(tokenizer, template, row.instruction, row.input))
        lengths.append((prompt, len(tokenizer.encode(whole)) + 2 - prompt, way.budget))
    work = simulated(monkeypatch, lengths, batch_size)
    assert work.slot_use >= {8: 0.97, 32: 0.95, 64: 0.94}[batch_size]


def test_the_simulated_loop_counts_what_the_real_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    lengths = [(int(random.integers(2, 40)), n, n) for n in random.integers(1, 40, 60).tolist()]
    engine, _ = tiny_engine(TOKENIZER)
    with monkeypatch.context() as changed:
        changed.setattr(engine.tokenizer, "eos_id", -7)  # rows end at their budgets alone
        engine.generate(
            [[1, *[_A_TOKEN] * (prompt - 1)] for prompt, _, _ in lengths],
            method=Greedy(),
            max_new_tokens=[budget for _, _, budget in lengths],
            batch_size=16,
        )
    as_simulated = simulated(monkeypatch, lengths, 16)
    for counted in ("passes", "slot_passes", "busy_slot_passes"):
        assert getattr(as_simulated, counted) == getattr(engine.work, counted)
