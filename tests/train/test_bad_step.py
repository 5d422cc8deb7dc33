"""A bad step leaves no trace but its own count: on the device, in the run, and over a stop and a resumption."""

import dataclasses
import logging
import math
import re
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kills import final_arrays, metric_lines
from lora_run import lora_settings, run_lora_steps
from tiny_run import MODEL, run_steps, settings, tiny_data

from medtune_jax.config import TrainConfig
from medtune_jax.data.loader import TrainData
from medtune_jax.errors import UserError
from medtune_jax.train import guard as guard_module
from medtune_jax.train import loop
from medtune_jax.train.guard import SKIPS_IN_A_ROW, WARM_UP, WINDOW, Guard, init_guard, judge
from medtune_jax.train.loop import train

sizes = st.floats(0.0078125, 128.0, width=32)


def judged(guard: Guard, loss: float, norm: float, factor: float | None = None) -> tuple[bool, Guard]:
    good, after = judge(guard, jnp.float32(loss), jnp.float32(norm), factor)
    return bool(good), Guard(*map(np.asarray, after))


def after(steps: list[tuple[float, float]]) -> Guard:
    guard = Guard(*map(np.asarray, init_guard()))
    for loss, norm in steps:
        guard = judged(guard, loss, norm)[1]
    return guard


@hypothesis_settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=30))
def test_the_running_means_are_means_of_the_good_steps(steps):
    guard = after(steps)
    assert guard.good == len(steps) <= WINDOW
    np.testing.assert_allclose((guard.loss, guard.grad_norm), np.mean(steps, axis=0), rtol=1e-5)


@hypothesis_settings(deadline=None, max_examples=20)
@given(st.tuples(sizes, sizes), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 1))
def test_what_is_not_finite_is_bad_and_moves_no_mean(step, value, place):
    guard = after([step])
    bad = list(step)
    bad[place] = value
    good, then = judged(guard, bad[0], bad[1])
    assert not good
    assert (then.skipped, then.skipped_in_a_row) == (1, 1)
    assert (then.good, then.loss, then.grad_norm) == (guard.good, guard.loss, guard.grad_norm)
    good, then = judged(then, *step)
    assert good and (then.skipped, then.skipped_in_a_row) == (1, 0)


@pytest.mark.parametrize("loss, norm", [(1.0, 31.0), (31.0, 1.0)], ids=["gradient", "loss"])
def test_a_spike_of_either_is_bad_after_the_warm_up_and_only_with_a_factor(loss, norm):
    early, warm = after([(1.0, 1.0)] * (WARM_UP - 1)), after([(1.0, 1.0)] * WARM_UP)
    assert judged(early, loss, norm, 30.0)[0]
    assert not judged(warm, loss, norm, 30.0)[0]
    assert judged(warm, loss, norm, 32.0)[0]
    assert judged(warm, loss, norm)[0]


def ruined(batch):
    weights = batch["weights"].copy()
    weights[tuple(np.argwhere(weights)[0])] = np.nan
    return {**batch, "weights": weights}


@pytest.mark.parametrize(
    "lora, accumulation",
    [pytest.param(False, 4, id="full"), pytest.param(True, 1, id="lora", marks=pytest.mark.slow)],
)
def test_after_a_bad_step_all_is_as_if_it_had_not_been(tokenizer, lora, accumulation):
    make, run = (lora_settings, run_lora_steps) if lora else (settings, run_steps)
    config = make(train__batch_size=4, train__accumulation=accumulation)
    data = tiny_data(tokenizer, config)
    first, second, third = (data.batch(step) for step in range(3))
    skipping, seen = run(config, MODEL, [first, ruined(second), third])
    plain, theirs = run(config, MODEL, [first, third])
    for ours, others in zip(*(jax.tree.leaves((s.params, s.opt_state)) for s in (skipping, plain)), strict=True):
        np.testing.assert_array_equal(ours, others)
    assert (int(skipping.step), int(plain.step)) == (3, 2)
    assert [metrics["skipped"] for metrics in seen] == [0.0, 1.0, 0.0]
    assert seen[0] == theirs[0] and seen[2] == theirs[1]  # the learning rate too


@pytest.fixture
def bad_rows(monkeypatch):
    """Returns a function that ruins the batches of the steps it is given."""

    def ruin(*steps: int) -> None:
        plain = TrainData.batch

        def batch(self, step, *rows):
            made = plain(self, step, *rows)
            return ruined(made) if step + 1 in steps else made

        monkeypatch.setattr(TrainData, "batch", batch)

    return ruin


