"""Training rows that share text with held-out rows (test or validation sets), found by n-grams of words.

A row's text is its input, or its instruction where it has no input (the answer is not looked at). It is lower-cased and
cut into runs of letters and digits, so that tokenised corpora compare with running text. Two rows share text if they
share N consecutive words; a text of fewer than N words matches only a text of exactly the same words. N = 13 as in the
GPT-3 report (arXiv 2005.14165, appendix C), which compares likewise; that the shorter texts are compared whole is ours.

Words are hashed to 64 bits (blake2b), n-grams by a polynomial of them modulo 2**64: among 10**8 training and 10**7 test
n-grams the odds of any chance match are about 10**-4.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from medtune_jax.tasks.rows import Row

TEST, VALIDATION = "test", "validation"
N = 13
EXAMPLES = 3  # pairs of row ids shown of each pair of sets
_BATCH = 4096  # rows hashed at once
_WORD = re.compile(r"[^\W_]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it loses bits
_PAD = 0x5851F42D4C957F2D  # stands for a word past the end of a short text
_FILTER_BITS = 25  # a table of 2**25 flags (32 MB) spares most n-grams the search


class HeldOut(NamedTuple):
    """Rows that no training row should share text with.

    Attributes:
      split: of the source.
      role: what they are held out as: "test", or "validation" for what runs are evaluated on while they are developed.
    """

    source: str
    split: str
    rows: Sequence[Row]
    role: str = TEST


@dataclass(frozen=True)
class Overlap:
    """What training rows and held-out sets share.

    Attributes:
      pairs: one for each training source and held-out set that share text, JSON-ready: how many rows of either do,
        their shares, how many held-out texts stand in training word for word, and the first rows by their ids.
      hit: [training rows] bool, the rows that share text with any test set.
      validation_hit: [training rows] bool, those that share text with any validation set.
      test_sets: source, split, rows and role of what was compared with.
    """

    pairs: list[dict[str, Any]]
    hit: np.ndarray
    validation_hit: np.ndarray
    test_sets: list[dict[str, Any]]


class _Words(dict[str, int]):
    """Word -> its 64-bit hash, made when first asked for."""

    def __missing__(self, word: str) -> int:
        raw = word.encode("utf-8", "surrogatepass")
        self[word] = value = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
        return value


class _Grams(NamedTuple):
    """Hashes of a batch of R rows: n-grams [G] uint64 with the row of each [G] int64; whole texts [R] uint64, 0 where a
    text has no word."""

    grams: np.ndarray
    rows: np.ndarray
    whole: np.ndarray


def overlap(train: Sequence[Row], tests: Iterable[HeldOut]) -> Overlap:
    """Compares training rows with held-out sets.

    Memory: about 24 bytes for each n-gram of the held-out sets and 32 MB; training rows are hashed in batches. Held-out
    rows are not kept, only their ids.
    """
    words = _Words()
    index = _index(tests, words)
    by_source: dict[str, list[int]] = {}
    for number, row in enumerate(train):
        by_source.setdefault(row.source, []).append(number)
    hits = {role: np.zeros(len(train), bool) for role in (TEST, VALIDATION)}
    pairs = []
    for source, numbers in by_source.items():
        pairs += _compare(source, [train[number] for number in numbers], np.array(numbers), index, words, hits)
    return Overlap(pairs, hits[TEST], hits[VALIDATION], index.described())


@dataclass(frozen=True)
class _Index:
    """The n-grams of all held-out sets.

    Attributes:
      sets: (source, split, rows, role) of each set, in the order of their rows.
      ids: of the rows of all sets.
      set_of_row: [rows] index in `sets`.
      grams: [U] uint64, sorted, each once; `starts` [U + 1]: where the rows of each begin in `posting`.
      posting: rows that hold a gram, sorted by gram, then row.
      present: flags by the upper bits of the grams.
      whole: [rows] hashes of whole texts.
    """

    sets: list[tuple[str, str, int, str]]
    ids: list[str]
    set_of_row: np.ndarray
    grams: np.ndarray
    starts: np.ndarray
    posting: np.ndarray
    present: np.ndarray
    whole: np.ndarray

    def described(self) -> list[dict[str, Any]]:
        return [dict(zip(("source", "split", "rows", "role"), entry, strict=True)) for entry in self.sets]

    def find(self, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the positions in `grams` that are in the index, and their indices there."""
        likely = np.flatnonzero(self.present[grams >> np.uint64(64 - _FILTER_BITS)])
        if not len(likely):
            return likely, likely
        at = np.minimum(np.searchsorted(self.grams, grams[likely]), len(self.grams) - 1)
        found = self.grams[at] == grams[likely]
        return likely[found], at[found]


