"""Rows of one group are also scored as a document, beside the rows and never instead of them."""

from dataclasses import replace

import numpy as np
import pytest
from evaluate_samples import NER, perfect, prediction

from medtune_jax.evaluate.compare import compare
from medtune_jax.evaluate.report.comparison import console, markdown
from medtune_jax.evaluate.score import score, write_scores
from medtune_jax.evaluate.table import read_tables
from medtune_jax.tasks.registry import get_source

HOC = "hoc"
A, B, C = get_source(HOC).task.labels[:3]
FEW = {"resamples": 20}


def _rows(documents):
    """documents: {group: [(gold labels, predicted text), ...]}"""
    made = []
    for group, sentences in documents.items():
        for labels, text in sentences:
            input, output = get_source(HOC).task.render((f"Sentence {len(made)} .", labels))
            made.append(replace(prediction(HOC, input, output, len(made), text), group=group))
    return made


def _documents(rows):
    return score(rows, **FEW).document["sources"][HOC]["documents"]


def test_a_document_has_the_labels_of_all_its_sentences():
    rows = _rows({"one": [((A,), B), ((B,), A)], "two": [((), "None"), ((C,), C)]})
    entry = score(rows, **FEW).document["sources"][HOC]
    assert entry["metrics"]["micro_f1"] == pytest.approx(1 / 3)
    assert entry["documents"]["n"] == 2
    assert (entry["documents"]["metrics"]["micro_f1"], entry["documents"]["metrics"]["example_f1"]) == (1.0, 1.0)


def test_document_micro_f1_equals_scikit_learn():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    documents, truth, found = {}, [], []
    for number in range(20):
        golds, answers = (
            [tuple(label for label in (A, B, C) if rng.random() < 0.4) for _ in range(3)] for _ in range(2)
        )
        documents[f"document {number}"] = [
            (gold, ", ".join(one) or "None") for gold, one in zip(golds, answers, strict=True)
        ]
        truth.append([any(label in one for one in golds) for label in (A, B, C)])
        found.append([any(label in one for one in answers) for label in (A, B, C)])
    metrics = _documents(_rows(documents))["metrics"]
    assert metrics["micro_f1"] == pytest.approx(f1_score(truth, found, average="micro"), abs=1e-12)


def test_a_blank_sentence_changes_its_row_and_its_document_only():
    documents = {name: [((A,), A), ((), "None")] for name in ("one", "two")}
    before = score(_rows(documents), **FEW)
    documents["two"] = [((A,), ""), ((), "None")]
    after = score(_rows(documents), **FEW)
    for tables, kept in (("tables", [0, 1, 3]), ("documents", [0])):
        one, other = getattr(before, tables)[HOC], getattr(after, tables)[HOC]
        np.testing.assert_array_equal(one.statistics[kept], other.statistics[kept])
    assert after.documents[HOC].status == ("exact", "unparsable")


def test_an_unread_sentence_is_no_document_without_labels():
    metrics = _documents(_rows({"one": [((), ""), ((), "None")], "two": [((A,), A), ((), "None")]}))["metrics"]
    assert metrics["accuracy"] == 0.5


def test_rows_without_groups_and_tasks_without_documents_have_none():
    assert _documents(_rows({"": [((A,), A), ((), "None")]})) is None
    grouped = [replace(one, group="one") for one in perfect(NER)]
    assert score(grouped, **FEW).document["sources"][NER]["documents"] is None


def test_rows_parquet_tells_rows_from_documents(tmp_path):
    scores = score(_rows({"one": [((A,), A), ((B,), "?")], "two": [((C,), C)]}), **FEW)
    write_scores(tmp_path, scores)
    tables, documents = read_tables(tmp_path / "rows.parquet")
    assert (tables[HOC].rows, documents[HOC].rows) == ((0, 1, 2), (0, 2))
    assert documents[HOC].groups == ("one", "two")
    np.testing.assert_array_equal(documents[HOC].statistics, scores.documents[HOC].statistics)


def test_the_constant_answer_is_scored_by_document_too():
    rows = _rows({"one": [((A,), A), ((A,), A)], "two": [((A,), A)]})
    assert score(rows, **FEW).document["sources"][HOC]["baselines"]["constant"]["documents"]["metrics"]["micro_f1"] == 1


def test_documents_are_compared(tmp_path):
    documents = {f"document {number}": [((A,), A), ((B,), B)] for number in range(6)}
    write_scores(tmp_path / "a", score(_rows(documents), **FEW))
    worse = {name: [((A,), A), ((B,), "None")] for name in documents}
    write_scores(tmp_path / "b", score(_rows(worse), **FEW))
    comparison = compare([tmp_path / "a", tmp_path / "b"])
    second = comparison["sources"][HOC]["documents"]["metrics"]["accuracy"][1]
    assert (second["difference"], comparison["sources"][HOC]["documents"]["n"]) == (-1.0, 6)
    assert "document_micro_f1" in markdown(comparison).replace("\\", "")


def test_a_run_over_several_sources_is_compared_by_document_with_one_over_this_source_alone(tmp_path):
    rows = _rows({"one": [((A,), A), ((B,), B)], "two": [((C,), "None")]})
    moved = [replace(one, row=one.row + 5) for one in rows]
    write_scores(tmp_path / "all", score([*perfect(NER), *moved], **FEW))
    write_scores(tmp_path / "one", score(rows, **FEW))
    found = compare([tmp_path / "all", tmp_path / "one"])["sources"][HOC]
    assert found["documents"]["n"] == 2 and found["documents_left_out"] == ""
    assert found["documents"]["metrics"]["accuracy"][1]["difference"] == 0.0


def test_it_is_said_why_documents_are_not_compared(tmp_path):
    rows = _rows({"one": [((A,), A), ((B,), B)], "two": [((C,), "None")]})
    write_scores(tmp_path / "a", score(rows, **FEW))
    write_scores(tmp_path / "b", score([replace(one, group="") for one in rows], **FEW))
    comparison = compare([tmp_path / "a", tmp_path / "b"])
    found = comparison["sources"][HOC]
    assert found["documents"] is None
    assert found["documents_left_out"] == "not scored by document: b, whose predictions carry no `group`"
    assert "Documents are not compared (not scored by document: b" in markdown(comparison)
    assert f"{HOC}: Documents are not compared" in console(comparison)
