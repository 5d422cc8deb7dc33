"""An evaluation run asks what is missing, survives a stop anywhere, and ends in scores."""

import errno
import json
import os
import signal

import pytest
from evaluate_oracle import result_bytes
from evaluate_samples import NER, NLI, RELATION, perfect

from medtune_jax.cli import main
from medtune_jax.errors import Interrupted, UserError
from medtune_jax.evaluate.predictions import FINAL, PARTIAL, PredictionLog, read_predictions
from medtune_jax.evaluate.run import evaluate
from medtune_jax.evaluate.score import score_file
from medtune_jax.generate.decoding import Decoding
from medtune_jax.tasks.rows import Row, write_rows
from medtune_jax.train.saved.disk import one_writer


@pytest.mark.parametrize("decode", ["template", "greedy", "sample"])
def test_an_oracle_scores_exactly_one(tmp_path, data, oracle, decode):
    result = evaluate("m", data, "test", tmp_path / "out", decoding=Decoding(decode))
    assert {entry["metrics"][entry["metric"]] for entry in result["sources"].values()} == {1.0}
    assert {entry["parse"]["exact"] / entry["n"] for entry in result["sources"].values()} == {1.0}
    timing = json.loads((tmp_path / "out" / "timing.json").read_bytes())
    assert timing == result["timing"]
    assert (timing["rows"], timing["output_tokens"], timing["forward_passes_per_row"]) == (12, 24, 3.0)
    # A tag per word of the five NER rows and a label of the seven others; free decoding chooses every token.
    words = sum(len(one.output.split("\n")) for one in perfect(NER))
    expected = ("label", words + 7) if decode == "template" else ("token", 24)
    assert (timing["decision"], timing["decisions"]) == expected
    read = read_predictions(tmp_path / "out")
    assert [one.row for one in read] == list(range(12))
    assert {(one.finish_reason, one.generated_tokens) for one in read} == {
        ("constrained" if decode == "template" else "eos", 2)
    }


def test_scoring_its_predictions_again_gives_the_sameresult_bytes(tmp_path, data, oracle):
    evaluate("m", data, "test", tmp_path / "out")
    score_file(tmp_path / "out", tmp_path / "again", data=data)
    names = ("scores.json", "rows.parquet", "errors.jsonl", "report.md", "report.html")
    assert result_bytes(tmp_path / "out", *names) == result_bytes(tmp_path / "again", *names)


@pytest.mark.parametrize("stop_after", [0, 1, 11])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_continues_to_the_sameresult_bytes(tmp_path, data, oracle, interruptible, number, stop_after):
    evaluate("m", data, "test", tmp_path / "undisturbed", decoding=Decoding("sample", seed=3))
    oracle.stop_after, oracle.stop = stop_after, lambda: os.kill(os.getpid(), number)
    with pytest.raises(Interrupted, match=f"{stop_after} answers are kept in .*{PARTIAL}"):
        evaluate("m", data, "test", tmp_path / "out", decoding=Decoding("sample", seed=3))
    assert not (tmp_path / "out" / FINAL).exists()
    oracle.stop_after = None
    result = evaluate("m", data, "test", tmp_path / "out", decoding=Decoding("sample", seed=3))
    assert result["timing"]["rows_answered_now"] == 12 - stop_after
    assert oracle.calls[-1] == oracle.calls[0][: 12 - stop_after]  # the same rows' own randomness and budgets
    assert result_bytes(tmp_path / "out") == result_bytes(tmp_path / "undisturbed")