def one_device(model: Path, data: Path, **changes):
    return settings(model, data, train__batch_size=8, mesh__fsdp=8, evaluation__every_steps=0, **changes)


def test_a_run_that_stopped_goes_on_past_the_bad_step_as_one_that_skips_from_the_start(
    model_folder, data_folder, tmp_path, bad_rows, caplog
):
    bad_rows(3, 4)
    config = one_device(model_folder, data_folder)
    skipping = dataclasses.replace(config, train=dataclasses.replace(config.train, bad_step="skip"))
    with pytest.raises(UserError) as stopped:
        train(config, tmp_path / "run")
    assert re.match(r"Step 3: the loss .* is not finite; its update was not applied\..*=skip", str(stopped.value))
    assert str(stopped.value).endswith("Checkpoint 4 is on disk. It is the state without the bad update.")
    with pytest.raises(UserError, match="The run stopped at step 4, which was bad and not applied; checkpoint 4 is"):
        train(config, tmp_path / "run")  # as whatever starts it again would
    assert train(skipping, tmp_path / "run").resumed_from == 4
    with caplog.at_level(logging.WARNING):
        train(skipping, tmp_path / "skipping")
    assert [f"Step {step}: the loss" in caplog.text for step in (2, 3, 4, 5)] == [False, True, True, False]
    assert "Rows of this step (index in the training rows, and id): " in caplog.text and "It is skipped." in caplog.text
    assert [line.get("skipped_in_a_row") for line in metric_lines(tmp_path / "run")] == [None, None, 1, 2, None, None]
    assert metric_lines(tmp_path / "run") == metric_lines(tmp_path / "skipping")
    ours, others = final_arrays(tmp_path / "run"), final_arrays(tmp_path / "skipping")
    assert ours.keys() == others.keys() and any("guard" in name for name in ours)
    for name in ours:
        np.testing.assert_array_equal(ours[name], others[name], err_msg=name)


def test_bad_steps_in_a_row_end_a_run_that_skips_also_over_a_resumption(model_folder, data_folder, tmp_path, bad_rows):
    total = SKIPS_IN_A_ROW + 4
    bad_rows(*range(3, total + 1))
    config = one_device(model_folder, data_folder, train__steps=total, train__bad_step="skip")
    for more in (0, 1):  # the second time from the checkpoint then saved, which counts them
        row = SKIPS_IN_A_ROW + more
        with pytest.raises(UserError, match=rf"Step {row + 2}: .* That is {row} bad steps in a row"):
            train(config, tmp_path / "run")


def test_what_is_being_written_is_on_disk_before_a_bad_step_is_told(
    model_folder, data_folder, tmp_path, bad_rows, monkeypatch
):
    """Of several processes the error ends all at once, whatever is half-written."""
    found = []

    @contextmanager
    def ending_at_once(_):
        try:
            yield
        except UserError:
            found.extend(sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()))
            raise

    monkeypatch.setattr(loop, "ending_together", ending_at_once)
    bad_rows(3)
    with pytest.raises(UserError, match="Checkpoint 4 is on disk"):
        train(one_device(model_folder, data_folder), tmp_path / "run")
    assert found == ["2", "4"]


def test_what_is_being_written_is_on_disk_before_a_diverged_evaluation_is_told(
    model_folder, data_folder, tmp_path, monkeypatch
):
    def diverged(step, params):
        raise UserError("Step 2: the loss on the held-out rows is nan.")

    monkeypatch.setattr(loop, "make_evaluate", lambda *args: diverged)
    config = one_device(model_folder, data_folder)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, every_steps=2))
    with pytest.raises(UserError, match=r"held-out rows is nan\. Checkpoint 2 is on disk\."):
        train(config, tmp_path / "run")


def test_by_default_ten_times_the_running_mean_is_a_spike():
    warm, factor = after([(1.0, 1.0)] * WARM_UP), TrainConfig().spike_factor
    assert judged(warm, 9.9, 9.9, factor)[0] and not judged(warm, 1.0, 10.1, factor)[0]


def test_a_spike_is_said_to_be_one(model_folder, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(guard_module, "WARM_UP", 2)
    config = one_device(model_folder, data_folder, train__spike_factor=1.001, optimizer__learning_rate=0.1)
    with pytest.raises(UserError, match=r"Step [3-6]: the loss \(\d.* is more than train.spike_factor=1.001 times its"):
        train(config, tmp_path / "run")
