"""What training reads: what it warns of, which data it refuses."""

import logging
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import ner_rows, settings

from medtune_jax.config import Config, MeshConfig
from medtune_jax.convert.origin import read_origin
from medtune_jax.errors import UserError
from medtune_jax.sharding import make_mesh
from medtune_jax.tasks import registry
from medtune_jax.tasks.registry import SOURCES
from medtune_jax.tasks.rows import write_rows
from medtune_jax.train.inputs import Inputs, read_inputs
from medtune_jax.train.saved.run_folder import write_run_folder


@pytest.fixture
def read(model_folder, tmp_path):
    """Returns a function that writes training rows and reads a run's inputs with changed settings."""

    def inputs(rows, **changes) -> Inputs:
        write_rows(tmp_path / "train.parquet", rows)
        return read_inputs(settings(model_folder, tmp_path, **changes).validate(), make_mesh(MeshConfig(fsdp=-1)))

    return inputs


EIGHT = {"train__batch_size": 8, "evaluation__every_steps": 0}


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_unknown_sources_are_warned_of_with_their_rows_whatever_decisions_weigh(read, caplog, weight):
    rows = [replace(row, source="ward-notes") for row in ner_rows(3, 0)] + ner_rows(9, 1)
    with caplog.at_level(logging.WARNING):
        read(rows, train__decision_weight=weight, **EIGHT)
    assert "train: unknown source 'ward-notes' (3 rows)" in caplog.text
    assert "sample-disease" not in caplog.text


def test_rows_whose_decisions_cannot_be_found_are_warned_of(read, caplog):
    rows = [*ner_rows(9, 0), *(replace(row, output="none") for row in ner_rows(2, 1))]
    with caplog.at_level(logging.WARNING):
        read(rows, train__decision_weight=5.0, **EIGHT)
    assert "train: 2 rows have an output that their source's task would not write" in caplog.text


@pytest.mark.parametrize(("warmup", "warned"), [(5, False), (6, True)])
def test_a_warm_up_as_long_as_the_run_is_warned_of(read, caplog, warmup, warned):
    with caplog.at_level(logging.WARNING):
        read(ner_rows(9, 0), optimizer__warmup_steps=warmup, **EIGHT)
    assert ("warmup_steps is 6, the whole run 6 steps" in caplog.text) == warned


def test_gated_rows_are_remembered_close_the_run_folder_and_are_said(read, tmp_path, monkeypatch, caplog):
    ward = replace(SOURCES["sample-disease"], name="ward", aliases=(), licence="ward agreement", credentialed=True)
    monkeypatch.setitem(registry._BY_ANY_NAME, "ward", ward)
    inputs = read([replace(row, source="ward") for row in ner_rows(3, 0)] + ner_rows(9, 1), **EIGHT)
    assert "text under a data use agreement (ward)" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", lambda path, mode: None)  # made closed, not closed afterwards
        write_run_folder(tmp_path / "run", Config(), inputs)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    (tmp_path / "run").chmod(0o755)
    write_run_folder(tmp_path / "run", Config(), inputs)
    (tmp_path / "run" / "checkpoints").mkdir()
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    assert read_origin(tmp_path / "run") == inputs.origin
    assert inputs.origin.credentialed == ["ward"] and inputs.origin.data["sample-disease"].rows == 9


HELD_OUT = {"train__batch_size": 8, "evaluation__every_steps": 1}


def test_a_damaged_held_out_split_is_an_error_and_not_a_run_without_evaluation(read, tmp_path: Path):
    (tmp_path / "validation.parquet").write_text("PAR1")
    with pytest.raises(UserError, match=r"validation\.parquet cannot be read"):
        read(ner_rows(9, 0), **HELD_OUT)


def test_a_missing_held_out_split_is_warned_of(read, caplog):
    assert not read(ner_rows(9, 0), **HELD_OUT).evaluation
    assert "No evaluation during training: There is no split 'validation'" in caplog.text


def test_held_out_rows_are_kept_by_any_name_of_their_source(read, tmp_path: Path):
    write_rows(tmp_path / "validation.parquet", ner_rows(2, 1))
    assert read(ner_rows(9, 0), data__sources=["Sample-Disease"], **HELD_OUT).evaluation
