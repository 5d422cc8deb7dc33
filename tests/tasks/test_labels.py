"""Multi-label documents: read, counted, scored, constrained."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from medtune_jax.tasks.base import Parsed
from medtune_jax.tasks.labels import METRICS, LabelsTask

GROWTH, SPREAD, REPAIR, SUGAR = LABELS = (
    "Growing without end (GE)",
    "Spreading & settling (SS)",
    "Repair (R)",
    "Burning sugar (BS)",
)
TASK = LabelsTask(LABELS)
SETS = [chosen for size in range(5) for chosen in combinations(LABELS, size)]
sets = st.sampled_from(SETS)
answers = st.one_of(st.none(), sets)


def row(gold, answer):
    return TASK.statistics(("x", gold), Parsed(None if answer is None else ("x", answer)), "x")


def scores(pairs):
    rows = [row(*pair) for pair in pairs]
    return TASK.metrics({key: np.array(sum(one[key] for one in rows)) for key in rows[0]})


@given(st.text(), sets)
def test_a_row_round_trips(text, chosen):
    input, output = TASK.render((text, chosen))
    assert input == text
    assert TASK.parse(output, input) == Parsed((text, chosen))
    assert TASK.gold(output, input, {}) == Parsed((text, chosen))


@given(sets, st.randoms())
def test_the_order_of_labels_is_free(chosen, random):
    shuffled = random.sample(chosen, len(chosen))
    parsed = TASK.parse(", ".join(shuffled) or "None", "x")
    assert parsed.annotation == ("x", chosen)
    assert parsed.problems == (() if tuple(shuffled) == chosen else ("order",))


@pytest.mark.parametrize("text", ["", " \n", "None", "none", " NONE "])
def test_nothing_and_none_are_the_empty_set_in_a_gold_answer(text):
    assert TASK.gold(text, "x", {}).annotation == ("x", ())


@pytest.mark.parametrize(
    ("text", "chosen", "problems"),
    [
        ("none.", (), ("case", "separator")),
        ("The answer is None.", (), ("extra_text",)),
        ("growing without end (ge)", (GROWTH,), ("case",)),
        (f"{GROWTH}; {REPAIR}", (GROWTH, REPAIR), ("separator",)),
        (f"{GROWTH},{REPAIR}.", (GROWTH, REPAIR), ("separator",)),
        (f"{GROWTH}\n\n{REPAIR}", (GROWTH, REPAIR), ("line_break",)),
        (f"- {GROWTH}\n- {REPAIR}", (GROWTH, REPAIR), ("line_break", "separator")),
        (f"{GROWTH} {REPAIR}", (GROWTH, REPAIR), ("separator",)),
        (f"{GROWTH}, {GROWTH}", (GROWTH,), ("repeat",)),
        (f"It shows {GROWTH} and {SUGAR}.", (GROWTH, SUGAR), ("extra_text",)),
        (f"The labels are:\n\n{GROWTH}", (GROWTH,), ("extra_text",)),
        (f"{GROWTH}\nThis is because of burning sugar.", (GROWTH,), ("trailing_text",)),
        (f"{GROWTH}\n### Input: {SUGAR}", (GROWTH,), ("cut_at_marker",)),
        (f"{GROWTH}, Singing", (GROWTH,), ("unknown_label",)),
        ("(GE), (BS)", (GROWTH, SUGAR), ("abbreviation",)),
        ("Growing without end, repair", (GROWTH, REPAIR), ("name_only",)),
        ("Another name (SS)", (SPREAD,), ("abbreviation", "extra_text")),
        ("None\n\nNo label fits.", (), ("trailing_text",)),
        ("None, as no label fits", (), ("extra_text",)),
        ("None of the above.", (), ("extra_text",)),
        ("None of the hallmarks apply.", (), ("extra_text",)),
        ("No hallmarks", (), ("extra_text",)),
        ("No label", (), ("extra_text",)),
        ("GE, BS", (GROWTH, SUGAR), ("abbreviation",)),
        ("SS", (SPREAD,), ("abbreviation",)),
    ],
)
def test_a_defective_answer_is_repaired_and_its_defects_are_named(text, chosen, problems):
    assert TASK.parse(text, "x") == Parsed(("x", chosen), problems)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty_output"),
        (" \n\n", "empty_output"),
        (f"### {GROWTH}", "empty_output"),
        ("Singing", "no_label"),
        ("None of the first two", "no_label"),
        ("(R)", "no_label"),  # one letter may be that of an option
        (f"None, {GROWTH}", "ambiguous"),
        (f"None other than {GROWTH}", "ambiguous"),
        (f"None\n{GROWTH}", "ambiguous"),
        ("None, Singing", "ambiguous"),
        ("Singing, None", "ambiguous"),
        (f"{GROWTH}: yes\n{SUGAR}: no", "ambiguous"),
        (f"Labels:\n{GROWTH} - 1\n{SUGAR} - 1", "ambiguous"),
        (f"{GROWTH}\n{SUGAR}: yes", "ambiguous"),
        ("ge, bs", "no_label"),
        ("It shows BS", "no_label"),
        (", ".join((*LABELS, "None")), "ambiguous"),
        ("\n".join((*LABELS, "None")), "ambiguous"),
        (f"not {GROWTH}", "ambiguous"),
        (f"{SUGAR}, but not clearly {GROWTH}", "ambiguous"),
        (f"{GROWTH}: no, {SUGAR}: yes", "ambiguous"),
        ("Growing without end (SS)", "ambiguous"),
        ("not none", "ambiguous"),
    ],
)
def test_what_names_no_set_is_unparsable_and_never_the_empty_set(text, problem):
    parsed = TASK.parse(text, "x")
    assert parsed.annotation is None and parsed.problems[-1] == problem


def test_half_a_label_is_read_only_where_it_stands_for_one():
    task = LabelsTask(("Cancer (CA)", "Cancer (CB)", "Other (CA)", "other"))
    assert task.parse("Cancer", "x").annotation is None
    assert task.parse("(CA)", "x").annotation is None
    assert task.parse("Other", "x").annotation == ("x", ("other",))
    assert task.parse("(CB)", "x").annotation == ("x", ("Cancer (CB)",))


def test_another_spelling_is_read_and_named_as_a_repair():
    task = LabelsTask(LABELS, aliases={"Spreading and settling": SPREAD, "Sugar burning": SUGAR})
    assert task.parse("Spreading and settling, sugar burning (BS)", "x") == Parsed(("x", (SPREAD, SUGAR)), ("alias",))
    assert task.parse("Spreading and settling (GE)", "x").annotation is None
    for aliases in ({"Repair": REPAIR}, {"Singing": "Song"}, {"none": REPAIR}, {"": REPAIR}):
        with pytest.raises(ValueError, match="alias"):
            LabelsTask(LABELS, aliases=aliases)


def test_a_label_may_hold_commas_where_no_other_shares_a_part():
    task = LabelsTask(("Tumours, benign", "Cysts"))
    for chosen in ((), ("Tumours, benign",), ("Cysts",), ("Tumours, benign", "Cysts")):
        assert task.parse(task.render(("x", chosen))[1], "x") == Parsed(("x", chosen))
    with pytest.raises(ValueError, match="share no part between commas: benign"):
        LabelsTask(("Tumours, benign", "Benign"))


@pytest.mark.parametrize("labels", [(), ("A", "a"), ("",), (" A",), ("None",), ("A\nB",), ("A; B",), ("A,B",)])
def test_label_sets_that_cannot_be_told_apart_are_refused(labels):
    with pytest.raises(ValueError, match="label"):
        LabelsTask(labels)


def test_an_unknown_label_order_or_metric_is_refused():
    with pytest.raises(ValueError, match="'Singing' is none of Growing"):
        TASK.render(("x", ("Singing",)))
    for chosen in ((REPAIR, GROWTH), (REPAIR, REPAIR)):
        with pytest.raises(ValueError, match="not in the task's order"):
            TASK.render(("x", chosen))
    with pytest.raises(ValueError, match="'f1' is none of micro_f1"):
        LabelsTask(LABELS, metric="f1")
    assert LabelsTask(LABELS, metric="example_f1").metric == "example_f1" and TASK.metric == "micro_f1"


def texts_of(allowed):
    texts = [("", None)]
    for slot in allowed.slots:
        texts = [(t + option, option) for t, last in texts for option in slot.options if allowed.permits(last, option)]
    return [text for text, _ in texts]


@pytest.mark.parametrize("labels", [LABELS, LABELS[:1], ("a", "ab", "ab a", "b")])
def test_the_allowed_texts_are_exactly_the_outputs_of_render_each_in_one_way(labels):
    task = LabelsTask(labels)
    outputs = [task.render(("x", c))[1] for size in range(len(labels) + 1) for c in combinations(labels, size)]
    assert Counter(texts_of(task.allowed("x"))) == Counter(outputs)


@pytest.mark.parametrize("chosen", SETS)
def test_the_decisions_of_a_gold_answer_are_found(chosen):
    output, allowed = TASK.render(("x", chosen))[1], TASK.allowed("x")
    spans = allowed.spans(output)
    assert spans is not None
    options = [output[start:end] for start, end in spans]
    assert "".join(options) == output and allowed.text(tuple(options)) == output
    assert all(allowed.permits(*pair) for pair in zip([None, *options], options, strict=False))
    assert options[max(1, len(chosen)) :] == [""] * (len(LABELS) - max(1, len(chosen)))


@given(st.lists(st.tuples(sets, answers), min_size=1, max_size=30))
def test_f1_and_accuracy_equal_scikit_learn(pairs):
    def matrix(chosen):
        return np.array([[int(label in (one or ())) for label in LABELS] for one in chosen])

    gold, found = matrix([gold for gold, _ in pairs]), matrix([answer for _, answer in pairs])
    got = scores(pairs)
    if all(answer is not None for _, answer in pairs):
        assert got["micro_f1"] == pytest.approx(f1_score(gold, found, average="micro", zero_division=0))
    assert got["macro_f1"] == pytest.approx(f1_score(gold, found, average="macro", zero_division=0))
    read = [pair for pair in pairs if pair[1] is not None]
    right = accuracy_score(matrix([g for g, _ in read]), matrix([a for _, a in read]), normalize=False) if read else 0
    assert got["accuracy"] == pytest.approx(right / len(pairs))


@given(st.lists(st.tuples(sets, answers), min_size=1, max_size=30))
def test_example_f1_equals_a_count_by_hand(pairs):
    precision = recall = 0.0
    for gold, answer in pairs:
        if answer is None:
            continue
        if not gold:
            precision, recall = precision + (not answer), recall + (not answer)
            continue
        shared = sum(label in gold for label in answer)
        precision += shared / len(answer) if answer else 0
        recall += shared / len(gold)
    p, r = precision / len(pairs), recall / len(pairs)
    assert scores(pairs)["example_f1"] == pytest.approx(2 * p * r / (p + r) if p + r else 0)


def test_a_perfect_run_is_exactly_one_in_every_metric():
    assert scores([(chosen, chosen) for chosen in SETS]) == dict.fromkeys(METRICS, 1.0)


@given(st.lists(sets, min_size=1, max_size=8))
def test_a_blank_answer_earns_nothing_and_touches_its_own_row_only(golds):
    blank = TASK.parse("", "x")
    counts = TASK.statistics(("x", golds[0]), blank, "x")
    assert counts["unparsable"] == 1
    credit = ("exact", "example", "tp/", "predicted/")
    assert not any(value for key, value in counts.items() if key.startswith(credit))
    whole, without = scores([(g, g) for g in golds]), scores([(golds[0], None), *((g, g) for g in golds[1:])])
    assert all(without[name] <= whole[name] for name in METRICS)
    assert without["accuracy"] < whole["accuracy"] and without["example_f1"] < whole["example_f1"]


def test_a_document_is_the_union_of_its_parts():
    parts = [("one", (REPAIR,)), ("two", ()), ("three", (GROWTH, REPAIR))]
    assert TASK.merge(parts) == ("one\ntwo\nthree", (GROWTH, REPAIR))
    assert TASK.merge(parts[1:2]) == ("two", ())
    assert TASK.merge([*parts, None]) is not None and TASK.merge([*parts, None])[1] == (GROWTH, REPAIR)


def test_a_document_without_labels_and_with_an_unparsable_part_is_unparsable():
    assert TASK.merge([("two", ()), None]) is None
    assert TASK.merge([None]) is None


def test_errors_name_missed_and_spurious_labels():
    found = TASK.errors(("x", (GROWTH, REPAIR)), Parsed(("x", (REPAIR, SUGAR))), "x")
    assert [(one.kind, one.gold, one.predicted) for one in found] == [("missed", GROWTH, ""), ("spurious", "", SUGAR)]
    assert TASK.errors(("x", (REPAIR,)), Parsed(("x", (REPAIR,))), "x") == []
    unread = TASK.errors(("x", (GROWTH, REPAIR)), Parsed(None), "x")
    assert [(one.kind, one.gold) for one in unread] == [("unparsable", GROWTH), ("unparsable", REPAIR)]
    assert [(one.kind, one.gold) for one in TASK.errors(("x", ()), Parsed(None), "x")] == [("unparsable", "")]


def test_the_breakdown_counts_each_label():
    rows = [row((GROWTH, REPAIR), (GROWTH,)), row((), (GROWTH,)), row((REPAIR,), None)]
    counts = TASK.breakdown({key: sum(one[key] for one in rows) for key in rows[0]})["per_label"]
    assert counts[GROWTH] == {"gold": 1, "predicted": 2, "correct": 1}
    assert counts[REPAIR] == {"gold": 2, "predicted": 0, "correct": 0}


@pytest.mark.parametrize("metric", METRICS)
@given(st.lists(sets, min_size=1, max_size=10))
def test_no_constant_set_that_occurs_scores_above_the_baseline(metric, golds):
    task = LabelsTask(LABELS, metric=metric)
    train = [task.render(("x", gold)) for gold in golds]
    constant = task.gold(task.baselines(train)["constant"]("x"), "x", {}).annotation[1]
    # For both F1 over labels the baseline is the best of all sets, for the others of those that occur and of None.
    rivals = SETS if metric in ("micro_f1", "macro_f1") else [(), *golds]
    best = max(scores([(gold, rival) for gold in golds])[metric] for rival in rivals)
    assert scores([(gold, constant) for gold in golds])[metric] >= best - 1e-12


@pytest.mark.parametrize("gold", [(), (REPAIR,), (REPAIR, SUGAR)])
def test_an_unparsable_answer_costs_as_much_as_a_wrong_label(gold):
    right = ((GROWTH,), (GROWTH,))
    assert scores([right, (gold, None)])["micro_f1"] == scores([right, (gold, (SPREAD,))])["micro_f1"] < 1


def test_always_none_is_a_second_constant_answer_where_another_leads():
    answers = TASK.baselines([("x", REPAIR), ("y", "None"), ("z", "None")])
    assert (answers["constant"]("x"), answers["constant_negative"]("x")) == (REPAIR, "None")
    assert [*TASK.baselines([("x", "None")])] == ["constant"]


def test_without_training_rows_the_constant_answer_is_none():
    assert TASK.baselines([])["constant"]("x") == "None"
    assert TASK.baselines([("x", ""), ("y", "none")])["constant"]("x") == "None"


def test_every_row_has_the_same_statistics_and_metrics_keep_the_shape_of_resamples():
    one, other = row((GROWTH,), None), row((), ())
    assert one.keys() == other.keys()
    resamples = {key: np.array([[one[key], other[key]], [0, 2 * other[key]]]) for key in one}
    assert {score.shape for score in TASK.metrics(resamples).values()} == {(2, 2)}
