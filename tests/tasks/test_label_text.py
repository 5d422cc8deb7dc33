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
        "There is not enough information in the note to call it a Contradiction.",
        "The first sentence of this pair does not give any evidence for Entailment",
        "Insufficient evidence for Entailment",
        "Whether Entailment holds is unclear",
        "It is unclear if this is Entailment",
        "It lacks evidence of Entailment",
        "The first sentence fails to show Entailment",
        "Rather than Contradiction",
        "A clear entailment of the second sentence was not found",
        "Entailment (of sentence 2) does not hold",
        "There is no evidence, direct or indirect, of Entailment",
        "not Entailment or Neutral",
        "not Entailment, Neutral or Contradiction",
        "Entailment is not Neutral",
    ],
)
def test_a_label_denied_in_its_clause_is_ambiguous(text):
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
        ("no doubt, entailment", "Entailment"),
        ("Entailment (no fever in either)", "Entailment"),
        ("Neutral as the first sentence does not say", "Neutral"),
        ("Entailment - the patient has no fever", "Entailment"),
    ],
)
def test_a_denial_of_something_else_leaves_the_label(text, label):
    assert NLI.find(text) == (label, ("extra_text",))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Neutral - neither entailment nor contradiction", "Neutral"),
        ("Neutral. It is neither an Entailment nor a Contradiction.", "Neutral"),
        ("Entailment, not contradiction", "Entailment"),
        ("Entailment not contradiction", "Entailment"),
        ("Neutral is the answer rather than Entailment", "Neutral"),
        ("It is not Entailment but Neutral", "Neutral"),
        ("Neither Entailment nor Neutral; Contradiction", "Contradiction"),
        ("Neutral, not Entailment, or perhaps Contradiction", None),
        ("Neutral; Neutral is wrong", None),
    ],
)
def test_one_label_beside_denied_ones_is_the_answer(text, label):
    assert NLI.find(text)[0] == label


@pytest.mark.parametrize("text", ["This is a trap", "They pip us", "A trnap.", "PIP-like"])
def test_a_word_is_no_label_of_the_same_letters(text):
    assert RELATION.find(text) == (None, ("no_label",))


@pytest.mark.parametrize("text", ["trap", "TRAP.", "(trap)", "TrAP relation", "the relation is TrAP"])
def test_a_label_in_mixed_case_is_read_in_prose_and_alone(text):
    assert RELATION.find(text)[0] == "TrAP"


def test_a_part_of_a_hyphenated_word_is_no_label():
    gad = LabelFinder(("Positive", "Negative"))
    assert gad.find("The patients were HIV-positive.") == (None, ("no_label",))
    assert gad.find("A positive association of HIV-negative patients")[0] == "Positive"
    assert gad.find("positive association was not found") == (None, ("ambiguous",))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("No Relations", "No Relations"),
        ("There are no relations.", "No Relations"),
        ("The relation is TrAP, the treatment helps", "TrAP"),
        ("trnap", "TrNAP"),
        ("TrAP, not TrIP", "TrAP"),
        ("I do not see any sign here of TrAP.", None),
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
    [
        ("No.", "no"),
        ("The answer is no.", "no"),
        ("No, the results do not show it", "no"),
        ("No because it was not seen", "no"),
        ("No the results do not show it", None),
        ("There is no evidence, so no.", "no"),
        ("maybe not", None),
        ("not yes", None),
        ("yes no maybe", None),
        ("yes, no or maybe", None),
    ],
)
def test_a_label_that_is_a_denying_word_is_a_label_first(text, label):
    assert PUBMEDQA.find(text)[0] == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("No significant difference was found.", None),
        ("In the control group no patient died", None),
        ("no one knows", None),
        ("Yes. No significant adverse effects were seen.", "yes"),
        ("No significant difference was found, so the answer is yes.", "yes"),
        ("yes, no doubt", "yes"),
    ],
)
def test_no_before_a_word_is_not_the_answer_no(text, label):
    assert PUBMEDQA.find(text)[0] == label
