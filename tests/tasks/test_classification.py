"""Label tasks: what is read, counted and scored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from medtune_jax.tasks.base import Parsed
from medtune_jax.tasks.classification import NLI_LABELS, LabelTask, NliTask

LABELS = ("Treats", "Causes", "No Relations")
RELATION = LabelTask("relation", LABELS, negative="No Relations")
NESTED = LabelTask("relation", ("TrP", "TrP Indirect", "No Relations", "Relations"))


def totals(rows):
    return {key: np.array(sum(row[key] for row in rows)) for key in rows[0]}


@pytest.mark.parametrize(
    ("text", "label", "problems"),
    [
        ("Treats", "Treats", ()),
        (" Treats \n", "Treats", ()),
        ("treats", "Treats", ("case",)),
        ("The relation is Causes.", "Causes", ("extra_text",)),
        ("no relations!", "No Relations", ("extra_text",)),
        ("Causes, surely Causes", "Causes", ("extra_text",)),
        ("\n\nTreats\nBecause it does.", "Treats", ("trailing_text",)),
        ("Treats\n\nCauses", None, ("trailing_text", "ambiguous")),
        ("Treats\n ### Input: more", "Treats", ("cut_at_marker",)),
        ("", None, ("empty_output",)),
        ("### Output: Treats", None, ("cut_at_marker", "empty_output")),
        ("Treats or Causes", None, ("ambiguous",)),
        ("One of: Treats, Causes, No Relations", None, ("ambiguous",)),
        ("Mistreats", None, ("no_label",)),
        ("Hm.\nTreats", None, ("trailing_text", "no_label")),
    ],
)
def test_a_label_is_read_from_the_first_line_or_not_at_all(text, label, problems):
    parsed = RELATION.parse(text, "x")
    assert parsed == Parsed(None if label is None else ("x", label), problems)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("TrP", "TrP"),
        ("TrP Indirect", "TrP Indirect"),
        ("it is trp indirect.", "TrP Indirect"),
        ("it is TrP, indirect", "TrP"),
        ("answer: no relations", "No Relations"),
        ("Relations", "Relations"),
        ("TrP Indirect, not TrP", "TrP Indirect"),
    ],
)
def test_a_label_inside_a_longer_one_is_not_taken_for_it(text, label):
    parsed = NESTED.parse(text, "x")
    assert (parsed.annotation and parsed.annotation[-1]) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("not entailment", None),
        ("It is NOT an entailment.", None),
        ("this is not a contradiction", None),
        ("No contradiction", None),
        ("It isn't the entailment", None),
        ("it isn\u2019t neutral", None),
        ("non-neutral", None),
        ("neither entailment", None),
        ("Entailment, not contradiction", "Entailment"),
        ("No, entailment", "Entailment"),
        ("Nothing but entailment", "Entailment"),
        ("a notable contradiction", "Contradiction"),
    ],
)
def test_a_label_that_is_denied_is_not_the_answer(text, label):
    parsed = NliTask().parse(text, "x")
    assert (parsed.annotation and parsed.annotation[-1]) == label
    assert label or parsed.problems == ("ambiguous",)


def test_a_negation_that_is_part_of_a_label_is_none():
    assert NESTED.parse("there are no relations", "x").annotation == ("x", "No Relations")
    assert NESTED.parse("not no relations", "x").annotation is None
    assert NESTED.parse("never relations", "x").annotation is None


@pytest.mark.parametrize("label", LABELS)
def test_relation_rows_round_trip_and_are_allowed(label):
    input, output = RELATION.render(("a : b\u2028 c\n### d", label))
    assert RELATION.parse(output, input) == Parsed(("a : b\u2028 c\n### d", label))
    assert RELATION.allowed(input).spans(output) == [(0, len(label))]


@given(st.text(), st.text(), st.sampled_from(NLI_LABELS))
def test_sentence_pairs_round_trip(premise, hypothesis, label):
    task = NliTask()
    if "\nSentence 2: " in premise:
        with pytest.raises(ValueError, match="sentence 1 holds"):
            task.render((premise, hypothesis, label))
        return
    input, output = task.render((premise, hypothesis, label))
    assert input == f"Sentence 1: {premise}\nSentence 2: {hypothesis}"
    assert task.parse(output, input) == Parsed((premise, hypothesis, label))


@given(st.text(), st.text())
def test_parse_never_raises(text, input):
    for task in (RELATION, NESTED, NliTask()):
        parsed = task.parse(text, input)
        assert parsed.annotation is None or parsed.annotation[-1] in task.labels


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from((*LABELS, None))), min_size=1, max_size=30))
def test_scores_equal_scikit_learn(pairs):
    rows = [
        RELATION.statistics(("x", gold), Parsed(None if guess is None else ("x", guess)), "x") for gold, guess in pairs
    ]
    scores = RELATION.metrics(totals(rows))
    gold = [gold for gold, _ in pairs]
    guesses = ["unparsable" if guess is None else guess for _, guess in pairs]
    assert scores["accuracy"] == pytest.approx(accuracy_score(gold, guesses))
    macro = f1_score(gold, guesses, labels=LABELS, average="macro", zero_division=0)
    assert scores["macro_f1"] == pytest.approx(macro)
    positive = f1_score(gold, guesses, labels=["Treats", "Causes"], average="micro", zero_division=0)
    unread = guesses.count("unparsable")
    right = sum(one == other != "No Relations" for one, other in pairs)
    of_labels = sum(one not in (None, "No Relations") for pair in pairs for one in pair)
    assert unread or scores["f1_positive"] == pytest.approx(positive)
    assert scores["f1_positive"] == pytest.approx(2 * right / (of_labels + unread) if of_labels + unread else 0)


def test_an_unparsable_answer_is_never_the_negative_class():
    row = RELATION.statistics(("x", "No Relations"), RELATION.parse("rubbish", "x"), "x")
    assert row["unparsable"] == 1 and RELATION.metrics(totals([row]))["accuracy"] == 0


@pytest.mark.parametrize("gold", LABELS)
def test_an_unparsable_answer_costs_as_much_as_a_wrong_label(gold):
    def score(guess):
        rows = [("Treats", "Treats"), (gold, guess)]
        counts = [RELATION.statistics(("x", g), Parsed(None if a is None else ("x", a)), "x") for g, a in rows]
        return float(RELATION.metrics(totals(counts))["f1_positive"])

    wrong = "Causes" if gold != "Causes" else "Treats"
    assert score(None) == score(wrong) < 1


def constant_scores(task, train, label):
    rows = [task.statistics((i, o), task.parse(label, i), i) for i, o in train]
    return task.metrics(totals(rows))


def test_a_constant_negative_answer_earns_nothing_on_the_leading_metric():
    train = [("a", "No Relations"), ("b", "No Relations"), ("c", "Treats")]
    scores = constant_scores(RELATION, train, "No Relations")
    assert RELATION.metric == "f1_positive" and scores["f1_positive"] == 0
    assert scores["accuracy"] == pytest.approx(2 / 3)


@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=12))
def test_no_constant_answer_scores_above_the_baseline_on_its_training_rows(labels):
    train = [("x", label) for label in labels]
    for task in (RELATION, LabelTask("relation", LABELS)):
        constant = task.baselines(train)["constant"]("x")
        scores = {label: constant_scores(task, train, label)[task.metric] for label in LABELS}
        assert scores[constant] == max(scores.values())


@pytest.mark.parametrize(
    ("labels", "constant"),
    [
        ([], "Treats"),
        (["Causes", "Treats"], "Treats"),
        (["No Relations"], "No Relations"),
        (["No Relations", "No Relations", "Causes"], "Causes"),
    ],
)
def test_ties_between_constant_answers_are_settled_by_frequency_then_order(labels, constant):
    assert RELATION.baselines([("x", label) for label in labels])["constant"]("x") == constant


def test_the_constant_negative_answer_is_given_where_another_constant_leads():
    train = [("a", "No Relations"), ("b", "No Relations"), ("c", "Treats")]
    assert [*RELATION.baselines(train)] == ["constant", "constant_negative"]
    assert RELATION.baselines(train)["constant_negative"]("x") == "No Relations"
    by_accuracy = LabelTask("relation", LABELS, negative="No Relations", metric="accuracy")
    assert [*by_accuracy.baselines(train)] == [*NliTask().baselines([])] == ["constant"]


def test_every_row_has_the_same_statistics_and_metrics_keep_the_shape_of_resamples():
    one = RELATION.statistics(("x", "Treats"), Parsed(None), "x")
    other = RELATION.statistics(("x", "Causes"), Parsed(("x", "Causes")), "x")
    assert one.keys() == other.keys()
    resamples = {key: np.array([[one[key], other[key]], [0, 2 * other[key]]]) for key in one}
    assert {score.shape for score in RELATION.metrics(resamples).values()} == {(2, 2)}


def test_errors_say_what_was_taken_for_what():
    assert RELATION.errors(("x", "Treats"), Parsed(("x", "Treats")), "x") == []
    wrong = RELATION.errors(("x", "Treats"), Parsed(("x", "Causes")), "x")
    assert [(one.kind, one.gold, one.predicted) for one in wrong] == [("wrong_label", "Treats", "Causes")]
    assert [one.kind for one in RELATION.errors(("x", "Treats"), Parsed(None), "x")] == ["unparsable"]


@pytest.mark.parametrize("labels", [("A", "a"), ("", "B"), (" A", "B")])
def test_label_sets_that_cannot_be_told_apart_are_refused(labels):
    with pytest.raises(ValueError, match="differ in more than case"):
        LabelTask("relation", labels)


def test_a_label_that_is_not_of_the_set_is_refused():
    with pytest.raises(ValueError, match="'Cures' is none of Treats"):
        RELATION.render(("x", "Cures"))
    with pytest.raises(ValueError, match="negative label 'None'"):
        LabelTask("relation", LABELS, negative="None")


def test_the_breakdown_is_the_confusion_with_unparsable_answers():
    rows = [
        RELATION.statistics(("x", "Treats"), Parsed(None if guess is None else ("x", guess)), "x")
        for guess in ("Treats", "Causes", None)
    ]
    confusion = RELATION.breakdown(totals(rows))["confusion"]
    assert confusion["Treats"] == {"Treats": 1, "Causes": 1, "No Relations": 0, "": 1}
    assert not any(confusion["Causes"].values())


def test_another_metric_may_lead():
    assert LabelTask("label", ("yes", "no", "maybe"), metric="macro_f1").metric == "macro_f1"
    assert NliTask(metric="macro_f1").metric == "macro_f1"
    with pytest.raises(ValueError, match="'f1_positive' is none of accuracy"):
        NliTask(metric="f1_positive")
