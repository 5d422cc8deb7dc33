"""Each row is answered in the way that its task and the decoding asked for permit; what was asked is on record."""

import json
import os
import signal
from dataclasses import asdict

import pytest
from evaluate_oracle import result_bytes
from evaluate_samples import NER, NLI, RELATION, perfect

from medtune_jax.cli import arguments, main
from medtune_jax.cli import evaluate as cli_evaluate
from medtune_jax.data.prompts import get_template
from medtune_jax.errors import Interrupted, UserError
from medtune_jax.evaluate.answer import ask
from medtune_jax.evaluate.predictions import read_predictions
from medtune_jax.evaluate.protocols import PROTOCOLS
from medtune_jax.evaluate.run import evaluate
from medtune_jax.evaluate.timing import told
from medtune_jax.generate.agreement import TemplateCheck
from medtune_jax.generate.answering import Way
from medtune_jax.generate.decoding import DECODE, DRAFT, Decoding
from medtune_jax.tasks import registry
from medtune_jax.tasks.definition import register_definitions
from medtune_jax.tasks.registry import get_source
from medtune_jax.tasks.rows import Row, write_rows

MY_WORDS = {
    "name": "my-words",
    "task": "label",
    "labels": ["yes", "no"],
    "licence": "CC0-1.0",
    "credentialed": False,
    "format": "table",
    "files": {"test": "test.tsv"},
    "columns": {"input": "text", "label": "label"},
    "wordings": ["Is it a word?"],
}


@pytest.fixture
def own_source():
    """A user's source, known for one test."""
    before = dict(registry.SOURCES), dict(registry._BY_ANY_NAME)
    register_definitions({"my-words": MY_WORDS})
    yield "my-words"
    for table, old in zip((registry.SOURCES, registry._BY_ANY_NAME), before, strict=True):
        table.clear()
        table.update(old)


def test_free_text_is_answered_greedily_beside_rows_decoded_by_template(tmp_path, data, oracle, interruptible):
    rows = [Row("Do it.", one.input, one.output, one.source) for one in perfect(NLI)]
    texts = [Row("Answer.", f"My head aches, day {n}.", f"Rest for {n} days.", "iCliniq") for n in range(3)]
    extract = get_source("BioASQ-list").task.render(("Which genes ?", ((("BRCA1",), ("TP53",)),)))
    mixed = [texts[0], *rows[:2], Row("List.", *extract, "BioASQ-list"), texts[1], *rows[2:], texts[2]]
    oracle.gold |= {row.input: row.output for row in mixed}
    write_rows(data / "mixed.parquet", mixed)
    result = evaluate("m", data, "mixed", tmp_path / "out")
    assert {name: entry["metrics"][entry["metric"]] for name, entry in result["sources"].items()} == {
        NLI: 1.0,
        "iCliniq": 1.0,
        "BioASQ-list": 1.0,
    }
    read = read_predictions(tmp_path / "out")
    assert [one.row for one in read] == list(range(8))
    assert [one.finish_reason for one in read] == ["eos" if one.source == "iCliniq" else "constrained" for one in read]
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_bytes())
    assert provenance["decoding"]["method"] == "template"
    assert provenance["decoded_by"] == {NLI: ["template"], "iCliniq": ["greedy"], "BioASQ-list": ["grammar"]}
    assert result["timing"]["decision"] == "decision" and result["timing"]["decisions"] == 4 + 4 * 2
    # Free text may be of any length: each task's own budget, whatever the input.
    budget = get_source("iCliniq").task.max_new_tokens
    assert oracle.calls[-1] == [(0, budget), (4, budget), (7, budget)]

    undisturbed = result_bytes(tmp_path / "out")
    for stop_after in (1, 2):
        folder = tmp_path / str(stop_after)
        oracle.stop_after, oracle.stop = stop_after, lambda: os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(2):  # once among the rows decoded by template, once among the others
            with pytest.raises(Interrupted):
                evaluate("m", data, "mixed", folder)
        oracle.stop_after = None
        evaluate("m", data, "mixed", folder)
        assert result_bytes(folder) == undisturbed


