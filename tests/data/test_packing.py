"""The plan is arithmetic: every row once, nothing over length, the same on every machine."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.data import packing
from medtune_jax.data.encode import encode_rows
from medtune_jax.data.packing import order, pack
from medtune_jax.data.prompts import get_template

SEEDS = st.integers(-(2**63), 2**64 - 1)


@given(n=st.integers(0, 300), seed=SEEDS, epoch=st.integers(0, 1000))
def test_an_order_is_a_permutation_and_depends_on_nothing_else(n, seed, epoch):
    first = order(n, seed, epoch)
    assert sorted(first) == list(range(n))
    assert (first == order(n, seed, epoch)).all()


def test_seed_and_epoch_each_change_the_order():
    orders = [order(50, *key).tolist() for key in [(0, 0), (1, 0), (0, 1), (2**32, 0), (-1, 0)]]
    assert len({tuple(found) for found in orders}) == len(orders)


def test_the_hash_is_splitmix64_so_that_a_plan_outlives_library_versions():
    assert packing._mix(np.zeros(1, np.uint64))[0] == 0xE220A8397B1DCDAF  # its first output from state 0
    assert order(8, 0, 0).tolist() == [0, 1, 6, 3, 5, 4, 2, 7]


def test_an_order_is_unbiased():
    first = np.array([order(10, 0, epoch) for epoch in range(2000)])
    share = np.array([np.bincount(first[:, place], minlength=10) for place in range(10)]) / 2000
    assert abs(share - 0.1).max() < 0.03


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 64), max_size=200), seed=SEEDS, window=st.sampled_from([1, 7, 4096]))
def test_every_row_is_packed_once_and_no_pack_is_over_length(lengths, seed, window):
    rows = order(len(lengths), seed, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW", window)
        packs = pack(lengths, 64, rows)
        again = pack(np.array(lengths), 64, rows)
    assert sorted(row for members in packs for row in members) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in members) <= 64 for members in packs)
    assert packs == again
    # Best fit opens a sequence only when nothing open has room, so no two packs could have been one.
    sizes = sorted(sum(lengths[row] for row in members) for members in packs)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > 64


def test_rows_that_fill_sequences_exactly_leave_no_gap():
    assert sorted(map(sorted, pack([60, 4, 32, 32, 64], 64, np.arange(5)))) == [[0, 1], [2, 3], [4]]


def test_a_row_goes_where_the_least_room_is_left():
    assert sorted(map(sorted, pack([40, 30, 24], 64, np.arange(3)))) == [[0, 2], [1]]


@pytest.mark.parametrize("lengths", [[5, 65], [0, 3]])
def test_a_row_that_cannot_be_packed_is_refused(lengths):
    with pytest.raises(ValueError, match="a pack takes 1 to 64"):
        pack(lengths, 64, np.arange(2))


def test_real_rows_fill_99_percent_of_sequences(llama2, ncbi_rows):
    rows = encode_rows(llama2, get_template("medtuned_train"), ncbi_rows)[0]
    for max_length in (1024, 2048, 4096):
        packs = pack(rows.lengths, max_length, order(len(rows), 0, 0))
        assert rows.lengths.sum() / (len(packs) * max_length) >= 0.99
