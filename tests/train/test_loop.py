"""A whole run through the command: what it prints, returns and leaves behind."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

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
from medtune_jax.errors import Interrupted, UserError
from medtune_jax.model.llama import forward, logits
from medtune_jax.train import loop
from medtune_jax.train.held_out import HeldOut
from medtune_jax.train.load import load_model
from medtune_jax.train.loop import train
from medtune_jax.train.saved.formats import Identity, refuse_another_run
from medtune_jax.train.signals import StopRequest


@pytest.fixture(autouse=True)
def no_nohup():
    """Hangups reach the tests also where they were started by nohup, whose children ignore them."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


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


def test_a_checkpoint_tells_what_ran_and_a_change_of_it_is_said(run, config, caplog):
    meta = json.loads((run / "checkpoints" / "6" / "meta" / "metadata").read_text())
    assert (meta["config"]["model"]["attention"], meta["jax"]) == ("xla", jax.__version__)
    identity = Identity(**meta["identity"])
    ran = replace(config, model=replace(config.model, attention="xla"))
    refuse_another_run(meta, ran, identity, run)
    assert not caplog.text
    refuse_another_run(
        meta | {"jax": "0.0.1"}, replace(ran, model=replace(ran.model, attention="triton")), identity, run
    )
    assert "model.attention was xla" in caplog.text and "jax was 0.0.1" in caplog.text


@pytest.fixture
def examined(config, monkeypatch):
    """A run that saves and examines after 3 and 6, and what is called in each examination with its name and step."""
    during = [lambda name, step: None]

    def maker(name, says):
        def exam(step, params):
            during[0](name, step)
            return says

        return lambda *args: exam

    monkeypatch.setattr(loop, "make_evaluate", maker("eval_loss", {"eval_loss": 1.5}))
    monkeypatch.setattr(loop, "make_sample", maker("samples", {"samples": {}, "samples_mean": 0.5}))
    evaluation = replace(config.evaluation, every_steps=3, samples_every_steps=3)
    return replace(config, checkpoint=replace(config.checkpoint, every_steps=3), evaluation=evaluation), during


@pytest.mark.parametrize(
    "at, cut, held",
    [
        (("samples", 3), lambda: os.kill(os.getpid(), signal.SIGTERM), ["eval_loss", "samples"]),
        (("eval_loss", 3), lambda: os.kill(os.getpid(), signal.SIGTERM), ["eval_loss"]),
        (("eval_loss", 6), lambda: os.kill(os.getpid(), signal.SIGHUP), ["eval_loss"]),
        (("samples", 3), lambda: (_ for _ in ()).throw(KeyboardInterrupt), ["eval_loss"]),
    ],
    ids=["a signal in the last", "a signal in the first", "a hangup after the last update", "cut off"],
)
def test_an_examination_cut_short_is_behind_its_checkpoint_and_made_up_for(examined, tmp_path, at, cut, held):
    config, during = examined
    train(config, tmp_path / "undisturbed")
    during[0] = lambda *which: cut() if which == at else None
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        train(config, tmp_path / "run")
    assert max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()) == at[1]  # no update more
    last = [line for line in metric_lines(tmp_path / "run") if line["step"] == at[1] and "split" in line]
    assert [next(key for key in ("eval_loss", "samples") if key in line) for line in last] == held
    during[0] = lambda *which: None
    assert train(config, tmp_path / "run").resumed_from == at[1]
    assert metric_lines(tmp_path / "run") == metric_lines(tmp_path / "undisturbed")


def test_a_hangup_stops_the_run_once_and_not_under_nohup():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)  # of the shell
        assert stop.asked() == "SIGHUP"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_rows_held_out_for_nothing_are_refused(model_folder, data_folder):
    with pytest.raises(UserError, match=r"evaluation\.holdout=5 keeps rows from training, but nothing is measured"):
        settings(model_folder, data_folder, evaluation__holdout=5, evaluation__every_steps=0).validate()


def test_what_is_held_out_is_told_and_which_split_is_not_read():
    inputs = SimpleNamespace(held_out=HeldOut("holdout", tuple(ner_rows(3, 0))))
    told = loop._held_out(settings(evaluation__holdout=3, evaluation__split="dev"), inputs)
    assert told == "3 rows of the training rows (evaluation.holdout), so evaluation.split=dev is not read"


def test_steps_and_tokens_are_announced(model_folder, data_folder, tmp_path, capsys):
    config = settings(
        model_folder, data_folder, train__batch_size=8, train__steps=None, train__epochs=1.5, mesh__fsdp=8
    )
    assert dispatch(flags(config, tmp_path / "run")) == 0
    told = capsys.readouterr().err
    assert "37,280 parameters on fsdp=8, float32, attention xla (on CPUs). 3 steps of 8 x 160" in told
    assert "positions (87.2% filled" in told
    assert "1.50 epochs of 2,232 tokens, 2 steps in the first. Held out: 6 rows of validation." in told
    assert "step 3/3  loss" in told and " non-padding, " in told and "ETA 0:00:00" in told