def test_loglikelihoods_are_written_scored_and_continued_to_the_sameresult_bytes(tmp_path, data, oracle, interruptible):
    asked = {"decoding": Decoding("loglikelihood"), "sources": [NLI, RELATION]}
    result = evaluate("m", data, "test", tmp_path / "out", **asked)
    assert {entry["metrics"]["accuracy_ll"] for entry in result["sources"].values()} == {1.0}
    read = read_predictions(tmp_path / "out")
    for one in read:
        assert list(one.loglikelihoods) == list(get_source(one.source).task.labels)
        assert (one.generated, one.finish_reason) == (one.output, "constrained")
        assert max(one.loglikelihoods, key=one.loglikelihoods.get) == one.output
    assert (result["timing"]["decision"], result["timing"]["decisions"]) == ("label", 7)
    oracle.stop_after, oracle.stop = 3, lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="3 answers are kept"):
        evaluate("m", data, "test", tmp_path / "again", **asked)
    oracle.stop_after = None
    evaluate("m", data, "test", tmp_path / "again", **asked)
    assert oracle.calls[-1] == [3, 4, 5, 6]
    assert result_bytes(tmp_path / "again") == result_bytes(tmp_path / "out")


@pytest.mark.parametrize(("source", "kind"), [(NER, "ner"), ("iCliniq", "text"), ("hoc", "labels")])
def test_loglikelihood_refuses_tasks_that_have_no_few_candidates(tmp_path, data, oracle, source, kind):
    rows = {NER: perfect(NER)[0], "hoc": Row("", "x", "None", "hoc"), "iCliniq": Row("", "x", "y", "iCliniq")}
    write_rows(data / "other.parquet", [Row("", rows[source].input, rows[source].output, source)])
    with pytest.raises(UserError, match=rf"Source '{source}' \(task {kind}\) .*--sources, or use --decode=template"):
        evaluate("m", data, "other", tmp_path / "out", decoding=Decoding("loglikelihood"))
    assert not (tmp_path / "out").exists()


def test_sources_are_chosen_by_any_of_their_names(tmp_path, data, oracle):
    rows = [Row("", one.input, one.output, "NCBI-disease") for one in perfect(NER)[:2]]
    rows += [Row("", one.input, one.output, "ncbi_disease") for one in perfect(NER)[2:4]]
    rows += [Row("", one.input, one.output, one.source) for one in perfect(NLI)]
    write_rows(data / "test2.parquet", rows)
    result = evaluate("m", data, "test2", tmp_path / "out", sources=["NCBI"])
    assert {name: entry["n"] for name, entry in result["sources"].items()} == {"NCBI-disease": 4}
    evaluate("m", data, "test2", tmp_path / "limited", sources=["ncbi-disease-iob"], limit=3)
    assert [one.row for one in read_predictions(tmp_path / "limited")] == [0, 1, 2]
    assert json.loads((tmp_path / "out" / "provenance.json").read_bytes())["split"] == "test2"


def test_the_provenance_carries_the_definitions_of_the_users_sources(tmp_path, data, oracle, own_source):
    oracle.gold["It is a word ."] = "yes"
    rows = [Row("", one.input, one.output, one.source) for one in perfect(NLI)]
    write_rows(data / "own.parquet", [*rows, Row("", "It is a word .", "yes", own_source)])
    evaluate("m", data, "own", tmp_path / "own")
    found = json.loads((tmp_path / "own" / "provenance.json").read_bytes())["source_definitions"]
    assert list(found) == ["my-words"] and found["my-words"]["labels"] == ["yes", "no"]
    evaluate("m", data, "own", tmp_path / "known", sources=[NLI])
    assert "source_definitions" not in json.loads((tmp_path / "known" / "provenance.json").read_bytes())


def test_an_answer_of_another_grammar_or_another_way_is_not_taken_over(own_source):
    def key(row, way):
        return ask([(0, row)], get_template("alpaca"), {}, Decoding().description(), [way], [""])[0].key

    extract = Row("List.", "Which genes ?", "", "BioASQ-list")
    assert key(extract, Way("grammar", 512)) != key(extract, Way("greedy", 512))
    own = Row("", "It is a word .", "", own_source)
    before = key(own, Way("template", 0))
    del registry.SOURCES[own_source]
    register_definitions({own_source: {**MY_WORDS, "labels": ["yes", "perhaps"]}})
    assert key(own, Way("template", 0)) != before


