"""Going on from a checkpoint: onto another mesh, past a damaged one, and not with another run's settings."""

import json
import logging
import re
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from kills import metric_lines
from tiny_run import GRID_MODEL, ner_rows, settings, write_data, write_model, write_tokenizer

from medtune_jax.config import Config
from medtune_jax.errors import Interrupted, UserError
from medtune_jax.sharding import make_mesh
from medtune_jax.tasks.rows import write_rows
from medtune_jax.train import metrics as metrics_module
from medtune_jax.train.checkpoints import Checkpoints
from medtune_jax.train.inputs import read_inputs
from medtune_jax.train.load import load_model
from medtune_jax.train.loop import train
from medtune_jax.train.optimizer import make_optimizer
from medtune_jax.train.state import abstract_state


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A model whose dimensions eight devices divide, and rows."""
    folder = tmp_path_factory.mktemp("resume")
    write_model(folder / "model", GRID_MODEL)
    write_data(folder / "data", train=200, validation=0)
    return folder


def run_settings(home: Path, **changes) -> Config:
    changes = {"evaluation__every_steps": 0, "train__batch_size": 8, "mesh__fsdp": 8, **changes}
    return settings(home / "model", home / "data", **changes)


@pytest.fixture(scope="module")
def finished(home, tmp_path_factory) -> Path:
    """A run of six steps over fsdp=8 with its checkpoints 4 and 6."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train(run_settings(home), workdir)
    return workdir


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def restore(config: Config, workdir: Path):
    mesh = make_mesh(config.mesh)
    inputs = read_inputs(config, mesh)
    target = abstract_state(config, inputs.model, make_optimizer(config.optimizer, inputs.data.total_steps), mesh)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore(target, config, inputs.identity)


def arrays(state) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(state))]


def damage(workdir: Path, step: int, item: str) -> None:
    """Flips bytes in the middle of the largest file of one item."""
    files = [path for path in (workdir / "checkpoints" / str(step) / item).rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(byte ^ 0xFF for byte in content[middle : middle + 8])
    largest.write_bytes(content)


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


@pytest.mark.parametrize("item", ["params", "optimizer", "meta"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(home, finished, run, caplog, item):
    damage(run, 6, item)
    with caplog.at_level(logging.WARNING):
        result = train(run_settings(home), run)
    assert result.resumed_from == 4
    assert re.search(r"checkpoints/6 is unreadable, hence moved to .*/unreadable: \S", caplog.text)
    assert (run / "unreadable" / "6").is_dir()
    assert metric_lines(run) == metric_lines(finished)
    with Checkpoints(finished / "checkpoints") as before, Checkpoints(run / "checkpoints") as after:
        assert before.steps() == after.steps() == [4, 6]
    np.testing.assert_array_equal(*(load_model(folder).params["norm"]["scale"] for folder in (run, finished)))


def test_bits_that_changed_in_place_are_found_by_the_checksum(home, run, monkeypatch):
    import orbax.checkpoint as ocp

    plain = ocp.CheckpointManager.restore

    def restore_with_one_bit_flipped(self, step, args):
        found = plain(self, step, args=args)
        if step == 6 and "params" in args:
            scale = np.array(found.params["norm"]["scale"])
            scale.view(np.uint32)[3] ^= 1
            found.params["norm"]["scale"] = jax.device_put(scale, found.params["norm"]["scale"].sharding)
        return found

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore_with_one_bit_flipped)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(UserError, match="checkpoints/6 is unreadable: the checksum of its params is wrong"):
            load_model(run, dtype)
    assert int(restore(run_settings(home), run).step) == 4


def test_no_readable_checkpoint_is_an_error_and_nothing_is_moved(home, run):
    for step in (4, 6):
        damage(run, step, "params")
    with pytest.raises(UserError, match=r"No checkpoint in .*/run/checkpoints is readable \(6: .*; 4: "):
        train(run_settings(home), run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]


def test_running_out_of_memory_does_not_condemn_a_checkpoint(home, run, monkeypatch):
    def exhausted(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Checkpoints, "_read", exhausted)
    with pytest.raises(MemoryError):
        train(run_settings(home), run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]


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


def test_another_format_version_is_refused(home, run):
    meta = next((run / "checkpoints" / "6" / "meta").glob("metadata"))
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 99}))
    for reader in (lambda: train(run_settings(home), run), lambda: load_model(run)):
        with pytest.raises(UserError, match="checkpoints/6 has format version 99; this program reads 1"):
            reader()


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
