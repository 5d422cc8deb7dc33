"""Reports say what the scores say, load nothing from elsewhere, and never read a text as markup."""

import json
from dataclasses import replace

import pytest
from evaluate_page import Page
from evaluate_samples import NER, NLI, RELATION, flawed, perfect, prediction

from medtune_jax.evaluate.report import markdown as report
from medtune_jax.evaluate.report import page as html
from medtune_jax.evaluate.report import parts as html_parts
from medtune_jax.evaluate.report import text as report_text
from medtune_jax.evaluate.score import score
from medtune_jax.tasks.registry import get_source
from medtune_jax.tasks.source import UNSTATED, Published

ATTACK = "</script><script>alert(1)</script>"
HALLMARK = "Sustaining proliferative signaling (PS)"
FEW = {"resamples": 20}


def _families():
    """Returns predictions of a source of each family, all wrong."""
    return [
        *flawed(),
        prediction("hoc", "Cells grow .", HALLMARK, 20, "None"),
        prediction("MedQA-4options", "Which?\nA. gout\nB. flu", "A", 21, "B"),
        prediction("BioASQ-list", "Which drugs?", '["aspirin"]', 22, '["ibuprofen"]'),
        prediction("Conv2note", "Doctor: hello", "A note.", 23, " "),
    ]


def _published(figures, split=None):
    """Returns a scored document whose inference source has these (figure, rows, scorer)."""
    document = score(perfect(NLI), **FEW).document
    document["sources"][NLI] |= {
        "split": split,
        "published": [
            {
                **vars(of),
                "rows": rows,
                "same_n": of.n == 4,
                "development": of.split == "validation",
                "scorer": scorer,
            }
            for of, rows, scorer in figures
        ],
    }
    return document


def _page(predictions, redacted=(), **arguments):
    scores = score(predictions, **FEW, **arguments)
    text = html.page(scores.document, scores.errors, redacted)
    return text, Page(text)


def test_every_text_of_a_model_or_a_corpus_is_escaped():
    rows = [replace(one, generated=ATTACK, id=ATTACK) for one in perfect(NLI)]
    rows += [replace(rows[0], source=ATTACK)]
    provenance = {"model": ATTACK, "template": ATTACK, "decoding": {"method": ATTACK}, ATTACK: ATTACK}
    text, page = _page(rows, provenance=provenance)
    assert page.tags.count("script") == 2  # the data and our own
    assert "alert(1)</script>" not in text
    assert page.rows[0]["generated"] == ATTACK
    assert page.open == []


def test_every_field_that_scores_hold_is_escaped():
    figure = Published(ATTACK, ATTACK, 0.5, ATTACK, 3, ATTACK)
    document = _published([(figure, "other rows", ATTACK)])
    entry = document["sources"][NLI]
    entry |= {"legacy": {"crash": ATTACK, "crash_figures": ATTACK}, "gold_sha256": ATTACK, "task": ATTACK}
    entry["baselines"][ATTACK] = {"not_available": ATTACK}
    entry["breakdown"] = {"confusion": {ATTACK: {ATTACK: 1, "": 0}}}
    entry["parse"]["kinds"] = {ATTACK: 1}
    document["sources"][ATTACK] = entry
    text = html.page(document, [], ())
    assert "<script" not in text and "alert(1)" in text
    assert Page(text).open == []


def test_a_page_needs_nothing_from_elsewhere():
    text, page = _page(_families(), provenance={"model": "https://example.org/model.css"})
    assert not {"link", "img", "iframe", "object", "svg"} & set(page.tags)
    loaded = [value for _, name, value in page.attributes if name in ("src", "href", "action")]
    assert all(value.startswith("#") for value in loaded)
    assert "url(" not in text and "@import" not in text and "fetch(" not in text
    assert not [one for one in page.attributes if one[1].startswith("on")]


