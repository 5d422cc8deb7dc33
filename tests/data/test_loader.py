"""A batch is a pure function of the step; an epoch is every row once; nothing leaks over a document's edge."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import medtune_jax
from medtune_jax.data import packing
from medtune_jax.data.encoded import Encoded, EncodedRows
from medtune_jax.data.loader import TrainData, evaluation_batches
from medtune_jax.errors import UserError

S, B = 32, 4


def make_rows(seed: int, n: int) -> list[Encoded]:
    """Returns n random rows of 3..S tokens with distinguishable tokens and varied weights."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        length = int(random.integers(3, S + 1))
        prompt = int(random.integers(1, length))
        weights = random.choice(np.array([1, 5], np.float32), length)
        weights[:prompt] = 0
        rows.append(Encoded(np.arange(1, length + 1, dtype=np.int32) + 100 * i, weights, prompt))
    return rows


def plan(rows, **options):
    return TrainData(rows, **{"max_length": S, "batch_size": B, "packing": True, "seed": 0, "epochs": 2.0, **options})


def documents(batch):
    """Returns (tokens, [(target, weight)]) of each document of a batch, checking its bookkeeping on the way."""
    found = []
    for b in range(len(batch["tokens"])):
        tokens, positions, segments = (batch[key][b] for key in ("tokens", "positions", "segment_ids"))
        count = segments.max(initial=0)
        padding = segments == 0
        assert not tokens[padding].any()
        assert not positions[padding].any()
        assert (segments[~padding] == np.sort(segments[~padding])).all()
        assert not padding[: np.count_nonzero(~padding)].any()  # padding stands at the end only
        used = batch["weights"][b] > 0
        predicting, targets, weights = (batch[key][b] for key in ("loss_positions", "targets", "weights"))
        assert not predicting[~used].any()
        assert not targets[~used].any()
        assert (targets[used] == tokens[predicting[used] + 1]).all()
        assert (
            segments[predicting[used]] == segments[predicting[used] + 1]
        ).all()  # no document predicts its neighbour
        assert (segments[predicting[used]] > 0).all()
        assert len(set(predicting[used].tolist())) == np.count_nonzero(used)
        for segment in range(1, count + 1):
            here = segments == segment
            assert positions[here].tolist() == list(range(np.count_nonzero(here)))
            mine = used & (segments[predicting] == segment)
            pairs = list(zip(targets[mine].tolist(), weights[mine].tolist(), strict=True))
            found.append((tokens[here].tolist(), pairs))
    return found


def expected(rows):
    return sorted(
        (row.tokens.tolist(), [(t, w) for t, w in zip(row.tokens.tolist(), row.weights.tolist(), strict=True) if w])
        for row in rows
    )


@settings(max_examples=40, deadline=None)
@given(content=st.integers(0, 99), n=st.integers(1, 60), seed=st.integers(0, 2**63), packing=st.booleans())
def test_an_epoch_holds_every_row_and_every_loss_token_exactly_once(content, n, seed, packing):
    rows = make_rows(content, n)
    data = plan(rows, seed=seed, packing=packing)
    for epoch in range(2):
        steps = [step for step in range(data.total_steps) if data.locate(step)[0] == epoch]
        found = [document for step in steps for document in documents(data.batch(step))]
        assert sorted(found) == expected(rows)
        assert sorted(row for step in steps for row in data.rows_in(step)) == list(range(n))


@settings(max_examples=25, deadline=None)
@given(content=st.integers(0, 99), n=st.integers(1, 60))
def test_shapes_and_types_never_change_and_the_loss_budget_is_never_exceeded(content, n):
    rows = make_rows(content, n)
    data = plan(rows)
    assert data.budget <= S
    for step in range(data.total_steps):
        batch = data.batch(step)
        assert all(batch[key].shape == (B, S) for key in ("tokens", "positions", "segment_ids"))
        assert all(batch[key].shape == (B, data.budget) for key in ("loss_positions", "targets", "weights"))
        assert {key: str(value.dtype) for key, value in batch.items() if key != "weights"} == dict.fromkeys(
            ("tokens", "positions", "segment_ids", "loss_positions", "targets"), "int32"
        )
        assert batch["weights"].dtype == np.float32
        bearing = sum(np.count_nonzero(rows[i].weights) for i in data.rows_in(step))
        assert np.count_nonzero(batch["weights"]) == bearing
        held = sum(len(rows[i].tokens) for i in data.rows_in(step))
        assert data.tokens_in(step) == (B * S, held, bearing)


