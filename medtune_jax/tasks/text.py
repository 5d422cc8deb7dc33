"""Free text answers, scored by the n-grams and subsequences that they share with the gold answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from medtune_jax.tasks.base import Parsed, RowError, Task, leading_metric
from medtune_jax.tasks.counts import ratio
from medtune_jax.tasks.rouge import NAMES as ROUGE
from medtune_jax.tasks.rouge import rouge_f1

BLEU_SIGNATURE = "nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp"
_ORDERS = (1, 2, 3, 4)


def clean_text(text: str) -> str:
    """Returns the text as it is compared: line ends written "\\n", no white space at its edges."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


class TextTask(Task):
    """A text for an input; an annotation is (input, output), the output as `clean_text` gives it.

    Metrics, of one reference per row:

    rouge1, rouge2, rougeL, rougeLsum: means over rows of the F1 of `rouge-score` with its tokenizer (lower case, a-z
      and 0-9 only) and Porter stemmer. rougeLsum takes each line as a sentence; texts of one line have
      rougeL = rougeLsum. A text without letters a-z and digits, and in rouge2 a text of one word, has nothing to
      share: even a perfect answer earns 0 there, as in the library (8 of the 100 validation notes of MTS-Dialog are
      one word, so that rouge2 ends at 0.92 there).
    bleu: `sacrebleu`'s corpus BLEU / 100 from summed statistics, signature BLEU_SIGNATURE. `eff:yes` leaves out n-gram
      orders that no answer has, so that a perfect corpus of texts under four words earns 1; elsewhere the figure is
      that of corpus_bleu's default `eff:no`. BLEU is a precision with a penalty for short corpora: where the answers
      are too long in all, leaving a bad one out may raise it.
    """

    kind = "text"
    labels: tuple[str, ...] = ()
    max_new_tokens = 512

    def __init__(self, *, metric: str | None = None):
        """Raises ValueError where `metric`, rougeL if not given, is none of the task's."""
        self.metric = leading_metric(metric or "rougeL", (*ROUGE, "bleu"))

    def render(self, annotation: tuple[str, str]) -> tuple[str, str]:
        """Returns the annotation.

        Raises:
          ValueError: the output is blank, or is not as `clean_text` gives it.
        """
        input, output = annotation
        if not output or output != clean_text(output):
            raise ValueError(f"the text is blank, padded or has carriage returns (see clean_text): {output[:80]!r}")
        return input, output

    def parse(self, text: str, input: str) -> Parsed:
        """Returns the cleaned text, whatever it says; a blank one is unparsable (empty_output).

        Unlike in other tasks a line that starts with `###` ends nothing: it may be a heading of the answer, and a gold
        text that holds one must read back whole. A prompt that the model goes on to invent so costs precision.
        """
        output = clean_text(text)
        return Parsed((input, output)) if output else Parsed(None, ("empty_output",))

    def allowed(self, input: str) -> None:
        """Returns None: any text may be an answer."""

    def statistics(self, gold: tuple[str, str], parsed: Parsed, input: str) -> dict[str, float]:
        """Returns rows, unparsable, the ROUGE F1 of the row, and for BLEU the tokens of the answer and of the gold text
        and the n-grams of each order, matched and in all; an unparsable row counts as an empty answer.
        """
        answer = "" if parsed.annotation is None else parsed.annotation[1]
        counts: dict[str, float] = {"rows": 1, "unparsable": int(parsed.annotation is None)}
        return counts | rouge_f1(gold[1], answer) | dict(zip(_BLEU_COUNTS, _bleu_counts(gold[1], answer), strict=True))

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the metrics of the class; 0/0 is 0."""
        scores = {name: ratio(totals[name], totals["rows"]) for name in ROUGE}
        columns = np.broadcast_arrays(*(np.asarray(totals[name], np.float64) for name in _BLEU_COUNTS))
        rows = np.stack(columns, axis=-1).reshape(-1, len(_BLEU_COUNTS))
        scores["bleu"] = np.array([_bleu_of(row) for row in rows]).reshape(columns[0].shape)
        return scores

    def errors(self, gold: tuple[str, str], parsed: Parsed, input: str) -> list[RowError]:
        """Returns `unparsable` for a blank answer and nothing else: how wrong a text is, is a matter of degree."""
        return [RowError("unparsable", gold[1], "")] if parsed.annotation is None else []

    def baselines(self, train: Sequence[tuple[str, str]]) -> dict[str, Callable[[str], str]]:
        """Returns `constant`: the most frequent training output, the earliest of equals; empty without rows."""
        most = Counter(clean_text(output) for _, output in train).most_common(1)
        answer = most[0][0] if most else ""
        return {"constant": lambda input: answer}


_BLEU_COUNTS = (
    "bleu_answer_tokens",
    "bleu_gold_tokens",
    *(f"bleu_matched{n}" for n in _ORDERS),
    *(f"bleu_ngrams{n}" for n in _ORDERS),
)


@cache
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU  # imported when first needed, like rouge-score

    return BLEU(effective_order=True)


def _bleu_counts(gold: str, answer: str) -> list[int]:
    """Returns the sufficient statistics of one row, in the order of _BLEU_COUNTS."""
    score = _bleu().corpus_score([answer], [[gold]])
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def _bleu_of(counts: np.ndarray) -> float:
    """Returns BLEU in 0..1 from summed statistics."""
    answer_tokens, gold_tokens, *ngrams = counts.tolist()
    matched, total = ngrams[: len(_ORDERS)], ngrams[len(_ORDERS) :]
    score = _bleu().compute_bleu(
        matched, total, int(answer_tokens), int(gold_tokens), smooth_method="exp", effective_order=True
    )
    return min(1.0, score.score / 100)  # exp(log(100)) is a little above 100
