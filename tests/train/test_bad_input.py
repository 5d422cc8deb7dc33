"""Mistakes of a user and limits of a machine: the message names the thing, the status is 2, nothing is half-written."""

import errno
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from kills import metric_lines
from tiny_run import flags, ner_rows, settings, write_tokenizer

from medtune_jax.cli.main import dispatch
from medtune_jax.config import Config
from medtune_jax.tasks.rows import write_rows
from medtune_jax.train import held_out_loss


@pytest.fixture
def refused(model_folder, data_folder, tmp_path, capsys):
    """Returns a function that trains with changed settings and gives the message of the refusal."""

    def run(*extra: str, workdir: Path = tmp_path / "run", **changes) -> str:
        config = one_device_batch(model_folder, data_folder, **changes)
        assert dispatch([*flags(config, workdir), *extra]) == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err and not captured.out
        return captured.err.split("medtune train: ", 1)[1]

    return run


def one_device_batch(model: Path, data: Path | str, **changes) -> Config:
    return settings(model, data, **{"train__batch_size": 8, "mesh__fsdp": 8, **changes})


def rows_at(folder: Path, rows) -> str:
    folder.mkdir()
    write_rows(folder / "train.parquet", rows)
    return str(folder)


def test_empty_data(refused, tmp_path):
    message = refused(data__path=rows_at(tmp_path / "data", []))
    assert "train.parquet has no rows" in message


def test_no_such_data(refused, tmp_path):
    assert f"No data at {tmp_path}/nowhere" in refused(data__path=f"{tmp_path}/nowhere")


def test_no_training_split(refused, tmp_path):
    folder = rows_at(tmp_path / "data", ner_rows(3, 0))
    (tmp_path / "data" / "train.parquet").rename(tmp_path / "data" / "test.parquet")
    assert "There is no split 'train'" in refused(data__path=folder)


def test_missing_columns(refused, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"instruction": "a", "input": "b"}\n')
    assert "train.jsonl:1 lacks output, source" in refused(data__path=str(tmp_path / "data"))


def test_a_row_without_loss_tokens(refused, tmp_path):
    rows = ner_rows(5, 0)
    rows[3] = replace(rows[3], output=" \n")
    message = refused(data__path=rows_at(tmp_path / "data", rows))
    assert "Row 3 (source 'sample-disease', id s3) has an empty output, hence no loss tokens" in message


def test_an_overlong_row(refused, tmp_path):
    rows = ner_rows(5, 0)
    rows[2] = replace(rows[2], input=" ".join(["cancer"] * 200))
    message = refused(data__path=rows_at(tmp_path / "data", rows))
    assert "Row 2 (source 'sample-disease', id s2) has" in message
    assert "data.max_length=160" in message and "data.overlong=drop" in message


def test_overlong_rows_may_be_dropped_and_are_counted(model_folder, tmp_path, caplog):
    rows = ner_rows(20, 0)
    rows[2] = replace(rows[2], input=" ".join(["cancer"] * 200))
    data = rows_at(tmp_path / "data", rows)
    config = one_device_batch(model_folder, data, data__overlong="drop", train__steps=1, evaluation__every_steps=0)
    assert dispatch(flags(config, tmp_path / "run")) == 0
    assert "train: 1 of 20 rows are longer than 160 tokens" in caplog.text and "1 dropped" in caplog.text


def test_an_unknown_source(refused):
    message = refused("--config.data.sources=sample-diseases")
    assert "no rows of source 'sample-diseases'" in message and "Did you mean 'sample-disease'?" in message


def test_a_value_out_of_range_is_refused_before_anything_is_read(refused, tmp_path):
    message = refused(checkpoint__keep=-1, data__path=f"{tmp_path}/nowhere")
    assert message.startswith("checkpoint.keep is -1; it must be 1 or more")


def test_an_unknown_key(refused):
    assert "Unknown config key 'train.stepz'" in refused("--config.train.stepz=3")
    assert "Did you mean 'train.steps'?" in refused("--config.train.stepz=3")


def test_an_unknown_flag(refused):
    assert "workdirr" in refused("--workdirr=x")


