"""Which label a text names, and whether it denies it."""

import pytest

from medtune_jax.tasks.label_text import LabelFinder

I2B2 = ("PIP", "TeCP", "TeRP", "TrAP", "TrCP", "TrIP", "TrNAP", "TrWP", "No Relations")
NLI = LabelFinder(("Entailment", "Contradiction", "Neutral"))
RELATION = LabelFinder(I2B2)
PUBMEDQA = LabelFinder(("yes", "no", "maybe"))


@pytest.mark.parametrize(
    "text",
    [
        "not clearly entailment",
        "it is not an entailment",
        "cannot be entailment",
        "This can not really be an entailment",
        "It isn't by any means neutral",
        "hardly a contradiction",
        "neither clear entailment",
        "not, in my view, entailment",
        "no doubt entailment",
        "not only entailment",
        "Entailment does not hold",
        "Entailment isn\u2019t given",
        "entailment cannot be shown",
        "Contradiction is ruled out",
        "Neutral: no",
        "Entailment is wrong",
    ],
)
def test_a_label_denied_near_by_is_ambiguous(text):
    assert NLI.find(text) == (None, ("ambiguous",))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("no doubt: entailment", "Entailment"),
        ("No, entailment", "Entailment"),
        ("It is not stated, so neutral", "Neutral"),
        ("I am not sure; it may be neutral.", "Neutral"),
        ("Not stated in the first sentence at all: Neutral", "Neutral"),
        ("Neutral: the first sentence does not say", "Neutral"),
        ("Contradiction because the first has no fever", "Contradiction"),
        ("Nothing but entailment", "Entailment"),
    ],
)
def test_a_denial_of_something_else_leaves_the_label(text, label):
    assert NLI.find(text) == (label, ("extra_text",))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("No Relations", "No Relations"),
        ("There are no relations.", "No Relations"),
        ("The relation is TrAP, the treatment helps", "TrAP"),
        ("trnap", "TrNAP"),
        ("TrAP, not TrIP", None),
        ("not no relations", None),
        ("not clearly TrAP", None),
        ("no relation", None),
    ],
)
def test_relations_are_told_from_the_negative_class(text, label):
    assert RELATION.find(text)[0] == label


@pytest.mark.parametrize("separator", [", ", " ", "; ", " | ", " or ", "/"])
def test_the_echoed_list_of_options_is_ambiguous(separator):
    assert RELATION.find("Choose one: " + separator.join(I2B2)) == (None, ("ambiguous",))


@pytest.mark.parametrize("bullet", ["", "- ", "1. "])
def test_the_options_echoed_one_per_line_are_ambiguous(bullet):
    assert RELATION.find("\n".join(bullet + label for label in I2B2))[1] == ("trailing_text", "ambiguous")
    assert RELATION.find("PIP\nPIP") == ("PIP", ("trailing_text",))


@pytest.mark.parametrize(
    ("text", "label"),
    [("No.", "no"), ("The answer is no.", "no"), ("maybe not", None), ("yes, no doubt", None), ("not yes", None)],
)
def test_a_label_that_is_a_denying_word_is_a_label_first(text, label):
    assert PUBMEDQA.find(text)[0] == label
