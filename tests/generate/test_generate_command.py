"""The verb `generate`: its results, the model's own template, mistakes by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import pytest

from medtune_jax.cli.main import dispatch
from medtune_jax.convert.hf_export import export_params
from medtune_jax.data.prompts import get_template
from medtune_jax.data.tokenizer import load_tokenizer
from medtune_jax.generate.engine import Engine
from medtune_jax.generate.sampling import Greedy
from medtune_jax.model.llama import LlamaConfig, init_params


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
    status = dispatch(["generate", *arguments, "--json"])
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
    for words in ((), ("--force_template",), ("--template=medtuned_eval",)):
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
        ((), "--prompt or --input_file"),
        (("--prompt=a", "--input_file=b"), "--prompt or --input_file"),
        (("--input_file=absent.txt",), "absent.txt"),
        (("--prompt=" + "long " * 60,), "301 tokens"),
        (("--prompt=a", "--temperature=0.5"), "--method=sample"),
        (("--prompt=a", "--method=sample", "--temperature=0"), "temperature"),
        (("--prompt=a", "--instruction=b"), "--template"),
        (("--prompt=a", "--template=alpacca"), "alpaca"),
        (("--prompt=a", "--method=beam"), "beam"),
    ],
)
def test_mistakes_are_named(
    folder: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = ask(capsys, f"--model={folder / 'plain'}", *arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