def test_a_loss_that_is_not_finite_names_step_and_rows_and_saves_the_state_without_it(refused, tmp_path):
    message = refused(
        optimizer__learning_rate=1e30,
        optimizer__schedule="constant",
        optimizer__warmup_steps=1,
        checkpoint__every_steps=1,
        evaluation__every_steps=0,
    )
    assert message.startswith("Step 3: the loss (") and "norm of its gradient (nan) is not finite; its" in message
    assert message.rstrip().endswith("Checkpoint 3 is on disk. It is the state without the bad update.")
    rows = message.split("and id): ")[1].split(". Look")[0].split(", ")
    assert len(rows) > 8 and all(row == f"{row.split(' ')[0]} (s{row.split(' ')[0]})" for row in rows)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["2", "3"]
    assert [line["step"] for line in metric_lines(tmp_path / "run") if not line.get("skipped")] == [1, 2]


def test_an_evaluation_loss_that_is_not_finite_is_told_each_time(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(
        held_out_loss, "make_eval_step", lambda *_: lambda params, frozen, batch: (np.float32("nan"), np.float32(1))
    )
    for _ in range(2):  # the second time on going on, before any update
        message = refused(evaluation__every_steps=2, checkpoint__every_steps=2)
        assert "Step 2: the loss on the held-out rows is nan: training diverged" in message
        assert message.rstrip().endswith("Checkpoint 2 is on disk.")


def test_the_wrong_tokenizer(refused, model_folder, tmp_path):
    model = shutil.copytree(model_folder, tmp_path / "model")
    write_tokenizer(tmp_path / "large", vocab_size=346)
    shutil.copyfile(tmp_path / "large" / "tokenizer.model", model / "tokenizer.model")
    message = refused(model__path=str(model))
    assert "Wrong tokenizer" in message and "346 pieces" in message and "vocab_size 340" in message


def test_weights_that_are_cut_off(refused, model_folder, tmp_path):
    model = shutil.copytree(model_folder, tmp_path / "model")
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-100])
    assert "model.safetensors" in refused(model__path=str(model))
    assert not (tmp_path / "run").exists()


def test_no_model(refused, tmp_path):
    assert f"No model: {tmp_path}/nowhere is not a folder" in refused(model__path=f"{tmp_path}/nowhere")


def test_sequences_longer_than_the_models_positions(refused):
    message = refused(data__max_length=512)
    assert "data.max_length is 512, but the model in" in message and "has 160 positions" in message
    assert "--config.data.max_length=160" in message and "--config.model.max_positions=512" in message


def test_raised_positions_are_warned_of_and_kept_with_the_run(model_folder, data_folder, tmp_path, caplog):
    config = one_device_batch(
        model_folder, data_folder, model__max_positions=192, data__max_length=192, train__steps=1, data__packing=False
    )
    assert dispatch(flags(config, tmp_path / "run")) == 0
    assert "ositions raised from 160 to 192" in caplog.text
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["max_position_embeddings"] == 192


def test_a_batch_that_the_mesh_does_not_divide(refused):
    message = refused(train__batch_size=12)
    assert "A micro-batch of 12 sequences" in message and "over 8 devices" in message


def test_a_mesh_of_other_size(refused):
    assert "needs 3 devices, there are 8" in refused(mesh__fsdp=3)


def test_a_dimension_that_the_mesh_does_not_divide_is_named(refused):
    message = refused(mesh__fsdp=1, mesh__tensor=8)  # 4 heads
    assert "layers/q_proj/kernel: dimension 'heads' of size 4 cannot be split 8 ways over mesh axis tensor" in message


def test_a_run_folder_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(workdir=tmp_path / "file" / "run")


def test_no_held_out_split_trains_with_a_warning(model_folder, tmp_path, caplog):
    data = rows_at(tmp_path / "data", ner_rows(20, 0))
    assert dispatch(flags(one_device_batch(model_folder, data, train__steps=1), tmp_path / "run")) == 0
    assert "No evaluation during training: There is no split 'validation'" in caplog.text


def test_a_full_disk_is_named_and_earlier_checkpoints_stay(refused, tmp_path, monkeypatch):
    plain = ocp.CheckpointManager.save

    def save_until_full(self, step, *args, **options):
        if step == 4:
            (tmp_path / "run" / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
            raise ValueError("Writing failed") from OSError(errno.ENOSPC, "No space left on device")
        return plain(self, step, *args, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save_until_full)
    message = refused()
    assert f"The disk is full: {tmp_path}/run could not be written to" in message
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]


def test_a_really_full_disk(refused, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        message = refused(workdir=disk / "run", checkpoint__every_steps=1, checkpoint__keep=5)
        assert "The disk is full" in message
        names = [path.name for path in (disk / "run" / "checkpoints").iterdir()]
        assert names and all(name.isdigit() for name in names)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