def test_links_inside_the_page_lead_somewhere():
    _, page = _page(_families())
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for _, name, value in page.attributes if name == "href"} <= ids


def test_every_source_has_one_row_in_its_family_and_a_section():
    _, page = _page(_families())
    expected = {
        "Entities": [NER],
        "Relations and inference": [NLI, RELATION],
        "Document labels": ["hoc"],
        "Multiple choice": ["MedQA-4options"],
        "Extraction": ["BioASQ-list"],
        "Free text": ["Conv2note"],
    }
    for family, names in expected.items():
        table = page.table(f"{family}: one row per source")
        assert [row[0].split()[0] for row in table[1:]] == names
        assert {len(row) for row in table} == {len(table[0])}
    assert page.tags.count("section") == 2 * 7 + 2 - 1  # families and sources (two share one), errors, provenance


def test_page_and_markdown_show_the_figures_and_their_intervals():
    scores = score(_families(), **FEW)
    text = Page(html.page(scores.document, scores.errors, ())).text
    for name, entry in scores.document["sources"].items():
        for metric, value in entry["metrics"].items():
            low, high = map(report_text.percent, entry["ci95"][metric])
            assert f"{metric} {report_text.percent(value)} [{low}, {high}]" in text, name
            said = f"{report_text.percent(value)} \\[{low}, {high}\\]"
            assert said in report.markdown(scores.document, scores.errors, ())


def test_markdown_tables_keep_their_columns_whatever_a_text_holds():
    rows = [replace(one, output="gout | `x` : B\n* : O", input="gout | `x` *") for one in perfect(NER)[:1]]
    rows = [replace(rows[0], input="|a| <b>", output="|a| : B\n<b> : O", generated="|a| : O\n<b> : B")]
    scores = score(rows, **FEW)
    table = [line for line in report.markdown(scores.document, scores.errors, ()).split("\n") if "missed" in line]
    (line,) = [line for line in table if line.startswith("|")]
    assert line == "| 0 | missed | \\|a\\| |  |  |"


@pytest.mark.parametrize(
    ("figure", "rows", "scorer", "said"),
    [
        (Published("BERT", "accuracy", 0.9, "test", 4, "x"), "same rows", "same scorer", "90.00 BERT"),
        (
            Published("BERT", "accuracy", 0.9, "test", 4, "x"),
            "other rows",
            "not stated",
            "(90.00) BERT other rows scorer unstated",
        ),
        (
            Published("BERT", "accuracy", 0.9, UNSTATED, 0, "x"),
            "rows not stated",
            "same scorer",
            "(90.00) BERT rows not stated",
        ),
        (
            Published("BERT", "accuracy", 0.9, "test", 4, "x"),
            "rows not verified",
            "same scorer",
            "(90.00) BERT rows not verified",
        ),
        (
            Published("Llama2-MedTuned-13b", "accuracy", 0.9, "validation", 4, "x"),
            "other rows",
            "other scorer",
            "(90.00) development set other scorer",
        ),
        (
            Published("Llama2-MedTuned-7b", "accuracy", 0.9, "validation", 4, "x"),
            "same rows",
            "same scorer",
            "90.00 development set",
        ),
        (
            Published("BERT", "micro_f1", 0.9, "test", 4, "x"),
            "same rows",
            "same scorer",
            "(90.00) BERT micro_f1",
        ),
    ],
)
def test_a_published_figure_says_what_keeps_it_apart(figure, rows, scorer, said):
    document = _published([(figure, rows, scorer)])
    table = Page(html.page(document, [], ())).table("Relations and inference: one row")
    assert table[1][-1] == said
    assert all(word in report.markdown(document, [], ()) for word in said.split()[:1])


