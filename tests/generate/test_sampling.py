"""Sampling methods: exact distributions, ties, refusals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.errors import UserError
from medtune_jax.generate.sampling import Greedy, Sample, first_maximum, request_keys

V = 40
LOGITS = np.random.default_rng(0).normal(0, 2, V).astype(np.float32)


SEEN = np.random.default_rng(1).random(V) < 0.4


def exact(method: Sample) -> np.ndarray:
    """Returns the distribution that transformers' own processors leave, float64 [V]; the tokens of SEEN are seen."""
    import torch
    from transformers.generation import logits_process as cuts

    scores = torch.tensor(LOGITS)[None]
    ids = torch.tensor(np.flatnonzero(SEEN))[None]
    processors = (
        (method.repetition_penalty != 1, cuts.RepetitionPenaltyLogitsProcessor, method.repetition_penalty),
        (True, cuts.TemperatureLogitsWarper, method.temperature),
        (method.top_k > 0, cuts.TopKLogitsWarper, method.top_k),
        (method.top_p < 1, cuts.TopPLogitsWarper, method.top_p),
        (method.min_p > 0, cuts.MinPLogitsWarper, method.min_p),
    )
    for asked, processor, value in processors:
        if asked:
            scores = processor(value)(ids, scores)
    return torch.softmax(scores.double(), -1)[0].numpy()


@pytest.mark.parametrize(
    "method",
    [
        Sample(),
        Sample(0.7),
        Sample(top_k=5),
        Sample(1.3, top_p=0.8),
        Sample(0.9, top_k=12, top_p=0.6),
        Sample(top_k=100, top_p=0.999),
        Sample(top_p=1e-6),
        Sample(min_p=0.05),
        Sample(2.0, min_p=0.3),
        Sample(min_p=1.0),
        Sample(1.5, top_k=9, min_p=0.1),
        Sample(1.5, top_p=0.9, min_p=0.1),
        Sample(repetition_penalty=1.4),
        Sample(1.2, 20, 0.95, 0.02, 0.8),
    ],
    ids=str,
)
def test_draws_follow_the_exact_distribution(method: Sample) -> None:
    draws = 20_000
    keys = request_keys(np.uint32(7), jnp.arange(draws), jnp.zeros(draws, jnp.int32))
    seen = jnp.broadcast_to(SEEN, (draws, V))
    drawn = jax.jit(method)(keys, jnp.broadcast_to(LOGITS, (draws, V)), seen)
    counted = np.bincount(np.asarray(drawn), minlength=V)
    expected = exact(method) * draws
    assert not counted[expected == 0].any()
    common = expected >= 5  # rarer ones are pooled, else the statistic is not chi-square
    observed = np.append(counted[common], counted[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    assert statistic <= scipy.stats.chi2.ppf(0.999, max(1, len(wanted) - 1))


def test_of_equal_tokens_the_lowest_id_is_kept_and_taken() -> None:
    logits = jnp.array([[0.0, 3.0, 3.0, 3.0, 1.0]])
    keys = request_keys(np.uint32(0), jnp.arange(1), jnp.zeros(1, jnp.int32))
    assert Greedy()(keys, logits).tolist() == [1]
    many = jnp.broadcast_to(logits, (200, 5))
    keys = request_keys(np.uint32(0), jnp.arange(200), jnp.zeros(200, jnp.int32))
    assert set(Sample(1.0, 2)(keys, many).tolist()) == {1, 2}
    assert set(Sample(1.0, 0, 0.5)(keys, many).tolist()) == {1, 2}
    halves = jnp.broadcast_to(jnp.array([2.0, 2.0]), (200, 2))
    assert set(Sample(1.0, 0, 0.5)(keys, halves).tolist()) == {0}, "the first half alone sums to top_p"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=3, max_size=3))
def test_first_maximum_is_argmax(values: list[float]) -> None:
    logits = np.array([values], np.float32)
    assert first_maximum(jnp.asarray(logits)).tolist() == logits.argmax(-1).tolist()


def test_keys_depend_on_seed_row_and_step_and_on_nothing_else() -> None:
    def data(seed: int, rows: list[int], steps: list[int]) -> list[list[int]]:
        return jax.random.key_data(request_keys(np.uint32(seed), jnp.array(rows), jnp.array(steps))).tolist()

    assert data(1, [4, 9], [2, 2])[1] == data(1, [9], [2])[0]
    assert len({tuple(data(*key)[0]) for key in [(1, [9], [2]), (2, [9], [2]), (1, [8], [2]), (1, [9], [3])]}) == 4


def test_padding_of_the_vocabulary_is_never_written_whatever_the_penalty() -> None:
    logits = jnp.array([[-1.0, -2.0, -jnp.inf]])
    seen = jnp.array([[True, True, True]])
    keys = request_keys(np.uint32(0), jnp.arange(1), jnp.zeros(1, jnp.int32))
    assert Greedy(0.1)(keys, logits, seen).tolist() == [0]
    assert Greedy(3.0)(keys, logits, ~seen.at[0, 1].set(False)).tolist() == [0]
    assert Greedy(3.0)(keys, logits, seen.at[0, 1].set(False)).tolist() == [1]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("temperature", (0.0, float("nan"), float("inf"))),
        ("top_k", (-1,)),
        ("top_p", (0.0, 1.5)),
        ("min_p", (-0.1, 1.1, float("nan"))),
        ("repetition_penalty", (0.0, -1.0, float("inf"), float("nan"))),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, wrong: tuple[float, ...]) -> None:
    for value in wrong:
        with pytest.raises(UserError, match=name):
            Sample(**{name: value})  # type: ignore[arg-type]
    if name == "repetition_penalty":
        with pytest.raises(UserError, match=name):
            Greedy(wrong[0])


def test_methods_are_values() -> None:
    assert {Sample(0.5, min_p=0.1), Sample(0.5, min_p=0.1), Greedy(1.2), Greedy(1.2)} == {
        Sample(0.5, 0, 1.0, 0.1, 1.0),
        Greedy(1.2),
    }


@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 1e-44, 1e-300])
@pytest.mark.parametrize("cut", [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.5}], ids=str)
def test_the_smallest_temperatures_take_the_likeliest(temperature: float, cut: dict[str, Any]) -> None:
    logits = jnp.broadcast_to(50 + LOGITS, (8, V)).at[:, -1].set(-jnp.inf)
    keys = request_keys(np.uint32(0), jnp.arange(8), jnp.zeros(8, jnp.int32))
    drawn = jax.jit(Sample(temperature, **cut))(keys, logits)
    assert drawn.tolist() == [int(LOGITS[:-1].argmax())] * 8
