"""Going on from a checkpoint: onto another mesh, after a signal, and not with another run's settings."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
from kills import metric_lines
from resumable import arrays, restore, run_settings
from tiny_run import ner_rows, write_tokenizer

from medtune_jax.errors import Interrupted, UserError
from medtune_jax.tasks.rows import write_rows
from medtune_jax.train.load import load_model
from medtune_jax.train.loop import train
from medtune_jax.train.records import metrics as metrics_module


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 1, "tensor": 8}], ids=str)
def test_another_mesh_loads_the_same_bits_and_goes_on_alike(home, finished, run, axes):
    shutil.rmtree(run / "checkpoints" / "6")
    other = run_settings(home, **{f"mesh__{axis}": size for axis, size in axes.items()})
    same, moved = restore(run_settings(home), run), restore(other, run)
    for a, b in zip(arrays(same), arrays(moved), strict=True):
        np.testing.assert_array_equal(a, b)
    assert {str(x.sharding) for x in jax.tree.leaves(same)} != {str(x.sharding) for x in jax.tree.leaves(moved)}
    result = train(other, run)
    assert (result.resumed_from, result.steps) == (4, 6)
    ours, theirs = ([line["loss"] for line in metric_lines(folder)] for folder in (run, finished))
    assert ours[:4] == theirs[:4]
    np.testing.assert_allclose(ours[4:], theirs[4:], rtol=1e-5)


def test_changed_math_is_refused_by_name_and_the_run_stays_as_it_is(home, run):
    before = (run / "config.json").read_text(), (run / "metrics.jsonl").read_text()
    changed = run_settings(home, train__seed=1, optimizer__learning_rate=1e-4, log__every_steps=2)
    with pytest.raises(UserError) as refusal:
        train(changed, run)
    assert "train.seed: 0 -> 1; optimizer.learning_rate: 0.003 -> 0.0001" in str(refusal.value)
    assert "log" not in str(refusal.value)
    assert ((run / "config.json").read_text(), (run / "metrics.jsonl").read_text()) == before


def test_free_settings_may_change(home, run):
    result = train(run_settings(home, log__every_steps=5, checkpoint__keep=1, model__remat="full"), run)
    assert result.resumed_from == 6
    assert json.loads((run / "config.json").read_text())["log"]["every_steps"] == 5


def test_other_rows_are_refused(home, run, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(home / "data", data)
    write_rows(data / "train.parquet", [*ner_rows(199, 0), ner_rows(1, 5)[0]])
    with pytest.raises(UserError, match=r"made with other rows, or another plan of batches \(data.path\)"):
        train(run_settings(home, data__path=str(data)), run)


def test_the_same_rows_elsewhere_are_accepted(home, run, tmp_path):
    data = shutil.copytree(home / "data", tmp_path / "data")
    assert train(run_settings(home, data__path=str(data)), run).resumed_from == 6


def test_another_tokenizer_is_refused(home, run, tmp_path):
    model = shutil.copytree(home / "model", tmp_path / "model")
    write_tokenizer(tmp_path / "other", vocab_size=338)
    shutil.copyfile(tmp_path / "other" / "tokenizer.model", model / "tokenizer.model")
    with pytest.raises(UserError, match=r"made with other tokenizer \(model.path\) \(SHA-256 \w{12} -> \w{12}\)"):
        train(run_settings(home, model__path=str(model)), run)


def test_other_base_weights_are_refused(home, run, tmp_path):
    model = shutil.copytree(home / "model", tmp_path / "model")
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"made with other base weights \(model.path\)"):
        train(run_settings(home, model__path=str(model)), run)


@pytest.mark.parametrize("field, told", [("template", "wording of the template"), ("model", "architecture")])
def test_another_template_wording_or_architecture_is_refused(home, run, field, told):
    meta = next((run / "checkpoints" / "6" / "meta").glob("metadata"))
    content = json.loads(meta.read_text())
    content["identity"][field] = "0" * 64 if field == "template" else {"hidden_size": 1}
    meta.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"made with other {told}"):
        train(run_settings(home), run)


def test_a_run_tuned_with_another_wording_of_its_template_is_not_asked_unless_forced(run):
    meta = next((run / "checkpoints" / "6" / "meta").glob("metadata"))
    content = json.loads(meta.read_text())
    content["identity"]["template"] = "0" * 64
    meta.write_text(json.dumps(content))
    with pytest.raises(UserError, match="'medtuned_train', which is worded differently"):
        load_model(run)
    assert load_model(run, force_template=True).template is None


def test_leftovers_of_an_interrupted_write_are_removed(home, run):
    leftover = run / "checkpoints" / "9.orbax-checkpoint-tmp"
    (leftover / "params").mkdir(parents=True)
    train(run_settings(home), run)
    assert not leftover.exists()


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_signal_during_evaluation_or_logging_loses_nothing(home, finished, tmp_path, monkeypatch, stop_at):
    plain = metrics_module.MetricsLog.write

    def write_and_signal(self, line):
        plain(self, line)
        if line["step"] == stop_at:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(metrics_module.MetricsLog, "write", write_and_signal)
        with pytest.raises(Interrupted, match="SIGTERM after step"):
            train(run_settings(home), tmp_path / "run")
    assert train(run_settings(home), tmp_path / "run").resumed_from > 0
    assert metric_lines(tmp_path / "run") == metric_lines(finished)


def test_the_second_signal_ends_the_process_at_once(monkeypatch):
    from medtune_jax.train import signals

    ended: list[int] = []
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    before = signal.getsignal(signal.SIGTERM)
    with signals.StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested == "SIGINT" and not ended
        signal.raise_signal(signal.SIGTERM)
        assert ended == [75]
    assert signal.getsignal(signal.SIGTERM) is before


def test_lines_after_the_restored_step_and_a_torn_line_are_cut(home, finished, run):
    shutil.rmtree(run / "checkpoints" / "6")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    train(run_settings(home), run)
    assert metric_lines(run) == metric_lines(finished)
