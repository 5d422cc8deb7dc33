"""Ratios of summed counts, the same for one total and for an array of bootstrap resamples."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def ratio(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    """Returns part / whole elementwise in float64, 0 where `whole` is 0; both are scalars or arrays of one shape."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.zeros(whole.shape), where=whole != 0)


def f1(correct: ArrayLike, predicted: ArrayLike, gold: ArrayLike) -> np.ndarray:
    """Returns the harmonic mean of correct/predicted and correct/gold, which is 2 correct / (predicted + gold)."""
    return ratio(2 * np.asarray(correct, np.float64), np.asarray(predicted, np.float64) + np.asarray(gold, np.float64))
