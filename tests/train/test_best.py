"""The best parameters are kept, exactly, besides the newest checkpoints, and are a model to load."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from kills import metric_lines
from tiny_run import settings

from medtune_jax.convert.origin import read_origin
from medtune_jax.errors import UserError
from medtune_jax.train import loop
from medtune_jax.train.load import load_model
from medtune_jax.train.loop import train
from medtune_jax.train.saved.best import Best
from medtune_jax.train.saved.checkpoints import Checkpoints

VALUES = {1: 5.0, 2: 4.0, 3: 2.0, 4: 3.0, 5: 2.0, 6: 2.5}  # 3 is best: 5 is only as good


@pytest.fixture(autouse=True)
def scored(monkeypatch):
    """The evaluation loss is as in VALUES."""
    monkeypatch.setattr(loop, "make_evaluate", lambda *args: lambda step, params: {"eval_loss": VALUES[step]})


@pytest.fixture(scope="module")
def config(model_folder, data_folder):
    """The newest one of the checkpoints, after 2, 4 and 6, is kept."""
    return settings(
        model_folder,
        data_folder,
        mesh__data=8,
        mesh__fsdp=1,
        train__batch_size=8,
        evaluation__every_steps=1,
        checkpoint__keep=1,
        checkpoint__best="eval_loss",
    )


def arrays(run: Path) -> list[np.ndarray]:
    return jax.tree.leaves(jax.device_get(load_model(run).params))


def assert_best_is_that_of_step_3(run: Path, reference: list[np.ndarray]) -> None:
    record = json.loads((run / "best" / "best.json").read_text())
    assert {**record, "run": ""} == {"metric": "eval_loss", "value": 2.0, "step": 3, "split": "validation", "run": ""}
    assert [path.name for path in (run / "best" / "checkpoints").iterdir()] == ["3"]
    for ours, theirs in zip(arrays(run / "best"), reference, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def third(config, tmp_path_factory):
    """The parameters after step 3 of a run that keeps them as a checkpoint."""
    reference = tmp_path_factory.mktemp("third") / "run"
    kept = replace(config.checkpoint, every_steps=3, keep=2, best="")
    train(replace(config, checkpoint=kept, evaluation=replace(config.evaluation, every_steps=0)), reference)
    (reference / "checkpoints" / "6").rename(reference / "sixth")
    return arrays(reference)


def test_the_best_is_kept_bit_for_bit_and_is_a_model(config, third, tmp_path):
    run = tmp_path / "run"
    result = train(config, run)
    assert result.best == {"metric": "eval_loss", "value": 2.0, "step": 3, "split": "validation"}
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["6"]
    assert_best_is_that_of_step_3(run, third)
    assert load_model(run / "best").template == load_model(run).template
    assert read_origin(run / "best") == read_origin(run)
    assert train(config, run).best == result.best  # nothing left to do: it is still known


@pytest.mark.parametrize(
    ("where", "method", "every"),
    [
        ("while the best is written", (Best, "settle", 5), 2),  # not said to be the best yet; goes on after 2
        ("before the next checkpoint", (Checkpoints, "save", 2), 2),  # it is; goes on after 2 and scores 3 again
        ("behind its checkpoint", (Best, "settle", 4), 3),  # its line is written, not the best; goes on after 3
    ],
)
def test_the_best_is_the_same_after_a_stop_anywhere(config, third, tmp_path, monkeypatch, where, method, every):
    config = replace(config, checkpoint=replace(config.checkpoint, every_steps=every))
    owner, name, count = method
    whole, calls = getattr(owner, name), []

    def stops(*args):
        calls.append(name)
        if len(calls) == count:
            raise KeyboardInterrupt(where)
        return whole(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, stops)
        train(config, tmp_path / "run")
    assert train(config, tmp_path / "run").resumed_from == every
    steps = [line["step"] for line in metric_lines(tmp_path / "run") if "eval_loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert_best_is_that_of_step_3(tmp_path / "run", third)


def test_a_score_of_other_rows_is_not_compared_with(config, tmp_path, monkeypatch, caplog):
    train(config, tmp_path / "run")
    monkeypatch.setattr(loop, "make_evaluate", lambda *args: lambda step, params: {"eval_loss": 9.0})
    (tmp_path / "run" / "checkpoints" / "6").rename(tmp_path / "away")  # from the beginning again
    other = replace(config, evaluation=replace(config.evaluation, max_rows=3))
    best = train(other, tmp_path / "run").best
    assert best is not None and (best["value"], best["step"]) == (9.0, 1)
    assert "chosen in another run, by another score or on other rows" in caplog.text
    assert [path.name for path in (tmp_path / "run" / "best" / "checkpoints").iterdir()] == ["1"]


def test_a_score_that_no_row_gives_is_refused_with_those_there_are(config, tmp_path):
    changed = replace(config, checkpoint=replace(config.checkpoint, best="sample-diseases"))
    changed = replace(changed, evaluation=replace(changed.evaluation, samples_every_steps=3))
    with pytest.raises(UserError, match="There are eval_loss, sample-disease, samples"):
        train(changed, tmp_path / "run")
