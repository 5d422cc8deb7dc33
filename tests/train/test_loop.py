"""A whole run through the command: what it prints, returns and leaves behind."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kills import metric_lines
from tiny_run import flags, ner_rows, settings

from medtune_jax.cli.main import dispatch
from medtune_jax.cli.train import human
from medtune_jax.config_values import from_dict, to_dict
from medtune_jax.data.encode import encode_rows
from medtune_jax.data.prompts import get_template
from medtune_jax.model.llama import forward, logits
from medtune_jax.train.load import load_model


@pytest.fixture(scope="module")
def config(model_folder, data_folder):
    return settings(
        model_folder, data_folder, train__batch_size=8, mesh__fsdp=8, optimizer__warmup_steps=0, log__tensorboard=True
    )


@pytest.fixture(scope="module")
def run(config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("loop") / "run"
    assert dispatch(flags(config, workdir)) == 0
    return workdir


def test_the_run_folder_holds_what_its_contract_names(run, config, tokenizer):
    names = {path.name for path in run.iterdir()}
    names -= {".lock"}  # by which one process at a time writes here
    assert names == {"config.json", "model", "metrics.jsonl", "tensorboard", "loss.png", "checkpoints"}
    assert from_dict(json.loads((run / "config.json").read_text())) == config
    assert (run / "model" / "tokenizer.model").read_bytes() == (tokenizer.folder / "tokenizer.model").read_bytes()
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]  # keep=2
    assert any((run / "tensorboard").iterdir())


def test_metrics_tell_each_step_and_evaluation_in_order(run):
    lines = metric_lines(run)
    assert [(line["step"], "eval_loss" in line) for line in lines] == [
        (1, False),
        (2, False),
        (3, False),
        (3, True),
        (4, False),
        (5, False),
        (6, False),
        (6, True),
    ]
    assert [line["epoch"] for line in lines if "loss" in line] == [0, 0, 1, 1, 2, 2]
    assert lines[-2]["loss"] < lines[0]["loss"]
    assert all(line["tokens"] <= line["padded_tokens"] == 8 * 160 for line in lines if "loss" in line)


def test_the_last_evaluation_loss_is_that_of_the_saved_parameters(run, config, data_folder):
    loaded = load_model(run)
    rows = ner_rows(6, 1)  # the validation split
    encoded, _ = encode_rows(loaded.tokenizer, get_template(str(loaded.template)), rows)
    total, count = 0.0, 0
    for row in encoded:
        tokens = jnp.asarray(row.tokens[None])
        hidden = forward(loaded.params, loaded.config, tokens, positions_BS=jnp.arange(tokens.shape[1])[None])
        log_p = jax.nn.log_softmax(logits(loaded.params, loaded.config, hidden))[0]
        bears = np.flatnonzero(row.weights)
        total -= float(log_p[bears - 1, row.tokens[bears]].sum())
        count += len(bears)
    last = metric_lines(run)[-1]
    assert last["eval_loss_tokens"] == count
    assert last["eval_loss"] == pytest.approx(total / count, rel=1e-5)


def test_the_loaded_run_knows_its_template_and_has_an_identity(run, model_folder):
    loaded, base = load_model(run), load_model(model_folder)
    assert loaded.template == "medtuned_train" and base.template is None
    assert loaded.sha256 == load_model(run).sha256 != base.sha256
    halved = load_model(run, "bfloat16")
    for exact, short in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(halved.params), strict=True):
        np.testing.assert_array_equal(exact.astype("bfloat16"), short)


def test_the_result_is_one_json_line(run, config, capsys):
    """On a finished run: nothing is left to do, and it says so with the same losses."""
    before = metric_lines(run)
    assert dispatch([*flags(config, run), "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert result["steps"] == result["resumed_from"] == 6
    assert (result["loss"], result["eval_loss"]) == (before[-2]["loss"], before[-1]["eval_loss"])
    assert result["peak_memory_bytes"] > 10**8 and result["seconds"] > 0
    assert Path(result["checkpoint"]) == run / "checkpoints" / "6" and Path(result["checkpoint"]).is_dir()
    assert "Going on after step 6" in captured.err
    assert metric_lines(run) == before
    assert "6 steps in" in human(result) and "evaluation loss" in human(result)


def test_a_run_goes_on_with_its_own_configuration(run, config, capsys):
    assert dispatch(["train", f"--workdir={run}"]) == 0
    assert from_dict(json.loads((run / "config.json").read_text())) == config
    assert to_dict(config)["train"]["steps"] == 6


def test_steps_and_tokens_are_announced(model_folder, data_folder, tmp_path, capsys):
    config = settings(
        model_folder, data_folder, train__batch_size=8, train__steps=None, train__epochs=1.5, mesh__fsdp=8
    )
    assert dispatch(flags(config, tmp_path / "run")) == 0
    told = capsys.readouterr().err
    assert "37,280 parameters on fsdp=8, float32, attention xla (on CPUs). 3 steps of 8 x 160" in told
    assert "positions (87.2% filled" in told
    assert "1.50 epochs of 2,232 tokens, 2 steps in the first." in told
    assert "step 3/3  loss" in told and " non-padding, " in told and "ETA 0:00:00" in told
