"""A run that is stopped or killed anywhere ends with the same bits as one that is not."""

import random
import signal
from pathlib import Path

import numpy as np
import pytest
from kills import (
    final_arrays,
    finish,
    has_logged,
    is_writing,
    metric_lines,
    signal_when,
    start,
    steps_logged,
    tail,
    writes_in_progress,
)
from tiny_run import settings

from medtune_jax.config import Config
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


def kill_in_a_write(config: Config, workdir: Path, count: int) -> bool:
    """Kills inside the count-th write of a new process; False where the write was complete before the kill."""
    process = start(config, workdir)
    assert signal_when(process, workdir, is_writing(workdir, count), signal.SIGKILL) == -signal.SIGKILL
    return bool(writes_in_progress(workdir))


def kill_after_a_step(config: Config, workdir: Path, steps: int) -> bool:
    """Kills right after the line of a step, `steps` beyond those of the newest checkpoint, appears."""
    checkpoints = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    logged = steps_logged(workdir)
    process = start(config, workdir)
    resumed = max(checkpoints, default=0)
    began = has_logged(workdir, resumed + steps)
    # A resumed run first cuts the lines of steps that it will do again.
    cut = (lambda: steps_logged(workdir) <= resumed) if logged > resumed else (lambda: True)
    seen_cut = False

    def moment() -> bool:
        nonlocal seen_cut
        seen_cut = seen_cut or cut()
        return seen_cut and began()

    assert signal_when(process, workdir, moment, signal.SIGKILL) == -signal.SIGKILL
    return steps_logged(workdir) >= resumed + steps


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


def test_killed_three_times_it_ends_with_the_same_bits(model_folder, data_folder, undisturbed, tmp_path):
    config, workdir = small_run(model_folder, data_folder, 17), tmp_path / "run"
    assert kill_after_a_step(config, workdir, 4)
    assert kill_in_a_write(config, workdir, 2)
    assert kill_after_a_step(config, workdir, 1)
    finish(config, workdir)
    assert_same_run(workdir, undisturbed)


@pytest.mark.slow
def test_killed_thirty_times_it_ends_with_the_same_bits(model_folder, data_folder, tmp_path):
    config = small_run(model_folder, data_folder, 150)
    finish(config, tmp_path / "undisturbed")
    workdir, draw = tmp_path / "run", random.Random(0)
    in_a_write = after_a_step = 0
    for kill in range(34):
        if kill % 2:
            in_a_write += kill_in_a_write(config, workdir, draw.randint(1, 3))
        else:
            after_a_step += kill_after_a_step(config, workdir, draw.randint(1, 7))
    assert in_a_write >= 10 and after_a_step >= 10, (in_a_write, after_a_step)
    finish(config, workdir)
    assert_same_run(workdir, tmp_path / "undisturbed")
