"""FILE.jsonl of `medtune generate --out`: an answer per line, in the order of the prompts, safe against being stopped.

While a run lasts its lines lie in FILE.jsonl.partial (keyed_log.py). Every line has the `key` of its question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune_jax.evaluate.files import to_json_line
from medtune_jax.evaluate.keyed_log import KeyedLog


class AnswerFile(KeyedLog[bytes]):
    """The answers of one run to its questions, each held as its line."""

    def __init__(self, path: Path, keys: Sequence[str]):
        """Takes over what earlier calls have answered.

        Args:
          path: of the finished file; its folder is made.
          keys: identity of each question, in order; no two are equal.

        Raises:
          UserError: there are answers to other questions, which are left as they are; or nothing can be written there.
        """
        super().__init__(path, path.with_name(path.name + ".partial"), keys)

    def add(self, index: int, result: Mapping[str, Any]) -> None:
        """Records the answer to a question."""
        self._record(index, to_json_line({**result, "key": self._keys[index]}))

    def finish(self) -> list[dict[str, Any]]:
        """Writes the file, removes the partial one and returns all answers in order, without their keys."""
        found = [json.loads(line) for line in self._finished()]
        return [{name: value for name, value in one.items() if name != "key"} for one in found]

    def _refusal(self, others: int) -> str:
        return (
            f"{self._final} and {self._partial.name} hold {others:,} lines that this call would lose: they are no "
            "answers to these prompts by this model and these settings. Give another --out, or remove them."
        )

    def _take_over(self, line: bytes) -> bool:
        try:
            index = self._index[json.loads(line)["key"]]
        except (ValueError, KeyError, TypeError):
            return False
        self._answers[index] = line + b"\n"
        return True

    def _line(self, answer: bytes) -> bytes:
        return answer
