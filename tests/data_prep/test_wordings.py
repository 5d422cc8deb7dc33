"""Instruction wordings: apart from each other, and exact about the answer."""

import re
from collections import Counter
from itertools import combinations

import pytest

from medtune_jax.data_prep.wordings import WORDINGS
from medtune_jax.tasks.registry import SOURCES


@pytest.mark.parametrize("name", WORDINGS)
def test_wordings_of_a_source_are_at_least_five_and_three_words_apart(name):
    wordings = WORDINGS[name]
    assert len(wordings) >= 5 and name in SOURCES
    for one, other in combinations((Counter(wording.lower().split()) for wording in wordings), 2):
        assert max(sum((one - other).values()), sum((other - one).values())) >= 3


@pytest.mark.parametrize(
    "name", [name for name in WORDINGS if SOURCES[name].task.kind in ("relation", "nli", "labels")]
)
def test_wordings_name_every_label_as_it_is_written(name):
    for wording in WORDINGS[name]:
        assert all(label in wording for label in SOURCES[name].task.labels)


@pytest.mark.parametrize("name", [name for name in WORDINGS if SOURCES[name].task.kind == "ner"])
def test_wordings_of_entity_corpora_give_the_form_of_a_line_and_name_every_type(name):
    task = SOURCES[name].task
    for wording in WORDINGS[name]:
        assert "`token : TAG`" in wording and re.search(r"\b(O|BIO)\b", wording)
        assert all(label in wording for label in task.labels)
