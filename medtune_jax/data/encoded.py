"""Rows as token ids and loss weights: one, and many in flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np


@dataclass(frozen=True, eq=False)
class Encoded:
    """One row as the model sees it.

    Attributes:
      tokens: int32 [S], BOS, prompt, completion, EOS.
      weights: float32 [S], the weight in the loss of each token as a target; 0 on the prompt.
      prompt_length: how many leading tokens are the prompt's (BOS included); the loss begins there.
    """

    tokens: np.ndarray
    weights: np.ndarray
    prompt_length: int


@dataclass(frozen=True, eq=False)
class EncodedRows(Sequence[Encoded]):
    """Many rows in flat arrays: N rows, T tokens together.

    Attributes:
      tokens: int32 [T].
      weights: float32 [T].
      starts: int64 [N + 1]; row i is tokens[starts[i]:starts[i + 1]].
      prompt_lengths: int32 [N].
      rows: int64 [N], each row's index among the rows that were read (some may have been dropped).
    """

    tokens: np.ndarray
    weights: np.ndarray
    starts: np.ndarray
    prompt_lengths: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, encoded: Sequence[Encoded], rows: Sequence[int] | None = None) -> EncodedRows:
        """Joins single rows; `rows` names them (default 0..N-1)."""
        if isinstance(encoded, cls) and rows is None:
            return encoded
        return cls(
            tokens=np.concatenate([np.zeros(0, np.int32), *(part.tokens for part in encoded)], dtype=np.int32),
            weights=np.concatenate([np.zeros(0, np.float32), *(part.weights for part in encoded)], dtype=np.float32),
            starts=np.cumsum([0, *(len(part.tokens) for part in encoded)], dtype=np.int64),
            prompt_lengths=np.array([part.prompt_length for part in encoded], np.int32),
            rows=np.asarray(range(len(encoded)) if rows is None else rows, np.int64),
        )

    @classmethod
    def join(cls, parts: Sequence[EncodedRows]) -> EncodedRows:
        """Puts parts one after another."""
        return cls(
            tokens=np.concatenate([part.tokens for part in parts]),
            weights=np.concatenate([part.weights for part in parts]),
            starts=np.cumsum(np.concatenate([[0], *(part.lengths for part in parts)]), dtype=np.int64),
            prompt_lengths=np.concatenate([part.prompt_lengths for part in parts]),
            rows=np.concatenate([part.rows for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        span = slice(self.starts[index], self.starts[index + 1])
        return Encoded(self.tokens[span], self.weights[span], int(self.prompt_lengths[index]))

    def __iter__(self) -> Iterator[Encoded]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]: tokens of each row."""
        return np.diff(self.starts)

    @property
    def loss_tokens(self) -> np.ndarray:
        """int64 [N]: tokens of each row that bear loss."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat(self.weights > 0, self.starts[:-1], dtype=np.int64)  # no row is empty
