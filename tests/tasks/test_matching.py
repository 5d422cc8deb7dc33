"""Matching names to items: as many pairs as possible, each name and each item once."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune_jax.tasks.matching import match, normalise


def most_pairs(predicted, items):
    """Brute force: the most items that can be matched when names are given out in any order."""
    slots = [*range(len(predicted)), *[None] * len(items)]
    return max(
        sum(name is not None and predicted[name] in items[at] for at, name in enumerate(order))
        for order in permutations(slots, len(items))
    )


@given(
    st.lists(st.sampled_from("abcd"), max_size=4),
    st.lists(st.frozensets(st.sampled_from("abcd"), min_size=1, max_size=3), max_size=3),
)
def test_no_matching_is_larger(predicted, items):
    holders = match(predicted, items)
    held = [(at, name) for at, name in enumerate(holders) if name is not None]
    assert all(predicted[name] in items[at] for at, name in held)
    assert len({name for _, name in held}) == len(held) == most_pairs(predicted, items)


def test_an_item_gives_way_where_another_name_fits_it():
    assert match(["a", "b"], [{"a", "b"}, {"a"}]) == [1, 0]


def test_a_long_chain_of_shared_synonyms_is_matched_to_its_end():
    chain = [{f"n{at}", f"n{at + 1}"} for at in range(3000)]
    names = [f"n{at}" for at in range(1, 3000)] + ["n1"]
    assert None not in match([*names[:-1], "n0"], chain)


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("  The  Heart\tFailure. ", "heart failure"),
        ("\u201cCOX-2\u201d", "cox-2"),
        ("a", "a"),
        ("A", "a"),
        ("an", "an"),
        ("theophylline", "theophylline"),
        ("...", "..."),
        ("STRASSE", "strasse"),
        ("stra\u00dfe", "strasse"),
        ("Na+", "na+"),
    ],
)
def test_case_white_space_outer_punctuation_and_a_leading_article_make_no_difference(name, normal):
    assert normalise(name) == normal


@given(st.text())
def test_normalising_leaves_nothing_out_of_a_name_that_has_something(name):
    assert normalise(name) or not name.strip()
