"""The verb `generate`: its results, the model's own template, mistakes by name."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from medtune_jax.cli.main import dispatch
from medtune_jax.convert.hf_export import export_params
from medtune_jax.data.prompts import get_template
from medtune_jax.data.tokenizer import load_tokenizer
from medtune_jax.errors import UserError
from medtune_jax.generate.engine import Engine
from medtune_jax.generate.sampling import Greedy
from medtune_jax.model.llama import LlamaConfig, init_params
from medtune_jax.train.saved.disk import one_writer_of_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of a random model; its tokenizer knows characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    home = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(home / "tokenizer.json"))
    (home / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=24,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        max_positions=256,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        initializer_range=0.4,
    )
    params = init_params(jax.random.key(0), config)
    export_params(params, config, home / "plain", tokenizer=load_tokenizer(home))
    export_params(params, config, home / "tuned", tokenizer=load_tokenizer(home), template="medtuned_eval")
    return home


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Returns (exit status, last line of stdout or all of stderr)."""
    capsys.readouterr()
    status = dispatch(["generate", "--mesh=none", *arguments, "--json"])
    out, err = capsys.readouterr()
    return status, out.strip().split("\n")[-1] if status == 0 else err


def expected(folder: Path, text: str) -> str:
    from medtune_jax.train.load import load_model

    loaded = load_model(folder)
    engine = Engine(loaded.params, loaded.config, loaded.tokenizer)
    prompt = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(text)]
    return engine.generate([prompt], method=Greedy(), max_new_tokens=6)[0].text


def test_a_model_without_a_template_is_given_the_text_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = ask(capsys, f"--model={folder / 'plain'}", "--prompt=Is it?", "--max_new_tokens=6")
    assert status == 0
    result = json.loads(out)
    assert set(result) == {"prompt", "generated", "finish_reason"}
    assert result["prompt"] == "Is it?"
    assert result["generated"] == expected(folder / "plain", "Is it?")


def test_a_tuned_model_is_asked_with_its_own_template_and_no_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"--model={folder / 'tuned'}"
    form = get_template("medtuned_eval")
    common = (model, "--prompt=a b", "--instruction=Tag.", "--max_new_tokens=6")
    status, out = ask(capsys, *common)
    assert status == 0
    assert json.loads(out)["generated"] == expected(folder / "tuned", form.prompt("Tag.", "a b"))
    for other in ("none", "medtuned_train"):
        status, err = ask(capsys, *common, f"--template={other}")
        assert status == 2
        assert "medtuned_eval" in err and other in err and "--force_template" in err
    status, out = ask(capsys, *common, "--template=medtuned_train", "--force_template")
    assert status == 0
    assert json.loads(out)["generated"] == expected(
        folder / "tuned", get_template("medtuned_train").prompt("Tag.", "a b")
    )


def test_a_template_worded_otherwise_than_in_training_is_asked_with_by_force_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(folder / "tuned", tmp_path / "older"))
    told = {"template": "medtuned_eval", "template_sha256": "0" * 64}
    (model / "medtune.json").write_text(json.dumps(told))
    common = (f"--model={model}", "--prompt=a b", "--max_new_tokens=2")
    status, err = ask(capsys, *common, "--force_template")
    assert status == 2 and "--force_template has no effect" in err and "--template=NAME" in err
    for words in ((), ("--template=medtuned_eval",)):
        status, err = ask(capsys, *common, *words)
        assert status == 2 and "worded differently" in err and "--template=NAME --force_template" in err
    status, out = ask(capsys, *common, "--template=medtuned_eval", "--force_template")
    assert status == 0 and "generated" in json.loads(out)


