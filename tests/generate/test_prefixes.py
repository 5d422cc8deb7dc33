"""Shared beginnings: the worthwhile ones are found, computed once, and change no answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine import LongestMatch, tiny_config

from medtune_jax.config import MeshConfig
from medtune_jax.data.prompts import get_template
from medtune_jax.generate import decode, prefixes
from medtune_jax.generate.engine import Engine, TemplateRequest
from medtune_jax.generate.prefixes import Beginning, Prefixes, shared_beginnings
from medtune_jax.generate.sampling import Greedy
from medtune_jax.model.llama import init_params
from medtune_jax.sharding import make_mesh
from medtune_jax.tasks.base import Allowed, Slot
from medtune_jax.tasks.ner import NerTask

TOKENIZER = LongestMatch()
CONFIG = tiny_config(TOKENIZER.vocab_size, num_heads=8, num_kv_heads=4, intermediate_size=64)
PARAMS = init_params(jax.random.key(0), CONFIG)
RANDOM = np.random.default_rng(0)
WORDINGS = [RANDOM.integers(3, 90, length).tolist() for length in (100, 90, 80)]
PROMPTS = [[1, *WORDINGS[i % 3], *RANDOM.integers(3, 90, 1 + 5 * i % 23).tolist()] for i in range(24)] + [
    [1, 5, 6, 7],
    [1, *WORDINGS[0]],
]
ASK: dict[str, Any] = {"method": Greedy(), "max_new_tokens": 6, "batch_size": 8}
TEMPLATE = get_template("alpaca")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(PARAMS, CONFIG, TOKENIZER)


@pytest.fixture(scope="module")
def unshared() -> Engine:
    """An engine that shares nothing."""
    return limited_to(0)


def limited_to(slots: int) -> Engine:
    """Returns an engine that keeps so many beginnings at a time."""
    engine = Engine(PARAMS, CONFIG, TOKENIZER)
    engine._core.__dict__["prefixes"] = lambda rows: Prefixes(shared_beginnings([row.filled for row in rows]), slots)
    return engine


@pytest.fixture(scope="module")
def texts(engine: Engine) -> list[Any]:
    return engine.generate(PROMPTS, **ASK)


def test_texts_are_those_without_sharing(texts: list[Any], unshared: Engine) -> None:
    before = unshared.work.prompt_tokens
    assert unshared.generate(PROMPTS, **ASK) == texts
    assert unshared.work.prompt_tokens - before == sum(len(prompt) - 1 for prompt in PROMPTS)
    assert unshared.work.shared_tokens == 0


def test_what_is_shared_is_computed_once_and_counted() -> None:
    engine = Engine(PARAMS, CONFIG, TOKENIZER)
    engine.generate(PROMPTS, **ASK)
    # All nine prompts of the first wording share 100 tokens; the eight that share one more do not make up for it. One
    # of each wording's computes what the others take.
    assert engine.work.shared_tokens == 8 * 100 + 7 * 91 + 7 * 81
    assert engine.work.prompt_tokens + engine.work.shared_tokens == sum(len(prompt) - 1 for prompt in PROMPTS)


def test_where_few_beginnings_fit_those_that_save_most_are_kept_and_none_is_computed_twice(texts: list[Any]) -> None:
    for slots, shared in ((1, 8 * 100), (2, 8 * 100 + 7 * 91)):
        engine = limited_to(slots)
        assert engine.generate(PROMPTS, **ASK) == texts
        assert engine.work.shared_tokens == shared
        assert engine.work.prompt_tokens + shared == sum(len(prompt) - 1 for prompt in PROMPTS)


def test_log_likelihoods_and_templates_are_those_without_sharing(engine: Engine, unshared: Engine) -> None:
    letters = [
        TemplateRequest("Decide by the text alone.", "x" * (3 * i), Allowed((Slot(("A", "Be", "C")),)))
        for i in range(8)
    ]
    shared = engine.loglikelihoods(letters, TEMPLATE)
    for found, exact in zip(shared, unshared.loglikelihoods(letters, TEMPLATE), strict=True):
        assert found.loglikelihoods == pytest.approx(exact.loglikelihoods, abs=1e-5)
    before = engine.work.shared_tokens
    assert before > 0
    for kept in ({3}, {0, 7}):  # to the last bit, whoever is skipped
        answers = engine.loglikelihoods(letters, TEMPLATE, skip=set(range(8)) - kept)
        assert answers == [shared[index] for index in sorted(kept)]
    task = NerTask()
    tagged = [TemplateRequest("Tag the text.", t, task.allowed(t)) for t in ("a b", "fever", "no", "x y") * 2]
    before = engine.work.shared_tokens
    assert engine.decode_template(tagged, TEMPLATE) == unshared.decode_template(tagged, TEMPLATE)
    assert engine.work.shared_tokens > before
    assert unshared.work.shared_tokens == 0


def test_with_an_int8_cache_texts_are_those_without_sharing() -> None:
    shared, alone = (Engine(PARAMS, CONFIG, TOKENIZER, cache_dtype="int8") for _ in range(2))
    alone._core.__dict__["prefixes"] = lambda rows: Prefixes((), 0)
    assert shared.generate(PROMPTS, **ASK) == alone.generate(PROMPTS, **ASK)
    assert shared.work.shared_tokens > 0 == alone.work.shared_tokens


def test_a_mesh_changes_nothing(texts: list[Any]) -> None:
    many = Engine(PARAMS, CONFIG, TOKENIZER, mesh=make_mesh(MeshConfig(data=2, fsdp=1, tensor=4)))
    assert many.generate(PROMPTS, **ASK) == texts
    assert many.work.shared_tokens == 2004


def test_where_nothing_is_shared_prompts_are_computed_as_ever(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "prefill_behind", None)
    engine.generate([[1, *RANDOM.integers(3, 90, 60).tolist()] for _ in range(8)], **ASK)


def test_a_beginning_that_fits_nowhere_is_not_shared() -> None:
    engine = Engine(PARAMS, CONFIG, TOKENIZER, cache_bytes=8 * 8 * 128 * 512)
    rows = [type("Row", (), {"filled": prompt, "need": 150})() for prompt in PROMPTS]
    assert engine._core.prefixes(rows).slots == 4, "a power of two that holds all three"
    tight = Engine(PARAMS, CONFIG, TOKENIZER, cache_bytes=8 * 127 * 512)._core.prefixes(rows)
    assert (tight.slots, tight.of(PROMPTS[0])) == (0, ())


TEXT = st.lists(st.integers(0, 2), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=2, max_size=12))
def test_beginnings_are_worth_their_computing(prompts: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "_LEAST", 1)
        patch.setattr(prefixes, "_WORTH", 1)
        found = shared_beginnings(prompts)
    longest = [Prefixes(found, len(found)).of(prompt) for prompt in prompts]
    assert set(longest) - {()} == {begin for begin, _ in found}, "none is there for nothing"
    assert all(tuple(prompt[: len(begin)]) == begin for prompt, begin in zip(prompts, longest, strict=True))
    saved = sum(map(len, longest)) - sum(len(begin) for begin, _ in found)
    assert saved >= sum(one.saved for one in found), "an outer one that was left out saves nothing"
    singles = {tuple(prompt[:size]) for prompt in prompts for size in range(1, 9)}

    def alone(begin: tuple[int, ...]) -> int:
        return len(begin) * (sum(tuple(prompt[: len(begin)]) == begin for prompt in prompts) - 1)

    assert saved >= 0
    assert bool(found) == any(alone(begin) >= 1 for begin in singles)


def test_nested_beginnings_count_with_what_they_save_beyond_the_outer() -> None:
    def rows(begin: Sequence[int], count: int) -> list[list[int]]:
        return [[*begin, 1000 + i] for i in range(count)]

    def found(prompts: list[list[int]]) -> list[list[int]]:
        return [list(begin) for begin, _ in shared_beginnings(prompts)]

    outer = list(range(100))
    inner = [*outer, *range(200, 300)]
    assert found(rows(outer, 3)) == [], "200 tokens saved are not worth a pass"
    assert found(rows(outer, 4)) == [outer]
    assert found([*rows(outer, 4), *rows(inner, 4)]) == [outer]
    assert found([*rows(outer, 4), *rows(inner, 5)]) == [outer, inner]
    assert found([*rows(outer, 1), *rows(inner, 9)]) == [inner], "the outer would serve one row"
    assert found(rows(range(31), 100)) == [], "short ones save nothing"
    assert found([]) == found([[]]) == []


def test_beginnings_that_save_most_have_the_slots_and_keep_them() -> None:
    a, b, c = (1,), (2,), (3,)
    kept = Prefixes((Beginning(a, 5), Beginning(b, 7), Beginning(c, 6)), 2)
    assert [kept.of([*one, 9]) for one in (a, b, c)] == [(), b, c]
    assert [kept.place(one) for one in (c, b, c, b)] == [(1, True), (0, True), (1, False), (0, False)]
