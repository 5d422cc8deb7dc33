"""Protocol `legacy_medtuned` for relations: the authors' evaluating_re.py, written for i2b2-2010.

Of prompt and answer it reads the text after the first `### Output:`, of an answer alone all of it, up to the next one.
The first label that is a substring counts, in the order of a Python set, which differs from run to run: here the order
is the task's, and the best and the worst figure over all orders stand beside it. A text without any label is left out,
so that every later answer meets the gold of the row before; the last gold is left out always. The script thus runs to
its end only where exactly one text names no label. Its micro F1 over all labels is plain accuracy.

What a line of rows.parquet counts is then a pair of a gold row and the answer that the script holds against it: pairs,
not rows, are what bootstrap and `compare` resample. errors.jsonl is of each row's own answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtune_jax.evaluate.legacy import MARKER, LegacyTask, holds_prompt, label_errors, label_text
from medtune_jax.tasks.base import Parsed, RowError
from medtune_jax.tasks.counts import f1, ratio

NEGATIVE = "No Relations"  # the label that the script knows by name
MAX_LABELS = 16  # of which all orders are searched: the table has 2**labels places

_NO_PAIR = Parsed(None, ("no_pair",))


class LegacyRelation(LegacyTask):
    """An annotation of a gold output is its label; of an answer, before `pair`, all labels that occur in it."""

    metric = "micro_f1"

    def gold(self, output: str, input: str, facts: Mapping[str, Any]) -> Parsed:
        return Parsed(output if output in self.labels else None)

    def parse(self, text: str, input: str) -> Parsed:
        """Reads every label that is a substring, in the task's order."""
        parts = text.split(MARKER)
        if holds_prompt(text) and len(parts) == 1:
            return Parsed(None, ("no_marker",))
        text = label_text(parts[1 if holds_prompt(text) else 0])
        named = tuple(label for label in self.labels if label in text)
        return Parsed(named or None, () if named else ("no_label",))

    def pair(self, golds: Sequence[Any], parsed: Sequence[Parsed]) -> tuple[list[Parsed], list[Parsed], dict[str, Any]]:
        """Returns the picks, the picks as the script pairs them with the golds, and the orders of labels.

        Where the script stops, each pick is paired with its own row's gold instead, a row without one counted wrong.
        """
        order = [label for label in self.labels if label in set(golds)]
        sets = [tuple(label for label in one.annotation or () if label in order) for one in parsed]
        own = [
            Parsed(named[0] if named else None, one.problems or (() if named else ("no_label",)))
            for named, one in zip(sets, parsed, strict=True)
        ]
        kept = [row for row, named in enumerate(sets) if named]
        crash = _crash(parsed, len(kept), len(golds) - 1)
        at = list(range(len(golds))) if crash else kept
        paired = [own[row] for row in at] + ([] if crash else [_NO_PAIR])
        best, worst = _best_and_worst(order, [(gold, sets[row]) for gold, row in zip(golds, at, strict=False)])
        said = {
            "crash": crash,
            "crash_figures": "each answer beside its own row's gold, without a label wrong" if crash else None,
            "label_order": order,
            "best_order": best,
            "worst_order": worst,
            "shifted_from_row": None if crash else next(row for row, named in enumerate(sets) if not named),
        }
        return own, paired, said

    def statistics(self, gold: str, parsed: Parsed, input: str) -> dict[str, float]:
        """Returns rows, unparsable, correct, and per label gold, predicted and correct; all 0 without a pair."""
        counts: dict[str, float] = {"rows": 0, "unparsable": 0, "correct": 0}
        counts |= {f"{name}/{label}": 0 for label in self.labels for name in ("gold", "predicted", "correct")}
        if parsed is _NO_PAIR:
            return counts
        counts |= {"rows": 1, "unparsable": int(parsed.annotation is None), f"gold/{gold}": 1}
        if parsed.annotation is not None:
            counts[f"predicted/{parsed.annotation}"] = 1
        if parsed.annotation == gold:
            counts |= {"correct": 1, f"correct/{gold}": 1}
        return counts

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns micro_f1 over all labels (accuracy), macro_f1 over the labels that occur in gold or answers, and
        f1_positive, micro F1 without `No Relations`, which the script does not print."""
        counts = {
            name: {label: np.asarray(totals[f"{name}/{label}"]) for label in self.labels}
            for name in ("correct", "predicted", "gold")
        }
        occurs = sum((counts["gold"][label] + counts["predicted"][label] > 0) for label in self.labels)
        scores = [f1(*(counts[name][label] for name in counts)) for label in self.labels]
        positive = [label for label in self.labels if label != NEGATIVE]
        return {
            "micro_f1": ratio(totals["correct"], totals["rows"]),
            "macro_f1": ratio(sum(scores), occurs),
            "f1_positive": f1(*(sum(counts[name][label] for label in positive) for name in counts)),
        }

    def errors(self, gold: str, parsed: Parsed, input: str) -> list[RowError]:
        return label_errors(gold, parsed)


def _crash(parsed: Sequence[Parsed], labels: int, golds: int) -> str | None:
    """Returns how the script stops, or None where it runs to its end."""
    if short := sum("no_marker" in one.problems for one in parsed):
        return f"IndexError: {short:,} prompts hold no {MARKER!r}"
    if labels != golds:
        return f"ValueError: {labels:,} labels read against {golds:,} gold labels"
    return None


def _best_and_worst(
    order: Sequence[str], pairs: Sequence[tuple[str, tuple[str, ...]]]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Returns the orders of labels that give the highest and the lowest micro F1, each {"micro_f1", "order"}.

    Exact over all orders: what a label adds depends only on which labels stand before it, so that the best order of
    each subset follows from those of its parts (dynamic programming over subsets, as Held and Karp 1962).

    Args:
      pairs: (gold label, the labels that the text names) of every pair that the script compares.
    """
    if not pairs or len(order) > MAX_LABELS:
        return None, None
    bit = {label: 1 << place for place, label in enumerate(order)}
    size = 1 << len(order)
    # adds[label][free]: pairs of that gold whose text names it and otherwise only labels of the set `free`.
    adds = np.zeros((len(order), size), np.int64)
    for gold, named in pairs:
        if gold in named:
            adds[order.index(gold), sum(bit[label] for label in named)] += 1
    every = np.arange(size)
    for one in bit.values():
        adds[:, every & one > 0] += adds[:, every & one == 0]
    found = []
    for sign in (1, -1):
        value, last = np.zeros(size, np.int64), np.zeros(size, np.int64)
        for placed in range(1, size):
            value[placed], last[placed] = max(
                (value[placed ^ one] + sign * adds[place, (size - 1) & ~(placed ^ one)], -place)
                for place, one in enumerate(bit.values())
                if placed & one
            )
        labels, placed = [], size - 1
        while placed:
            labels.append(order[-int(last[placed])])
            placed ^= bit[labels[-1]]
        found.append({"micro_f1": int(sign * value[-1]) / len(pairs), "order": labels[::-1]})
    return found[0], found[1]
