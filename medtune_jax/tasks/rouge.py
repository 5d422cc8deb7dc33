"""ROUGE F1 as `rouge-score` gives it with its stemmer, with a faster longest common subsequence.

Its tokenizer, stemmer and n-gram scores are used as they are. The two scores of subsequences are computed here on bit
vectors, because the library fills a table cell by cell in Python: on texts of 53 words 90 rows a second against 2,000
here (all four scores, one busy CPU core). Of several longest subsequences the library's is taken, so that the figures
are equal to the last bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_CACHED_STEMS = 2**16


def rouge_f1(gold: str, answer: str) -> dict[str, float]:
    """Returns the F1 of each of NAMES. Sentences of rougeLsum are lines, as rouge-score expects them."""
    tokenizer, scorer = _library()
    golds, answers = ([tokenizer.tokenize(line) for line in text.split("\n")] for text in (gold, answer))
    gold_words, answer_words = ([word for line in lines for word in line] for lines in (golds, answers))
    scores = {name: float(score.fmeasure) for name, score in scorer.score(gold_words, answer_words).items()}
    in_all = len(gold_words), len(answer_words)
    scores["rougeL"] = _f1(len(common_subsequence(gold_words, answer_words)), *in_all)
    of_one_line = len(golds) == len(answers) == 1
    scores["rougeLsum"] = scores["rougeL"] if of_one_line else _f1(_union_hits(golds, answers), *in_all)
    return scores


def common_subsequence(gold: Sequence[str], answer: Sequence[str]) -> list[int]:
    """Returns the positions in `gold` of the longest common subsequence that rouge-score finds.

    Row i of the table of lengths is held as the bits j where it grows from j to j + 1 (Hyyro 2004, "Bit-parallel LCS-
    length computation revisited"); the way back through the table is rouge-score's. O(len(gold) len(answer) / 30).
    """
    positions: dict[str, int] = {}
    for j, word in enumerate(answer):
        positions[word] = positions.get(word, 0) | 1 << j
    all_bits = (1 << len(answer)) - 1
    flat = all_bits  # bits where the row does not grow
    grows = [0]
    for word in gold:
        matching = flat & positions.get(word, 0)
        flat = ((flat + matching) | (flat - matching)) & all_bits
        grows.append(all_bits ^ flat)
    found = []
    i, j = len(gold), len(answer)
    while i and j:
        if gold[i - 1] == answer[j - 1]:
            i, j = i - 1, j - 1
            found.append(i)
        elif _length(grows[i], j - 1) > _length(grows[i - 1], j):
            j -= 1
        else:
            i -= 1
    return found[::-1]


def _length(grows: int, end: int) -> int:
    return (grows & ((1 << end) - 1)).bit_count()


def _union_hits(golds: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> int:
    """Returns the words of the gold lines that are common with any line of the answer, none counted more often than
    both texts have it (Lin 2004, section 3.2, and ROUGE 1.5.5)."""
    left = Counter(word for line in golds for word in line) & Counter(word for line in answers for word in line)
    hits = 0
    for line in golds:
        common = sorted({at for other in answers for at in common_subsequence(line, other)})
        for word in (line[at] for at in common):
            if left[word] > 0:
                left[word] -= 1
                hits += 1
    return hits


def _f1(common: int, gold: int, answer: int) -> float:
    # In rouge-score's order of operations, so that the last bit is the same.
    if not common:
        return 0.0
    precision, recall = common / answer, common / gold
    return 2 * precision * recall / (precision + recall)


class _Words:
    """A tokenizer, in rouge-score's sense, of texts that are tokenized already."""

    def tokenize(self, words: list[str]) -> list[str]:
        return words


@cache
def _library() -> tuple[Any, Any]:
    """Returns rouge-score's tokenizer, with a stemmer that remembers what it has stemmed, and its scorer of n-grams."""
    # Imported when first needed: nltk, which it uses, takes seconds.
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer(use_stemmer=True)
    stemmer = tokenizer._stemmer
    stemmer.stem = lru_cache(_CACHED_STEMS)(stemmer.stem)
    return tokenizer, RougeScorer(["rouge1", "rouge2"], tokenizer=_Words())
