"""Extraction tasks: what is written, counted and scored."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune_jax.tasks.base import Parsed
from medtune_jax.tasks.extract import ExtractTask

LIST = ExtractTask()
FIELDS = ("active", "discontinued", "neither")
STATUS = ExtractTask(FIELDS)
FACTOID = ExtractTask(ranked=True)
SINGLE = ExtractTask(single=True)

names = st.text(min_size=1).map(str.strip).filter(bool)
items = st.lists(st.lists(names, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple)
some_items = items.filter(bool)
FORMS = [
    (LIST, st.tuples(items)),
    (STATUS, st.tuples(items, items, items)),
    (FACTOID, st.tuples(some_items)),
    (SINGLE, st.tuples(some_items.map(lambda found: found[:1]))),
]
annotations = st.one_of(*[st.tuples(st.just(task), st.tuples(st.text(), form)) for task, form in FORMS])


def item_lists(*of_fields):
    """Items of one name each, per field."""
    return tuple(tuple((name,) for name in of_field) for of_field in of_fields)


def totals(rows):
    return {key: np.array(sum(row[key] for row in rows)) for key in rows[0]}


def scores(task, pairs):
    """Metrics of (gold items, answer text) pairs."""
    return task.metrics(totals([task.statistics(("x", gold), task.parse(text, "x"), "x") for gold, text in pairs]))


@given(annotations)
def test_rows_round_trip_with_their_synonyms(example):
    task, annotation = example
    input, output = task.render(annotation)
    assert "\n" not in output
    assert task.gold(output, input, task.facts(annotation)) == Parsed(annotation)
    first_names = tuple(tuple(item[:1] for item in of_field) for of_field in annotation[1])
    assert task.parse(output, input) == Parsed((input, first_names))


@given(annotations)
def test_the_grammar_accepts_what_is_rendered(example):
    task, annotation = example
    assert re.fullmatch(task.grammar("").text, task.render(annotation)[1])


# What a text is made of that comes close to the grammar, and what only looks like white space or an escape.
fragments = (
    *'[]{}",: ab\\',
    '["',
    '"]',
    '", "',
    "\\u001c",
    "\\u000b",
    "\\u00e4",
    "\\/",
    "\\n",
    "\\b",
    "\xa0",
    "\x85",
    "\t",
)
pieces = st.sampled_from((*fragments, '"], "discontinued": [], "neither": []}'))
near = st.lists(pieces, max_size=8).map("".join)
inside = st.tuples(st.sampled_from(['["', f'{{"{FIELDS[0]}": ["']), near).map("".join)
texts = st.one_of(
    near,
    inside.map(lambda text: text + '"]'),
    inside.map(lambda text: text + '"], "discontinued": [], "neither": []}'),
    annotations.map(lambda example: example[0].render(example[1])[1]),
)


@given(st.sampled_from([task for task, _ in FORMS]), texts)
def test_the_grammar_accepts_a_text_if_and_only_if_it_is_rendered_from_what_is_read_in_it(task, text):
    accepted = re.fullmatch(task.grammar("").text, text) is not None
    parsed = task.parse(text, "")
    rendered = None
    if parsed.status == "exact" and not (task.ranked and not parsed.annotation[1][0]):
        rendered = task.render(parsed.annotation)[1] if not task.single or parsed.annotation[1][0] else None
    assert accepted == (rendered == text)


@pytest.mark.parametrize("task", [task for task, _ in FORMS])
@given(st.data())
def test_every_text_of_the_grammar_is_read_as_exact(task, data):
    text = data.draw(st.from_regex(task.grammar("").text, fullmatch=True))
    parsed = task.parse(text, "")
    assert parsed.status == "exact"
    assert task.render(parsed.annotation)[1] == text


@pytest.mark.parametrize("text", ["[]", '["a", "b"]'])
def test_the_grammar_knows_how_many_answers_are_asked_for(text):
    forms = {"list": LIST, "ranked": FACTOID, "single": SINGLE}
    accepted = {name: bool(re.fullmatch(task.grammar("").text, text)) for name, task in forms.items()}
    assert accepted == {"list": True, "ranked": text != "[]", "single": False}


def test_field_names_of_any_characters_stand_in_the_grammar_as_json_writes_them():
    task = ExtractTask(('dose (mg) "x"', "a.b*c #&~-", "\u00e4"))
    text = task.render(("", item_lists(["1"], [], ["2", "3"])))[1]
    assert re.fullmatch(task.grammar("").text, text)
    assert not re.fullmatch(task.grammar("").text, text.replace("a.b", "aXb"))


@given(st.sampled_from(FORMS).flatmap(lambda form: st.tuples(st.just(form[0]), st.lists(form[1], min_size=1))))
def test_perfect_answers_earn_exactly_one(example):
    task, golds = example
    perfect = scores(task, [(gold, task.render(("x", gold))[1]) for gold in golds])
    fields_used = {
        field for gold in golds for field, of_field in zip(task.fields or ("",), gold, strict=True) if of_field
    }
    for name, score in perfect.items():
        # Without any gold item a ratio of counts is 0/0; a macro average needs all fields.
        undefined = name in ("f1", "precision", "recall", "status_accuracy") and not fields_used
        undefined |= name == "macro_f1" and len(fields_used) < len(task.fields)
        undefined |= name.startswith("f1/") and name.removeprefix("f1/") not in fields_used
        assert undefined or score == 1.0


@given(annotations, st.sampled_from(["", "  \n", "[", "I am afraid that I cannot answer this question at all."]))
def test_a_blank_answer_earns_nothing(example, text):
    task, annotation = example
    row = task.statistics(annotation, task.parse(text, "x"), "x")
    assert row["unparsable"] == 1
    assert all(score == 0 for score in task.metrics(totals([row])).values())


def test_a_synonym_is_as_good_as_the_first_name_and_counts_once():
    gold = ((("paracetamol", "acetaminophen"), ("ibuprofen",)),)
    row = LIST.statistics(("x", gold), LIST.parse('["The Acetaminophen.", "acetaminophen"]', "x"), "x")
    assert (row["correct"], row["predicted"], row["gold"]) == (1, 1, 2)
    both = LIST.statistics(("x", gold), LIST.parse('["paracetamol", "acetaminophen"]', "x"), "x")
    assert (both["correct"], both["predicted"], both["gold"]) == (1, 2, 2)


def test_names_that_gold_repeats_are_one_item():
    gold = ((("a", "x"), ("A", "y")),)
    row = LIST.statistics(("x", gold), LIST.parse('["y"]', "x"), "x")
    assert (row["correct"], row["predicted"], row["gold"]) == (1, 1, 1)


def test_the_means_over_questions_are_not_the_micro_average():
    pairs = [(item_lists("ab"), '["a", "b"]'), (item_lists("cdef"), '["c", "x"]'), (item_lists("g"), "sorry, no.")]
    found = scores(LIST, pairs)
    assert found["precision"] == pytest.approx(3 / 4) and found["recall"] == pytest.approx(3 / 7)
    assert found["mean_precision"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found["mean_recall"] == pytest.approx((1 + 1 / 4 + 0) / 3)
    assert found["mean_f1"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["f1"] == pytest.approx(6 / 11) and found["exact_match"] == pytest.approx(1 / 3)


def test_an_explicit_empty_list_is_right_where_there_is_nothing_and_wrong_elsewhere():
    right = scores(LIST, [(item_lists(""), "[]")])
    assert right["mean_f1"] == right["exact_match"] == 1
    wrong = scores(LIST, [(item_lists("a"), "[]"), (item_lists(""), '["a"]')])
    assert wrong["mean_f1"] == wrong["exact_match"] == wrong["f1"] == 0


def test_candidates_are_scored_by_the_rank_of_the_first_right_one_of_five():
    gold = ((("p53", "TP53"), ("MDM2",)),)
    answers = [
        '["tp53", "x"]',  # rank 1
        '["x", "y", "MDM2", "p53"]',  # rank 3
        '["a", "b", "c", "d", "p53"]',  # rank 5
        '["a", "b", "c", "d", "e", "p53"]',  # the sixth does not count
        "[]",
    ]
    found = scores(FACTOID, [(gold, answer) for answer in answers])
    assert found == {
        "strict_accuracy": pytest.approx(1 / 5),
        "lenient_accuracy": pytest.approx(3 / 5),
        "mrr": pytest.approx((1 + 1 / 3 + 1 / 5) / 5),
    }


def test_a_single_answer_is_right_by_any_name_or_in_part():
    gold = ((("the chest pain", "his pain"),),)
    found = scores(SINGLE, [(gold, '["His pain"]'), (gold, '["severe chest pain"]'), (gold, '["the nurse"]')])
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["token_f1"] == pytest.approx((1 + 2 * 2 / 5 + 0) / 3)


def test_fields_are_scored_together_and_each_by_itself():
    gold = item_lists("ab", "c", "")
    found = scores(STATUS, [(gold, '{"active": ["a", "c"], "discontinued": ["c"], "neither": ["b"]}')])
    assert found["f1"] == pytest.approx(2 * 2 / (4 + 3))
    assert found["f1/active"] == pytest.approx(1 / 2)
    assert found["f1/discontinued"] == 1 and found["f1/neither"] == 0
    assert found["macro_f1"] == pytest.approx((1 / 2 + 1 + 0) / 3)


def status_accuracy(gold, answer):
    return scores(STATUS, [(gold, answer)])["status_accuracy"]


def test_status_accuracy_is_of_the_medications_that_were_found():
    gold = ((("aspirin", "ASA"), ("metformin",)), (("warfarin",),), ())
    assert status_accuracy(gold, '{"active": ["ASA"], "discontinued": [], "neither": ["warfarin", "x"]}') == 0.5
    assert status_accuracy(gold, '{"active": ["x"], "discontinued": [], "neither": []}') == 0


def test_a_medication_put_in_every_field_has_no_right_status():
    everywhere = '{"active": ["a"], "discontinued": ["a"], "neither": ["a"]}'
    assert status_accuracy(item_lists("a", "", ""), everywhere) == 0
    assert status_accuracy(item_lists("a", "a", ""), '{"active": ["a"], "discontinued": ["a"], "neither": []}') == 1


def test_the_breakdown_counts_per_field():
    parsed = STATUS.parse('{"active": ["a"], "discontinued": ["x"], "neither": []}', "x")
    row = STATUS.statistics(("x", item_lists("ab", "c", "")), parsed, "x")
    assert STATUS.breakdown(row)["per_label"] == {
        "active": {"gold": 2, "predicted": 1, "correct": 1},
        "discontinued": {"gold": 1, "predicted": 1, "correct": 0},
        "neither": {"gold": 0, "predicted": 0, "correct": 0},
    }
    assert LIST.breakdown({}) == {}


def test_every_row_has_the_same_statistics_and_metrics_keep_the_shape_of_resamples():
    for task, gold in ((LIST, item_lists("ab")), (STATUS, item_lists("a", "b", "")), (FACTOID, item_lists("a"))):
        one = task.statistics(("x", gold), Parsed(("x", gold)), "x")
        other = task.statistics(("x", gold), Parsed(None), "x")
        assert one.keys() == other.keys()
        resamples = {key: np.array([[one[key], other[key]], [0, 2 * one[key]]], float) for key in one}
        assert {score.shape for score in task.metrics(resamples).values()} == {(2, 2)}


def errors(task, gold, text):
    return [
        (one.kind, one.gold, one.predicted, one.where) for one in task.errors(("x", gold), task.parse(text, "x"), "x")
    ]


def test_errors_say_what_was_missed_invented_or_put_elsewhere():
    gold = item_lists("Ab", "c", "")
    answer = '{"active": ["a"], "discontinued": ["q"], "neither": ["B"]}'
    assert errors(STATUS, gold, answer) == [
        ("type", "b", "B", {"field": "active", "predicted_field": "neither"}),
        ("missed", "c", "", {"field": "discontinued"}),
        ("spurious", "", "q", {"field": "discontinued"}),
    ]
    assert errors(LIST, item_lists("ab"), '["b", "z"]') == [("missed", "a", "", {}), ("spurious", "", "z", {})]


def test_errors_of_ranked_and_single_answers_name_the_first_candidate():
    assert errors(FACTOID, item_lists("a"), '["x", "a"]') == [("wrong_label", "a", "x", {"rank": 2})]
    assert errors(FACTOID, item_lists("a"), "[]") == [("wrong_label", "a", "", {})]
    assert errors(FACTOID, item_lists("ab"), '["b"]') == []
    assert errors(SINGLE, item_lists("a"), '["x"]') == [("wrong_label", "a", "x", {})]


def test_an_unparsable_row_is_an_error_for_each_of_its_items():
    assert [kind for kind, *_ in errors(STATUS, item_lists("ab", "c", ""), "")] == ["unparsable"] * 3
    assert errors(LIST, item_lists(""), "") == [("unparsable", "", "", {})]


@given(st.lists(st.lists(st.sampled_from("abc"), unique=True), min_size=1, max_size=8))
def test_no_training_answer_scores_above_the_constant_on_its_training_rows(answers):
    for task in (LIST, ExtractTask(metric="mean_f1")):
        train = [task.render(("x", item_lists(answer))) for answer in answers]
        golds = [item_lists(answer) for answer in answers]
        of = {
            output: scores(task, [(gold, output) for gold in golds])[task.metric]
            for output in ["[]", *(output for _, output in train)]
        }
        assert of[task.baselines(train)["constant"]("y")] == pytest.approx(max(of.values()))


def test_without_training_rows_the_constant_answer_is_empty():
    assert LIST.baselines([])["constant"]("x") == "[]"
    assert STATUS.baselines([])["constant"]("x") == '{"active": [], "discontinued": [], "neither": []}'


@pytest.mark.parametrize("synonyms", [[], [["b"]], [[["b"], ["c"]]], [[[1]]], {"a": ["b"]}, "b"])
def test_synonyms_of_other_items_are_left_out_and_said(synonyms):
    assert LIST.gold('["a"]', "x", {"synonyms": synonyms}) == Parsed(("x", item_lists("a")), ("synonyms_mismatch",))


@pytest.mark.parametrize(
    ("task", "gold", "message"),
    [
        (STATUS, item_lists("a"), "1 lists of items but the task has 3 fields"),
        (LIST, (((),),), "neither blank nor padded"),
        (LIST, ((("a", " b"),),), "neither blank nor padded"),
        (LIST, ((("",),),), "neither blank nor padded"),
        (FACTOID, ((),), "at least one"),
        (SINGLE, item_lists("ab"), "exactly one"),
    ],
)
def test_what_cannot_be_written_is_refused(task, gold, message):
    with pytest.raises(ValueError, match=message):
        task.render(("x", gold))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ranked": True, "single": True}, "not two of these"),
        ({"fields": ("a",), "ranked": True}, "not two of these"),
        ({"fields": ("a", "A")}, "differ in more than case"),
        ({"fields": ("a ",)}, "unpadded"),
        ({"metric": "mrr"}, "metric 'mrr' is none of f1, precision"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExtractTask(**arguments)


def test_the_leading_metric_may_be_chosen():
    assert ExtractTask(metric="mean_f1").metric == "mean_f1"
    assert [task.metric for task in (LIST, STATUS, FACTOID, SINGLE)] == ["f1", "f1", "mrr", "exact_match"]
