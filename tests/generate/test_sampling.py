"""Sampling methods: exact distributions, ties, refusals."""

from __future__ import annotations

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


def exact(temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Returns the distribution that transformers' own cuts leave, float64 [V]."""
    import torch
    from transformers.generation import logits_process as cuts

    scores = torch.tensor(LOGITS)[None] / temperature
    if top_k:
        scores = cuts.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = cuts.TopPLogitsWarper(top_p)(None, scores)
    return torch.softmax(scores.double(), -1)[0].numpy()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.3, 0, 0.8), (0.9, 12, 0.6), (1.0, 100, 0.999), (1.0, 0, 1e-6)],
)
def test_draws_follow_the_exact_distribution(temperature: float, top_k: int, top_p: float) -> None:
    draws = 20_000
    keys = request_keys(np.uint32(7), jnp.arange(draws), jnp.zeros(draws, jnp.int32))
    drawn = jax.jit(Sample(temperature, top_k, top_p))(keys, jnp.broadcast_to(LOGITS, (draws, V)))
    seen = np.bincount(np.asarray(drawn), minlength=V)
    expected = exact(temperature, top_k, top_p) * draws
    assert not seen[expected == 0].any()
    common = expected >= 5  # rarer ones are pooled, else the statistic is not chi-square
    observed = np.append(seen[common], seen[~common].sum())
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


@pytest.mark.parametrize(("values", "name"), [((0.0,), "temperature"), ((1.0, -1), "top_k"), ((1.0, 0, 0.0), "top_p")])
def test_values_out_of_range_are_refused_by_name(values: tuple[float, ...], name: str) -> None:
    with pytest.raises(UserError, match=name):
        Sample(*values)  # type: ignore[arg-type]
