"""FILE.jsonl of `medtune generate --out`: an answer per line, in the order of the prompts, safe against being stopped.

While a run lasts its lines lie in FILE.jsonl.partial, in the order in which they are finished. Every line has the `key`
of its question, so that the same call, given again, takes over what is answered and asks the rest.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune_jax.errors import UserError
from medtune_jax.evaluate.files import make_folder, to_json_line, write_file, writing

_FLUSH_ROWS, _FLUSH_SECONDS = 64, 5.0


class AnswerFile:
    """The answers of one run to its questions. Use as a context manager: leaving it writes what is pending.

    Attributes:
      partial: where answers lie while the run lasts.
    """

    def __init__(self, path: Path, keys: Sequence[str]):
        """Takes over what earlier calls have answered.

        Args:
          path: of the finished file; its folder is made.
          keys: identity of each question, in order; no two are equal.

        Raises:
          UserError: there are answers to other questions, which are left as they are; or nothing can be written there.
        """
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self._keys = list(keys)
        self._index = {key: index for index, key in enumerate(self._keys)}
        self._answers: dict[int, bytes] = {}
        self._pending: list[bytes] = []
        self._flushed_at = time.monotonic()
        make_folder(path.parent)
        others = sum(self._take_over(file.read_bytes()) for file in (self.path, self.partial) if file.is_file())
        if others:
            raise UserError(
                f"{path} and {self.partial.name} hold {others:,} lines that this call would lose: they are no answers "
                "to these prompts by this model and these settings. Give another --out, or remove them."
            )
        kept = list(self._answers.values())  # written afresh: a torn tail must not become the head of the next line
        write_file(self.partial, b"".join(kept))
        self._file = open(self.partial, "r+b")  # noqa: SIM115 - closed by __exit__
        self._end = sum(map(len, kept))

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._flush()
        finally:
            self._file.close()

    @property
    def answered(self) -> list[int]:
        return sorted(self._answers)

    def add(self, index: int, result: Mapping[str, Any]) -> None:
        """Records the answer to a question; it is on disk at the latest 64 answers or 5 seconds later."""
        line = to_json_line({**result, "key": self._keys[index]})
        self._answers[index] = line
        self._pending.append(line)
        if len(self._pending) >= _FLUSH_ROWS or time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
            self._flush()

    def finish(self) -> list[dict[str, Any]]:
        """Writes the file, removes the partial one and returns all answers in order, without their keys."""
        lines = [self._answers[index] for index in range(len(self._keys))]
        self._flush()
        write_file(self.path, b"".join(lines))
        self.partial.unlink(missing_ok=True)
        found = [json.loads(line) for line in lines]
        return [{name: value for name, value in one.items() if name != "key"} for one in found]

    def _flush(self) -> None:
        data = b"".join(self._pending)
        if data:  # always from the last good end: a signal may have stopped an earlier attempt within a line
            with writing(self.partial):
                self._file.seek(self._end)
                self._file.truncate()
                self._file.write(data)
                self._file.flush()
                os.fsync(self._file.fileno())
            self._end += len(data)
            self._pending.clear()
        self._flushed_at = time.monotonic()

    def _take_over(self, data: bytes) -> int:
        """Keeps the answers to what is asked now; returns how many whole lines are none."""
        others = 0
        for line in data.split(b"\n")[:-1]:
            try:
                found = json.loads(line)
                index = self._index[found["key"]]
            except (ValueError, KeyError, TypeError):
                others += 1
            else:
                self._answers[index] = line + b"\n"
        return others
