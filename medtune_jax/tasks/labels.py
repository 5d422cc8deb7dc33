"""Documents with any number of labels of a fixed set, written as `label, label` or `None`.

An annotation is (input, labels): a tuple of labels in the task's order, empty where none applies. The input is taken
as it is. An answer is compared as a set, never as a string. `None` is no label: it has no part in precision and recall.

Kinds of problems beside those of `label_text`, of a repaired text: order (labels not in the task's order), repeat,
separator (other punctuation than ", "), line_break (labels on several lines), name_only and abbreviation (half of a
label `Name (AB)`), alias (another spelling of a label), unknown_label (a separate piece, beside labels, that is none).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from medtune_jax.tasks.base import Allowed, Parsed, RowError, Slot, Task, leading_metric
from medtune_jax.tasks.counts import f1, ratio
from medtune_jax.tasks.label_text import answer_lines
from medtune_jax.tasks.labels_reading import NONE, LabelLines

Annotation = tuple[str, tuple[str, ...]]
METRICS = ("micro_f1", "macro_f1", "example_f1", "accuracy")
_COUNTS = ("tp", "predicted", "gold")
_CONSTANTS = 20  # so many of the sets that occur are tried as constant answers


class LabelsTask(Task):
    """A set of labels per input."""

    kind = "labels"

    def __init__(
        self, labels: Sequence[str], *, aliases: Mapping[str, str] = MappingProxyType({}), metric: str | None = None
    ):
        """Sets up the forms in which each label is recognised.

        Args:
          labels: the names, as they are written.
          aliases: other spelling -> label, read but never written.
          metric: the leading metric, micro_f1 where not given.

        Raises:
          ValueError: no labels; one is empty, padded, "none" or holds a line feed or `;`; two cannot be told apart when
            joined by ", "; an alias is a form of a label already, or stands for none; or there is no such metric.
        """
        self.labels = tuple(labels)
        self.metric = leading_metric(metric, METRICS)
        # Ten names of HoC are 107 Llama-2 tokens; a longer set needs more.
        self.max_new_tokens = max(128, sum(map(len, self.labels)))
        self._lines = LabelLines(self.labels, aliases)
        self._allowed: Allowed | None = None

    def render(self, annotation: Annotation) -> tuple[str, str]:
        """Returns (input, "label, label") or (input, "None").

        Raises:
          ValueError: a label is not of the set, or the labels are not in the task's order, each once.
        """
        input, chosen = annotation
        for label in chosen:
            if label not in self.labels:
                raise ValueError(f"label {label!r} is none of {', '.join(self.labels)}")
        if tuple(chosen) != self.ordered(chosen):
            raise ValueError(f"labels {chosen} are not in the task's order, each once: {self.ordered(chosen)}")
        return input, ", ".join(chosen) or NONE

    def ordered(self, chosen: Sequence[str]) -> tuple[str, ...]:
        """Returns the labels of the set that are among `chosen`, in the task's order, each once."""
        return tuple(label for label in self.labels if label in set(chosen))

    def parse(self, text: str, input: str) -> Parsed:
        """Reads a set of labels; order is free.

        The first line that is not blank is read in whatever words it is put, and after it the lines that hold labels
        only; a first line without a label that ends in ":" introduces them. A label is named in full in any case, by
        its name without the bracket, by the bracket ("(CD)") where it has two letters or more, on a line of nothing
        else also without its marks ("PS, CD"), or by an alias; halves only where they stand for one label. `None` is
        the empty set where no word follows it, and so is a line such as "None of the above" or "No hallmarks" ("None of
        the first" says something else).

        Unparsable, and so neither the empty set nor half an answer: empty_output; no_label; ambiguous, which is `None`
        beside a label or another separate piece, a denied label (in a set, also beside one that is not denied: such an
        answer weighs labels one by one), a form filled in label by label ("PS: yes"), or a name with another label's
        bracket. Linear time (see `Scanner`).
        """
        lines, problems = answer_lines(text)
        if not lines:
            return Parsed(None, (*problems, "empty_output"))
        read = self._lines.read(lines[0])
        if not read.names_something and lines[0].endswith(":") and len(lines) > 1:
            problems.append("extra_text")
            lines = lines[1:]
            read = self._lines.read(lines[0])
        readings = [read]
        for line in lines[1:]:
            more = self._lines.read(line)
            if more.judged:
                readings.append(more)
            if not more.only_labels:
                problems.append("trailing_text")
                break
            readings.append(more)
        if len(readings) > 1:
            problems.append("line_break")
        chosen = [label for one in readings for label in one.labels]
        problems += dict.fromkeys(problem for one in readings for problem in one.problems)
        none = any(one.says_none for one in readings)
        vague = any(one.vague_none for one in readings)
        if any(one.contradictory or one.judged for one in readings) or (chosen and (none or vague)):
            return Parsed(None, (*problems, "ambiguous"))
        if not chosen and not none:
            return Parsed(None, (*problems, "no_label"))
        ordered = self.ordered(chosen)
        if len(ordered) < len(chosen):
            problems.append("repeat")
        if tuple(dict.fromkeys(chosen)) != ordered:
            problems.append("order")
        return Parsed((input, ordered), tuple(problems))

    def gold(self, output: str, input: str, facts: Mapping[str, Any]) -> Parsed:
        """Reads a gold answer: as `parse`, but an empty text is the empty set (problem empty_output), for HoC's rows
        without hallmark are written `None` or left empty."""
        if not output.strip():
            return Parsed((input, ()), ("empty_output",))
        return self.parse(output, input)

    def merge(self, annotations: Sequence[Annotation | None]) -> Annotation | None:
        """Returns the document: inputs joined by line feeds, the union of the labels; None in `annotations` is an
        unparsable part. A document with such a part is unparsable where its other parts name no label: an empty set
        would be credit for what was not said."""
        parts = [part for part in annotations if part is not None]
        union = self.ordered([label for _, labels in parts for label in labels])
        if not union and len(parts) < len(annotations):
            return None
        return "\n".join(input for input, _ in parts), union

    def allowed(self, input: str) -> Allowed:
        """Returns one slot per label of the set: slot k holds the k-th chosen label.

        Options are "X," and " X," where another label follows, "X" and " X" where none does, "None" in the first slot
        only, and "" in later slots after the last label; a comma ends its option, so that a tokenizer may cut between
        "," and " ". Guaranteed: slot k offers only labels of index k and above; `follows` allows ascending order only
        and nothing but "" after an option without a comma; the texts are exactly the 2^L outputs of `render`, each in
        one way; `spans` of a rendered output gives one span per slot, the later ones empty.
        """
        if self._allowed is None:
            self._allowed = self._build_allowed()
        return self._allowed

    def _build_allowed(self) -> Allowed:
        last = len(self.labels) - 1
        slots = []
        for k in range(len(self.labels)):
            space = " " if k else ""
            options = [f"{space}{label}," for label in self.labels[k:last]]
            options += [f"{space}{label}" for label in self.labels[k:]] + (["" if k else NONE])
            slots.append(Slot(tuple(options)))
        follows: set[tuple[str | None, str]] = {(None, option) for option in slots[0].options} | {(NONE, ""), ("", "")}
        for index, label in enumerate(self.labels):
            for space in ("", " "):
                follows.add((f"{space}{label}", ""))
                for later in self.labels[index + 1 :]:
                    follows.add((f"{space}{label},", f" {later}"))
                    follows.add((f"{space}{label},", f" {later},"))
        return Allowed(tuple(slots), frozenset(follows))

    def classes(self, annotation: Annotation) -> tuple[str, ...]:
        """Returns its labels."""
        return annotation[1]

    def statistics(self, gold: Annotation, parsed: Parsed, input: str) -> dict[str, float]:
        """Returns rows, unparsable, exact (the same set), example_precision, example_recall, and per label
        tp/, predicted/ and gold/LABEL.

        Precision and recall of a row without gold labels are 1 where none is predicted and 0 otherwise (our choice:
        BLUE's script divides by zero); those of an unparsable row are 0.
        """
        expected = set(gold[1])
        read = parsed.annotation is not None
        found = set(parsed.annotation[1]) if parsed.annotation is not None else set()
        right = len(expected & found)
        both_empty = float(read and not expected and not found)
        counts: dict[str, float] = {
            "rows": 1,
            "unparsable": int(not read),
            "exact": int(read and expected == found),
            "example_precision": right / len(found) if expected and found else both_empty,
            "example_recall": right / len(expected) if expected else both_empty,
        }
        for label in self.labels:
            counts[f"tp/{label}"] = int(label in expected and label in found)
            counts[f"predicted/{label}"] = int(label in found)
            counts[f"gold/{label}"] = int(label in expected)
        return counts

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns micro_f1 and macro_f1 over the labels, example_f1 and accuracy (the exact set).

        In micro_f1 an unparsable row counts as one spurious label, also where nothing is gold (our convention); the
        other F1 show it as missed labels only: read them beside the parse rate. In macro_f1 a label that never occurs
        counts 0. example_f1 is that of BLUE's eval_hoc, the F1 of the mean precision and the mean recall of the rows,
        but for rows without gold labels, at which BLUE's script divides by zero (see `statistics`): always `None` so
        earns the share of such rows, 14.3 on the documents of HoC's test set.
        """
        of = {name: [np.asarray(totals[f"{name}/{label}"]) for label in self.labels] for name in _COUNTS}
        precision, recall = (ratio(totals[f"example_{name}"], totals["rows"]) for name in ("precision", "recall"))
        return {
            "micro_f1": f1(sum(of["tp"]), sum(of["predicted"]) + np.asarray(totals["unparsable"]), sum(of["gold"])),
            "macro_f1": np.mean([f1(*one) for one in zip(*of.values(), strict=True)], axis=0),
            "example_f1": ratio(2 * precision * recall, precision + recall),
            "accuracy": ratio(totals["exact"], totals["rows"]),
        }

    def breakdown(self, totals: Mapping[str, float]) -> dict[str, Any]:
        """Returns {"per_label": {label: {"gold", "predicted", "correct"}}}."""
        names = {"gold": "gold", "predicted": "predicted", "correct": "tp"}
        return {
            "per_label": {
                label: {name: int(totals[f"{key}/{label}"]) for name, key in names.items()} for label in self.labels
            }
        }

    def errors(self, gold: Annotation, parsed: Parsed, input: str) -> list[RowError]:
        """Returns one `missed` per gold label that is not predicted, then one `spurious` per other one; of an
        unparsable row one `unparsable` per gold label, or one without."""
        if parsed.annotation is None:
            return [RowError("unparsable", label, "") for label in gold[1] or ("",)]
        found = parsed.annotation[1]
        return [RowError("missed", label, "") for label in gold[1] if label not in found] + [
            RowError("spurious", "", label) for label in found if label not in gold[1]
        ]

    def baselines(self, train: Sequence[tuple[str, str]]) -> dict[str, Callable[[str], str]]:
        """Returns `constant`: the set that scores most on the leading metric where every training row is given it; and
        `constant_negative`, always `None`, where `constant` is another.

        Candidates: None, the 20 sets that occur most, and the k most frequent labels for each k; one of the last is
        the best of all sets for micro_f1, whose value for k labels depends only on how often they occur, and for
        macro_f1 (all labels). Ties: the set that occurs more often, then the smaller one. Training rows that do not
        parse teach nothing.
        """
        read = (self.gold(output, input, {}).annotation for input, output in train)
        seen = Counter(annotation[1] for annotation in read if annotation is not None)
        often = Counter(label for labels, count in seen.items() for label in labels for _ in range(count))
        ranked = sorted(self.labels, key=lambda label: -often[label])
        prefixes = [self.ordered(ranked[:k]) for k in range(len(ranked) + 1)]
        sets = [labels for labels, _ in seen.most_common(_CONSTANTS)]
        candidates = sorted(dict.fromkeys([*prefixes, *sets]), key=lambda labels: (-seen[labels], len(labels)))
        scores = self.metrics(self._constant_totals(candidates, seen))[self.metric] if seen else np.array([0.0])
        best = self.render(("", candidates[int(np.argmax(scores))] if seen else ()))[1]
        return {"constant": lambda input: best} | ({"constant_negative": lambda input: NONE} if best != NONE else {})

    def _constant_totals(self, candidates: Sequence[tuple[str, ...]], seen: Counter) -> dict[str, np.ndarray]:
        """Returns the totals [R] of giving every row of `seen` the set candidates[R]."""
        rows = [
            {name: sum(count * counts[name] for count, counts in weighted) for name in weighted[0][1]}
            for candidate in candidates
            for weighted in [
                [(count, self.statistics(("", gold), Parsed(("", candidate)), "")) for gold, count in seen.items()]
            ]
        ]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}
