"""Longest common subsequence of two token sequences with one fixed choice among equally long ones."""

from __future__ import annotations

from collections.abc import Sequence

# The table is one bit per (gold token, predicted token): 2**30 bits are 128 MiB.
# A 100 KB output against a 100 KB input stays below it; beyond it the tail of `predicted` is left unaligned.
MAX_TABLE_BITS = 2**30


def align(gold: Sequence[str], predicted: Sequence[str]) -> list[tuple[int, int]]:
    """Returns the (gold index, predicted index) pairs of the longest common subsequence, ascending.

    Among equally long ones the earliest matches are taken: walking both sequences from the left, equal tokens are
    matched at once; where dropping either token loses nothing, the gold token is dropped. Predicted tokens beyond
    MAX_TABLE_BITS / len(gold) after the common prefix are not aligned.

    The lengths come from the bit-parallel recurrence of Hyyrö (2004), "Bit-parallel LCS-length computation revisited",
    run over both sequences reversed, so that row r holds the lengths of the suffixes of the last r gold tokens.
    """
    prefix = 0
    for one, other in zip(gold, predicted, strict=False):
        if one != other:
            break
        prefix += 1
    pairs = [(index, index) for index in range(prefix)]
    gold, predicted = gold[prefix:], predicted[prefix:]
    if gold:
        predicted = predicted[: MAX_TABLE_BITS // len(gold)]
    # No stripping of a common suffix: it could take a later match where the walk takes an earlier one.
    pairs += [(i + prefix, j + prefix) for i, j in _walk(gold, predicted, _suffix_rows(gold, predicted))]
    return pairs


def _suffix_rows(gold: Sequence[str], predicted: Sequence[str]) -> list[int]:
    """Returns rows[r], of the last r gold tokens: bit k is 0 where their LCS grows at predicted[-1 - k]."""
    width = len(predicted)
    full = (1 << width) - 1
    occurs: dict[str, int] = {}
    for bit, token in enumerate(reversed(predicted)):
        occurs[token] = occurs.get(token, 0) | 1 << bit
    row = full
    rows = [row]
    for token in reversed(gold):
        common = row & occurs.get(token, 0)
        row = (row + common | row - common) & full
        rows.append(row)
    return rows


def _walk(gold: Sequence[str], predicted: Sequence[str], rows: list[int]) -> list[tuple[int, int]]:
    pairs = []
    i, j = 0, 0
    left = len(predicted)  # predicted tokens not yet passed
    length = left - rows[-1].bit_count()  # LCS of what remains of both
    while length:
        if gold[i] == predicted[j]:
            pairs.append((i, j))
            i, j, left, length = i + 1, j + 1, left - 1, length - 1
            continue
        without_gold = rows[len(gold) - i - 1] & (1 << left) - 1
        if left - without_gold.bit_count() == length:
            i += 1
        else:
            j, left = j + 1, left - 1
    return pairs