def test_figures_of_development_sets_are_named_in_a_sentence():
    dev = Published("Llama2-MedTuned-13b", "accuracy", 0.8946, "validation", 1395, "x")
    test = Published("BERT", "accuracy", 0.8, "test", 1422, "x")
    document = _published([(dev, "other rows", "other scorer"), (test, "other rows", "not stated")])
    words = f"Computed on development sets, not on test rows: Llama2-MedTuned-13b on {NLI} (1,395 rows)."
    assert words in Page(html.page(document, [], ())).text
    assert words in report.markdown(document, [], ())


def test_an_inferred_development_set_is_called_inferred():
    dev = Published("Llama2-MedTuned-13b", "accuracy", 0.9, "validation", 1395, "x", "legacy_medtuned", inferred=True)
    document = _published([(dev, "other rows", "other scorer")])
    page = Page(html.page(document, [], ()))
    words = "not on test rows, as inferred from the authors' evaluation rows: Llama2-MedTuned-13b on"
    assert words in page.text and words in report.markdown(document, [], ())
    assert page.table("Published figures of")[1][3:5] == [
        *("validation split (inferred), 1,395 rows; other rows", "other scorer (inferred)")
    ]


@pytest.mark.parametrize(("n", "said"), [(4, "as many as ours"), (5, "not as many as ours")])
def test_rows_that_no_hash_verifies_are_called_so_with_whether_their_number_agrees(n, said):
    document = _published([(Published("BERT", "accuracy", 0.8, "test", n, "x"), "rows not verified", "not stated")])
    row = Page(html.page(document, [], ())).table("Published figures of")[1]
    assert row[3] == f"test split, {n} rows; rows not verified, {said}"


def test_the_provenance_of_published_figures_is_in_the_page():
    document = _published([(Published("BERT", "accuracy", 0.8, "test", 1422, "Doe 1999"), "other rows", "not stated")])
    page = Page(html.page(document, [], ()))
    assert page.table("Published figures of")[1] == [
        *("BERT", "accuracy", "(80.00)", "test split, 1,422 rows; other rows", "not stated", "Doe 1999")
    ]
    assert any("Doe 1999" in value for _, name, value in page.attributes if name == "title")


def test_only_figures_of_the_same_rows_are_marked_on_bars():
    figures = [
        (Published("Same", "accuracy", 0.9, "test", 4, "x"), "same rows", "same scorer"),
        (Published("Apart", "accuracy", 0.8, "test", 4, "x"), "same rows", "other scorer"),
        (Published("Elsewhere", "accuracy", 0.7, "test", 4, "x"), "other rows", "same scorer"),
    ]
    page = Page(html.page(_published(figures), [], ()))
    (label,) = [value for tag, name, value in page.attributes if (tag, name) == ("figure", "aria-label")]
    assert "Same 90.00" in label and "Apart, other scorer 80.00" in label and "Elsewhere" not in label


def test_the_protocol_is_told_in_plain_words():
    _, page = _page(perfect(NLI, RELATION))
    assert "counts as wrong, never as the negative class" in page.text
    assert "One label by name" in page.text and "seqeval" not in page.text  # no entities were scored
    _, page = _page(perfect(NER), protocol="legacy_medtuned")
    assert "defects included" in page.text and "a repeated token keeps one tag" in page.text


def test_a_legacy_script_that_stopped_is_said_in_every_report():
    rows = [replace(one, generated="Treats") for one in perfect(RELATION)]
    scores = score(rows, **FEW, protocol="legacy_medtuned")
    words = "The authors' script stops here (ValueError: 3 labels read against 2 gold labels)"
    page = Page(html.page(scores.document, scores.errors, ()))
    assert words in page.text
    assert "the authors' script stops" in page.table("Relations and inference: one row")[1][2]
    assert words in report.markdown(scores.document, scores.errors, ())


def test_documents_stand_beside_the_rows():
    rows = [replace(prediction("hoc", f"{row} .", HALLMARK, row), group="one") for row in range(2)]
    _, page = _page(rows)
    table = page.table("hoc: all metrics")
    assert table[0][1:3] == ["this model", "this model, documents"]
    assert table[1][:3] == ["micro_f1", "100.00 [100.00, 100.00]", "100.00 [100.00, 100.00]"]
    assert "2 rows; 1 documents" in page.text


