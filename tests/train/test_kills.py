"""A run that is stopped or killed anywhere ends with the same bits as one that is not."""

import dataclasses
import random
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from kills import (
    final_arrays,
    finish,
    has_logged,
    kill_after_a_step,
    kill_at,
    kill_in_a_write,
    metric_lines,
    signal_when,
    start,
    steps_logged,
    tail,
    writes_in_progress,
)
from tiny_run import settings

from medtune_jax.config import Config, LoraConfig
from medtune_jax.errors import EXIT_INTERRUPTED


def small_run(model: Path, data: Path, steps: int) -> Config:
    """Mid-epoch saves: 30 rows make about 8 updates of 2 sequences, checkpoints come every 3."""
    return settings(
        model.absolute(),
        data.absolute(),
        train__steps=steps,
        train__decision_weight=3.0,
        checkpoint__every_steps=3,
        evaluation__every_steps=5,
    )


def assert_same_run(workdir: Path, undisturbed: Path) -> None:
    ours, theirs = final_arrays(workdir), final_arrays(undisturbed)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert metric_lines(workdir) == metric_lines(undisturbed)
    assert not writes_in_progress(workdir)


@pytest.fixture(scope="module")
def undisturbed(model_folder, data_folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(small_run(model_folder, data_folder, 17), workdir)
    return workdir


def test_sigterm_saves_and_says_how_to_go_on(model_folder, data_folder, undisturbed, tmp_path):
    config, workdir = small_run(model_folder, data_folder, 17), tmp_path / "run"
    status = signal_when(start(config, workdir), workdir, has_logged(workdir, 4), signal.SIGTERM)
    assert status == EXIT_INTERRUPTED, tail(workdir)
    stopped = steps_logged(workdir)
    assert (workdir / "checkpoints" / str(stopped)).is_dir()
    assert f"SIGTERM after step {stopped} of 17; the state is saved." in tail(workdir)
    assert f"medtune train --workdir={workdir}" in tail(workdir)
    finish(config, workdir)
    assert_same_run(workdir, undisturbed)


def test_killed_five_times_it_ends_with_the_same_bits(model_folder, data_folder, undisturbed, tmp_path):
    config, workdir = small_run(model_folder, data_folder, 17), tmp_path / "run"
    assert kill_after_a_step(config, workdir, 4)
    assert kill_in_a_write(config, workdir, 2)
    assert kill_at("restoring", config, workdir, 2)
    assert kill_at("evaluation", config, workdir, 1)
    assert kill_at("removing", config, workdir, 1)
    finish(config, workdir)
    assert_same_run(workdir, undisturbed)


def lora_run(model: Path, data: Path, steps: int) -> Config:
    config = small_run(model, data, steps)
    lora = LoraConfig(rank=2, dropout=0.1)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, lora=lora))


@pytest.mark.slow
def test_killed_in_a_write_of_adapters_it_ends_with_the_same_bits(model_folder, data_folder, tmp_path):
    config = lora_run(model_folder, data_folder, 7)
    finish(config, tmp_path / "undisturbed")
    assert kill_in_a_write(config, tmp_path / "run", 2)
    finish(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")
    assert any("['a']" in name for name in final_arrays(tmp_path / "run"))


def kill(phase: str, config: Config, workdir: Path, draw: random.Random) -> bool:
    """Kills at a moment of `phase`; False where the moment was missed."""
    if phase == "write":
        return kill_in_a_write(config, workdir, draw.randint(1, 3))
    if phase == "step":
        return kill_after_a_step(config, workdir, draw.randint(1, 7))
    return kill_at(phase, config, workdir, 1 if phase in ("starting", "cutting") else draw.randint(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, kills",
    [
        (small_run, {"write": 4, "step": 3, "evaluation": 1, "restoring": 1, "removing": 1, "committing": 1}),
        (small_run, {"write": 3, "step": 4, "evaluation": 1, "restoring": 1, "starting": 1, "removing": 1}),
        (small_run, {"write": 3, "step": 4, "evaluation": 1, "restoring": 1, "cutting": 1, "committing": 1}),
        (lora_run, {"write": 1, "step": 1, "evaluation": 1, "removing": 1}),
    ],
    ids=["full, 13", "full, 13 more", "full, 13 others", "lora, 6"],
)
def test_killed_in_every_phase_it_ends_with_the_same_bits(model_folder, data_folder, tmp_path, make, kills):
    """Over the four: 13 in a write, 2 more before its commit, 15 after a step, 4 in an evaluation, 3 restoring, ..."""
    config = make(model_folder, data_folder, 10 * sum(kills.values()))
    finish(config, tmp_path / "undisturbed")
    workdir, draw = tmp_path / "run", random.Random(str(kills))
    phases = [phase for phase, count in kills.items() for _ in range(count)]
    draw.shuffle(phases)
    hit = Counter()
    for phase in ("step", "write", *phases):  # the first two leave something to restore
        hit[phase] += kill(phase, config, workdir, draw)
    print(f"killed: {dict(hit)}")
    assert all(hit[phase] >= count for phase, count in kills.items()), hit
    finish(config, workdir)
    assert_same_run(workdir, tmp_path / "undisturbed")
