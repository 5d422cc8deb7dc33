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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medtune_jax.data.encoded import Encoded, EncodedRows
from medtune_jax.data.prompts import Template
from medtune_jax.data.tokenizer import Span, Tokenizer
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import find_source
from medtune_jax.tasks.rows import Row

Overlong = Literal["error", "drop", "truncate_input"]

CHUNK = 4096  # rows encoded at a time


@dataclass(frozen=True)
class Policy:
    """How rows are encoded; the arguments of `encode_rows`."""

    max_length: int | None = None
    overlong: Overlong = "error"
    decision_weight: float = 1.0


@dataclass(frozen=True)
class Tally:
    """What `Report` tells, of some consecutive rows; too_long: (index, tokens) of each overlong row."""

    kept: int
    tokens: int
    loss_tokens: int
    longest: int
    too_long: tuple[tuple[int, int], ...]
    truncated: int
    unknown: Counter[str]
    undecided: int


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


def encode_prompt(
    tokenizer: Tokenizer, template: Template, instruction: str, input: str, preface: str = ""
) -> list[int]:
    """Returns BOS and the ids of preface + prompt, encoded jointly: what a model is given before it answers."""
    return [tokenizer.bos_id, *tokenizer.encode(preface + template.prompt(instruction, input))]


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
    policy = Policy(max_length, overlong, decision_weight)
    check(rows, policy)
    starts = range(0, len(rows), CHUNK)
    parts, tallies = zip(
        *(encode_chunk(tokenizer, template, rows[start : start + CHUNK], start, policy) for start in starts),
        strict=True,
    )
    return EncodedRows.join(parts), summarize(tallies, rows, policy)


def check(rows: Sequence[Row], policy: Policy) -> None:
    """Raises UserError where there are no rows, or the weight is not above 0."""
    if not rows:
        raise UserError("No rows to encode: the data set is empty, or no row is of the sources asked for.")
    if not policy.decision_weight > 0:
        raise UserError(
            f"train.decision_weight is {policy.decision_weight}; it must be above 0 (1 = all tokens alike)."
        )


def encode_chunk(
    tokenizer: Tokenizer, template: Template, rows: Sequence[Row], first: int, policy: Policy
) -> tuple[EncodedRows, Tally]:
    """Encodes consecutive rows, of which rows[0] has index `first`; see `encode_rows` (too long is no error here)."""
    kept: list[Encoded] = []
    indices: list[int] = []
    too_long: list[tuple[int, int]] = []
    known = [find_source(row.source) is not None for row in rows]
    weight, limit = policy.decision_weight, policy.max_length
    decisions = [_decisions(row) if weight != 1 else None for row in rows]
    encoded = _encode(tokenizer, template, rows, decisions, weight, first)
    for index, (row, found, spans) in enumerate(zip(rows, encoded, decisions, strict=True), first):
        if limit is not None and len(found.tokens) > limit:
            too_long.append((index, len(found.tokens)))
            if policy.overlong != "truncate_input":
                continue
            found = _truncate_input(tokenizer, template, row, spans, weight, index, limit)
        kept.append(found)
        indices.append(index)
    undecided = sum(is_known and spans is None for is_known, spans in zip(known, decisions, strict=True))
    result = EncodedRows.of(kept, indices)
    return result, Tally(
        kept=len(result),
        tokens=len(result.tokens),
        loss_tokens=int(result.loss_tokens.sum()),
        longest=max(len(found.tokens) for found in encoded),
        too_long=tuple(too_long),
        truncated=len(too_long) if policy.overlong == "truncate_input" else 0,
        unknown=Counter(row.source for row, is_known in zip(rows, known, strict=True) if not is_known),
        undecided=undecided if weight != 1 else 0,
    )


def summarize(tallies: Sequence[Tally], rows: Sequence[Row], policy: Policy) -> Report:
    """Returns what became of `rows`, from the tallies of all of them.

    Raises:
      UserError: an overlong row under `error`, or no row is left.
    """
    too_long = [found for tally in tallies for found in tally.too_long]
    if too_long and policy.overlong == "error":
        raise UserError(_overlong_message(rows, too_long, policy.max_length))
    kept = sum(tally.kept for tally in tallies)
    if not kept:
        raise UserError(
            f"All {len(rows)} rows are longer than data.max_length={policy.max_length}: none is left to train on."
        )
    unknown = sum((tally.unknown for tally in tallies), Counter())
    return Report(
        rows=len(rows),
        kept=kept,
        dropped=len(rows) - kept,
        truncated=sum(tally.truncated for tally in tallies),
        tokens=sum(tally.tokens for tally in tallies),
        loss_tokens=sum(tally.loss_tokens for tally in tallies),
        longest=max(tally.longest for tally in tallies),
        unknown_sources=tuple(sorted(unknown.items())),
        undecided=sum(tally.undecided for tally in tallies),
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