def test_likelihood_accuracies_say_what_they_are():
    rows = [replace(one, loglikelihoods={one.output: -1.0, "x": -2.0}) for one in perfect(NLI)]
    _, page = _page(rows)
    assert "accuracy_ll the likeliest allowed output by summed log-probability" in [
        row[0] for row in page.table(f"{NLI}: all metrics")
    ]


def test_confusions_are_counted_with_rates():
    rows = perfect(NLI)
    scores = score([replace(rows[0], generated="Neutral"), replace(rows[1], generated="?"), *rows[2:]], **FEW)
    page = Page(html.page(scores.document, scores.errors, ()))
    said = "| Entailment | 2 | 1 | 1 | 100.00 | 50.00 | 66.67 |"
    assert said in report.markdown(scores.document, scores.errors, ())
    head, *table = page.table(f"Answers of {NLI}")
    assert head[1:] == ["Entailment", "Contradiction", "Neutral", "unparsable", "rows", "precision", "recall", "f1"]
    assert table == [
        ["Entailment", "1", "0", "0", "1", "2", "100.00", "50.00", "66.67"],
        ["Contradiction", "0", "0", "1", "0", "1", "", "0.00", "0.00"],
        ["Neutral", "0", "0", "1", "0", "1", "50.00", "100.00", "66.67"],
    ]


def test_many_labels_are_counted_one_by_one():
    labels = [f"label {number}" for number in range(html_parts.MOST_HEAT_LABELS + 1)]
    found = {"confusion": {one: {other: int(one == other) for other in [*labels, ""]} for one in labels}}
    page = Page(html_parts.breakdown("x", found))
    assert page.table("Labels of x")[1] == ["label 0", "1", "1", "1", "100.00", "100.00", "100.00"]
    assert Page(html_parts.breakdown("x", {})).tables == {}


def test_tables_have_captions_and_scopes_and_bars_a_text():
    _, page = _page(_families())
    assert page.tags.count("caption") == page.tags.count("table")
    scopes = [value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")]
    assert len(scopes) == page.tags.count("th")
    images = [value for _, name, value in page.attributes if (name, value) == ("role", "img")]
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    assert len(images) <= len(labels) and all(labels)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_bars_are_as_long_as_their_values(value):
    page = Page(html_parts.bars("f1", [html_parts.Bar("m", value, (value, value))]))
    assert f"width:{100 * value:.2f}%" in next(style for _, name, style in page.attributes if name == "style")


def test_the_leading_metric_stands_first():
    document = score(_families(), **FEW).document
    for name, entry in document["sources"].items():
        assert report_text.metric_names(entry)[0] == get_source(name).task.metric
        assert sorted(report_text.metric_names(entry)) == sorted(entry["metrics"])


def test_sources_that_are_not_scored_are_named_in_every_report(tmp_path):
    scores = score([*perfect(NLI), replace(perfect(NLI)[0], source="elsewhere")], **FEW)
    printed = report.console(scores.summary(tmp_path))
    for text in (html.page(scores.document, [], ()), report.markdown(scores.document, [], ()), printed):
        assert "elsewhere" in text and "1 rows" in text


def test_the_console_groups_sources_and_aligns_their_figures(tmp_path):
    scores = score(_families(), **FEW)
    lines = report.console(json.loads(json.dumps(scores.summary(tmp_path)))).split("\n")
    families = ["Entities", "Relations and inference", "Document labels", "Multiple choice", "Extraction", "Free text"]
    assert [line for line in lines if line in families] == families
    assert lines.index("Relations and inference") < next(at for at, line in enumerate(lines) if NLI in line)
    rows = [line for line in lines if line.startswith("  ")]
    assert len({line.index("]") for line in rows}) == len({line.rindex("%") for line in rows}) == 1