def _index(tests: Iterable[HeldOut], words: _Words) -> _Index:
    sets: list[tuple[str, str, int, str]] = []
    ids: list[str] = []
    grams, rows, whole = [], [], []
    for test in tests:
        for first, batch in _batches(test.rows, words):
            grams.append(batch.grams)
            rows.append((batch.rows + (len(ids) + first)).astype(np.int32))
            whole.append(batch.whole)
        sets.append((test.source, test.split, len(test.rows), test.role))
        ids += [row.id for row in test.rows]
    all_grams, all_rows = _joined(grams, np.uint64), _joined(rows, np.int32)
    order = np.argsort(all_grams, kind="stable")
    unique, starts = np.unique(all_grams[order], return_index=True)
    present = np.zeros(1 << _FILTER_BITS, bool)
    present[unique >> np.uint64(64 - _FILTER_BITS)] = True
    return _Index(
        sets=sets,
        ids=ids,
        set_of_row=np.repeat(np.arange(len(sets)), [count for _, _, count, _ in sets]),
        grams=unique,
        starts=np.append(starts, len(all_grams)),
        posting=all_rows[order],
        present=present,
        whole=_joined(whole, np.uint64),
    )


def _compare(
    source: str,
    train: list[Row],
    numbers: np.ndarray,
    index: _Index,
    words: _Words,
    hits: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Returns the pairs of one training source; marks its rows in `hits` of a set's role, at `numbers`."""
    sets = len(index.sets)
    train_rows = np.zeros(sets, np.int64)
    examples: list[list[tuple[str, str]]] = [[] for _ in range(sets)]
    grams_hit, texts = np.zeros(len(index.grams), bool), []
    for first, batch in _batches(train, words):
        texts.append(batch.whole)
        at, gram = index.find(batch.grams)
        if not len(at):
            continue
        grams_hit[gram] = True
        for row, test_row in _meetings(batch.rows[at], gram, index):
            test_set = index.set_of_row[test_row]
            train_rows[test_set] += 1
            hits[index.sets[test_set][-1]][numbers[first + row]] = True
            if len(examples[test_set]) < EXAMPLES:
                examples[test_set].append((train[first + row].id, index.ids[test_row]))
    met = np.unique(index.posting[np.repeat(grams_hit, np.diff(index.starts))])
    test_rows = np.bincount(index.set_of_row[met], minlength=sets)
    same = np.isin(index.whole, _joined(texts, np.uint64)) & (index.whole != 0)
    identical = np.bincount(index.set_of_row[same], minlength=sets)
    return [
        {
            "train_source": source,
            "test_source": name,
            "test_split": split,
            "role": role,
            "train_rows": int(train_rows[number]),
            "train_share": int(train_rows[number]) / len(train),
            "test_rows": int(test_rows[number]),
            "test_share": int(test_rows[number]) / count,
            "identical_test_rows": int(identical[number]),
            "examples": [list(pair) for pair in examples[number]],
        }
        for number, (name, split, count, role) in enumerate(index.sets)
        if train_rows[number]
    ]


def _meetings(rows: np.ndarray, gram: np.ndarray, index: _Index) -> list[tuple[int, int]]:
    """Returns (row, first test row met) once for each row and test set that share an n-gram."""
    counts = index.starts[gram + 1] - index.starts[gram]
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    test_rows = index.posting[np.repeat(index.starts[gram], counts) + offsets].astype(np.int64)
    key = np.repeat(rows, counts) * len(index.sets) + index.set_of_row[test_rows]
    met, first = np.unique(key, return_index=True)
    return [(int(k) // len(index.sets), int(test_rows[at])) for k, at in zip(met, first, strict=True)]


def _batches(rows: Sequence[Row], words: _Words) -> Iterator[tuple[int, _Grams]]:
    """Yields (number of the first row, hashes) of consecutive rows."""
    for first in range(0, len(rows), _BATCH):
        yield first, _hashed([row.input or row.instruction for row in rows[first : first + _BATCH]], words)


def _hashed(texts: Sequence[str], words: _Words) -> _Grams:
    split = [_WORD.findall(text.lower()) for text in texts]
    whole = [_whole(found) for found in split]
    hashes: list[int] = []
    for found in split:
        hashes += map(words.__getitem__, found)
        if found and len(found) < N:
            hashes += [_PAD] * (N - len(found))
    lengths = [max(len(found), N) if found else 0 for found in split]
    values = np.array(hashes, np.uint64)
    rows = np.repeat(np.arange(len(texts)), lengths)
    count = max(len(values) - N + 1, 0)
    grams = np.zeros(count, np.uint64)
    for offset in range(N):
        grams = grams * _MULTIPLIER + values[offset : offset + count]
    in_one_row = rows[:count] == rows[N - 1 :]
    return _Grams(grams[in_one_row], rows[:count][in_one_row], np.array(whole, np.uint64))


def _whole(words: Sequence[str]) -> int:
    if not words:
        return 0
    raw = " ".join(words).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays])