def test_what_is_checked_is_told_where_a_run_continues(tmp_path, data, oracle, interruptible):
    asked = []

    def check(requests, template, answers):
        asked.append(len(requests))
        oracle.work.prompt_tokens += 100
        return TemplateCheck(len(requests), len(requests), ())

    oracle.check_template = check
    how = {"sources": [NLI], "rows_checked": 3}
    oracle.stop_after, oracle.stop = 2, lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        evaluate("m", data, "test", tmp_path / "out", **how)
    oracle.stop_after = None
    timing = evaluate("m", data, "test", tmp_path / "out", **how)["timing"]
    assert (timing["template_check"]["rows"], timing["template_check"]["answered_before"]) == (2, 1)
    assert timing["work"]["prompt_tokens"] == 0 and timing["check_seconds"] >= 0  # of the check's own
    timing = evaluate("m", data, "test", tmp_path / "out", **how)["timing"]
    assert (timing["template_check"]["rows"], timing["template_check"]["answered_before"]) == (0, 3)
    assert asked == [2] and "3 more were answered before" in told(timing)
    with pytest.raises(UserError, match="--check_rows compares what is decoded by template"):
        write_rows(data / "free.parquet", [Row("Answer.", "My head aches.", "Rest.", "iCliniq")])
        evaluate("m", data, "free", tmp_path / "free", rows_checked=3)


def test_texts_of_credentialed_sources_are_shown_only_where_asked(tmp_path, data, oracle, capsys):
    invented = "The zorblatt of Mr. Quux was wolten ."
    oracle.gold[f"Sentence 1: {invented}\nSentence 2: He is ill ."] = "Neutral"
    row = get_source("MedNLI").task.render((invented, "He is ill .", "Entailment"))
    write_rows(data / "gated.parquet", [Row("", *row, "MedNLI")])
    command = ["evaluate", "--model=m", f"--data={data}", "--split=gated"]
    assert main.dispatch([*command, f"--out={tmp_path / 'hidden'}"]) == 0
    assert main.dispatch([*command, f"--out={tmp_path / 'shown'}", "--show_credentialed"]) == 0
    pages = {name: (tmp_path / name / "report.html").read_text() for name in ("hidden", "shown")}
    assert "zorblatt" not in pages["hidden"] and "zorblatt" in pages["shown"]
    for path in (tmp_path / "shown").iterdir():
        if path.name not in ("provenance.json", "timing.json", ".lock"):
            assert path.stat().st_mode & 0o077 == 0, path.name


def test_the_legacy_protocol_scores_the_same_answers(tmp_path, data, oracle):
    result = evaluate("m", data, "test", tmp_path / "out", protocol="legacy_medtuned", sources=[NER, NLI])
    assert json.loads((tmp_path / "out" / "scores.json").read_bytes())["protocol"] == "legacy_medtuned"
    assert sorted(result["sources"]) == sorted([NER, NLI])


def test_the_commands_choices_are_those_of_the_library():
    flags = arguments.define(cli_evaluate)
    assert {option: flags[option].default for option in cli_evaluate.OPTIONS} | {"method": flags["decode"].default} == (
        asdict(Decoding())
    )
    assert (cli_evaluate.DECODE, cli_evaluate.DRAFT) == (DECODE, DRAFT) and cli_evaluate.PROTOCOLS == PROTOCOLS


def test_budgets_are_what_a_rows_input_needs_up_to_the_tasks_own_unless_given(tmp_path, data, oracle):
    long = get_source(NER).task.render((("a",) * 400, ("B",) * 400))
    oracle.gold[long[0]] = long[1]
    evaluate("m", data, "test", tmp_path / "a", decoding=Decoding("greedy"))
    # The oracle's tokens are characters and its tags are one character each: the gold output is as long as any.
    lengths = [len(get_template("alpaca").completion(one.output)) for one in perfect(NER)]
    assert [budget for _, budget in oracle.calls[-1]] == [length + 64 for length in lengths] + [32] * 7
    write_rows(data / "long.parquet", [Row("", *long, NER)])
    evaluate("m", data, "long", tmp_path / "long", decoding=Decoding("greedy"))
    assert [budget for _, budget in oracle.calls[-1]] == [1536]
    evaluate("m", data, "test", tmp_path / "b", decoding=Decoding("greedy", max_new_tokens=9))
    assert {budget for _, budget in oracle.calls[-1]} == {9}


