"""Batches are made ahead on a thread, in order, no further than asked; the thread ends with the block."""

import os
import signal
import threading
from dataclasses import replace

import jax
import pytest
from tiny_run import settings

from medtune_jax.errors import Interrupted
from medtune_jax.train import loop
from medtune_jax.train.feed import prefetched
from medtune_jax.train.loop import train
from medtune_jax.train.records import metrics

_PATIENCE = 60.0  # seconds; reached only by a failure


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_the_next_two_are_made_while_one_is_worked_on_and_no_more():
    taken, most_ahead, third = [], [], threading.Event()

    def make(step: int) -> int:
        most_ahead.append(step - len(taken))
        if step == 2:
            third.set()
        return step

    with prefetched(make, range(9)) as batches:
        taken.append(next(batches))
        assert third.wait(_PATIENCE), "step 2 is not made before it is asked for"
        taken += batches
    assert taken == list(range(9)) and max(most_ahead) <= 2 and not threads()


def test_an_error_is_raised_where_its_batch_is_due():
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("step 1")
        return step

    with prefetched(make, range(4)) as batches:
        assert next(batches) == 0
        with pytest.raises(ValueError, match="step 1"):
            next(batches)
    assert not threads()


def test_an_error_in_the_block_ends_the_thread_and_makes_no_further_batch():
    made = []
    with pytest.raises(KeyboardInterrupt), prefetched(made.append, range(99)) as batches:
        next(batches)
        raise KeyboardInterrupt
    assert not threads() and len(made) <= 3


@pytest.fixture
def config(model_folder, data_folder):
    return settings(model_folder, data_folder, mesh__fsdp=1, mesh__data=8, train__batch_size=8)


def test_the_host_reads_an_update_only_when_the_next_one_is_dispatched(config, tmp_path, monkeypatch):
    """The order of dispatches and reads of metrics; the loop waits only where it must: to evaluate, save and end.

    Saving reads too (a checksum), which is not counted.
    """
    seen = []
    lower, get = loop.lower_step, jax.device_get

    class Counted:
        def __init__(self, lowered):
            self.lowered = lowered

        def compile(self):
            update = self.lowered.compile()

            def call(*args):
                seen.append("dispatch")
                return update(*args)

            return call

    monkeypatch.setattr(loop, "lower_step", lambda *args, **kwargs: Counted(lower(*args, **kwargs)))

    def read(tree):
        if isinstance(tree, dict) and "loss" in tree:
            seen.append("read")
        return get(tree)

    monkeypatch.setattr(metrics.jax, "device_get", read)
    monkeypatch.setattr(loop, "make_evaluate", lambda *args: lambda step, params: {"eval_loss": 1.0})
    train(config, tmp_path / "run")  # evaluates after 3 and 6, saves after 2, 4 and 6
    two, one = ["dispatch", "dispatch", "read", "read"], ["dispatch", "read"]
    assert seen == two + one + one + two


def test_an_implicit_transfer_in_the_loop_is_an_error(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "put_rows", lambda make, size, mesh: make(slice(0, size)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train(config, tmp_path / "run")
    assert not threads()


def test_sigterm_ends_the_thread(config, tmp_path, monkeypatch):
    def stopped(step, params):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"eval_loss": 1.0}

    monkeypatch.setattr(loop, "make_evaluate", lambda *args: stopped)
    with pytest.raises(Interrupted, match="SIGTERM after step 3"):
        train(config, tmp_path / "run")
    assert not threads()


def test_the_window_under_the_profiler_leaves_a_trace(config, tmp_path, capsys):
    log = replace(config.log, profile_start=1, profile_steps=2)
    train(replace(config, log=log), tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert "Updates 2 to 3 of this call are traced" in capsys.readouterr().err
