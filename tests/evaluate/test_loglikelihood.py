"""Accuracy by log-likelihood takes the likeliest candidate, raw or per byte, and names a row that cannot be ranked."""

from dataclasses import replace

import pytest
from evaluate_samples import NLI, perfect

from medtune_jax.errors import UserError
from medtune_jax.evaluate.compare import compare
from medtune_jax.evaluate.score import score, write_scores

EVEN = {"Entailment": -1.0, "Contradiction": -1.0, "Neutral": -1.0}


def _rows(values):
    """Rows of which the gold is Entailment, with these log-likelihoods each."""
    row = next(one for one in perfect(NLI) if one.output == "Entailment")
    return [replace(row, row=at, loglikelihoods=one) for at, one in enumerate(values)]


def _metrics(rows):
    return score(rows, resamples=5).document["sources"][NLI]["metrics"]


def test_the_likeliest_candidate_answers():
    metrics = _metrics(_rows([EVEN | {"Entailment": -0.5}, EVEN | {"Neutral": -0.5}]))
    assert metrics["accuracy_ll"] == 0.5


def test_per_byte_a_long_candidate_may_win():
    values = {"Entailment": -9.0, "Contradiction": -14.0, "Neutral": -8.0}  # 0.90, 1.08 and 1.14 per byte
    metrics = _metrics(_rows([values]))
    assert (metrics["accuracy_ll"], metrics["accuracy_ll_norm"]) == (0.0, 1.0)


def test_of_equals_the_earlier_candidate_answers():
    metrics = _metrics(_rows([EVEN, dict(reversed(EVEN.items()))]))
    assert metrics["accuracy_ll"] == 0.5


def test_without_loglikelihoods_there_is_no_such_metric():
    assert "accuracy_ll" not in _metrics(perfect(NLI))


def test_a_prompt_that_was_too_long_has_none_and_is_wrong():
    rows = _rows([EVEN | {"Entailment": -0.5}] * 2)
    rows[1] = replace(rows[1], loglikelihoods=None, finish_reason="prompt_too_long")
    assert _metrics(rows)["accuracy_ll"] == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), "low", None, True])
def test_a_candidate_without_a_finite_number_is_named_with_its_row(value):
    with pytest.raises(UserError, match="sample-nli, row 1: the log-likelihood of candidate 'Neutral' is"):
        _metrics(_rows([EVEN, EVEN | {"Neutral": value}]))


def test_a_row_that_lacks_them_is_named():
    with pytest.raises(UserError, match="sample-nli, row 1 has no `loglikelihoods`, but row 0 has"):
        _metrics([*_rows([EVEN]), replace(_rows([EVEN])[0], row=1, loglikelihoods=None)])


def test_runs_are_compared_by_it_where_all_have_it(tmp_path):
    good, bad = _rows([EVEN] * 4), _rows([EVEN | {"Neutral": -0.5}] * 4)
    for name, rows in (("good", good), ("bad", bad), ("without", [replace(one, loglikelihoods=None) for one in good])):
        write_scores(tmp_path / name, score(rows, resamples=5))
    found = compare([tmp_path / "good", tmp_path / "bad"])["sources"][NLI]["metrics"]
    assert found["accuracy_ll"][1]["difference"] == -1.0
    assert "accuracy_ll" not in compare([tmp_path / "good", tmp_path / "without"])["sources"][NLI]["metrics"]
