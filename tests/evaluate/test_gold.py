"""How gold is read before anything is scored, what a user's definition adds, and who sees gated text."""

import json
import logging
from dataclasses import replace

import pytest
from evaluate_samples import NLI, perfect, prediction

from medtune_jax.cli import main
from medtune_jax.errors import UserError
from medtune_jax.evaluate.compare import compare
from medtune_jax.evaluate.score import check_rows, score, score_file
from medtune_jax.tasks.registry import _BY_ANY_NAME, SOURCES, _folded, get_source
from medtune_jax.tasks.rows import Row

FEW = {"resamples": 5}
MINE = "my-triage"
TOML = f"""
name = "{MINE}"
task = "label"
labels = ["Urgent", "Routine"]
licence = "CC0-1.0"
credentialed = false
format = "table"
wordings = ["Is this urgent?"]
files = {{ test = "test.tsv" }}
columns = {{ input = "text", label = "label" }}
"""


def _file(folder, rows):
    folder.mkdir(exist_ok=True)
    keys = ("source", "group", "input", "output", "generated")
    lines = [json.dumps({key: getattr(one, key) for key in keys}) + "\n" for one in rows]
    (folder / "predictions.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def no_source_of_mine():
    """Forgets the user's source after the test."""
    yield
    SOURCES.pop(MINE, None)
    _BY_ANY_NAME.pop(_folded(MINE), None)


def _mine():
    rows = [prediction(MINE, f"Text {row}", label, row) for row, label in enumerate(["Urgent", "Routine"])]
    return [rows[0], replace(rows[1], generated="Urgent")]


def test_gold_that_is_read_with_repairs_is_scored_counted_and_logged(caplog):
    rows = [prediction("hoc", "x .", "", 0, "None"), prediction("hoc", "y .", "None", 1)]
    with caplog.at_level(logging.INFO):
        entry = score(rows, **FEW).document["sources"]["hoc"]
    assert entry["gold"] == {"exact": 1, "repaired": 1}
    assert entry["metrics"]["accuracy"] == 1.0
    assert [one.message for one in caplog.records] == ["hoc: 1 of 2 gold outputs are read with repairs."]


def test_gold_that_cannot_be_read_is_named_with_what_was_expected():
    rows = [*perfect(NLI), prediction(NLI, "Sentence 1: a\nSentence 2: b", "Perhaps", 7)]
    with pytest.raises(UserError, match=r"sample-nli, row 7: .* 'Perhaps'\. Its labels are Entailment, Contradiction"):
        score(rows, **FEW)


@pytest.mark.parametrize("meta", ["{", "[]", '"text"', "3"])
def test_meta_that_is_no_object_is_named_with_its_row(meta):
    rows = perfect(NLI)
    rows[2] = replace(rows[2], meta=meta)
    with pytest.raises(UserError, match=r"sample-nli, row 2: `meta` must be a JSON object or empty"):
        score(rows, **FEW)
    one = Row("", rows[2].input, rows[2].output, NLI, meta=meta)
    with pytest.raises(UserError, match=r"sample-nli, row 9: `meta` must be a JSON object or empty"):
        check_rows([(9, one)])


def test_synonyms_of_the_gold_are_taken_from_meta():
    task = get_source("BioASQ-list").task
    annotation = ("Which drug ?", ((("paracetamol", "acetaminophen"),),))
    input, output = task.render(annotation)
    row = replace(
        prediction("BioASQ-list", input, output, 0, '["acetaminophen"]'), meta=json.dumps(task.facts(annotation))
    )
    for meta, expected in ((row.meta, 1.0), ("", 0.0)):
        assert score([replace(row, meta=meta)], **FEW).document["sources"]["BioASQ-list"]["metrics"]["f1"] == expected


def test_a_published_figure_says_its_rows_split_and_scorer():
    rows = [prediction("NCBI-disease", "gout", "gout : B", 0)]
    for protocol, scorer in (("aligned", "other scorer"), ("legacy_medtuned", "same scorer")):
        published = score(rows, protocol=protocol, **FEW).document["sources"]["NCBI-disease"]["published"]
        said = {one["model"]: (one["rows"], one["split"], one["development"], one["scorer"]) for one in published}
        assert said["Llama2-MedTuned-7b"] == ("other rows", "validation", True, scorer)
        assert said["BioBERT-v1.1"] == ("rows not stated", "unstated", False, "not stated")


def test_figures_of_a_split_without_a_known_hash_are_of_rows_not_verified():
    rows = [replace(perfect(NLI)[0], source="MedNLI")]
    published = score(rows, **FEW).document["sources"]["MedNLI"]["published"]
    said = {one["model"]: (one["rows"], one["same_n"], one["inferred"]) for one in published}
    assert said["BlueBERT-base (P+M)"] == ("rows not verified", False, False)
    assert said["Llama2-MedTuned-13b"] == ("rows not verified", False, True)


def test_the_scorer_of_a_figure_is_known_only_where_there_is_evidence_of_it():
    untyped = {"NCBI-disease", "BC5CDR-disease", "BC5CDR-chem", "JNLPBA", "BC2GM"}
    known = {name for name, source in SOURCES.items() if any(figure.protocol for figure in source.published)}
    assert known == untyped  # the script behind i2b2-2012's figure is not public: theirs finds no typed entity
    rows = [prediction("i2b2-2012", "fever", "fever : B-PROBLEM", 0)]
    for protocol in ("aligned", "legacy_medtuned"):
        published = score(rows, protocol=protocol, **FEW).document["sources"]["i2b2-2012"]["published"]
        assert {one["scorer"] for one in published} == {"not stated"}


@pytest.mark.parametrize(
    ("source", "shown"), [("MedNLI", "a credentialed"), ("sample-nli", None)], ids=["credentialed", "open"]
)
@pytest.mark.parametrize("field", ["output", "meta"])
def test_a_message_on_gold_shows_text_of_open_sources_only(source, shown, field):
    row = replace(perfect(NLI)[0], source=source, **{field: "Mr Secret"})
    with pytest.raises(UserError) as caught:
        score([row], **FEW)
    said = f"(text of {shown} source, 9 characters)" if shown else "'Mr Secret'"
    assert said in str(caught.value) and ("Secret" in str(caught.value)) == (shown is None)


def test_the_label_counts_stand_in_the_breakdown():
    rows = perfect(NLI)
    rows[0] = replace(rows[0], generated="Neutral")
    confusion = score(rows, **FEW).document["sources"][NLI]["breakdown"]["confusion"]
    assert confusion[rows[0].output]["Neutral"] == 1


def test_a_source_defined_beside_the_predictions_is_scored_and_compared(tmp_path, no_source_of_mine):
    folder = _file(tmp_path / "run", _mine())
    (tmp_path / "mine.toml").write_text(TOML)
    assert main.dispatch(["score", f"--predictions={folder}"]) == 2
    assert main.dispatch(["score", f"--predictions={folder}", f"--source_file={tmp_path / 'mine.toml'}"]) == 0
    entry = json.loads((folder / "scores.json").read_bytes())["sources"][MINE]
    assert (entry["metrics"]["accuracy"], entry["definition"]["name"]) == (0.5, MINE)
    SOURCES.pop(MINE)
    _BY_ANY_NAME.pop(_folded(MINE))
    assert compare([folder, folder])["sources"][MINE]["n"] == 2
    SOURCES.pop(MINE)
    _BY_ANY_NAME.pop(_folded(MINE))
    (folder / "provenance.json").write_text(json.dumps({"source_definitions": {MINE: entry["definition"]}}))
    assert score_file(folder, folder).document["sources"][MINE]["metrics"]["accuracy"] == 0.5


def test_gated_text_is_shown_in_reports_only_where_asked_and_its_files_stay_private(tmp_path):
    rows = [prediction("MedNLI", f"Sentence 1: Zorblax.\nSentence 2: {row}", "Neutral", row, "no") for row in range(2)]
    folder = _file(tmp_path / "run", rows)
    for flag, shown in (([], False), (["--show_credentialed"], True)):
        out = tmp_path / f"out{shown}"
        assert main.dispatch(["score", f"--predictions={folder}", f"--out={out}", *flag]) == 0
        assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o600}
        assert ("Zorblax" in (out / "report.html").read_text()) is shown
        assert "Zorblax" in (out / "errors.jsonl").read_text()
        assert "Zorblax" not in (out / "scores.json").read_text()