def test_a_file_gives_one_result_per_prompt_in_order(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text("one\n\ntwo and more\n")
    status, out = ask(capsys, f"--model={folder / 'plain'}", f"--input_file={tmp_path / 'p.txt'}", "--max_new_tokens=6")
    assert status == 0
    assert [one["prompt"] for one in json.loads(out)] == ["one", "two and more"]
    assert [one["generated"] for one in json.loads(out)] == [
        expected(folder / "plain", text) for text in ("one", "two and more")
    ]
    (tmp_path / "p.jsonl").write_text('{"prompt": "x\u2028y", "instruction": "Do."}\n{"prompt": "Say."}\n')
    status, out = ask(
        capsys, f"--model={folder / 'tuned'}", f"--input_file={tmp_path / 'p.jsonl'}", "--max_new_tokens=6"
    )
    form = get_template("medtuned_eval")
    assert [one["generated"] for one in json.loads(out)] == [
        expected(folder / "tuned", text) for text in (form.prompt("Do.", "x\u2028y"), form.prompt("Say.", ""))
    ]


def test_sampling_is_the_seeds_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = (f"--model={folder / 'plain'}", "--prompt=Is it?", "--max_new_tokens=12", "--method=sample", "--top_k=50")
    first, again, other = (ask(capsys, *common, f"--seed={seed}")[1] for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--prompt or --input_file or --interactive"),
        (("--prompt=a", "--input_file=b"), "--prompt or --input_file"),
        (("--prompt=a", "--interactive"), "--prompt or --input_file"),
        (("--input_file=absent.txt",), "absent.txt"),
        (("--prompt=" + "long " * 60,), "301 tokens"),
        (("--prompt=a", "--temperature=0.5"), "--method=sample"),
        (("--prompt=a", "--method=sample", "--temperature=0"), "temperature"),
        (("--prompt=a", "--instruction=b"), "--template"),
        (("--prompt=a", "--template=alpacca"), "alpaca"),
        (("--prompt=a", "--num_beams=2"), "--method=beam"),
        (("--prompt=a", "--method=beam", "--top_k=2"), "--method=sample"),
        (("--prompt=a", "--method=beam", "--n_best=9"), "n_best"),
        (("--prompt=a", "--method=sample", "--draft=prompt"), "--method=greedy"),
        (("--prompt=" + "long " * 50, "--regex=[a-z]{40}"), "hold no answer of the grammar"),
        (("--prompt=a", "--batch_size=0"), "batch_size"),
        (("--prompt=a", "--cache_gib=-1"), "cache_gib"),
        (("--prompt=a", "--draft=prompt", "--repetition_penalty=2"), "--repetition_penalty"),
        (("--prompt=a", "--out=x.jsonl"), "--input_file"),
        (("--interactive", "--batch_size=2"), "--input_file"),
        (("--prompt=a", "--mesh=tenser=2"), "'tensor'"),
        (("--prompt=a", "--mesh=tensor"), "data=2,tensor=4"),
        (("--prompt=a", "--mesh=data=2,tensor=2"), "needs 4 devices, there are 8"),
        (("--prompt=a", "--mesh=tensor=8"), "tensor=8 does not divide num_attention_heads (2)"),
    ],
)
def test_mistakes_are_named(
    folder: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = ask(capsys, f"--model={folder / 'plain'}", *arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_answers_end_before_a_stop_string(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = expected(folder / "plain", "Is it?")
    common = (f"--model={folder / 'plain'}", "--prompt=Is it?", "--max_new_tokens=6")
    for draft in ("none", "prompt"):
        result = json.loads(ask(capsys, *common, "--stop=absent", f"--stop={whole[2:4]}", f"--draft={draft}")[1])
        assert result["finish_reason"] == "stop" and result["generated"] == whole[: whole.index(whole[2:4])]


def test_n_best_answers_come_with_their_scores_best_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = (f"--model={folder / 'plain'}", "--prompt=Is it?", "--max_new_tokens=6")
    result = json.loads(ask(capsys, *common, "--method=beam", "--num_beams=3", "--n_best=2")[1])
    first, second = result["alternatives"]
    assert result["generated"] == first["generated"] != second["generated"] and first["score"] >= second["score"]


def test_a_draft_changes_no_text_and_its_acceptance_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(
        ask(capsys, f"--model={folder / 'plain'}", "--prompt=Is it?", "--max_new_tokens=6", "--draft=prompt")[1]
    )
    assert result["generated"] == expected(folder / "plain", "Is it?")
    assert result["drafted"] >= result["accepted"] >= 0 and result["passes"] >= 1


# ------------------------------------------------------------------------------------------------ files, interrupted


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "p.txt"
    path.write_text("one\ntwo and more\nthree\n" + "too long " * 40 + "\nthree\n")
    return path


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that has SIGTERM come when so many prompts are answered."""
    plain = Engine.generate

    def after(count: int) -> None:
        def generate(self: Engine, *args: object, on_done: Callable[..., None], **options: object) -> object:
            left = [count]

            def done(*answer: object) -> None:
                on_done(*answer)
                left[0] -= 1
                if left[0] == 0:
                    signal.raise_signal(signal.SIGTERM)

            return plain(self, *args, on_done=done, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Engine, "generate", generate if count else plain)

    return after


def test_a_stopped_file_continues_to_the_bytes_of_an_undisturbed_one(
    folder: Path, prompts: Path, tmp_path: Path, interrupt: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    common = (f"--model={folder / 'plain'}", f"--input_file={prompts}", "--max_new_tokens=6", "--method=sample")
    status, whole = ask(capsys, *common, f"--out={tmp_path / 'whole.jsonl'}")
    assert status == 0
    reasons = [one["finish_reason"] for one in json.loads(whole)]
    assert reasons[3] == "prompt_too_long" and "prompt_too_long" not in reasons[:3]

    out = tmp_path / "new" / "a.jsonl"
    interrupt(2)
    status, err = ask(capsys, *common, f"--out={out}")
    assert status == 75 and "Give the same command again" in err and not out.exists()
    partial = out.with_name("a.jsonl.partial")
    assert len(partial.read_bytes().splitlines()) == 2
    with partial.open("ab") as file:
        file.write(b'{"prompt": "torn')
    interrupt(0)
    for _ in range(2):  # the second time all is there already
        status, told = ask(capsys, *common, f"--out={out}")
        assert status == 0 and told == whole
        assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and not partial.exists()
    status, err = ask(capsys, *common, f"--out={out}", "--seed=1")
    assert status == 2 and "5 lines that this call would lose" in err
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_without_a_file_what_is_answered_is_printed_when_stopped(
    folder: Path, prompts: Path, interrupt: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(2)
    status = dispatch(["generate", "--mesh=none", f"--model={folder / 'plain'}", f"--input_file={prompts}", "--json"])
    out, err = capsys.readouterr()
    assert status == 1 and "2 of 5 prompts are answered and printed" in err and "--out=FILE.jsonl" in err
    assert len(json.loads(out.strip().split("\n")[-1])) == 2


def test_a_stop_while_loading_is_resumable_where_answers_are_kept(
    folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medtune_jax.train.load.load_model", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    common = (f"--model={folder / 'plain'}", f"--input_file={prompts}")
    status, err = ask(capsys, *common, f"--out={tmp_path / 'a.jsonl'}")
    assert status == 75 and "Give the same command again" in err
    assert ask(capsys, *common)[0] == 1


def test_what_cannot_be_written_is_refused_before_the_model_is_loaded(
    folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medtune_jax.train.load.load_model", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "folder").mkdir()
    common = (f"--model={folder / 'plain'}", f"--input_file={prompts}")
    for out, said in ((tmp_path / "folder", "Is a directory"), ("gs://bucket/a.jsonl", "object stores")):
        status, err = ask(capsys, *common, f"--out={out}")
        assert status == 2 and said in err
    out = tmp_path / "new" / "a.jsonl"
    with one_writer_of_file(out, "--out"):
        status, err = ask(capsys, *common, f"--out={out}")
        assert status == 2 and f"{out} is being written by process" in err
    assert not list(out.parent.iterdir())


def test_unknown_keys_of_a_prompt_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "instructions": "Do."}\n')
    status, err = ask(capsys, f"--model={folder / 'tuned'}", f"--input_file={tmp_path / 'p.jsonl'}")
    assert status == 2 and "line 1: unknown key 'instructions'. Did you mean 'instruction'?" in err


# ----------------------------------------------------------------------------------------------------- conversations


def converse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: str, *arguments: str
) -> tuple[int, str, str]:
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    status = dispatch(["generate", "--mesh=none", "--interactive", "--max_new_tokens=6", *arguments])
    return status, *capsys.readouterr()


def test_a_session_answers_line_by_line_with_its_history(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[int]] = []
    plain = Engine.generate

    def generate(self: Engine, prompts: list[list[int]], **options: object) -> object:
        asked.extend(prompts)
        return plain(self, prompts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "generate", generate)
    lines = "one\n\ntwo\n/reset\n/instruction Tag.\nthree\n"
    status, out, err = converse(monkeypatch, capsys, lines, f"--model={folder / 'tuned'}", "--json")
    assert status == 0
    results = json.loads(out.strip())  # nothing else is on stdout
    assert [one["prompt"] for one in results] == ["one", "two", "three"]
    assert all(one["generated"] in err for one in results)  # as it came
    tokenizer, form = load_tokenizer(folder / "tuned"), get_template("medtuned_eval")
    first, second = ([tokenizer.bos_id, *tokenizer.encode(form.prompt(text, ""))] for text in ("one", "two"))
    answer = asked[1][len(first) : -len(second) - 1]
    assert asked[1] == [*first, *answer, tokenizer.eos_id, *second]
    assert tokenizer.decode(answer) == results[0]["generated"]
    assert asked[2] == [tokenizer.bos_id, *tokenizer.encode(form.prompt("Tag.", "three"))]

    status, out, err = converse(monkeypatch, capsys, "one\ntwo\n/quit\nthree\n", f"--model={folder / 'tuned'}")
    assert status == 0 and out == "".join(f"{one['generated']}\n" for one in results[:2])
    assert ">" not in err and "Ctrl" not in err


def test_mistakes_in_a_session_are_told_and_it_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "/rest\n/instruction Tag.\n" + "long " * 60 + "\n" + "x" * 150 + "\n" + "y" * 150 + "\n/help\n"
    status, out, err = converse(monkeypatch, capsys, lines, f"--model={folder / 'plain'}")
    assert status == 0 and len(out.splitlines()) >= 2
    assert "Did you mean '/reset'?" in err and "start with --template" in err and "/quit" in err
    assert "300 tokens" in err and "Shorten it." in err
    assert "The context is full: the oldest turn is forgotten." in err


def test_what_the_engine_refuses_and_bytes_that_are_no_text_do_not_end_a_session(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, numbers = Engine.generate, []

    def generate(self: Engine, *args: object, rows: list[int], **options: object) -> object:
        numbers.extend(rows)
        if len(numbers) == 1:
            raise UserError("The cache does not fit.")
        return plain(self, *args, rows=rows, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "generate", generate)
    stdin = io.TextIOWrapper(io.BytesIO(b"one\n\n/reset\ntwo\xff\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    model = f"--model={folder / 'plain'}"
    status = dispatch(["generate", "--mesh=none", "--interactive", "--max_new_tokens=6", "--json", model])
    out, err = capsys.readouterr()
    assert status == 0 and "The cache does not fit." in err
    assert [one["prompt"] for one in json.loads(out)] == ["two\ufffd"]
    assert numbers == [0, 1]  # a turn's draws are its prompt's number, whatever lines stand between


def test_a_session_ends_quietly_where_its_reader_has_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
        monkeypatch.setattr(sys, "stdout", gone)
        assert dispatch(["generate", "--mesh=none", "--interactive", f"--model={folder / 'plain'}"]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_stops_an_answer_and_sigterm_the_session(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, turns = Engine.generate, iter((signal.SIGINT, None, signal.SIGTERM))

    def generate(self: Engine, *args: object, on_text: Callable[..., None], **options: object) -> object:
        number = next(turns)
        if number is not None:
            on_text(0, "beg")
            signal.raise_signal(number)
        return plain(self, *args, on_text=on_text, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "generate", generate)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status, out, err = converse(monkeypatch, capsys, "one\ntwo\nthree\nfour\n", f"--model={folder / 'plain'}")
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 1 and "(stopped)" in err and "interrupted" in err
    assert out.startswith("beg\n") and out.count("beg\n") == 2


def test_an_answer_is_held_to_a_regular_expression_or_a_schema(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tmp_path / "asked.txt"
    asked.write_text("Is it?\nIs it not?\n")
    common = (f"--model={folder / 'plain'}", "--max_new_tokens=12")
    status, out = ask(capsys, *common, f"--input_file={asked}", "--regex=(yes|no), [a-z]{2,5}")
    assert status == 0
    for one in json.loads(out):
        assert re.fullmatch("(yes|no), [a-z]{2,5}", one["generated"]) and one["finish_reason"] == "constrained"
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2}')
    status, out = ask(capsys, *common, "--prompt=x", f"--json_schema={schema}", "--method=sample")
    assert status == 0
    assert set(json.loads(json.loads(out)["generated"])) <= {"a", "b"}
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[schema.read_bytes()])
    writer.start()
    assert ask(capsys, *common, "--prompt=x", f"--json_schema={pipe}", "--method=sample") == (0, out)  # read once
    writer.join()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--regex=a("], "unclosed group"),
        (["--regex=a", "--method=beam"], "--method=beam"),
        (["--regex=a", "--stop=b"], "--stop"),
        (["--json_schema=/nowhere.json"], "/nowhere.json"),
        (["--json_schema=/nowhere.json", "--regex=a"], "--json_schema"),
    ],
)
def test_a_grammar_that_cannot_be_decoded_by_is_refused(
    given: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = ask(capsys, f"--model={folder / 'plain'}", "--prompt=x", *given)
    assert status == 2 and said in err