def test_the_loss_budget_is_a_multiple_of_64_or_the_whole_sequence():
    rows = [Encoded(np.ones(90, np.int32), np.r_[np.zeros(10), np.ones(80)].astype(np.float32), 10)]
    budgets = [
        TrainData(rows, max_length=length, batch_size=1, packing=True, seed=0, steps=1).budget for length in (90, 1024)
    ]
    assert budgets == [90, 128]


@settings(max_examples=20, deadline=None)
@given(content=st.integers(0, 999))
def test_the_loss_budget_is_what_the_fullest_sequence_of_any_epoch_needs(content):
    random = np.random.default_rng(content)
    rows = []
    for _ in range(40):
        length = int(random.integers(20, 200))
        prompt = int(random.integers(length // 2, length))
        rows.append(Encoded(np.ones(length, np.int32), (np.arange(length) >= prompt).astype(np.float32), prompt))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW", 4)  # so that epochs differ in which rows meet
        data = plan(rows, max_length=512, epochs=6.0)
        needed = max(np.count_nonzero(data.batch(step)["weights"], axis=1).max() for step in range(data.total_steps))
    assert data.budget == 64 * np.ceil(needed / 64)


def test_a_batch_depends_on_nothing_but_the_step():
    rows = make_rows(0, 40)
    data = plan(rows)
    forward = [data.batch(step) for step in range(data.total_steps)]
    fresh = plan(rows)
    for step in reversed(range(data.total_steps)):
        again = fresh.batch(step)
        assert all((again[key] == forward[step][key]).all() for key in again)
        resumed = plan(rows).batch(step)
        assert all((resumed[key] == forward[step][key]).all() for key in resumed)


@given(n=st.integers(1, 30), start=st.integers(0, 5), stop=st.integers(0, 7))
def test_some_sequences_of_a_batch_are_those_of_the_whole(n, start, stop):
    data = plan(make_rows(2, n))
    for step in range(data.total_steps):
        whole, part = data.batch(step), data.batch(step, slice(start, stop))
        assert all((part[key] == whole[key][start:stop]).all() for key in whole)
        assert {key: x.shape for key, x in part.items()} == {key: x[start:stop].shape for key, x in whole.items()}


def test_a_longer_run_begins_with_the_same_batches():
    rows = make_rows(1, 40)
    short, long = plan(rows, epochs=1.0), plan(rows, epochs=3.0)
    assert short.sha256 == long.sha256
    for step in range(short.total_steps):
        assert (short.batch(step)["tokens"] == long.batch(step)["tokens"]).all()


def test_epochs_differ_in_order_and_batches_are_not_sorted_by_length():
    rows = make_rows(2, 200)
    data = plan(rows, packing=False)
    first = [data.rows_in(step) for step in range(data.steps_in_epoch(0))]
    second = [data.rows_in(step) for step in range(data.steps_in_epoch(0), data.total_steps)]
    assert first != second
    packed = plan(rows)
    fullest = [max(len(rows[i].tokens) for i in packed.rows_in(step)) for step in range(packed.steps_in_epoch(0))]
    assert fullest != sorted(fullest)
    assert fullest != sorted(fullest, reverse=True)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 60), epochs=st.floats(0.1, 4))
