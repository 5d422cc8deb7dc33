"""Tasks whose output is one label of a fixed set: relations, inference, any other (PubMedQA's yes, no, maybe).

An annotation ends with its label: (premise, hypothesis, label) for inference, (input, label) for the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medtune_jax.tasks.base import Allowed, Parsed, RowError, Slot, Task, leading_metric
from medtune_jax.tasks.counts import f1, ratio
from medtune_jax.tasks.label_text import LabelFinder

NLI_LABELS = ("Entailment", "Contradiction", "Neutral")
_PREMISE = "Sentence 1: "
_HYPOTHESIS = "\nSentence 2: "


class LabelTask(Task):
    """One label per input; the input is taken as it is.

    Attributes:
      negative: the label that says that nothing holds (`No Relations`), or None. Where there is one, `f1_positive` is
        the micro F1 over the other labels and leads unless another metric is asked for; a constant negative answer
        scores 0 on it. An unparsable row counts there as one spurious prediction, whatever its gold label (our
        convention): it costs as much as a wrong label, also where the gold label is the negative one.
    """

    max_new_tokens = 32

    def __init__(self, kind: str, labels: Sequence[str], negative: str | None = None, *, metric: str | None = None):
        """Raises ValueError: labels that cannot be told apart, an unknown negative one, or no such metric."""
        self.kind = kind
        self.labels = tuple(labels)
        self.negative = negative
        if negative is not None and negative not in self.labels:
            raise ValueError(f"negative label {negative!r} is none of {self.labels}")
        names = ("accuracy", "macro_f1") if negative is None else ("f1_positive", "accuracy", "macro_f1")
        self.metric = leading_metric(metric, names)
        self._finder = LabelFinder(self.labels)
        self._allowed = Allowed((Slot(self.labels),))
        # Made once: a row's table is copied tens of thousands of times.
        self._no_cells: dict[str, float] = {_cell(one, other): 0 for one in self.labels for other in (*self.labels, "")}

    def render(self, annotation: tuple[str, ...]) -> tuple[str, str]:
        """Returns (input, label).

        Raises:
          ValueError: the label is not of the set.
        """
        input, label = annotation
        return input, self._known(label)

    def parse(self, text: str, input: str) -> Parsed:
        """Reads one label (see `LabelFinder.find`); none or several named is unparsable."""
        label, problems = self._finder.find(text)
        return Parsed(None if label is None else (*self._read_input(input), label), problems)

    def _read_input(self, input: str) -> tuple[str, ...]:
        return (input,)

    def _known(self, label: str) -> str:
        if label not in self.labels:
            raise ValueError(f"label {label!r} is none of {', '.join(self.labels)}")
        return label

    def allowed(self, input: str) -> Allowed:
        """Returns a single slot of all labels."""
        return self._allowed

    def classes(self, annotation: tuple[str, ...]) -> tuple[str, ...]:
        """Returns its label."""
        return annotation[-1:]

    def statistics(self, gold: tuple[str, ...], parsed: Parsed, input: str) -> dict[str, float]:
        """Returns rows, unparsable, and the confusion cell of this row: `confusion:GOLD:PREDICTED` of every pair of
        labels, PREDICTED empty for an unparsable row.

        Raises:
          ValueError: the gold label is not of the set.
        """
        predicted = "" if parsed.annotation is None else parsed.annotation[-1]
        counts = {**self._no_cells, "rows": 1, "unparsable": int(parsed.annotation is None)}
        counts[_cell(self._known(gold[-1]), predicted)] = 1
        return counts

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns accuracy, macro_f1 (mean over all labels of the task, one that never occurs counting 0), and
        f1_positive where a label is negative (micro F1 over the others, an unparsable row being a spurious one).
        macro_f1 cannot show an unparsable row as more than a missed one: read it beside the parse rate."""
        correct = {label: np.asarray(totals[_cell(label, label)]) for label in self.labels}
        gold = {one: sum(totals[_cell(one, other)] for other in (*self.labels, "")) for one in self.labels}
        found = {other: sum(totals[_cell(one, other)] for one in self.labels) for other in self.labels}
        scores = {
            "accuracy": ratio(sum(correct.values()), totals["rows"]),
            "macro_f1": np.mean([f1(correct[label], found[label], gold[label]) for label in self.labels], axis=0),
        }
        if self.negative is not None:
            positive = [label for label in self.labels if label != self.negative]
            right, given, wanted = (sum(counts[label] for label in positive) for counts in (correct, found, gold))
            scores["f1_positive"] = f1(right, given + np.asarray(totals["unparsable"]), wanted)
        return scores

    def breakdown(self, totals: Mapping[str, float]) -> dict[str, Any]:
        """Returns {"confusion": {gold: {predicted: count}}}, "" standing for unparsable."""
        return {
            "confusion": {
                one: {other: int(totals[_cell(one, other)]) for other in (*self.labels, "")} for one in self.labels
            }
        }

    def errors(self, gold: tuple[str, ...], parsed: Parsed, input: str) -> list[RowError]:
        """Returns at most one error: wrong_label or unparsable."""
        if parsed.annotation is None:
            return [RowError("unparsable", gold[-1], "")]
        if parsed.annotation[-1] != gold[-1]:
            return [RowError("wrong_label", gold[-1], parsed.annotation[-1])]
        return []

    def baselines(self, train: Sequence[tuple[str, str]]) -> dict[str, Callable[[str], str]]:
        """Returns `constant`: the label that scores most on the leading metric where every training row is given it;
        and `constant_negative`, always the negative label, where there is one and `constant` is another: on accuracy
        and macro_f1 it may well score more.

        Ties, and no training rows: the more frequent, then the earlier label.
        """
        counts = Counter(self._finder.find(output)[0] for _, output in train)
        # Accuracy is count / n; the F1 of one label, which is L times macro_f1, 2 count / (n + count); f1_positive
        # 2 count / (n + positives), or 0 for the negative label: all grow with the count.
        without = self.negative if self.metric == "f1_positive" else None
        scored = {label: 0 if label == without else counts[label] for label in self.labels}
        best = max(self.labels, key=lambda label: (scored[label], counts[label]))
        negative = self.negative
        if negative is None or negative == best:
            return {"constant": lambda input: best}
        return {"constant": lambda input: best, "constant_negative": lambda input: negative}


class NliTask(LabelTask):
    """Whether the first sentence entails, contradicts or leaves open the second; input of two labelled lines."""

    def __init__(self, *, metric: str | None = None):
        """Raises ValueError where there is no such metric."""
        super().__init__("nli", NLI_LABELS, metric=metric)

    def render(self, annotation: tuple[str, ...]) -> tuple[str, str]:
        """Returns ("Sentence 1: ..\\nSentence 2: ..", label).

        Raises:
          ValueError: the label is not of the set, or the first sentence holds a line that starts with "Sentence 2: ".
        """
        premise, hypothesis, label = annotation
        if _HYPOTHESIS in premise:
            raise ValueError(f"sentence 1 holds {_HYPOTHESIS!r}: {premise!r}")
        return f"{_PREMISE}{premise}{_HYPOTHESIS}{hypothesis}", self._known(label)

    def _read_input(self, input: str) -> tuple[str, ...]:
        premise, separator, hypothesis = input.removeprefix(_PREMISE).partition(_HYPOTHESIS)
        return (premise, hypothesis) if separator else (input, "")


def _cell(gold: str, predicted: str) -> str:
    return f"confusion:{gold}:{predicted}"
