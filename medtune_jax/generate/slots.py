"""Slots of one cache and the rows that pass through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from medtune_jax.generate import decode
from medtune_jax.generate.cache import empty_cache, resize
from medtune_jax.model.llama import LlamaConfig


class Waiting(Protocol):
    """What a row must tell to be given a slot.

    Attributes:
      filled: the tokens that the cache must hold before the row's first pass.
      need: cache positions that it may come to use.
    """

    @property
    def filled(self) -> Sequence[int]: ...
    @property
    def need(self) -> int: ...


_POSITIONS = 128  # of a slot: their least number, and the step in which it grows

Kind = TypeVar("Kind", bound=Waiting)


def round_up(size: int, step: int) -> int:
    """Returns the least of step x 1, 2, ..., 7, 8, 10, 12, 14, 16, 20, ... that is at least `size`."""
    while size > 8 * step:
        step *= 2
    return max(1, -(-size // step)) * step


class Slots(Generic[Kind]):
    """A full batch: freed slots are given to the next rows, a part of the batch at a time.

    Attributes:
      cache: its B slots; donated to and returned by the functions of decode.py.
      rows: [B], who is in each slot; None = free.
    """

    def __init__(
        self,
        weights: decode.Weights,
        config: LlamaConfig,
        dtype: Any,
        feed: Iterator[Kind],
        batch: int,
        *,
        chunk: int,
        work: Any,
    ):
        self.rows: list[Kind | None] = [None] * batch
        self.cache = empty_cache(config, batch, _POSITIONS, dtype)
        self._weights, self._config = weights, config
        self._feed, self._chunk, self._work = feed, chunk, work
        self._next = next(feed, None)

    @property
    def length(self) -> int:
        """Positions of each slot."""
        return self.cache.length

    def active(self) -> list[tuple[int, Kind]]:
        """Returns (slot, row) of every taken slot."""
        return [(slot, row) for slot, row in enumerate(self.rows) if row is not None]

    def free(self, slot: int) -> None:
        self.rows[slot] = None

    @property
    def enough(self) -> int:
        """Free slots that `admit` waits for; all of them once no row waits."""
        return len(self.rows) if self._next is None else self._chunk

    def admit(self) -> bool:
        """Prefills waiting rows into free slots if they are worth a prefill; returns whether any slot is taken."""
        free = [slot for slot, row in enumerate(self.rows) if row is None]
        taken = []
        for slot in free[: len(free) // self._chunk * self._chunk]:
            if self._next is None:
                break
            self.rows[slot] = self._next
            taken.append((slot, self._next))
            self._next = next(self._feed, None)
        if taken:
            self._fit()
            for start in range(0, len(taken), self._chunk):
                self._prefill(taken[start : start + self._chunk])
        return any(row is not None for row in self.rows)

    def _fit(self) -> None:
        length = round_up(max(row.need for _, row in self.active()), _POSITIONS)
        if length != self.length:
            self.cache = resize(self.cache, length)

    def _prefill(self, taken: Sequence[tuple[int, Kind]]) -> None:
        sequence = round_up(max(len(row.filled) for _, row in taken), 64)
        tokens = np.zeros((self._chunk, sequence), np.int32)
        lengths = np.zeros(self._chunk, np.int32)
        slots = np.full(self._chunk, len(self.rows), np.int32)  # beyond the last slot: written nowhere
        for index, (slot, row) in enumerate(taken):
            lengths[index] = len(row.filled)
            tokens[index, : lengths[index]] = row.filled
            slots[index] = slot
        self._work.prompt_tokens += int(lengths.sum())
        self.cache = decode.prefill(self._weights, self.cache, tokens, lengths, slots, config=self._config)
