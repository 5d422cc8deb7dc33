"""The error list shows what differs, so much of it, and nothing of a credentialed text."""

from dataclasses import replace

import pytest
from evaluate_page import Page
from evaluate_samples import NER, NLI, flawed, perfect, prediction

from medtune_jax.evaluate.report import errors as html_errors
from medtune_jax.evaluate.report import markdown as report
from medtune_jax.evaluate.report import page as html
from medtune_jax.evaluate.score import score, write_scores

SECRET = "zebrafever"


def _page(predictions, redacted=()):
    scores = score(predictions, resamples=20)
    text = html.page(scores.document, scores.errors, redacted)
    return text, Page(text)


def _marked(row):
    return [piece for piece in row["pieces"] if not isinstance(piece, str)]


def _text(row):
    return "".join(piece if isinstance(piece, str) else piece[0] for piece in row["pieces"])


def test_marks_lie_on_the_gold_and_the_predicted_tokens():
    _, page = _page(flawed()[:1])
    (row,) = page.rows
    assert _marked(row) == [["chronic ", "g"], ["gout", "g p"]]
    assert _text(row) == flawed()[0].input


def test_marks_lie_on_the_options_of_a_question():
    question = "B. flu or not?\nA. gout\nB. flu\nC. none"
    _, page = _page([prediction("MedQA-4options", question, "A", 0, "B")])
    assert _marked(page.rows[0]) == [["A. gout", "g"], ["B. flu", "p"]]
    assert _text(page.rows[0]) == question
    assert page.rows[0]["pieces"][0].startswith("B. flu or not?")


def test_marks_lie_on_extracted_names_that_stand_in_the_text():
    _, page = _page([prediction("BioASQ-list", "Aspirin or paracetamol?", '["aspirin"]', 0, '["paracetamol", "x"]')])
    assert _marked(page.rows[0]) == [["Aspirin", "g"], ["paracetamol", "p"]]
    assert [(error["kind"], error.get("gold"), error.get("prediction")) for error in page.rows[0]["errors"]] == [
        ("missed", "aspirin", None),
        ("spurious", None, "paracetamol"),
        ("spurious", None, "x"),
    ]


def test_sets_of_labels_show_what_one_side_has_and_the_other_has_not():
    gold, other = "Inducing angiogenesis (A)", "Resisting cell death (CD)"
    _, page = _page([prediction("hoc", "Cells grow .", gold, 0, other)])
    errors = page.rows[0]["errors"]
    assert [(error["kind"], error["labels"]) for error in errors] == [("missed", [gold]), ("spurious", [other])]


def test_only_so_many_rows_are_carried_and_the_page_says_so(monkeypatch):
    rows = [replace(one, generated="") for one in perfect(NLI)]
    monkeypatch.setattr(html_errors, "ROWS_SHOWN", 2)
    _, page = _page(rows)
    assert len(page.rows) == 2
    assert "the first 2 of 4 rows with errors" in page.text


def test_only_so_many_bytes_are_carried_and_the_page_says_so(monkeypatch):
    rows = [replace(one, generated="x" * 500) for one in perfect(NLI)]
    monkeypatch.setattr(html_errors, "BYTES_SHOWN", 1700)
    _, page = _page(rows)
    assert len(page.rows) == 2
    assert "the first 2 of 4 rows with errors" in page.text


def test_a_long_text_is_cut_and_says_by_how_much(monkeypatch):
    monkeypatch.setattr(html_errors, "LONGEST_TEXT", 10)
    _, page = _page([replace(flawed()[0], generated="y" * 25)])
    assert page.rows[0]["generated"] == "y" * 10 + "… (15 more characters in errors.jsonl)"
    assert _text(page.rows[0]).startswith("Patients w… (")


def test_a_perfect_run_has_no_error_list():
    _, page = _page(perfect())
    assert (page.rows, page.tags.count("script")) == ([], 0)


def test_texts_of_a_redacted_source_are_left_out():
    text, page = _page(flawed(), redacted={NER})
    assert NER not in {row["source"] for row in page.rows}
    assert "ataxia" not in text
    assert "--show_credentialed" in page.text


def _secrets():
    """Returns wrong answers of credentialed sources of every kind whose every text holds the secret word."""
    ner = "\n".join(f"{token} : {tag}" for token, tag in [(SECRET, "B-TEST"), ("was", "O")])
    rows = [
        prediction("i2b2-2012", f"{SECRET} was", ner, 0, ner.replace("B-TEST", "O")),
        prediction("i2b2-2010", f"the {SECRET} was given", "TrAP", 1, "TeRP"),
        prediction("MedNLI", f"Sentence 1: {SECRET}\nSentence 2: b", "Entailment", 2, "Neutral"),
        prediction("MedNLI", "Sentence 1: a\nSentence 2: b", "Entailment", 3, SECRET),
        prediction(
            "medication_status",
            f"{SECRET} daily",
            f'{{"active": ["{SECRET}"], "discontinued": [], "neither": []}}',
            4,
            f'{{"active": [], "discontinued": ["{SECRET}s"], "neither": []}}',
        ),
        prediction("coreference", f"{SECRET}?", f'["{SECRET}"]', 5, f'["not {SECRET}"]'),
    ]
    return [replace(row, instruction=f"Find {SECRET}.", id=f"{SECRET}-{row.row}") for row in rows]


@pytest.mark.parametrize("protocol", ["aligned", "legacy_medtuned"])
def test_no_credentialed_text_is_in_a_report_unless_asked_for(tmp_path, protocol):
    scores = score(_secrets(), resamples=20, protocol=protocol)
    write_scores(tmp_path / "redacted", scores)
    write_scores(tmp_path / "shown", scores, show_credentialed=True)
    for name in ("report.html", "report.md"):
        assert SECRET not in (tmp_path / "redacted" / name).read_text().casefold()
    assert SECRET in (tmp_path / "shown" / "report.html").read_text()
    assert SECRET in (tmp_path / "redacted" / "errors.jsonl").read_text()
    assert "--show_credentialed" in (tmp_path / "redacted" / "report.md").read_text()


def test_labels_of_a_fixed_set_are_shown_without_their_texts():
    _, page = _page(_secrets(), redacted={"MedNLI", "i2b2-2010", "i2b2-2012", "medication_status", "coreference"})
    shown = [(row["source"], [(one.get("gold"), one.get("prediction")) for one in row["errors"]]) for row in page.rows]
    assert shown == [
        ("MedNLI", [("Entailment", "Neutral")]),
        ("MedNLI", [("Entailment", None)]),
        ("i2b2-2010", [("TrAP", "TeRP")]),
    ]
    assert not any({"pieces", "generated", "id"} & set(row) for row in page.rows)


def test_markdown_lists_the_first_errors_and_counts_all(monkeypatch):
    monkeypatch.setattr(report, "MARKDOWN_ERRORS", 1)
    scores = score([replace(one, generated="") for one in perfect(NLI)], resamples=20)
    text = report.markdown(scores.document, scores.errors, ())
    assert "Errors: unparsable 4. The first 1 of 4" in text
