"""What is counted in a corpus, per kind of task, and how it is compared with what was published."""

import pytest

from medtune_jax.data_prep.counts import differences, expected_text, gold_counts, gold_text, group_count
from medtune_jax.data_prep.native import Record
from medtune_jax.tasks.choice import ChoiceTask
from medtune_jax.tasks.classification import LabelTask, NliTask
from medtune_jax.tasks.extract import ExtractTask
from medtune_jax.tasks.labels import LabelsTask
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.text import TextTask


@pytest.mark.parametrize(
    ("task", "annotations", "counts", "text"),
    [
        (NerTask(), [(("a", "b", "c"), ("B", "I", "B"))], {"mentions": 2}, "2 mentions"),
        (NerTask(("X",)), [(("a",), ("B-X",)), (("a",), ("O",))], {"mentions": 1}, "1 mentions"),
        (
            LabelTask("relation", ("Treats", "None"), "None"),
            [("a", "Treats")],
            {"labels": {"Treats": 1, "None": 0}, "positives": 1},
            "Treats 1, None 0",
        ),
        (
            NliTask(),
            [("a", "b", "Neutral")],
            {"labels": {"Entailment": 0, "Contradiction": 0, "Neutral": 1}},
            "Entailment 0, Contradiction 0, Neutral 1",
        ),
        (
            LabelsTask(("p", "q")),
            [("a", ("p", "q")), ("b", ()), ("c", ("q",))],
            {"labels": {"p": 1, "q": 2, "None": 1}},
            "p 1, q 2, None 1",
        ),
        (ChoiceTask(), [("a", ("x", "y"), "B"), ("b", ("x", "y"), "A")], {"letters": {"A": 1, "B": 1}}, "A 1, B 1"),
        (ExtractTask(), [("a", ((("x", "x1"), ("y",)),)), ("b", ((),))], {"items": 2}, "2 items"),
        (TextTask(), [("a", "b")], {}, "free text"),
    ],
)
def test_gold_answers_are_counted_by_what_the_task_decides(task, annotations, counts, text):
    assert gold_counts(task, [Record(annotation) for annotation in annotations]) == counts
    assert gold_text(counts) == text


def test_documents_are_counted_where_they_are_known():
    assert group_count([Record(("a", "b"), group="1"), Record(("c", "d"), group="1")]) == {"documents": 1}
    assert group_count([Record(("a", "b"))]) == {}


def test_a_difference_names_the_count_that_was_expected_and_the_one_found():
    facts = {"rows": 3, "labels": {"Treats": 1}, "positives": 1}
    assert differences({"rows": 3, "Treats": 1, "positives": 1}, facts) == {}
    assert differences({"rows": 4, "Treats": 2, "documents": 5}, facts) == {
        "rows": {"expected": 4, "found": 3},
        "Treats": {"expected": 2, "found": 1},
        "documents": {"expected": 5, "found": 0},
    }
    assert expected_text({"expected": {"rows": 3}, "differs": {}}) == "ok"
    assert expected_text({"expected": {}, "differs": {}}) == "-"
    assert expected_text({"expected": {"rows": 4}, "differs": differences({"rows": 4}, facts)}) == (
        "differs: rows 3, published 4"
    )
