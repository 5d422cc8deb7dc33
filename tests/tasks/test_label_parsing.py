"""Any string can be parsed by the tasks of labels, sets and choices: no exception, and work linear in its length.

Work is counted in calls, of Python and of C, not in seconds; a pattern that backtracks would show as a hang.
"""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.tasks.choice import ChoiceTask
from medtune_jax.tasks.classification import LabelTask, NliTask
from medtune_jax.tasks.labels import LabelsTask

HALLMARKS = ("Growing without end (GE)", "Spreading & settling (SS)", "Repair (R)", "Tumour-promoting fire, slow (TF)")
RELATIONS = ("PIP", "TeCP", "TrAP", "TrNAP", "No Relations")
CHOICE_INPUT = ChoiceTask().render(("Q", ("Aspirin", "Not heparin", "a", "Aspirin "), "A"))[0]
TASKS = {
    "labels": (LabelsTask(HALLMARKS), "x"),
    "relation": (LabelTask("relation", RELATIONS, negative="No Relations"), "x"),
    "label": (LabelTask("label", ("yes", "no", "maybe")), "x"),
    "nli": (NliTask(), "Sentence 1: a\nSentence 2: b"),
    "choice": (ChoiceTask(), CHOICE_INPUT),
}
# What models were seen to write: labels run together or apart, lost punctuation, prose, echoes, runs of newlines.
PIECES = st.sampled_from(
    [
        *HALLMARKS,
        *RELATIONS,
        *("yes", "no", "maybe", "Entailment", "neutral", "Contradiction", "None", "none", "(GE)", "Repair", "Aspirin"),
        *(
            "A",
            "B",
            "(B)",
            "b)",
            "E.",
            "A. Aspirin",
            "Not heparin",
            "Answer:",
            "The answer is",
            "not",
            "cannot",
            "isn't",
        ),
        *(", ", ",", "; ", " ", "  ", "\n", "\n\n\n", "\t", "\r\n", ".", ":", " : ", "- ", "1. ", "### Input:", "</s>"),
        *("\u00a0", "\u2028", "\u0130", "\u00df", "\ufb01", "\u0301", "\u200b", "\U0001f9ec", "because", "the first"),
    ]
)
model_texts = st.one_of(
    st.text(), st.lists(PIECES, max_size=25).map("".join), st.lists(PIECES, max_size=25).map(" ".join)
)


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=400)
@given(text=model_texts)
def test_any_text_is_read_as_an_answer_of_the_task_or_as_unparsable(name, text):
    task, input = TASKS[name]
    parsed = task.parse(text, input)
    assert parsed == task.parse(text, input)
    if parsed.annotation is None:
        assert parsed.problems
    else:
        rendered = task.render(parsed.annotation)
        assert rendered[0] == input
        assert parsed.status == "repaired" or rendered[1] == text.strip()


@pytest.mark.parametrize("name", TASKS)
@given(text=model_texts, input=model_texts)
@settings(max_examples=200)
def test_no_input_makes_parse_raise(name, text, input):
    TASKS[name][0].parse(text, input)


def calls(task, text, input):
    """Returns how many Python and C functions are called while `text` is parsed, patterns being compiled already."""
    count = 0
    task.parse(text, input)

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        task.parse(text, input)
    finally:
        sys.setprofile(None)
    return count


HOSTILE = (
    *("a", " ", "\n", "(", ",", ":", "*", "\u0130", "'", "n't", "not ", "non-", "not a ", "isn't ", "none ", "None, "),
    *(
        "answer ",
        "answer is ",
        "A ",
        "A. ",
        "(A) ",
        "A, ",
        "1. ",
        "- ",
        "A\n",
        "None\n",
        "### \n",
        "Growing without end ",
    ),
    *("Growing without end (GE), ", "Growing without end (GE)\n", "(GE) ", "Aspirin ", "Entailment ", "Entailment: "),
    *("PIP\n", "No Relations", "No ", "Not heparin", "Tumour-promoting fire, ", "\u00a0", "ruled out "),
)


@pytest.mark.parametrize("unit", HOSTILE)
@pytest.mark.parametrize("name", TASKS)
def test_the_work_on_a_hostile_text_grows_with_its_length_only(name, unit):
    task, input = TASKS[name]
    for first in ("", "not", "Entailment", "answer", "None"):
        small, large = (first + unit * (size // len(unit)) for size in (1_000, 4_000))
        assert calls(task, large, input) <= 4.5 * calls(task, small, input) + 200
    task.parse(unit * (100_000 // len(unit)), input)
