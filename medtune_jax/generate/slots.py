"""Slots of one cache and the rows that pass through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import jax
import numpy as np

from medtune_jax.generate import decode
from medtune_jax.generate.cache import Cache, empty_cache, resize
from medtune_jax.generate.prefixes import Prefixes
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

_SHRINK = 0.75  # slots are cut once so much of their length serves: each length has programs of its own

_NOWHERE = np.iinfo(np.int32).max  # beyond the last slot

Kind = TypeVar("Kind", bound=Waiting)


def round_up(size: int, step: int) -> int:
    """Returns the least of step x 1, 2, ..., 7, 8, 10, 12, 14, 16, 20, ... that is at least `size`."""
    while size > 8 * step:
        step *= 2
    return max(1, -(-size // step)) * step


def few_widths(tokens: int) -> int:
    """Returns the width of a pass over so many tokens: few ones, since each is a program to be compiled."""
    return 64 if tokens <= 64 else round_up(tokens, 128)


def slot_length(rows: Sequence[Waiting]) -> int:
    """Returns the positions that slots must have for any of these rows."""
    return round_up(max(row.need for row in rows), _POSITIONS)


class Slots(Generic[Kind]):
    """A full batch: freed slots are given to the next rows, a part of the batch at a time.

    Attributes:
      cache: its B slots; donated to and returned by the functions of decode.py; length: positions of each slot.
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
        prefixes: Prefixes,
        work: Any,
    ):
        self.rows: list[Kind | None] = [None] * batch
        self.cache: Cache  # allocated with the first rows
        self.length = 0
        self._weights, self._config, self._dtype, self._prefixes = weights, config, dtype, prefixes
        self._feed, self._chunk, self._work = feed, chunk, work
        self._next = next(feed, None)

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
        length = slot_length([row for _, row in self.active()])
        if not self.length:
            self.cache = _placed(empty_cache(self._config, len(self.rows), length, self._dtype))
        elif length > self.length or length <= _SHRINK * self.length:
            self.cache = resize(self.cache, length)
        else:
            return
        self.length = length

    def _prefill(self, taken: Sequence[tuple[int, Kind]]) -> None:
        begins = [self._prefixes.of(row.filled) for _, row in taken]
        if any(begins):
            self._prefill_rest(taken, begins)
        else:
            tokens, lengths, slots = self._padded([(slot, row.filled) for slot, row in taken], 64)
            self.cache = decode.prefill(self._weights, self.cache, tokens, lengths, slots, config=self._config)

    def _prefill_rest(self, taken: Sequence[tuple[int, Kind]], begins: Sequence[tuple[int, ...]]) -> None:
        """Computes what follows the shared beginning of each prompt; rows without one are computed whole."""
        rests = [(slot, row.filled[len(begin) :]) for (slot, row), begin in zip(taken, begins, strict=True)]
        entries, start = np.zeros(self._chunk, np.int32), np.zeros(self._chunk, np.int32)
        for index, begin in enumerate(begins):
            if begin:
                entries[index], start[index] = self._begun(begin), len(begin)
        self._work.shared_tokens += int(start.sum())  # `_begun` takes off what it computes first
        tokens, _, slots = self._padded(rests, 64)
        assert self._prefixes.cache is not None, "some row has a beginning"
        self.cache = decode.prefill_behind(
            *(self._weights, self.cache, self._prefixes.cache, entries, tokens, start, slots),
            length=min(round_up(int(start.max()), 128) + tokens.shape[1], self.length),
            config=self._config,
        )

    def _begun(self, begin: tuple[int, ...]) -> int:
        """Returns the slot of a shared beginning, computed alone if it is not there."""
        prefixes = self._prefixes
        if prefixes.cache is None:
            length = round_up(prefixes.longest, 64)
            prefixes.cache = _placed(empty_cache(self._config, prefixes.slots, length, self._dtype))
        slot, fresh = prefixes.place(begin)
        if fresh:
            tokens, lengths, slots = self._padded([(slot, begin)], 64, count=1)
            prefixes.cache = decode.prefill(self._weights, prefixes.cache, tokens, lengths, slots, config=self._config)
            self._work.shared_tokens -= len(begin)
        return slot

    def _padded(
        self, texts: Sequence[tuple[int, Sequence[int]]], step: int, *, count: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (tokens, lengths, slots) of up to `count` (slot, text); the slots of padding are written nowhere."""
        count = self._chunk if count is None else count
        tokens = np.zeros((count, round_up(max(len(text) for _, text in texts), step)), np.int32)
        lengths, slots = np.zeros(count, np.int32), np.full(count, _NOWHERE, np.int32)
        for index, (slot, text) in enumerate(texts):
            tokens[index, : len(text)], lengths[index], slots[index] = text, len(text), slot
        self._work.prompt_tokens += int(lengths.sum())
        return tokens, lengths, slots


def _placed(cache: Cache) -> Cache:
    """Returns a cache bound to the devices where it lies; else its first pass and the others would be two programs."""
    return jax.device_put(cache, jax.tree.map(lambda x: x.sharding, cache))
