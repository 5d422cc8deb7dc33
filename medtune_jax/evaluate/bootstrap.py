"""Percentile bootstrap of corpus scores: rows, or groups of rows, are drawn with replacement.

A score is a function of summed statistics, so a resample is a row of integer counts, and all of them together are one
product counts [R, G] @ statistics [G, K] (Efron and Tibshirani 1993, chapters 13 and 16.4 for the paired test).
R = resamples, N = rows, G = groups (G = N where no group is known), K = statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95

Metrics = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]

_CHUNK_CELLS = 1 << 22  # counts held at once: 32 MB as float64


def group_index(groups: Sequence[str]) -> np.ndarray:
    """Returns int64 [N], the number of each row's group; a row without a group ("") is a group of its own."""
    numbers: dict[str | int, int] = {}
    return np.array([numbers.setdefault(group or row, len(numbers)) for row, group in enumerate(groups)], np.int64)


def resampled_totals(
    statistics: np.ndarray, groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Returns float64 [R, K], the summed statistics of each resample of the groups.

    The draws depend on the number of groups and the seed only, so two runs over the same rows meet the same resamples.

    Args:
      statistics: float64 [N, K].
      groups: int64 [N] as `group_index` gives them.
    """
    number = int(groups.max()) + 1
    per_group = np.zeros((number, statistics.shape[1]))
    np.add.at(per_group, groups, statistics)
    rng = np.random.default_rng(seed)
    totals = np.empty((resamples, statistics.shape[1]))
    chunk = max(1, min(resamples, _CHUNK_CELLS // number))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        counts = np.empty((size, number))
        for resample in range(size):
            counts[resample] = np.bincount(rng.integers(0, number, number, dtype=np.int32), minlength=number)
        totals[start : start + size] = counts @ per_group
    return totals


def resampled_metrics(totals: np.ndarray, names: Sequence[str], metrics: Metrics) -> dict[str, np.ndarray]:
    """Returns metric name -> float64 [R] from totals [R, K] whose columns are `names`."""
    return metrics({name: totals[:, column] for column, name in enumerate(names)})


def interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the percentile interval of LEVEL, rounded to 6 digits so that no BLAS shows in a file."""
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(values, [tail, 100 - tail])
    return round(float(low), 6), round(float(high), 6)


def two_sided_p(differences: np.ndarray) -> float:
    """Returns twice the smaller share of resampled differences [R] on either side of zero, ends counted, at most 1.

    One is added to count and resamples, so that p is never 0: R resamples cannot show less than 2 / (R + 1).
    """
    at_most, at_least = np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0)
    return round(min(1.0, 2 * (min(at_most, at_least) + 1) / (len(differences) + 1)), 6)
