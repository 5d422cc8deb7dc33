"""ROUGE by bit vectors equals rouge-score's tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer, lcs_ind

from medtune_jax.tasks.rouge import NAMES, common_subsequence, rouge_f1

THEIRS = RougeScorer(NAMES, use_stemmer=True)
words = st.lists(st.sampled_from("abc"), max_size=12)
texts = st.lists(st.sampled_from(["ran ", "running ", "tests ", "b ", "\n", ". ", "\u00e9", "4", "\t"]), max_size=20)


@given(words, words)
def test_it_finds_the_same_longest_common_subsequence(gold, answer):
    assert common_subsequence(gold, answer) == lcs_ind(gold, answer)


@given(texts.map("".join) | st.text(), texts.map("".join) | st.text())
def test_every_score_equals_the_library_s_to_the_last_bit(gold, answer):
    theirs = {name: score.fmeasure for name, score in THEIRS.score(gold, answer).items()}
    assert rouge_f1(gold, answer) == theirs


def test_lines_are_the_sentences_of_rouge_lsum():
    gold, answer = "the cat sat\na dog ran", "a dog ran\nthe cat sat"
    scores = rouge_f1(gold, answer)
    assert scores["rougeLsum"] == 1 and scores["rougeL"] == pytest.approx(1 / 2)


def test_long_texts_are_no_trouble():
    assert rouge_f1("a b c " * 100, "b a " * 25_000)["rougeL"] > 0
