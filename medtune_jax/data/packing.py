"""The packing plan: which rows share a sequence, decided by arithmetic alone.

The order of an epoch is an integer hash of (seed, epoch, row), not a library's random generator, and packs are filled
best-fit decreasing inside windows of that order. So the plan is the same on any machine and for any number of hosts,
and a position in it is one integer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW = 512  # rows sorted by length at a time: they fill sequences as well as 4,096 would, and mix rows better


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 step (Steele, Lea and Flood 2014) on uint64 [N], modulo 2**64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Returns a permutation of range(n), int64 [n], decided by (seed, epoch) through an integer hash."""
    key = np.zeros(1, np.uint64)
    for part in (seed, epoch):
        key = _mix(key ^ np.uint64(part % 2**64))
    return np.argsort(_mix(key ^ np.arange(n, dtype=np.uint64)), kind="stable")


def pack(lengths: Sequence[int] | np.ndarray, max_length: int, order: np.ndarray) -> list[tuple[int, ...]]:
    """Fills sequences of `max_length` positions with whole rows: windowed best-fit decreasing.

    Within each window of `order` the longest row is placed first, into the open sequence that it fills best; sequences
    with room stay open for later windows.

    Args:
      lengths: [N] tokens of each row, each in 1..max_length.
      max_length: positions of a sequence.
      order: the rows to pack, in the order in which windows are cut; ties in length keep this order.

    Returns:
      packs of row indices; every row of `order` is in exactly one.

    Raises:
      ValueError: a row is empty or longer than max_length.
    """
    lengths = np.asarray(lengths, np.int64)
    order = np.asarray(order, np.int64)
    wanted = lengths[order]
    if wanted.size and (wanted.min() < 1 or wanted.max() > max_length):
        raise ValueError(f"rows have {wanted.min()} to {wanted.max()} tokens; a pack takes 1 to {max_length}")
    packs: list[list[int]] = []
    open_packs: list[list[int]] = [[] for _ in range(max_length + 1)]  # by positions left
    rooms = 0  # bit r is set where open_packs[r] is not empty, so that the best fit is one shift away
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        window = window[np.argsort(-lengths[window], kind="stable")]
        for row, length in zip(window.tolist(), lengths[window].tolist(), strict=True):
            fitting = rooms >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                index = open_packs[room].pop()
                if not open_packs[room]:
                    rooms ^= 1 << room
                packs[index].append(row)
            else:
                room, index = max_length, len(packs)
                packs.append([row])
            left = room - length
            if left:
                open_packs[left].append(index)
                rooms |= 1 << left
    return [tuple(rows) for rows in packs]
