"""Beginnings that prompts share (instruction wordings, demonstrations): found, computed once, copied into slots.

A beginning is worth keeping where copying it saves more tokens than computing it costs. They are found in all prompts
of a call: sorted, prompts that share a beginning lie together, and beginnings are where neighbours part. Of nested ones
the inner counts with what it saves beyond the outer.

Each is computed alone, from its own tokens, with shapes that depend on its length only: its keys and values are the
same bits whoever shares it and whichever rows are skipped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medtune_jax.generate.cache import Cache

_LEAST = 32  # tokens; below, a prompt without its beginning is not cheaper to compute
_WORTH = 256  # tokens to be saved beyond what is computed: a pass over a single text costs about so many in a batch


class Beginning(NamedTuple):
    """Tokens at the beginning of several prompts.

    saved: tokens that need not be computed again, beyond what an outer beginning saves and less its own.
    """

    tokens: tuple[int, ...]
    saved: int


class Prefixes:
    """Shared beginnings and the slots in which their keys and values are kept.

    Args:
      found: beginnings; slots: of a cache. Where there are more beginnings, those that save most are kept.

    Attributes:
      cache: keys and values, one beginning in each slot; set by who computes them.
      longest: tokens.
    """

    def __init__(self, found: Sequence[Beginning], slots: int):
        self.slots = slots
        self.cache: Cache | None = None
        kept = sorted(found, key=lambda one: -one.saved)[:slots]
        self.longest = max((len(one.tokens) for one in kept), default=0)
        self._slot = {one.tokens: slot for slot, one in enumerate(kept)}
        self._lengths = sorted({len(one.tokens) for one in kept}, reverse=True)
        self._computed: set[int] = set()  # slots

    def of(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """Returns the longest shared beginning of a prompt; () where there is none."""
        for length in self._lengths:
            if length <= len(prompt) and (begin := tuple(prompt[:length])) in self._slot:
                return begin
        return ()

    def place(self, begin: tuple[int, ...]) -> tuple[int, bool]:
        """Returns (the slot of a beginning, whether it has yet to be computed there: the first time)."""
        slot = self._slot[begin]
        fresh = slot not in self._computed
        self._computed.add(slot)
        return slot, fresh


def shared_beginnings(prompts: Sequence[Sequence[int]]) -> list[Beginning]:
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
        if (saved := int(using.sum()) * (shared - outer) - shared) >= _WORTH:
            found.append(Beginning(tuple(np.frombuffer(ordered[first], ">i4", shared).tolist()), saved))
        else:
            covered[first:last][using] = outer
    return found[::-1]


def _common(a: bytes, b: bytes) -> int:
    """Returns how many ids two sequences share at the beginning."""
    size = min(len(a), len(b)) // 4
    differ = np.flatnonzero(np.frombuffer(a, ">i4", size) != np.frombuffer(b, ">i4", size))
    return int(differ[0]) if len(differ) else size
