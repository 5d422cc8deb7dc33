"""Encoded rows to batches. A batch is a pure function of the step, so resuming needs one integer.

Dimensions: B sequences of a batch, S positions of a sequence, M loss targets of a sequence (static over the plan).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from itertools import chain

import numpy as np

from medtune_jax.data.encoded import Encoded, EncodedRows
from medtune_jax.data.packing import WINDOW, order, pack
from medtune_jax.errors import UserError

Batch = dict[str, np.ndarray]
Pack = tuple[int, ...]

_PLAN_VERSION = 1  # raise when the same rows and parameters give other batches than before
_BUDGET_MULTIPLE = 64


class TrainData:
    """The batches of a run.

    Epochs do not share batches: the last batch of an epoch is filled with empty sequences. Each epoch has its own order
    of rows, hence its own packs, and the packs of an epoch are shuffled once more, so that batches are not sorted by
    length.

    Attributes:
      total_steps: batches of the run.
      budget: M, the most loss targets that any sequence of the plan holds, rounded up to a multiple of 64, at most S.
      documents: the most that any sequence of the plan holds.
      tokens_in_epoch: of all rows, padding not counted.
      filled: share of the positions of all planned epochs that hold a token.
      sha256: identity of the rows and of the plan (max_length, batch_size, packing, seed). How long the run is does not
        count: the batches of earlier steps do not depend on it.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        *,
        max_length: int,
        batch_size: int,
        packing: bool,
        seed: int,
        steps: int | None = None,
        epochs: float | None = None,
    ):
        """Plans `steps` batches or `epochs` passes (exactly one is given; a fraction of an epoch is rounded up).

        Raises:
          UserError: no rows, or a row longer than max_length.
        """
        if (steps is None) == (epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        self._rows = EncodedRows.of(encoded)
        _check(self._rows, max_length)
        self._max_length, self._batch_size, self._packing, self._seed = max_length, batch_size, packing, seed
        self._lengths, self._loss_tokens = self._rows.lengths, self._rows.loss_tokens
        self._cached: dict[int, list[Pack]] = {}

        ends: list[int] = []  # steps planned up to and including each epoch
        most = self.documents = 0
        while not ends or (len(ends) < epochs if epochs is not None else ends[-1] < (steps or 0)):
            packs = self._packs(len(ends))
            most = max(most, _most_loss_tokens(self._loss_tokens, packs))
            self.documents = max(self.documents, max(map(len, packs)))
            ends.append((ends[-1] if ends else 0) + math.ceil(len(packs) / batch_size))
        self._ends = np.asarray(ends, np.int64)
        unused = 0.0 if epochs is None else len(ends) - epochs  # the part of the last epoch beyond the run, in [0, 1)
        self.total_steps = steps or ends[-1] - math.floor(unused * self.steps_in_epoch(len(ends) - 1))
        self.budget = _budget(most, max_length)
        self.tokens_in_epoch = int(self._lengths.sum())
        self.filled = float(self._lengths.sum()) * len(ends) / (ends[-1] * batch_size * max_length)
        self.sha256 = self._identity()

    def steps_in_epoch(self, epoch: int) -> int:
        """Returns how many batches planned epoch `epoch` has (the run may stop within the last)."""
        return int(self._ends[epoch] - (self._ends[epoch - 1] if epoch else 0))

    @property
    def epochs(self) -> float:
        """How often the run sees every row; the last time may be a part."""
        epoch, index = self.locate(self.total_steps - 1)
        return epoch + (index + 1) / self.steps_in_epoch(epoch)

    def locate(self, step: int) -> tuple[int, int]:
        """Returns (epoch, index of the batch within it) of step 0..total_steps-1."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} is outside this run's 0..{self.total_steps - 1}")
        epoch = int(np.searchsorted(self._ends, step, side="right"))
        return epoch, step - int(self._ends[epoch - 1] if epoch else 0)

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Returns the batch of a step, or sequences `rows` of it; the same whenever and wherever it is asked for.

        Keys:
          tokens, positions, segment_ids: int32 [B, S]. Positions restart at 0 in each document; segment ids count the
            documents of a sequence from 1; all three are 0 on padding.
          loss_positions, targets: int32 [B, M]; weights: float32 [B, M]. The logits at loss_positions predict targets;
            unused entries are 0 in all three.
        """
        wanted = range(self._batch_size)[rows or slice(None)]
        packs = self._step_packs(step)[rows or slice(None)]
        return make_batch(self._rows, packs, len(wanted), self._max_length, self.budget)

    def rows_in(self, step: int) -> list[int]:
        """Returns the indices, among the rows that were read, of the rows in this step's batch, in batch order."""
        return [int(self._rows.rows[i]) for i in chain.from_iterable(self._step_packs(step))]

    def tokens_in(self, step: int) -> tuple[int, int, int]:
        """Returns (positions including padding, tokens, tokens that bear loss) of this step's batch."""
        rows = list(chain.from_iterable(self._step_packs(step)))
        return (
            self._batch_size * self._max_length,
            int(self._lengths[rows].sum()),
            int(self._loss_tokens[rows].sum()),
        )

    def _step_packs(self, step: int) -> list[Pack]:
        epoch, index = self.locate(step)
        return self._packs(epoch)[index * self._batch_size : (index + 1) * self._batch_size]

    def _packs(self, epoch: int) -> list[Pack]:
        """Returns the packs of an epoch in their order of use; the last two epochs asked for are remembered.

        Two threads may ask: the one that makes batches is ahead of the one that counts them.
        """
        packs = self._cached.get(epoch)
        if packs is None:
            rows = order(len(self._rows), self._seed, epoch)
            if self._packing:
                packs = pack(self._lengths, self._max_length, rows)
                packs = [packs[i] for i in order(len(packs), self._seed, epoch)]
            else:
                packs = [(row,) for row in rows.tolist()]
            self._cached = dict([*self._cached.items()][-1:]) | {epoch: packs}
        return packs

    def _identity(self) -> str:
        plan = {
            "version": _PLAN_VERSION,
            "window": WINDOW,
            "max_length": self._max_length,
            "batch_size": self._batch_size,
            "packing": self._packing,
            "seed": self._seed,
        }
        digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode())
        for array, dtype in ((self._rows.starts, "<i8"), (self._rows.tokens, "<i4"), (self._rows.weights, "<f4")):
            digest.update(np.ascontiguousarray(array.astype(dtype, copy=False)).data)
        return digest.hexdigest()


