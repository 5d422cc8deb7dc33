"""Free text: what counts as one text, and scores that are those of rouge-score and sacrebleu."""

import csv
import re

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from medtune_jax.tasks.base import Parsed
from medtune_jax.tasks.text import BLEU_SIGNATURE, TextTask, clean_text

TEXT = TextTask()
WORDS = ["the", "patient", "denies", "pain", "(2.5", "mg)", "daily,", "no.", "-", "&amp;", "\n", "caf\u00e9"]
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=15).map(" ".join).map(clean_text).filter(bool)
pairs = st.lists(st.tuples(texts, texts | st.just("")), min_size=1, max_size=6)


def totals(rows):
    return {key: np.array(sum(row[key] for row in rows)) for key in rows[0]}


def scores(pairs):
    return TEXT.metrics(totals([TEXT.statistics(("x", gold), TEXT.parse(answer, "x"), "x") for gold, answer in pairs]))


@given(st.text(), st.text())
def test_texts_round_trip_once_clean(input, text):
    output = clean_text(text)
    if not output:
        assert TEXT.parse(text, input) == Parsed(None, ("empty_output",))
        return
    assert TEXT.parse(text, input) == Parsed((input, output))
    assert TEXT.parse(*reversed(TEXT.render((input, output)))) == Parsed((input, output))


def test_line_ends_and_edges_are_made_one_at_reading():
    assert TEXT.parse(" \r\nHPI:\r\n  pain\rnone \n", "x") == Parsed(("x", "HPI:\n  pain\nnone"))


@pytest.mark.parametrize("output", ["", " a", "a\n", "a\r\nb"])
def test_a_text_that_reading_would_change_is_not_written(output):
    with pytest.raises(ValueError, match="clean_text"):
        TEXT.render(("x", output))


@given(pairs)
def test_scores_equal_the_libraries(pairs):
    found = scores(pairs)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    theirs = [scorer.score(gold, answer) for gold, answer in pairs]
    for name in scorer.rouge_types:
        assert found[name] == pytest.approx(np.mean([row[name].fmeasure for row in theirs]))
    golds, answers = ([pair[side] for pair in pairs] for side in (0, 1))
    bleu = sacrebleu.metrics.BLEU(effective_order=True).corpus_score(answers, [golds])
    assert found["bleu"] == pytest.approx(bleu.score / 100)
    if min(bleu.totals) > 0:  # the effective order is all four: the default gives the same
        assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(answers, [golds]).score / 100)


def test_the_signature_is_that_of_the_scorer_used():
    scorer = sacrebleu.metrics.BLEU(effective_order=True)
    scorer.corpus_score(["a"], [["a"]])
    assert str(scorer.get_signature()).startswith(f"{BLEU_SIGNATURE}|version:")


@given(st.lists(texts, min_size=1, max_size=6))
def test_perfect_answers_earn_exactly_one_where_there_is_something_to_share(golds):
    perfect = scores([(gold, gold) for gold in golds])
    assert perfect["bleu"] == 1.0
    tokenized = [re.findall("[a-z0-9]+", gold.lower()) for gold in golds]
    if all(tokenized):
        assert perfect["rouge1"] == perfect["rougeL"] == perfect["rougeLsum"] == 1.0
    if all(len(words) > 1 for words in tokenized):
        assert perfect["rouge2"] == 1.0


@pytest.mark.parametrize("gold", ["no", "no pain", "no chest pain"])
def test_a_perfect_text_shorter_than_four_words_has_a_bleu_of_one(gold):
    assert scores([(gold, gold)])["bleu"] == 1.0


@given(pairs)
def test_a_blank_answer_earns_nothing_and_changes_only_its_row(pairs):
    rows = [TEXT.statistics(("x", gold), TEXT.parse(answer, "x"), "x") for gold, answer in pairs]
    blank = TEXT.statistics(("x", pairs[0][0]), TEXT.parse("\n", "x"), "x")
    assert blank["unparsable"] == 1 and blank.keys() == rows[0].keys()
    assert all(value == 0 for key, value in blank.items() if key not in ("rows", "unparsable", "bleu_gold_tokens"))
    assert all(score == 0 for score in TEXT.metrics(totals([blank])).values())


def test_metrics_keep_the_shape_of_resamples():
    row = TEXT.statistics(("x", "a b c d e"), TEXT.parse("a b c d f", "x"), "x")
    resamples = {key: np.array([[value, 2 * value], [0, value]], float) for key, value in row.items()}
    found = TEXT.metrics(resamples)
    assert {score.shape for score in found.values()} == {(2, 2)}
    assert found["bleu"][0, 0] == pytest.approx(found["bleu"][0, 1]) and found["bleu"][1, 0] == 0


def test_only_a_blank_answer_is_an_error():
    assert TEXT.errors(("x", "a"), TEXT.parse("b", "x"), "x") == []
    assert [(one.kind, one.gold) for one in TEXT.errors(("x", "a"), TEXT.parse("", "x"), "x")] == [("unparsable", "a")]


def test_the_constant_answer_is_the_most_frequent_the_earliest_of_equals():
    rows = [("x", "b"), ("x", "a\r\n"), ("x", "a"), ("x", "b"), ("x", "c")]
    assert TEXT.baselines(rows)["constant"]("y") == "b"
    assert TEXT.baselines(rows[1:])["constant"]("y") == "a"
    assert TEXT.baselines([])["constant"]("y") == ""


def test_the_leading_metric_may_be_chosen():
    assert TEXT.metric == "rougeL" and TextTask(metric="bleu").metric == "bleu"
    with pytest.raises(ValueError, match="metric 'f1' is none of rouge1"):
        TextTask(metric="f1")


def test_long_answers_are_no_trouble():
    for answer in ("a " * 50_000, "a" * 100_000, "&" * 100_000, "\n" * 100_000 + "a", "9-" * 50_000):
        TEXT.statistics(("x", "a b c"), TEXT.parse(answer, "x"), "x")


def test_the_notes_of_mts_dialog_are_perfect_answers_to_themselves(shared_data):
    path = shared_data / "raw" / "Conv2note" / "MTS-Dialog-ValidationSet.csv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        notes = [clean_text(row["section_text"]) for row in csv.DictReader(file)]
    perfect = scores([(note, note) for note in notes])
    assert {float(perfect[name]) for name in ("rouge1", "rougeL", "rougeLsum", "bleu")} == {1.0}
    one_word = sum(len(re.findall("[a-z0-9]+", note.lower())) < 2 for note in notes)
    assert one_word == 8 and perfect["rouge2"] == pytest.approx(1 - one_word / len(notes))
