"""Rows to token ids and loss weights.

Prompt and completion are encoded jointly, because the text that a model learns from is one text. The loss begins
after the longest token prefix that the joint encoding shares with the prompt alone; a token that straddles the boundary
bears loss. BOS starts every document and never bears loss; EOS ends it and always does. Inference encodes its prompts
here too.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np

from medtune_jax.data.prompts import Template
from medtune_jax.data.tokenizer import Span, Tokenizer
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import find_source
from medtune_jax.tasks.rows import Row

Overlong = Literal["error", "drop", "truncate_input"]

_CHUNK = 4096  # rows encoded at a time


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
        counted = np.concatenate([[0], np.cumsum(self.weights > 0)])
        return counted[self.starts[1:]] - counted[self.starts[:-1]]


@dataclass(frozen=True)
class Report:
    """What became of the rows.

    Attributes:
      rows: rows given; kept: rows encoded; dropped, truncated: overlong rows, by policy.
      tokens, loss_tokens: over the kept rows.
      longest: tokens of the longest row before any policy.
      unknown_sources: (source, rows) whose task is not known, so that no decision can be weighted.
      undecided: rows of known sources whose output is not of the form that its task permits (weight 1 throughout);
        counted only when decisions are weighted.
    """

    rows: int
    kept: int
    dropped: int
    truncated: int
    tokens: int
    loss_tokens: int
    longest: int
    unknown_sources: tuple[tuple[str, int], ...] = ()
    undecided: int = 0


def encode_prompt(tokenizer: Tokenizer, template: Template, instruction: str, input: str) -> list[int]:
    """Returns BOS and the prompt's ids: what a model is given before it answers."""
    return [tokenizer.bos_id, *tokenizer.encode(template.prompt(instruction, input))]


def encode_row(tokenizer: Tokenizer, template: Template, row: Row, decision_weight: float = 1.0) -> Encoded:
    """Encodes one row; see `encode_rows`. Raises UserError where the output is blank."""
    decisions = _decisions(row) if decision_weight != 1 else None
    return _encode(tokenizer, template, [row], [decisions], decision_weight, 0)[0]


def encode_rows(
    tokenizer: Tokenizer,
    template: Template,
    rows: Sequence[Row],
    *,
    max_length: int | None = None,
    overlong: Overlong = "error",
    decision_weight: float = 1.0,
) -> tuple[EncodedRows, Report]:
    """Encodes rows, applying the policy for those longer than max_length tokens (BOS and EOS included).

    Args:
      tokenizer: of the model to be trained.
      template: prompt and completion.
      rows: in the order that gives them their indices.
      max_length: positions of a training sequence; None = no limit.
      overlong: `error`; `drop`; or `truncate_input`, which cuts whole words off the end of the row's input until it
        fits and leaves instruction and output as they are. (Where the output echoes the input, as in NER, the cut part
        is then asked for without being shown: `drop` is better there.)
      decision_weight: weight of tokens that overlap a decision of the row's task, against 1 for other loss tokens.

    Returns:
      the kept rows, in order, and what became of all of them.

    Raises:
      UserError: no rows or none left; a blank output; an overlong row under `error`; a row that truncation cannot mend;
        a weight not above 0.
    """
    if not rows:
        raise UserError("No rows to encode: the data set is empty, or no row is of the sources asked for.")
    if not decision_weight > 0:
        raise UserError(f"train.decision_weight is {decision_weight}; it must be above 0 (1 = all tokens alike).")
    kept: list[Encoded] = []
    indices: list[int] = []
    too_long: list[tuple[int, int]] = []
    unknown: Counter[str] = Counter()
    undecided = truncated = longest = 0
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        decisions: list[list[Span] | None] = [None] * len(chunk)
        known = [find_source(row.source) is not None for row in chunk]
        unknown.update(row.source for row, is_known in zip(chunk, known, strict=True) if not is_known)
        if decision_weight != 1:
            decisions = [_decisions(row) for row in chunk]
            undecided += sum(is_known and spans is None for is_known, spans in zip(known, decisions, strict=True))
        encoded = _encode(tokenizer, template, chunk, decisions, decision_weight, start)
        for index, (row, found, spans) in enumerate(zip(chunk, encoded, decisions, strict=True), start):
            longest = max(longest, len(found.tokens))
            if max_length is not None and len(found.tokens) > max_length:
                too_long.append((index, len(found.tokens)))
                if overlong != "truncate_input":
                    continue
                found = _truncate_input(tokenizer, template, row, spans, decision_weight, index, max_length)
                truncated += 1
            kept.append(found)
            indices.append(index)
    if too_long and overlong == "error":
        raise UserError(_overlong_message(rows, too_long, max_length))
    if not kept:
        raise UserError(f"All {len(rows)} rows are longer than data.max_length={max_length}: none is left to train on.")
    result = EncodedRows.of(kept, indices)
    return result, Report(
        rows=len(rows),
        kept=len(result),
        dropped=len(rows) - len(result),
        truncated=truncated,
        tokens=len(result.tokens),
        loss_tokens=int(result.loss_tokens.sum()),
        longest=longest,
        unknown_sources=tuple(sorted(unknown.items())),
        undecided=undecided,
    )