def evaluation_batches(encoded: Sequence[Encoded], max_length: int, batch_size: int) -> list[Batch]:
    """Returns every row once, packed, in batches of the form of `TrainData.batch` with a budget of their own.

    Raises:
      UserError: no rows, or a row longer than max_length.
    """
    rows = EncodedRows.of(encoded)
    _check(rows, max_length)
    packs = pack(rows.lengths, max_length, np.arange(len(rows)))
    budget = _budget(_most_loss_tokens(rows.loss_tokens, packs), max_length)
    return [
        make_batch(rows, packs[start : start + batch_size], batch_size, max_length, budget)
        for start in range(0, len(packs), batch_size)
    ]


def make_batch(rows: EncodedRows, packs: Sequence[Pack], batch_size: int, max_length: int, budget: int) -> Batch:
    """Returns `packs` (at most batch_size) as one batch; see `TrainData.batch`."""
    tokens, positions, segment_ids = (np.zeros((batch_size, max_length), np.int32) for _ in range(3))
    loss_positions, targets = (np.zeros((batch_size, budget), np.int32) for _ in range(2))
    weights = np.zeros((batch_size, budget), np.float32)
    for b, members in enumerate(packs):
        at = used = 0
        for segment, i in enumerate(members, 1):
            span = slice(rows.starts[i], rows.starts[i + 1])
            document, weight = rows.tokens[span], rows.weights[span]
            end = at + len(document)
            tokens[b, at:end] = document
            positions[b, at:end] = np.arange(len(document))
            segment_ids[b, at:end] = segment
            bearing = np.flatnonzero(weight)
            filled = slice(used, used + len(bearing))
            loss_positions[b, filled] = at + bearing - 1
            targets[b, filled] = document[bearing]
            weights[b, filled] = weight[bearing]
            at, used = end, used + len(bearing)
    return {
        "tokens": tokens,
        "positions": positions,
        "segment_ids": segment_ids,
        "loss_positions": loss_positions,
        "targets": targets,
        "weights": weights,
    }


def _check(rows: EncodedRows, max_length: int) -> None:
    if not len(rows):
        raise UserError("No rows to make batches of: the data set is empty, or every row was dropped as overlong.")
    longest = int(rows.lengths.argmax())
    if rows.lengths[longest] > max_length:
        raise UserError(
            f"Row {rows.rows[longest]} has {rows.lengths[longest]} tokens; the limit is data.max_length={max_length}. "
            "Raise data.max_length, or choose data.overlong=drop or truncate_input."
        )


def _most_loss_tokens(loss_tokens: np.ndarray, packs: Sequence[Pack]) -> int:
    """Returns the most loss tokens [N] that any pack holds together."""
    sizes = np.fromiter(map(len, packs), np.int64, len(packs))
    members = np.fromiter(chain.from_iterable(packs), np.int64, int(sizes.sum()))
    return int(np.add.reduceat(loss_tokens[members], np.cumsum(sizes) - sizes).max())


def _budget(most: int, max_length: int) -> int:
    return min(max_length, math.ceil(most / _BUDGET_MULTIPLE) * _BUDGET_MULTIPLE)
