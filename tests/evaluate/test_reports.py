"""Reports say what the scores say, load nothing from elsewhere, and never read a text as markup."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from evaluate_samples import NER, NLI, RELATION, flawed, perfect, prediction

from medtune_jax.evaluate import html, report
from medtune_jax.evaluate.score import score
from medtune_jax.tasks.registry import get_source
from medtune_jax.tasks.source import Published

ATTACK = "</script><script>alert(1)</script>"


class _Page(HTMLParser):
    """Collects tags, attributes, the text outside scripts and the error data; complains about unbalanced tags."""

    VOID = frozenset({"meta", "input", "rect", "line", "path"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.data, self.open = [], [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in self.VOID:
            self.open.append((tag, dict(attributes).get("id")))

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ("", None)
        if inside[1] == "errors-data":
            self.data += data
        elif inside[0] not in ("script", "style"):
            self.text.append(data)


def _page(predictions, redacted=(), **arguments):
    scores = score(predictions, resamples=20, **arguments)
    text = html.page(scores.document, scores.errors, redacted)
    return text, _Page(text)


def test_every_text_of_a_model_or_a_corpus_is_escaped():
    rows = [replace(one, generated=ATTACK, id=ATTACK) for one in perfect(NLI)]
    rows += [replace(rows[0], source=ATTACK)]
    provenance = {"model": ATTACK, "template": ATTACK, "decoding": {"method": ATTACK}, ATTACK: ATTACK}
    text, page = _page(rows, provenance=provenance)
    assert page.tags.count("script") == 2  # the data and our own
    assert "alert(1)</script>" not in text
    assert json.loads(page.data)[0]["generated"] == ATTACK
    assert page.open == []


def test_a_page_needs_nothing_from_elsewhere():
    _, page = _page(flawed(), provenance={"model": "https://example.org/model.css"})
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert not [one for one in page.attributes if one[1] in ("src", "href") or "url(" in one[2]]
    assert not [one for one in page.attributes if one[1].startswith("on")]


def test_page_and_markdown_show_the_figures_and_their_intervals():
    scores = score(flawed(), resamples=20)
    text = " ".join(_Page(html.page(scores.document, scores.errors, ())).text)
    for name, entry in scores.document["sources"].items():
        value = report.percent(entry["metrics"][entry["metric"]])
        low, high = map(report.percent, entry["ci95"][entry["metric"]])
        assert f"{value} [{low}, {high}]" in re.sub(r"\s+", " ", text), name
        assert f"{value} \\[{low}, {high}\\]" in report.markdown(scores.document, scores.errors, ())


def test_markdown_tables_keep_their_columns_whatever_a_text_holds():
    rows = [replace(one, output="gout | `x` : B\n* : O", input="gout | `x` *") for one in perfect(NER)[:1]]
    rows = [replace(rows[0], input="|a| <b>", output="|a| : B\n<b> : O", generated="|a| : O\n<b> : B")]
    scores = score(rows, resamples=20)
    table = [line for line in report.markdown(scores.document, scores.errors, ()).split("\n") if "missed" in line]
    (line,) = [line for line in table if line.startswith("|")]
    assert line == "| 0 | missed | \\|a\\| |  |  |"


def test_marks_lie_on_the_gold_and_the_predicted_tokens():
    _, page = _page(flawed()[:1])
    (row,) = json.loads(page.data)
    assert [piece for piece in row["pieces"] if piece[1]] == [["chronic", "g"], ["gout", "g p"]]
    assert "".join(piece for piece, _ in row["pieces"]) == flawed()[0].input


def test_only_so_many_rows_are_carried_and_the_page_says_so(monkeypatch):
    monkeypatch.setattr(html, "ROWS_SHOWN", 2)
    rows = [replace(one, generated="") for one in perfect(NLI)]
    _, page = _page(rows)
    assert len(json.loads(page.data)) == 2
    assert "the first 2 of 4 rows with errors" in " ".join(page.text)


def test_texts_of_a_redacted_source_are_left_out():
    text, page = _page(flawed(), redacted={NER})
    assert NER not in {row["source"] for row in json.loads(page.data)}
    assert "ataxia" not in text


def test_a_perfect_run_has_no_error_list():
    _, page = _page(perfect())
    assert (page.data, page.tags.count("script")) == ("", 0)


def test_published_figures_say_on_which_rows_they_stand():
    entry = score(perfect(NLI), resamples=20).document["sources"][NLI]
    same = {"rows": "same rows", "development": False, "scorer": "same scorer", "protocol": "aligned"}
    other = {"rows": "other rows", "development": True, "scorer": "other scorer", "protocol": "legacy_medtuned"}
    figures = [
        {**vars(Published("Same", "accuracy", 0.9, "test", 4, "x")), **same},
        {**vars(Published("Other", "accuracy", 0.8, "validation", 0, "y")), **other},
    ]
    entry = {**entry, "published": figures}
    assert [line.who for line in report.lines(entry)] == ["this model", "constant answer", "Same"]
    assert report.other_rows_line(figures[1]) == (
        "Other: accuracy 80.00 (other rows: validation, a development set; another scorer, legacy_medtuned; y)"
    )


def test_a_legacy_script_that_stopped_is_said_in_every_report():
    rows = [replace(one, generated="Treats") for one in perfect(RELATION)]
    scores = score(rows, resamples=20, protocol="legacy_medtuned")
    words = "The authors' script stops on these answers (ValueError: 3 labels read against 2 gold labels)"
    assert words in report.markdown(scores.document, scores.errors, ()).replace("\\", "")
    assert words in " ".join(_Page(html.page(scores.document, scores.errors, ())).text)


def test_documents_stand_beside_the_rows():
    text = "Sustaining proliferative signaling (PS)"
    rows = [replace(prediction("hoc", f"{row} .", text, row), group="one") for row in range(2)]
    entry = score(rows, resamples=20).document["sources"]["hoc"]
    (note,) = report.notes(entry)
    assert note.startswith("By document (1): micro_f1 100.00 [100.00, 100.00]")


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_bars_are_as_long_as_their_values(value):
    drawn = html.bars([report.Line("m", "model", {"f1": value}, {"f1": (value, value)})], "f1")
    assert f'width="{max(480 * value, 1):.1f}"' in drawn


def test_the_leading_metric_stands_first():
    document = score(perfect(), resamples=20).document
    for name, entry in document["sources"].items():
        assert report.metric_names(entry)[0] == get_source(name).task.metric
        assert sorted(report.metric_names(entry)) == sorted(entry["metrics"])
