"""A whole run through the command: what it prints, returns and leaves behind."""

import io
import json
import logging
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
from medtune_jax.train.metrics import MetricsLog, Progress, plot, read_lines


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
    assert "37,280 parameters on fsdp=8, float32. 3 steps of 8 x 160 positions (87.2% filled" in told
    assert "1.50 epochs of 2,233 tokens, 2 steps in the first." in told
    assert "step 3/3  loss" in told and " non-padding, " in told and "ETA 0:00:00" in told


def test_progress_overwrites_its_line_on_a_terminal_only(monkeypatch):
    class Screen(io.StringIO):
        def __init__(self, live: bool):
            super().__init__()
            self.live = live

        def isatty(self) -> bool:
            return self.live

    line = {"step": 2, "loss": 1.5, "seconds_left": 3725.0}
    line |= {f"{kind}tokens_per_second": 1234.0 for kind in ("padded_", "", "loss_")}
    for live in (True, False):
        screen = Screen(live)
        monkeypatch.setattr("sys.stderr", screen)
        progress = Progress(0, 4)
        progress.show(line)
        text = screen.getvalue()
        assert text.startswith("\r") == live and text.endswith("\n") != live
        assert "step 2/4  loss 1.5000" in text and "1,234 padded" in text and text.strip().endswith("ETA 1:02:05")


def test_rates_count_only_the_time_between_resume_and_pause(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    progress = Progress(0, 10)
    progress.resume()
    progress.count((80, 60, 20))
    now += 2
    progress.pause()
    now += 50  # evaluation
    progress.resume()
    progress.count((80, 60, 20))
    now += 2
    rates = progress.rates(2)
    assert (rates["padded_tokens_per_second"], rates["tokens_per_second"]) == (40.0, 30.0)
    assert rates["seconds_left"] == 8 * 2.0
    progress.pause()
    assert progress.totals()["loss_tokens_per_second"] == 10.0


def test_reopening_the_log_never_leaves_it_shorter_than_it_must_be(tmp_path):
    with MetricsLog(tmp_path, step=0, tensorboard=False) as log:
        for step in (1, 2, 3):
            log.write({"step": step, "loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')
    with MetricsLog(tmp_path, step=2, tensorboard=False) as log:
        assert [line["step"] for line in log.lines] == [1, 2]
        assert log.last("loss") == 2.0 and log.last("eval_loss") is None
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_plot_needs_no_lines(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        plot([], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 0 and not caplog.text
