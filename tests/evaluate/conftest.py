"""Rows to evaluate and the oracle that answers them."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
from evaluate_oracle import Oracle
from evaluate_samples import perfect

from medtune_jax.tasks.rows import Row, write_rows


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = [Row("Do it.", one.input, one.output, one.source, one.id) for one in perfect()]
    write_rows(folder / "test.parquet", rows)
    write_rows(folder / "train.parquet", rows[:3])
    return folder


@pytest.fixture
def oracle(monkeypatch):
    engine = Oracle({one.input: one.output for one in perfect()})
    engine.template = "alpaca"
    monkeypatch.setattr(
        "medtune_jax.train.load.load_model",
        lambda path, **changes: SimpleNamespace(
            params=None, config=None, tokenizer=engine.tokenizer, template=engine.template, sha256="m", mesh=None
        ),
    )
    monkeypatch.setattr("medtune_jax.generate.engine.Engine", lambda *arguments, **options: engine)
    return engine


@pytest.fixture
def interruptible():
    """Ctrl-C means what it does in a shell, though a test runner in the background inherits an ignored SIGINT; and so
    does SIGTERM, as `medtune` has it."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