def test_a_finished_run_asks_nothing_again(tmp_path, data, oracle):
    evaluate("m", data, "test", tmp_path / "out")
    before = result_bytes(tmp_path / "out")
    assert evaluate("m", data, "test", tmp_path / "out")["timing"]["rows_answered_now"] == 0
    assert len(oracle.calls) == 1
    assert result_bytes(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ({"decoding": Decoding("greedy", max_new_tokens=7)}, 12),
        ({"decoding": Decoding("greedy", dtype="bfloat16")}, 12),
        ({"limit": 1}, 9),
        ({"sources": [NLI]}, 8),
    ],
)
def test_finished_answers_are_never_lost_to_another_call(tmp_path, data, oracle, change, lost):
    evaluate("m", data, "test", tmp_path / "out", decoding=Decoding("greedy"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match=f"holds {lost} answers that this call would lose"):
        evaluate("m", data, "test", tmp_path / "out", **{"decoding": Decoding("greedy"), **change})
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_rows_keep_their_position_in_the_split_when_sources_are_chosen(tmp_path, data, oracle):
    evaluate("m", data, "test", tmp_path / "out", sources=[NLI])
    assert [one.row for one in read_predictions(tmp_path / "out")] == [8, 9, 10, 11]
    assert evaluate("m", data, "test", tmp_path / "out")["timing"]["rows_answered_now"] == 8


def test_a_limit_takes_the_first_rows_of_each_source_and_says_so(tmp_path, data, oracle):
    evaluate("m", data, "test", tmp_path / "out", limit=2)
    assert [one.row for one in read_predictions(tmp_path / "out")] == [0, 1, 5, 6, 8, 9]
    document = json.loads((tmp_path / "out" / "scores.json").read_bytes())
    assert document["provenance"]["limit"] == 2
    for report in ("report.md", "report.html"):
        assert "nly the first 2 rows per source" in (tmp_path / "out" / report).read_text()
    assert {entry["split"] for entry in document["sources"].values()} == {None}
    evaluate("m", data, "test", tmp_path / "out")
    assert len(oracle.calls[-1]) == 6  # what was answered under the limit is kept


def test_the_template_is_the_models_own_unless_forced(tmp_path, data, oracle):
    with pytest.raises(UserError, match=r"tuned with template 'alpaca', not 'medtuned_eval'.*--force_template"):
        evaluate("m", data, "test", tmp_path / "out", template="medtuned_eval")
    evaluate("m", data, "test", tmp_path / "out", template="medtuned_eval", force_template=True)
    assert json.loads((tmp_path / "out" / "provenance.json").read_bytes())["template"] == "medtuned_eval"
    oracle.template = None
    with pytest.raises(UserError, match=r"does not say with which prompt template.*--template, one of medtuned_train"):
        evaluate("m", data, "test", tmp_path / "out")


@pytest.mark.parametrize(("words", "forced"), [({}, False), ({"template": "alpaca"}, True)])
def test_a_model_is_loaded_despite_its_template_only_where_another_is_named(tmp_path, data, monkeypatch, words, forced):
    asked = []

    def refuse(path, **options):
        asked.append(options["force_template"])
        raise UserError("enough")

    monkeypatch.setattr("medtune_jax.train.load.load_model", refuse)
    with pytest.raises(UserError, match="enough"):
        evaluate("m", data, "test", tmp_path / "out", force_template=True, **words)
    assert asked == [forced]


def test_a_source_without_a_task_is_named(tmp_path, data, oracle):
    oracle.gold["Some text ."] = "Something."
    rows = [Row("Do it.", "Some text .", "Something.", "my-corpus")]
    write_rows(data / "other.parquet", rows + [Row("", one.input, one.output, one.source) for one in perfect(NLI)])
    with pytest.raises(UserError, match=r"Source 'my-corpus' is not in the registry.*--decode=greedy"):
        evaluate("m", data, "other", tmp_path / "out")
    with pytest.raises(UserError, match=r"Source 'my-corpus' is not in the registry.*--max_new_tokens"):
        evaluate("m", data, "other", tmp_path / "out", decoding=Decoding("greedy"))
    result = evaluate("m", data, "other", tmp_path / "out", decoding=Decoding("greedy", max_new_tokens=5))
    assert (list(result["sources"]), result["not_scored"]["my-corpus"]["n"]) == ([NLI], 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "align"}, "Unknown protocol 'align'. Did you mean 'aligned'"),
        ({"limit": 0}, "--limit is 0"),
        ({"sources": ["sample-nil"]}, "no rows of source 'sample-nil'. Did you mean 'sample-nli'"),
        ({"split": "dev"}, "no split 'dev'"),
    ],
)
def test_mistakes_are_named_before_the_model_is_loaded(tmp_path, data, oracle, arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate("m", data, **{"split": "test", "out": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


def test_what_would_stop_the_scoring_is_met_before_the_model_is_loaded(tmp_path, data, monkeypatch):
    """No `oracle` here: a model that is loaded fails the test."""
    monkeypatch.setattr("medtune_jax.train.load.load_model", lambda *_, **__: pytest.fail("the model is loaded"))
    rows = [Row("", one.input, one.output, one.source) for one in perfect(NER, NLI)]
    write_rows(data / "bad.parquet", [*rows, Row("", "no : O", "no : Q", NER)])
    with pytest.raises(UserError, match=f"{NER}, row 9: the gold output is not a well-formed ner answer"):
        evaluate("m", data, "bad", tmp_path / "out", limit=6)
    write_rows(data / "strange.parquet", [Row("", "a", "b", "my-corpus")])
    with pytest.raises(UserError, match=r"No row can be scored: .* my-corpus"):
        evaluate("m", data, "strange", tmp_path / "out", decoding=Decoding("greedy", max_new_tokens=5))
    (data / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"train\.parquet cannot be read"):
        evaluate("m", data, "test", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (data / "train.parquet").unlink()
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"/out cannot be written: File exists"):
        evaluate("m", data, "test", tmp_path / "out")


def test_a_full_disk_is_a_mistake_that_names_the_file_and_costs_no_answer(tmp_path, data, oracle, capsys, monkeypatch):
    command = ["evaluate", "--model=m", f"--data={data}", f"--out={tmp_path / 'out'}"]
    finish = PredictionLog.finish

    def no_space(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:

        def finish_on_a_full_disk(log):
            log.flush()
            full.setattr(os, "fsync", no_space)
            return finish(log)

        full.setattr(PredictionLog, "finish", finish_on_a_full_disk)
        assert main.dispatch(command) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'out' / FINAL} cannot be written: No space left on device" in error
    assert "Traceback" not in error
    assert main.dispatch(command) == 0
    assert len(oracle.calls) == 1  # all answers were kept


def test_the_command_evaluates_scores_and_reports(tmp_path, data, oracle, capsys):
    out = tmp_path / "out"
    command = ["evaluate", "--model=m", f"--data={data}", f"--out={out}", f"--sources={NER},{RELATION}"]
    assert main.dispatch([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["sources"]) == [NER, RELATION]
    assert main.dispatch(command) == 0
    assert "100.00  [100.00, 100.00]" in capsys.readouterr().out
    assert main.dispatch(["score", f"--predictions={out}", f"--data={data}", f"--out={tmp_path / 's'}", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {**scored, "out": "", "scores": "", "report": ""} == {
        **{key: value for key, value in result.items() if key != "timing"},
        "out": "",
        "scores": "",
        "report": "",
    }


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--temperature=0.5"], "--temperature has no effect on --decode=template: add --decode=sample"),
        (["--decode=greedy", "--seed=1"], "--seed has no effect on --decode=greedy"),
        (["--decode=greedy", "--top_k=3"], "--top_k has no effect"),
        (["--top_p=0.5"], "--top_p has no effect"),
        (["--max_new_tokens=5"], "--max_new_tokens has no effect on --decode=template: add --decode=greedy"),
    ],
)
def test_flags_without_effect_are_refused_by_name(tmp_path, data, oracle, capsys, flags, named):
    command = ["evaluate", "--model=m", f"--data={data}", f"--out={tmp_path / 'out'}", *flags]
    assert main.dispatch(command) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_command_exits_75_when_stopped(tmp_path, data, oracle, interruptible, capsys):
    oracle.stop_after, oracle.stop = 2, lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert main.dispatch(["evaluate", "--model=m", f"--data={data}", f"--out={tmp_path / 'out'}"]) == 75
    assert "Give the same command again to continue" in capsys.readouterr().err


def test_results_of_a_run_lie_in_its_folder(tmp_path, data, oracle, capsys):
    assert main.dispatch(["evaluate", f"--model={tmp_path / 'hf'}", f"--data={data}"]) == 2
    assert "--out is missing" in capsys.readouterr().err
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert main.dispatch(["evaluate", f"--model={tmp_path / 'run'}", f"--data={data}"]) == 0
    assert (tmp_path / "run" / "evaluation" / "test-template" / "scores.json").is_file()


def test_score_names_a_mistake(tmp_path, data, oracle, capsys):
    assert main.dispatch(["score", f"--predictions={tmp_path / 'no.jsonl'}"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main.dispatch(["score", f"--predictions={tmp_path}", f"--data={tmp_path / 'typo'}"]) == 2
    assert "typo is not a folder" in capsys.readouterr().err
    evaluate("m", data, "test", tmp_path / "answers")
    (tmp_path / "file").write_text("")
    assert main.dispatch(["score", f"--predictions={tmp_path / 'answers'}", f"--out={tmp_path / 'file'}"]) == 2
    assert "/file cannot be written: File exists" in capsys.readouterr().err


def test_a_real_checkpoint_is_evaluated_and_template_decoding_is_never_malformed(tmp_path, data, shared_data):
    model = shared_data / "models" / "stories260K"
    result = evaluate(model, data, "test", tmp_path / "t", template="alpaca", sources=[NLI, NER], batch_size=4)
    for entry in result["sources"].values():
        assert entry["parse"]["exact"] == entry["n"] and entry["parse"]["kinds"] == {}
    assert result["sources"][NER]["metrics"]["echo_rate"] == 1.0
    free = evaluate(
        model,
        data,
        "test",
        tmp_path / "g",
        template="alpaca",
        sources=[NLI],
        decoding=Decoding("greedy", max_new_tokens=4),
        batch_size=4,
    )
    assert free["sources"][NLI]["n"] == 4
    assert {one.finish_reason for one in read_predictions(tmp_path / "g")} <= {"eos", "length"}


def test_two_evaluations_do_not_write_one_folder(tmp_path, data, oracle):
    told = r"/out is being written by process \d+ .*give another --out"
    with one_writer(tmp_path / "out"), pytest.raises(UserError, match=told):
        evaluate("m", data, "test", tmp_path / "out")
    evaluate("m", data, "test", tmp_path / "out")
