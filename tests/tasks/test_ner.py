"""What NER counts, scores, allows and reports."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune_jax.tasks.base import Parsed
from medtune_jax.tasks.ner import NerTask, split_tokens

TYPES = ("PROBLEM", "X-RAY")


def random_tags(rng, task, length, orphans):
    tags, previous = [], None
    for _ in range(length):
        legal = [tag for tag in task.tags if orphans or (previous, tag) in task.follows]
        previous = rng.choice(legal)
        tags.append(previous)
    return tuple(tags)


def totals(rows):
    return {key: np.array(sum(row[key] for row in rows)) for key in rows[0]}


@pytest.mark.parametrize("types", [(), TYPES])
def test_scores_equal_seqeval_called_directly(types):
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
    from seqeval.scheme import IOB2

    task, rng = NerTask(types), random.Random(0)
    tokens = tuple(f"t{index}" for index in range(8))
    golds = [random_tags(rng, task, 8, orphans=False) for _ in range(200)]
    guesses = [random_tags(rng, task, 8, orphans=True) for _ in range(200)]
    guesses[:40] = golds[:40]
    rows = [
        task.statistics((tokens, gold), Parsed((tokens, guess)), "") for gold, guess in zip(golds, guesses, strict=True)
    ]
    scores = task.metrics(totals(rows))
    y_true, y_pred = [list(gold) for gold in golds], [list(guess) for guess in guesses]
    assert scores["f1"] == pytest.approx(f1_score(y_true, y_pred), abs=1e-12)
    assert scores["precision"] == pytest.approx(precision_score(y_true, y_pred), abs=1e-12)
    assert scores["recall"] == pytest.approx(recall_score(y_true, y_pred), abs=1e-12)
    assert scores["accuracy"] == pytest.approx(accuracy_score(y_true, y_pred), abs=1e-12)
    strict = f1_score(y_true, y_pred, mode="strict", scheme=IOB2)
    assert scores["f1_strict"] == pytest.approx(strict, abs=1e-12)
    assert scores["f1_strict"] != scores["f1"]
    of_type = f1_score(y_true, y_pred, average=None)
    assert [scores[f"f1/{label}"] for label in types] == pytest.approx(list(of_type)[: len(types)], abs=1e-12)


def test_an_orphan_i_opens_an_entity_only_in_default_mode():
    task = NerTask()
    assert task.entities(("O", "I", "I", "O")) == [("_", 1, 2)]
    assert task.entities(("O", "I", "I", "O"), strict=True) == []
    tokens = ("a", "b", "c", "d")
    row = task.statistics((tokens, ("O", "B", "I", "O")), Parsed((tokens, ("O", "I", "I", "O"))), "a b c d")
    assert (row["tp"], row["tp_strict"], row["predicted_strict"], row["gold_strict"]) == (1, 0, 0, 1)


def test_nothing_over_nothing_is_zero_and_metrics_keep_the_shape_of_resamples():
    task = NerTask()
    row = task.statistics((("a",), ("O",)), task.parse("a : O", "a"), "a")
    assert task.metrics(totals([row]))["f1"] == 0
    resamples = {key: np.array([value, 2 * value, 0]) for key, value in row.items()}
    assert all(score.shape == (3,) for score in task.metrics(resamples).values())
    assert task.metrics(resamples)["accuracy"].tolist() == [1, 1, 0]


def test_an_unparsable_row_keeps_its_gold_and_earns_nothing():
    row = NerTask().statistics((("a", "b"), ("B", "O")), Parsed(None, ("empty_output",)), "a b")
    assert row["unparsable"] == 1 and row["gold"] == 1 and row["tokens"] == 2
    assert row["predicted"] == row["tp"] == row["echo"] == row["correct_tokens"] == 0


@pytest.mark.parametrize(
    ("text", "echo"), [("a : O\nb : O", 1), ("a: O\nb : X", 1), ("a : O", 0), ("a : O\nb : O\nc : O", 0), ("", 0)]
)
def test_echo_means_the_exact_tokens(text, echo):
    task = NerTask()
    assert task.statistics((("a", "b"), ("O", "O")), task.parse(text, "a b"), "a b")["echo"] == echo


@pytest.mark.parametrize("types", [(), TYPES])
def test_allowed_outputs_are_those_of_render_without_orphans(types):
    task, tokens = NerTask(types), ("a:b", "###", "c")
    allowed = task.allowed(" ".join(tokens))
    for tags in itertools.product(task.tags, repeat=3):
        output = task.render((tokens, tags))[1]
        assert allowed.text(tags) == output
        assert [output[start:end] for start, end in allowed.spans(output)] == list(tags)
        permitted = all(itertools.starmap(allowed.permits, zip((None, *tags), tags, strict=False)))
        assert permitted == (task.entities(tags) == task.entities(tags, strict=True))


def test_errors_name_kind_text_and_token_span():
    task = NerTask(TYPES)
    tokens = tuple("abcdefgh")
    gold = (tokens, ("B-PROBLEM", "I-PROBLEM", "O", "B-PROBLEM", "O", "B-X-RAY", "O", "O"))
    guess = (tokens, ("B-PROBLEM", "O", "O", "B-X-RAY", "O", "O", "O", "B-X-RAY"))
    found = [(one.kind, one.gold, one.predicted) for one in task.errors(gold, Parsed(guess), "")]
    assert found == [("boundary", "a b", "a"), ("type", "d", "d"), ("missed", "f", ""), ("spurious", "", "h")]
    first, second = task.errors(gold, Parsed(guess), "")[:2]
    assert first.where == {"gold": [0, 1], "gold_type": "PROBLEM", "predicted": [0, 0], "predicted_type": "PROBLEM"}
    assert second.where["predicted_type"] == "X-RAY"
    assert [one.kind for one in task.errors(gold, Parsed(None), "")] == ["unparsable"] * 3
    assert [one.gold for one in task.errors((("a",), ("O",)), Parsed(None), "")] == [""]
    assert task.errors(gold, Parsed(gold), "") == []


def test_one_prediction_explains_one_gold_entity():
    task, tokens = NerTask(), ("a", "b", "c")
    errors = task.errors((tokens, ("B", "B", "O")), Parsed((tokens, ("B", "I", "O"))), "")
    assert [(one.kind, one.gold) for one in errors] == [("boundary", "a"), ("missed", "b")]


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        ((("a",), ()), "1 tokens but 0 tags"),
        ((("a b",), ("O",)), "holds a space"),
        ((("a\nb",), ("O",)), "line feed"),
        ((("",), ("O",)), "empty"),
        ((("a",), ("B-X",)), "none of O B I"),
    ],
)
def test_render_refuses_what_could_not_be_read_back(annotation, said):
    with pytest.raises(ValueError, match=said):
        NerTask().render(annotation)


def test_baselines_echo_all_o_and_find_the_longest_training_mention():
    task = NerTask()
    train = [
        task.render((("Lung", "cancer", "is", "bad"), ("B", "I", "O", "O"))),
        task.render((("cancer", ",", "ALL"), ("B", "O", "B"))),
        ("never read", "rubbish"),
    ]
    answers = task.baselines(train)
    assert answers["constant"]("a b") == "a : O\nb : O"
    tagged = task.parse(
        answers["train_dictionary"]("all had lung cancer or Cancer or ALL"), "all had lung cancer or Cancer or ALL"
    )
    # "ALL" has no lower-case letter, so it is matched as written only; "Lung cancer" in any case.
    assert tagged.annotation[1] == ("O", "O", "B", "I", "O", "B", "O", "B")


def test_the_dictionary_finds_a_short_mention_at_the_end_that_begins_a_longer_one():
    task = NerTask()
    train = [task.render((("lung", "cancer", "type", "2"), ("B", "I", "I", "I"))), task.render((("lung",), ("B",)))]
    assert task.baselines(train)["train_dictionary"]("a lung") == "a : O\nlung : B"


def test_the_dictionary_gives_a_mention_its_most_frequent_type():
    task = NerTask(TYPES)
    train = [task.render((("ct",), (tag,))) for tag in ("B-PROBLEM", "B-X-RAY", "B-X-RAY")]
    assert task.baselines(train)["train_dictionary"]("ct") == "ct : B-X-RAY"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("BIO")), min_size=1, max_size=6))
def test_a_perfect_answer_scores_one_wherever_there_is_something_to_find(pairs):
    task = NerTask()
    gold = (tuple(token for token, _ in pairs), tuple(tag for _, tag in pairs))
    input, output = task.render(gold)
    scores = task.metrics(totals([task.statistics(gold, task.parse(output, input), input)]))
    assert scores["f1"] == (1.0 if any(tag != "O" for tag in gold[1]) else 0.0)
    assert scores["accuracy"] == scores["echo_rate"] == 1.0
    assert split_tokens(input) == gold[0]


def test_the_breakdown_counts_entities_per_type_where_typed():
    task, gold = NerTask(("X", "Y")), (("a", "b"), ("B-X", "B-Y"))
    counts = task.statistics(gold, Parsed((("a", "b"), ("B-X", "B-X"))), "a b")
    assert task.breakdown(counts)["per_label"] == {
        "X": {"gold": 1, "predicted": 2, "correct": 1},
        "Y": {"gold": 1, "predicted": 0, "correct": 0},
    }
    assert NerTask().breakdown({}) == {}


def test_another_metric_may_lead():
    assert NerTask(("X",), metric="f1/X").metric == "f1/X"
    with pytest.raises(ValueError, match="'f2' is none of f1"):
        NerTask(metric="f2")
