"""predictions.jsonl: what a model answered, one line per row; appended while running, in row order when done.

While a run lasts its lines lie in `predictions.partial.jsonl`, in the order in which rows finish, and beside them, in
`predictions.partial.memory.json`, what memory was free, on which batches depend. A run that was interrupted continues
with the rows that are missing there, and ends with the same bytes as an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.evaluate.files import to_json_line
from medtune_jax.evaluate.keyed_log import KeyedLog
from medtune_jax.tasks.rows import Row

FINAL = "predictions.jsonl"
PARTIAL = "predictions.partial.jsonl"
FinishReason = Literal["", "eos", "length", "stop", "constrained", "prompt_too_long"]


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl; the fields stand in the order in which they are written.

    Attributes:
      row: position in the split that was evaluated (before a limit was applied).
      output: the gold output.
      finish_reason: why generation stopped; "" where it is not known.
      generated_tokens: number of tokens written, the end of the sequence not counted.
      key: identifies what was asked of which model (see `prediction_key`); "" where it is not known.
      loglikelihoods: candidate output -> its summed natural log-probability; None, and not written, where none were
        computed.
    """

    row: int
    id: str
    group: str
    source: str
    instruction: str
    input: str
    output: str
    meta: str
    generated: str
    finish_reason: str
    generated_tokens: int
    key: str
    loglikelihoods: Mapping[str, float] | None = None

    def line(self) -> bytes:
        """Returns the line of predictions.jsonl."""
        values = asdict(self)
        if self.loglikelihoods is None:
            del values["loglikelihoods"]
        return to_json_line(values)


_FIELDS = {field.name: field.type for field in fields(Prediction)}
_REQUIRED = ("source", "input", "output", "generated")


def unanswered(position: int, row: Row, key: str = "") -> Prediction:
    """Returns the line of a row to which nothing is generated yet."""
    return Prediction(row=position, **asdict(row), generated="", finish_reason="", generated_tokens=0, key=key)


def prediction_key(row: int, id: str, source: str, model: str, prompt: str, decoding: Any, template: str) -> str:
    """Returns 32 hex digits over everything that decides what a row's generated text is.

    Args:
      row: position in the split.
      id: the row's id, or "".
      source: the row's source, whose task reads the text.
      model: hash of the model's weights and tokenizer.
      prompt: the rendered prompt.
      decoding: JSON-ready description of the decoding method, its numbers and its seed.
      template: hash of the prompt template.
    """
    identity = json.dumps([row, id, source, model, prompt, decoding, template], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def read_predictions(path: str | Path) -> list[Prediction]:
    """Reads a predictions file, or the one in a folder; source, input, output and generated are enough (null = absent).

    Other keys, as other tools write them, are ignored; `meta` may be an object.

    Raises:
      UserError: no file, no line, or a line that is not a prediction (named as file:line).
    """
    path = Path(path)
    if path.is_dir():
        if not (path / FINAL).is_file() and (path / PARTIAL).is_file():
            raise UserError(f"{path / PARTIAL} is an unfinished run: give the same `medtune evaluate` command again.")
        path = path / FINAL
    if not path.is_file():
        raise UserError(f"No predictions: {path} does not exist. `medtune evaluate` writes it.")
    predictions: list[Prediction] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            predictions.append(_parse_line(line, len(predictions), f"{path}:{number}"))
    if not predictions:
        raise UserError(f"{path} holds no predictions.")
    return predictions


def _parse_line(line: bytes, row: int, where: str) -> Prediction:
    """Returns the prediction on `line`; `row` is its position where the line does not say."""
    try:
        values = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}). Each line must be one prediction object.") from None
    if not isinstance(values, dict):
        raise UserError(f"{where} is {type(values).__name__}; each line must be one prediction object.")
    for name in _REQUIRED:
        if name not in values:
            raise UserError(f"{where} lacks '{name}'. A prediction needs at least {', '.join(_REQUIRED)}.")
    values = {
        name: value for name, value in values.items() if name in _REQUIRED or (name in _FIELDS and value is not None)
    }
    if isinstance(values.get("meta"), dict):
        values["meta"] = json.dumps(values["meta"], sort_keys=True, ensure_ascii=False)
    for name, value in values.items():
        if name == "loglikelihoods":
            _check_loglikelihoods(value, where)
            continue
        kind = int if _FIELDS[name] == "int" else str
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = "an integer" if kind is int else "text"  # the value itself may be a row's text: not shown
            raise UserError(f"{where}: '{name}' is of type {type(value).__name__}; expected {expected}.")
    reason = values.get("finish_reason", "")
    if reason not in get_args(FinishReason):
        raise UserError(f"{where}: unknown finish_reason.{did_you_mean(reason, get_args(FinishReason)[1:])}")
    blank: dict[str, Any] = {name: 0 if kind == "int" else "" for name, kind in _FIELDS.items()}
    return Prediction(**{**blank, "loglikelihoods": None, "row": row, **values})


def _check_loglikelihoods(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: 'loglikelihoods' is of type {type(value).__name__}; expected an object of candidate output and "
            "number."
        )
    for at, number in enumerate(value.values(), 1):
        if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
            raise UserError(f"{where}: the log-likelihood of candidate {at} is not a finite number.")


class PredictionLog(KeyedLog[Prediction]):
    """The predictions of one run in its folder.

    Attributes:
      dropped_torn: whether a line that was cut off in the middle was dropped.
    """

    def __init__(self, folder: Path, rows: Sequence[Prediction], private: bool = False):
        """Opens the folder's log and takes over what earlier attempts have answered.

        Args:
          folder: made if needed.
          rows: what is asked, in row order, with `key` set and nothing generated yet; keys are distinct.
          private: see `KeyedLog`.

        Raises:
          UserError: the folder holds answers that are not to `rows`; they are left as they are. Nothing can be written
            there.
        """
        self._rows = list(rows)
        self.dropped_torn = False
        super().__init__(folder / FINAL, folder / PARTIAL, [row.key for row in self._rows], private=private)

    def add(
        self,
        index: int,
        generated: str,
        finish_reason: str,
        generated_tokens: int,
        loglikelihoods: Mapping[str, float] | None = None,
    ) -> None:
        """Records the answer to rows[index]."""
        answer = replace(
            self._rows[index],
            generated=generated,
            finish_reason=finish_reason,
            generated_tokens=generated_tokens,
            loglikelihoods=loglikelihoods,
        )
        self._record(index, answer)

    def finish(self) -> list[Prediction]:
        """Writes predictions.jsonl in row order, removes the partial file and returns the predictions."""
        return self._finished()

    def _refusal(self, others: int) -> str:
        return (
            f"{self._final.parent} holds {others:,} answers that this call would lose: they belong to rows that it "
            "does not ask (--limit, --sources, --split, --data) or to another model, template or decoding. "
            "Give another --out, or remove that folder."
        )

    def _found_torn(self, tail: bytes) -> None:
        self.dropped_torn |= bool(tail)

    def _take_over(self, line: bytes) -> bool:
        try:
            answer = _parse_line(line, 0, PARTIAL)
        except UserError:
            self.dropped_torn = True
            return True
        index = self._index.get(answer.key)
        if index is None:
            return False
        # The question's own columns are today's (a gold output may have been mended); only the answer is kept.
        self._answers[index] = replace(
            self._rows[index],
            generated=answer.generated,
            finish_reason=answer.finish_reason,
            generated_tokens=answer.generated_tokens,
            loglikelihoods=answer.loglikelihoods,
        )
        return True

    def _line(self, answer: Prediction) -> bytes:
        return answer.line()
