"""The bootstrap is the textbook's, resamples groups, and pairs runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.evaluate import bootstrap


def _mean(totals):
    return {"mean": totals["hits"] / totals["rows"]}


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_totals_equal_a_naive_loop_over_drawn_rows(rows, columns, resamples, seed):
    statistics = np.random.default_rng(seed).integers(0, 9, (rows, columns)).astype(float)
    groups = bootstrap.group_index([""] * rows)
    rng = np.random.default_rng(seed)
    naive = [statistics[rng.integers(0, rows, rows, dtype=np.int32)].sum(axis=0) for _ in range(resamples)]
    found = bootstrap.resampled_totals(statistics, groups, resamples=resamples, seed=seed)
    np.testing.assert_array_equal(found, np.array(naive))


def test_totals_do_not_depend_on_the_chunk(monkeypatch):
    statistics, groups = np.arange(30.0).reshape(10, 3), bootstrap.group_index([""] * 10)
    whole = bootstrap.resampled_totals(statistics, groups, resamples=50)
    monkeypatch.setattr(bootstrap, "_CHUNK_CELLS", 30)
    np.testing.assert_array_equal(bootstrap.resampled_totals(statistics, groups, resamples=50), whole)


def test_rows_of_one_group_are_drawn_together():
    groups = bootstrap.group_index(["a", "b", "a", "b"])
    statistics = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    totals = bootstrap.resampled_totals(statistics, groups, resamples=200)
    assert {tuple(row) for row in totals} == {(4.0, 0.0), (2.0, 2.0), (0.0, 4.0)}


def test_rows_without_a_group_stand_alone():
    assert bootstrap.group_index(["", "a", "", "a"]).tolist() == [0, 1, 2, 1]


def test_grouped_rows_widen_the_interval():
    hits = np.repeat([0.0, 1.0], 50)
    statistics = np.stack([hits, np.ones(100)], axis=1)
    widths = []
    for groups in ([""] * 100, [f"document {row // 10}" for row in range(100)]):
        totals = bootstrap.resampled_totals(statistics, bootstrap.group_index(groups), resamples=500)
        low, high = bootstrap.interval(bootstrap.resampled_metrics(totals, ("hits", "rows"), _mean)["mean"])
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_interval_of_a_proportion_matches_the_normal_approximation():
    statistics = np.stack([np.repeat([0.0, 1.0], 200), np.ones(400)], axis=1)
    totals = bootstrap.resampled_totals(statistics, bootstrap.group_index([""] * 400), resamples=4000)
    low, high = bootstrap.interval(bootstrap.resampled_metrics(totals, ("hits", "rows"), _mean)["mean"])
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.005)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [(np.zeros(999), 1.0), (np.ones(999), 0.002), (-np.ones(999), 0.002), (np.array([-1.0, 1.0] * 500), 1.0)],
)
def test_two_sided_p(differences, expected):
    assert bootstrap.two_sided_p(differences) == expected
