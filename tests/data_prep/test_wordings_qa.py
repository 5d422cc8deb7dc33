"""Wordings of the question sets say what form the answer has."""

import pytest

from medtune_jax.data_prep.wordings.qa import WORDINGS
from medtune_jax.tasks.registry import SOURCES


def of_kind(kind):
    return [(name, wording) for name, wordings in WORDINGS.items() for wording in wordings if task(name).kind == kind]


def task(name):
    return SOURCES[name].task


@pytest.mark.parametrize(("name", "wording"), of_kind("choice"))
def test_a_choice_is_answered_by_a_letter(name, wording):
    assert "letter" in wording


@pytest.mark.parametrize(("name", "wording"), of_kind("label"))
def test_every_label_is_named_as_it_is_written(name, wording):
    assert all(label in wording for label in task(name).labels)


@pytest.mark.parametrize(("name", "wording"), of_kind("extract"))
def test_extraction_asks_for_json_and_names_its_fields(name, wording):
    assert "JSON" in wording and all(field in wording for field in task(name).fields)
    assert ("five" in wording) == task(name).ranked


@pytest.mark.parametrize(("name", "wording"), of_kind("extract") + of_kind("choice"))
def test_a_wording_that_is_echoed_is_no_answer(name, wording):
    input = {"choice": "Which?\nA. measles\nB. mumps"}.get(task(name).kind, "A text.")
    assert task(name).parse(wording, input).annotation is None