def test_steps_are_located_within_their_epochs(n, epochs):
    data = plan(make_rows(3, n), epochs=epochs)
    at = [data.locate(step) for step in range(data.total_steps)]
    walked = [(epoch, i) for epoch in range(5) if epoch < np.ceil(epochs) for i in range(data.steps_in_epoch(epoch))]
    assert at == walked[: len(at)]
    assert 0 <= len(walked) - len(at) < data.steps_in_epoch(int(np.ceil(epochs)) - 1)
    for outside in (-1, data.total_steps):
        with pytest.raises(IndexError, match="outside this run"):
            data.locate(outside)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_run_counted_in_steps_has_so_many(steps):
    data = plan(make_rows(4, 30), epochs=None, steps=steps)
    assert data.total_steps == steps
    assert [data.batch(step)["tokens"].any() for step in range(steps)] == [True] * steps


def test_half_an_epoch_is_half_its_batches():
    rows = [Encoded(np.ones(S, np.int32), np.r_[0, np.ones(S - 1)].astype(np.float32), 1)] * 40
    assert plan(rows, epochs=1.0).total_steps == 10
    assert plan(rows, epochs=0.5).total_steps == 5
    assert plan(rows, epochs=2.25).total_steps == 23


def test_the_last_batch_of_an_epoch_is_filled_with_empty_sequences():
    rows = [Encoded(np.ones(S, np.int32), np.r_[0, np.ones(S - 1)].astype(np.float32), 1)] * 5
    data = plan(rows, epochs=1.0)
    last = data.batch(1)
    assert all(not last[key][1:].any() for key in last)
    assert last["segment_ids"][0].all()
    assert data.filled == 5 / 8


def test_the_filled_share_counts_positions_that_hold_a_token():
    rows = make_rows(5, 50)
    data = plan(rows)
    held = sum(np.count_nonzero(data.batch(step)["segment_ids"]) for step in range(data.total_steps))
    assert data.filled == pytest.approx(held / (data.total_steps * B * S))


def test_the_hash_changes_with_rows_their_order_and_every_parameter_of_the_plan():
    rows = make_rows(6, 20)
    weights = [*rows[:-1], Encoded(rows[-1].tokens, rows[-1].weights * 2, rows[-1].prompt_length)]
    split = [Encoded(np.concatenate([a.tokens for a in rows[:2]]), np.concatenate([a.weights for a in rows[:2]]), 1)]
    plans = [
        plan(rows),
        plan(rows[::-1]),
        plan(rows[:-1]),
        plan(weights),
        plan(rows, max_length=2 * S),
        plan([*split, *rows[2:]], max_length=2 * S),
        plan(rows, batch_size=2),
        plan(rows, packing=False),
        plan(rows, seed=1),
    ]
    assert len({data.sha256 for data in plans}) == len(plans)
    assert plan(EncodedRows.of(rows)).sha256 == plans[0].sha256


def test_rows_are_named_by_their_index_before_dropping():
    rows = EncodedRows.of(make_rows(7, 3), rows=[2, 5, 9])
    assert sorted(plan(rows, epochs=1.0).rows_in(0)) == [2, 5, 9]


def test_the_plan_is_the_same_under_any_hash_seed():
    program = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from test_loader import make_rows, plan
data = plan(make_rows(0, 60))
digest = hashlib.sha256(data.sha256.encode())
for step in range(data.total_steps):
    for key, value in sorted(data.batch(step).items()):
        digest.update(value.tobytes())
print(digest.hexdigest())
"""
    root = str(Path(medtune_jax.__file__).resolve().parent.parent)
    found = {
        subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(found) == 1


@pytest.mark.parametrize("n", [1, 37])
def test_evaluation_batches_hold_every_row_once(n):
    rows = make_rows(8, n)
    batches = evaluation_batches(rows, S, B)
    assert sorted(document for batch in batches for document in documents(batch)) == expected(rows)
    assert len({batch["tokens"].shape for batch in batches} | {(B, S)}) == 1


@pytest.mark.parametrize("make", [plan, lambda rows: evaluation_batches(rows, S, B)])
def test_no_rows_and_overlong_rows_are_refused_by_name(make):
    with pytest.raises(UserError, match="No rows"):
        make([])
    long = Encoded(np.ones(S + 1, np.int32), np.ones(S + 1, np.float32), 1)
    with pytest.raises(UserError, match=f"Row 1 has {S + 1} tokens; the limit is data.max_length={S}"):
        make([*make_rows(9, 1), long])
