"""Beginnings that prompts share (instruction wordings, demonstrations): found, computed once, copied into slots.

A beginning is worth keeping where copying it saves more tokens than computing it costs. They are found in all prompts
of a call: sorted, prompts that share a beginning lie together, and beginnings are where neighbours part. Of nested ones
the inner counts with what it saves beyond the outer.

Each is computed alone, from its own tokens, with shapes that depend on its length only: its keys and values are the
same bits whoever shares it, whichever rows are skipped, and when it is computed again because others took its place.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from medtune_jax.generate.cache import Cache

_LEAST = 32  # tokens; below, a prompt without its beginning is not cheaper to compute
_WORTH = 256  # tokens to be saved beyond what is computed: a pass over a single text costs about so many in a batch


class Prefixes:
    """Shared beginnings and the slots in which their keys and values are kept.

    Args:
      found: token sequences; slots: how many of them are kept at a time.

    Attributes:
      cache: keys and values, one beginning in each slot; set by who computes them.
    """

    def __init__(self, found: Sequence[tuple[int, ...]], slots: int):
        self.slots = slots
        self.longest = max(map(len, found), default=0)  # tokens
        self.cache: Cache | None = None
        self._known = frozenset(found if slots else ())
        self._lengths = sorted({len(one) for one in self._known}, reverse=True)
        self._kept: dict[tuple[int, ...], int] = {}  # the slot of each, the least recently used first

    def of(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """Returns the longest shared beginning of a prompt; () where there is none."""
        for length in self._lengths:
            if length <= len(prompt) and (begin := tuple(prompt[:length])) in self._known:
                return begin
        return ()

    def place(self, begin: tuple[int, ...]) -> tuple[int, bool]:
        """Returns (the slot of a beginning, whether it has yet to be computed there).

        Where no slot is free, the least recently used beginning gives its own.
        """
        slot = self._kept.pop(begin, None)
        fresh = slot is None
        if slot is None:
            full = len(self._kept) == self.slots
            slot = self._kept.pop(next(iter(self._kept))) if full else len(self._kept)
        self._kept[begin] = slot
        return slot, fresh

    def together(self, begins: Sequence[tuple[int, ...]]) -> int:
        """Returns how many prompts, from the first, have beginnings that are kept at the same time."""
        distinct: set[tuple[int, ...]] = set()
        for count, begin in enumerate(begins):
            distinct |= {begin} - {()}
            if len(distinct) > self.slots:
                return count
        return len(begins)


def shared_beginnings(prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Returns the beginnings that are worth computing once, shortest first."""
    # Big-endian bytes of ids sort like the ids, and compare fast.
    ordered = sorted(np.asarray(prompt, ">i4").tobytes() for prompt in prompts)
    common = [_common(a, b) for a, b in itertools.pairwise(ordered)]
    # [first, last) of prompts, by the length that they share: the inner nodes of the tree of all prompts.
    spans: list[tuple[int, int, int]] = []
    open_: list[tuple[int, int]] = []  # (length, first), outermost first
    for at, length in enumerate([*common, 0]):
        first = at
        while open_ and open_[-1][0] > length:
            shared, first = open_.pop()
            spans.append((first, at + 1, shared))
        if length >= _LEAST and (not open_ or open_[-1][0] < length):
            open_.append((length, first))
    covered = np.zeros(len(ordered), np.int64)  # tokens of each prompt's longest beginning so far
    taken = []
    for first, last, shared in sorted(spans, key=lambda span: span[2]):
        outer = int(covered[first])
        if (last - first) * (shared - outer) - shared >= _WORTH:
            covered[first:last] = shared
            taken.append((first, last, shared, outer))
    found = []
    for first, last, shared, outer in reversed(taken):  # what inner ones left of the outer is counted again
        using = covered[first:last] == shared
        if int(using.sum()) * (shared - outer) - shared >= _WORTH:
            found.append(tuple(np.frombuffer(ordered[first], ">i4", shared).tolist()))
        else:
            covered[first:last][using] = outer
    return found[::-1]


def _common(a: bytes, b: bytes) -> int:
    """Returns how many ids two sequences share at the beginning."""
    size = min(len(a), len(b)) // 4
    differ = np.flatnonzero(np.frombuffer(a, ">i4", size) != np.frombuffer(b, ">i4", size))
    return int(differ[0]) if len(differ) else size