def _decisions(row: Row) -> list[Span] | None:
    """Returns the characters of the row's output at which its task decides something; None where unknown."""
    source = find_source(row.source)
    allowed = None if source is None else source.task.allowed(row.input)
    return None if allowed is None else allowed.spans(row.output)


def _encode(
    tokenizer: Tokenizer,
    template: Template,
    rows: Sequence[Row],
    decisions: Sequence[list[Span] | None],
    decision_weight: float,
    first: int,
) -> list[Encoded]:
    """Encodes rows of any length; `first` is the index of rows[0], for messages."""
    for index, row in enumerate(rows, first):
        if not row.output.strip():
            raise UserError(f"{_name(row, index)} has an empty output, hence no loss tokens. Fill or remove it.")
    prompts = [template.prompt(row.instruction, row.input) for row in rows]
    texts = [prompt + template.completion(row.output) for prompt, row in zip(prompts, rows, strict=True)]
    for index, (row, text) in enumerate(zip(rows, texts, strict=True), first):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{_name(row, index)} holds half a surrogate pair ({error.reason}). Mend its text."
            ) from None
    heads = tokenizer.encode_batch(prompts)
    joints = tokenizer.encode_batch(texts)
    marked = [i for i, spans in enumerate(decisions) if spans]
    offsets = dict(
        zip(marked, tokenizer.encode_batch_with_offsets([texts[i] for i in marked]), strict=True) if marked else ()
    )
    encoded = []
    for i, (head, joint) in enumerate(zip(heads, joints, strict=True)):
        begin = 1 + _common_prefix(head, joint)
        tokens = np.empty(len(joint) + 2, np.int32)
        tokens[0], tokens[1:-1], tokens[-1] = tokenizer.bos_id, joint, tokenizer.eos_id
        weights = np.zeros(len(tokens), np.float32)
        weights[begin:] = 1.0
        if i in offsets:
            spans = np.asarray(decisions[i]) + len(prompts[i]) + template.output_at
            weights[1:-1][_overlap(offsets[i][1], spans)] = decision_weight
        encoded.append(Encoded(tokens, weights, begin))
    return encoded


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    shared = min(len(a), len(b))
    differs = np.flatnonzero(a[:shared] != b[:shared])
    return int(differs[0]) if differs.size else shared


def _overlap(tokens: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Returns bool [S]: which tokens [S, 2] share a character with any of the sorted, disjoint spans [N, 2]."""
    after = np.searchsorted(spans[:, 1], tokens[:, 0], side="right")  # the first span that ends after the token begins
    begins = np.append(spans[:, 0], np.iinfo(spans.dtype).max)[after]
    return (begins < tokens[:, 1]) & (tokens[:, 0] < tokens[:, 1])


def _truncate_input(
    tokenizer: Tokenizer,
    template: Template,
    row: Row,
    decisions: list[Span] | None,
    decision_weight: float,
    index: int,
    max_length: int,
) -> Encoded:
    """Returns `row` with the longest beginning of its input, in whole words, that fits."""
    ends = [0, *(word.end() for word in re.finditer(r"\S+", row.input))]

    def cut(words: int) -> Encoded:
        shorter = dataclasses.replace(row, input=row.input[: ends[words]])
        return _encode(tokenizer, template, [shorter], [decisions], decision_weight, index)[0]

    # Words kept: `low` fits, `high` does not. Nearly every added word adds tokens, so bisection finds a longest fit.
    # All words may fit where the whole input did not: white space after the last one is cut too.
    low, high, best = 0, len(ends), cut(0)
    if len(best.tokens) > max_length:
        raise UserError(
            f"{_name(row, index)} has {len(best.tokens)} tokens even without its input; the limit is {max_length}. "
            "Raise data.max_length or use data.overlong=drop."
        )
    while high - low > 1:
        middle = (low + high) // 2
        found = cut(middle)
        if len(found.tokens) <= max_length:
            low, best = middle, found
        else:
            high = middle
    return best


def _name(row: Row, index: int) -> str:
    return f"Row {index} (source '{row.source}'{f', id {row.id}' if row.id else ''})"


def _overlong_message(rows: Sequence[Row], too_long: list[tuple[int, int]], max_length: int | None) -> str:
    index, length = too_long[0]
    others = f" {len(too_long)} of {len(rows)} rows are too long, the longest {max(n for _, n in too_long)} tokens."
    return (
        f"{_name(rows[index], index)} has {length} tokens; the limit is data.max_length={max_length}."
        f"{others if len(too_long) > 1 else ''} Raise data.max_length, or choose data.overlong=drop or truncate_input."
    )
