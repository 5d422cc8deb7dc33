"""Scores are exact, local to their rows, and equal to what independent libraries and loops give."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluate_samples import NER, NLI, RELATION, flawed, perfect, prediction
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.errors import UserError
from medtune_jax.evaluate import score as score_module
from medtune_jax.evaluate.score import score, score_file, training_rows, write_scores
from medtune_jax.evaluate.table import read_tables
from medtune_jax.tasks.registry import find_source, get_source
from medtune_jax.tasks.rows import Row, write_rows
from medtune_jax.tasks.source import Published

FEW = {"resamples": 20}
PUBMEDQA = "PubMedQA"


def _train(*sources):
    return [Row("Do it.", one.input, one.output, one.source) for one in perfect(*sources)]


def test_perfect_answers_score_exactly_one():
    for name, entry in score(perfect(), **FEW).document["sources"].items():
        metrics = {metric: value for metric, value in entry["metrics"].items() if not metric.startswith("f1/")}
        assert set(metrics.values()) == {1.0}, name
        assert entry["ci95"][entry["metric"]] == [1.0, 1.0]
        assert entry["parse"] == {"exact": entry["n"], "repaired": 0, "unparsable": 0, "kinds": {}}


@pytest.mark.parametrize("kind", ["blank", "garbage", "prompt_too_long"])
def test_spoiling_a_row_changes_only_its_own_statistics(kind):
    rows = flawed()
    before = score(rows, **FEW).tables
    for index, row in enumerate(rows):
        spoilt = list(rows)
        spoilt[index] = {
            "blank": replace(row, generated=""),
            "garbage": replace(row, generated="\x00 ### ::"),
            "prompt_too_long": replace(row, finish_reason="prompt_too_long", generated=row.output),
        }[kind]
        for name, table in score(spoilt, **FEW).tables.items():
            others = [at for at, number in enumerate(table.rows) if number != row.row]
            np.testing.assert_array_equal(table.statistics[others], before[name].statistics[others])
            if name == row.source:
                (own,) = set(range(len(table.rows))) - set(others)
                assert table.status[own] == "unparsable"


def test_a_prompt_that_was_too_long_is_a_wrong_row_of_the_same_n():
    rows = perfect(NLI)
    rows[0] = replace(rows[0], finish_reason="prompt_too_long", generated=rows[0].output)
    entry = score(rows, **FEW).document["sources"][NLI]
    assert (entry["n"], entry["metrics"]["accuracy"]) == (4, 0.75)
    assert entry["parse"]["kinds"] == {"prompt_too_long": 1}
    assert entry["finish_reasons"] == {"eos": 3, "prompt_too_long": 1}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "\n".join(reversed(text.split("\n"))),
        lambda text: "\n".join(line for line in text.split("\n") if not line.endswith(" : B")),
        lambda text: text.replace(" : B", " : O"),
    ],
    ids=["reversed", "entity lines dropped", "entities unmarked"],
)
def test_spoilt_lines_lower_the_entity_score(spoil):
    rows = [replace(one, generated=spoil(one.output)) for one in perfect(NER)]
    assert score(rows, **FEW).document["sources"][NER]["metrics"]["f1"] < 0.8


@given(st.lists(st.lists(st.sampled_from("BIO"), min_size=5, max_size=5), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_entity_scores_equal_seqeval_orphans_included(answers):
    from seqeval.metrics import f1_score, precision_score, recall_score
    from seqeval.scheme import IOB2

    task = get_source(NER).task
    tokens, gold = ("a", "b", "c", "d", "e"), ["B", "I", "O", "B", "O"]
    input, output = task.render((tokens, tuple(gold)))
    rows = [
        prediction(NER, input, output, row, task.render((tokens, tuple(tags)))[1]) for row, tags in enumerate(answers)
    ]
    found = score(rows, **FEW).document["sources"][NER]["metrics"]
    truth = [gold] * len(answers)
    for name, function in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert found[name] == pytest.approx(function(truth, answers, zero_division=0), abs=1e-12)
    strict = f1_score(truth, answers, mode="strict", scheme=IOB2, zero_division=0)
    assert found["f1_strict"] == pytest.approx(strict, abs=1e-12)


def test_a_malformed_gold_output_is_named():
    rows = perfect(NER)
    rows[2] = replace(rows[2], output="no : X\ndisease : X\nhere : X")
    with pytest.raises(UserError, match="sample-disease, row 2: the gold output is not a well-formed ner answer"):
        score(rows, **FEW)


def test_an_unknown_source_is_listed_and_not_scored():
    stranger = [replace(one, source="my-corpus") for one in perfect(NLI)]
    document = score(perfect(NLI) + stranger, **FEW).document
    assert list(document["sources"]) == [NLI]
    assert document["not_scored"]["my-corpus"]["n"] == 4
    with pytest.raises(UserError, match="registry of sources does not know it: my-corpus"):
        score(stranger, **FEW)


def test_an_alias_is_scored_under_the_name_of_its_source():
    rows = [replace(one, source="ncbi_disease") for one in perfect(NER)]
    assert list(score(rows, **FEW).document["sources"]) == ["NCBI-disease"]


def test_an_unknown_protocol_is_refused():
    with pytest.raises(UserError, match=r"Unknown protocol 'aligne'. Did you mean 'aligned'\?"):
        score(perfect(), protocol="aligne", **FEW)


def test_baselines_are_fitted_on_training_rows_or_say_so():
    without = score(perfect(), **FEW).document["sources"]
    assert without[NER]["baselines"]["train_dictionary"] == {
        "not_available": "no training rows of this source were given"
    }
    assert without[NLI]["baselines"]["constant"]["fitted_on"] == "the scored rows"
    assert without[NLI]["baselines"]["constant"]["metrics"]["accuracy"] == 0.5
    known = score(perfect(), train=_train(NER) + _train(NLI)[:1], **FEW).document["sources"]
    assert known[NER]["baselines"]["train_dictionary"]["metrics"]["f1"] > 0.7
    assert known[NER]["baselines"]["constant"]["metrics"]["f1"] == 0.0
    assert known[NLI]["baselines"]["constant"]["metrics"]["accuracy"] == 0.25  # always Contradiction, as its one row
    assert known[RELATION]["baselines"]["constant"]["fitted_on"] == "the scored rows"


def test_mentions_are_told_seen_from_unseen():
    train = _train(NER)[3:4]  # holds gout only
    rows = [*flawed()[:2], replace(perfect(NER)[3], generated="gout : O\ngout : B")]
    errors = score(rows, train=train, **FEW).errors
    assert {(one["gold"], one["seen_in_training"]) for one in errors} == {
        ("chronic gout", False),
        ("ataxia", False),
        ("gout", True),
    }
    assert {one["seen_in_training"] for one in score(rows, **FEW).errors} == {None}


def test_published_figures_stand_beside_only_on_the_same_rows(monkeypatch):
    rows = perfect(NLI)
    digest = score(rows, **FEW).document["sources"][NLI]["gold_sha256"]
    figures = (Published("A", "accuracy", 0.9, "test", 4, "x"), Published("B", "accuracy", 0.8, "validation", 4, "y"))
    source = replace(get_source(NLI), splits={digest: "test"}, published=figures)
    monkeypatch.setattr(score_module, "find_source", lambda name: source)
    entry = score(rows, **FEW).document["sources"][NLI]
    assert (entry["split"], [one["rows"] for one in entry["published"]]) == ("test", ["same rows", "other rows"])
    fewer = score(rows[:3], **FEW).document["sources"][NLI]
    assert (fewer["split"], [one["rows"] for one in fewer["published"]]) == (None, ["other rows", "rows not verified"])


def test_the_instruction_does_not_enter_the_gold_hash():
    rows = perfect(NLI)
    hashes = {
        score(those, **FEW).document["sources"][NLI]["gold_sha256"]
        for those in (rows, [replace(one, instruction="Other words.") for one in rows], rows[::-1])
    }
    assert len(hashes) == 2


def test_rows_of_a_group_are_resampled_together():
    rows = [replace(one, group="a" if one.row % 2 else "b") for one in perfect(NLI)]
    rows = [replace(one, generated="Neutral" if one.group == "a" else one.output) for one in rows]
    entry = score(rows).document["sources"][NLI]
    assert (entry["groups"], entry["ci95"]["accuracy"]) == (2, [0.0, 1.0])


def test_rows_parquet_gives_the_tables_back(tmp_path):
    scores = score(flawed(), **FEW)
    write_scores(tmp_path, scores)
    read, documents = read_tables(tmp_path / "rows.parquet")
    assert documents == {}
    assert read.keys() == scores.tables.keys()
    for name, table in scores.tables.items():
        assert (read[name].rows, read[name].status, read[name].names) == (table.rows, table.status, table.names)
        np.testing.assert_array_equal(read[name].statistics, table.statistics)


def test_errors_jsonl_holds_every_mistake(tmp_path):
    scores = score(flawed(), train=_train(NER), **FEW)
    write_scores(tmp_path, scores)
    lines = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert lines == json.loads(json.dumps(scores.errors))
    assert {"boundary", "missed", "unparsable", "wrong_label"} <= {line["kind"] for line in lines}
    missed = next(line for line in lines if line["kind"] == "missed")
    assert (missed["row"], missed["gold"], missed["where"], missed["seen_in_training"]) == (
        1,
        "ataxia",
        {"gold": [0, 0]},
        True,
    )


def test_files_of_a_credentialed_source_are_for_their_owner_only(tmp_path, monkeypatch):
    monkeypatch.setattr(score_module, "find_source", lambda name: replace(get_source(name), credentialed=True))
    write_scores(tmp_path, score(flawed(), **FEW))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "credentialed" in text and "ataxia" not in text and "Cisplatin" not in text


def _predictions_file(folder: Path) -> Path:
    path = folder / "predictions.jsonl"
    keys = ("source", "input", "output", "generated")
    path.write_text("".join(json.dumps({key: getattr(one, key) for key in keys}) + "\n" for one in flawed()))
    return path


def test_minimal_objects_are_scored_as_full_ones(tmp_path):
    found = score_file(_predictions_file(tmp_path), tmp_path / "out").document
    expected = score(flawed()).document
    for name in found["sources"]:
        assert found["sources"][name]["metrics"] == expected["sources"][name]["metrics"]
    assert found["provenance"].keys() == {"model", "predictions_sha256"}


def test_provenance_beside_the_predictions_is_carried_through(tmp_path):
    path = _predictions_file(tmp_path)
    (tmp_path / "provenance.json").write_text('{"model": "m", "decoding": {"method": "greedy"}}')
    assert score_file(path, tmp_path).document["provenance"]["decoding"] == {"method": "greedy"}
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(UserError, match=r"provenance\.json is not a JSON object"):
        score_file(path, tmp_path)


def test_the_result_folder_holds_what_is_documented(tmp_path):
    path = _predictions_file(tmp_path)
    write_rows(tmp_path / "train.parquet", _train())
    score_file(path, tmp_path / "out", data=tmp_path)
    names = {"scores.json", "rows.parquet", "errors.jsonl", "report.md", "report.html"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names


def test_intervals_equal_a_naive_loop_that_scores_each_resample():
    rows = [one for one in flawed() if one.source == NER]
    found = score(rows, resamples=30, seed=3).document["sources"][NER]["ci95"]
    rng = np.random.default_rng(3)
    loop = []
    for _ in range(30):
        drawn = [rows[at] for at in rng.integers(0, len(rows), len(rows), dtype=np.int32)]
        loop.append(score(drawn, resamples=1).document["sources"][NER]["metrics"])
    for metric, interval in found.items():
        assert interval == pytest.approx(list(np.percentile([one[metric] for one in loop], [2.5, 97.5])), abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=20))
@settings(max_examples=25, deadline=None)
def test_label_scores_equal_scikit_learn(pairs):
    from sklearn.metrics import accuracy_score, f1_score

    labels = get_source(PUBMEDQA).task.labels
    golds, answers = [labels[gold] for gold, _ in pairs], [(*labels, "?")[answer] for _, answer in pairs]
    rows = [
        prediction(PUBMEDQA, "Does it ?", gold, row, answer)
        for row, (gold, answer) in enumerate(zip(golds, answers, strict=True))
    ]
    metrics = score(rows, **FEW).document["sources"][PUBMEDQA]["metrics"]
    assert metrics["accuracy"] == pytest.approx(accuracy_score(golds, answers), abs=1e-12)
    macro = f1_score(golds, answers, labels=labels, average="macro", zero_division=0)
    assert metrics["macro_f1"] == pytest.approx(macro, abs=1e-12)


def test_training_rows_are_those_of_the_scored_sources(tmp_path):
    assert training_rows(tmp_path, [NER]) is None
    assert training_rows("owner/name", [NER]) is None
    write_rows(tmp_path / "train.parquet", _train())
    assert {row.source for row in training_rows(tmp_path, [NER, "unheard-of"])} == {NER}


def test_a_real_official_split_is_recognised(shared_data):
    source = find_source("NCBI-disease")
    sentences, current = [], ([], [])
    for line in (shared_data / "raw" / "NCBI-disease" / "devel.tsv").read_text().split("\n"):
        if line.strip():
            token, tag = line.split("\t")
            current[0].append(token)
            current[1].append(tag)
        elif current[0]:
            sentences.append(current)
            current = ([], [])
    rendered = [source.task.render((tuple(tokens), tuple(tags))) for tokens, tags in sentences]
    rows = [prediction(source.name, input, output, row) for row, (input, output) in enumerate(rendered)]
    entry = score(rows, **FEW).document["sources"][source.name]
    assert (entry["split"], entry["n"], entry["metrics"]["f1"]) == ("validation", 923, 1.0)
    comparable = {one["model"] for one in entry["published"] if one["rows"] == "same rows"}
    assert comparable == {"Llama2-MedTuned-7b", "Llama2-MedTuned-13b"}
