"""The alignment is a longest common subsequence, and among equally long ones always the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune_jax.tasks import alignment
from medtune_jax.tasks.alignment import align

words = st.lists(st.sampled_from("abcd"), max_size=12)


def textbook(gold, predicted):
    """The full table, and the walk of DESIGN.md: match, else drop a gold token before a predicted one on ties."""
    n, m = len(gold), len(predicted)
    length = [[0] * (m + 1) for _ in range(n + 1)]
    for i in reversed(range(n)):
        for j in reversed(range(m)):
            same = gold[i] == predicted[j]
            length[i][j] = length[i + 1][j + 1] + 1 if same else max(length[i + 1][j], length[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < n and j < m:
        if gold[i] == predicted[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif length[i + 1][j] >= length[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


@given(words, words)
def test_equals_the_textbook_table_and_walk(gold, predicted):
    assert align(gold, predicted) == textbook(gold, predicted)


@pytest.mark.parametrize(
    ("gold", "predicted", "pairs"),
    [
        ("ab", "ba", [(1, 0)]),  # a tie: the gold token goes first
        ("xa", "aya", [(1, 0)]),  # the earlier of two equal predicted tokens, although the last is a common suffix
        ("aba", "a", [(0, 0)]),
        ("abc", "abc", [(0, 0), (1, 1), (2, 2)]),
        ("", "abc", []),
        ("abc", "", []),
    ],
)
def test_ties_are_broken_as_stated(gold, predicted, pairs):
    assert align(list(gold), list(predicted)) == pairs


def test_predicted_tokens_beyond_the_table_bound_stay_unaligned(monkeypatch):
    monkeypatch.setattr(alignment, "MAX_TABLE_BITS", 9)
    assert align(list("abc"), list("xxxabc")) == []
    assert align(list("abc"), list("xxaabc")) == [(0, 2)]
