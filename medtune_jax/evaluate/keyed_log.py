"""A file of answers that grows while a run lasts, safe against being stopped anywhere.

Its lines lie in a partial file in the order in which they are finished, and in the finished one in the order of the
questions. Each says by a key which question it answers, so that the next attempt takes over what is there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

from medtune_jax.errors import UserError
from medtune_jax.evaluate.files import make_folder, to_json_line, write_file, writing

FLUSH_ROWS = 64
FLUSH_SECONDS = 5.0

Answer = TypeVar("Answer")
Log = TypeVar("Log", bound="KeyedLog")  # type: ignore[type-arg]


class KeyedLog(Generic[Answer]):
    """The answers of one run to its questions; a context manager that on leaving writes what is pending.

    A subclass says what a line is made of.
    """

    def __init__(self, final: Path, partial: Path, keys: Sequence[str], *, private: bool = False):
        """Takes over what earlier attempts have answered.

        Args:
          final: its folder is made.
          keys: of the questions, in order; no two are equal.
          private: files, and the folder where it is new, are made readable by their owner only.

        Raises:
          UserError: answers to other questions are there, which stay as they are; or nothing can be written there.
        """
        self._final, self._partial, self._private = final, partial, private
        self._memory = partial.with_suffix(".memory.json")
        self._keys = list(keys)
        self._index = {key: index for index, key in enumerate(self._keys)}
        self._answers: dict[int, Answer] = {}
        self._pending: list[bytes] = []
        self._flushed_at = time.monotonic()
        make_folder(final.parent, private)
        others: set[bytes] = set()
        for file in (final, partial):
            if file.is_file():
                *lines, tail = file.read_bytes().split(b"\n")
                self._found_torn(tail)
                others.update(line for line in lines if not self._take_over(line))
        if others:
            raise UserError(self._refusal(len(others)))
        # What is kept is written afresh: a torn tail must not become the head of the next line.
        kept = [self._line(answer) for answer in self._answers.values()]
        write_file(partial, b"".join(kept), private)
        self._file = open(partial, "r+b")  # noqa: SIM115 - closed by __exit__
        self._end = sum(map(len, kept))

    def __enter__(self: Log) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            self._file.close()

    @property
    def answered(self) -> list[int]:
        """Indices of the questions that are answered."""
        return sorted(self._answers)

    @property
    def missing(self) -> list[int]:
        """Indices of the others."""
        return [index for index in range(len(self._keys)) if index not in self._answers]

    def first_memory(self, found: float) -> float:
        """Returns the bytes that were free when these answers were begun; of a new run `found`, which is kept.

        By it batches are made, so that a run that was stopped continues in the batches of an undisturbed one.
        """
        if self._answers and self._memory.is_file():
            return float(json.loads(self._memory.read_bytes()))
        write_file(self._memory, to_json_line(found), self._private)
        return found

    def flush(self) -> None:
        """Appends what is pending and syncs it; may be interrupted and called again."""
        data = b"".join(self._pending)
        if data:
            # Always from the last good end: a signal may have stopped an earlier attempt within a line.
            with writing(self._partial):
                self._file.seek(self._end)
                self._file.truncate()
                self._file.write(data)
                self._file.flush()
                os.fsync(self._file.fileno())
            self._end += len(data)
            self._pending.clear()
        self._flushed_at = time.monotonic()

    def _record(self, index: int, answer: Answer) -> None:
        """Records an answer; it is on disk at the latest FLUSH_ROWS answers or FLUSH_SECONDS later."""
        self._answers[index] = answer
        self._pending.append(self._line(answer))
        if len(self._pending) >= FLUSH_ROWS or time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()

    def _finished(self) -> list[Answer]:
        """Writes the finished file, removes the partial one and returns the answers in order."""
        if self.missing:
            raise ValueError(f"{len(self.missing)} rows have no answer yet")
        answers = [self._answers[index] for index in range(len(self._keys))]
        self.flush()
        write_file(self._final, b"".join(map(self._line, answers)), self._private)
        for path in (self._partial, self._memory):
            path.unlink(missing_ok=True)
        return answers

    def _refusal(self, others: int) -> str:
        """Returns what is said where so many lines answer other questions."""
        raise NotImplementedError

    def _found_torn(self, tail: bytes) -> None:
        """Is told what stands behind the last whole line of a file, mostly nothing."""

    def _take_over(self, line: bytes) -> bool:
        """Keeps the answer on a whole line, given without its end; returns whether nothing is lost by that."""
        raise NotImplementedError

    def _line(self, answer: Answer) -> bytes:
        """Returns an answer's line, with its end."""
        raise NotImplementedError