def test_sampling_is_as_asked_for(tmp_path, data, oracle):
    evaluate(
        "m", data, "test", tmp_path / "a", decoding=Decoding("sample", temperature=0.5, top_k=4, top_p=0.9, seed=8)
    )
    method = oracle.method
    assert (method.temperature, method.top_k, method.top_p, oracle.seed) == (0.5, 4, 0.9, 8)


def test_a_real_checkpoint_compares_candidates_and_writes_lists_and_free_text(tmp_path, data, shared_data):
    model = shared_data / "models" / "stories260K"
    rows = [Row("Which hallmarks?", text, output, "hoc") for text, output in (("Cells die .", "None"), ("x", "None"))]
    rows.insert(1, Row("Answer.", "My head aches.", "Rest.", "iCliniq"))
    long = Row("", "long " * 600, "None", "hoc")
    write_rows(data / "lists.parquet", [*rows, long])
    how = {"template": "alpaca", "batch_size": 4}
    result = evaluate(model, data, "lists", tmp_path / "lists", **how)
    assert result["sources"]["hoc"]["parse"] == {
        "exact": 2,
        "repaired": 0,
        "unparsable": 1,
        "kinds": {"prompt_too_long": 1},
    }
    found = read_predictions(tmp_path / "lists")
    assert [one.finish_reason for one in found] == ["constrained", "length", "constrained", "prompt_too_long"]

    write_rows(
        data / "long.parquet",
        [Row("", one.input, one.output, NLI) for one in perfect(NLI)]
        + [Row("", "Sentence 1: " + "long " * 600 + "\nSentence 2: x", "Neutral", NLI)],
    )
    compared = evaluate(model, data, "long", tmp_path / "ll", decoding=Decoding("loglikelihood"), **how)
    entry = compared["sources"][NLI]
    found = read_predictions(tmp_path / "ll")
    assert [one.finish_reason for one in found] == ["constrained"] * 4 + ["prompt_too_long"]
    assert [sorted(one.loglikelihoods or {}) for one in found] == [sorted(get_source(NLI).task.labels)] * 4 + [[]]
    assert entry["metrics"]["accuracy_ll"] == entry["metrics"]["accuracy"]
    greedy = evaluate(model, data, "long", tmp_path / "greedy", decoding=Decoding("greedy", max_new_tokens=2), **how)
    assert greedy["sources"][NLI]["parse"]["kinds"]["prompt_too_long"] == 1


def test_a_real_checkpoint_is_asked_by_beams_and_drafts_and_behind_demonstrations(tmp_path, data, shared_data):
    model = shared_data / "models" / "stories260K"
    solved = [("She coughs .", "She is ill .", "Entailment"), ("He ran .", "He sat .", "Contradiction")]
    write_rows(data / "train.parquet", [Row("", *get_source(NLI).task.render(one), NLI) for one in solved])
    how = {"template": "medtuned_train", "batch_size": 4, "sources": [NLI], "shots": 1}

    def ask(name, *method, **options):
        decoding = Decoding(*method, max_positions=512, **options)
        result = evaluate(model, data, "test", tmp_path / name, decoding=decoding, **how)
        return result["timing"], [one.generated for one in read_predictions(tmp_path / name)]

    timing, greedy = ask("greedy", "greedy", max_new_tokens=6)
    assert timing["ways"]["greedy"]["passes_per_row"] == timing["forward_passes_per_row"]
    work = timing["work"]
    assert work["passes"] > 0 and 0 < work["slot_use"] <= 1 and work["prompt_tokens"] > 0
    timing, drafted = ask("drafted", "greedy", max_new_tokens=6, draft="template")
    assert drafted == greedy
    assert timing["ways"]["greedy, drafted by template"]["drafted"] > 0
    _, beams = ask("beams", "beam", max_new_tokens=6, num_beams=2)
    assert len(beams) == 4
    timing, labels = ask("template", "template", dtype="bfloat16")
    assert set(labels) <= set(get_source(NLI).task.labels)
    assert (timing["template_check"]["rows"], timing["template_check"]["decisions"]) == (4, 4)
    provenance = json.loads((tmp_path / "template" / "provenance.json").read_bytes())
    assert provenance["demonstrations"][NLI]["rows_by_shots"] == {"1": 4}
