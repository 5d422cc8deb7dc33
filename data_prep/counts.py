"""What `prepare` counts in a corpus, and whether it is what was published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medtune_jax.data_prep.native import Record
from medtune_jax.tasks.base import Task

NO_LABEL = "None"  # under which documents without a label are counted


def gold_counts(task: Task, records: Sequence[Record]) -> dict[str, Any]:
    """Returns what the gold answers hold: {"mentions": n}, {"labels": {label: rows}}, with "positives" where one of
    the labels is negative, {"letters": {letter: rows}}, {"items": n}, or {} for free text."""
    answers = [record.annotation[-1] for record in records]
    if task.kind == "ner":
        return {"mentions": sum(tag[0] == "B" for tags in answers for tag in tags)}
    if task.kind == "text":
        return {}
    if task.kind == "choice":
        return {"letters": dict(sorted(Counter(answers).items()))}
    if task.kind == "extract":
        return {"items": sum(len(items) for fields in answers for items in fields)}
    counts: Counter[str] = Counter()
    if task.kind == "labels":
        for labels in answers:
            counts.update(labels or (NO_LABEL,))
        return {"labels": {label: counts[label] for label in (*task.labels, NO_LABEL)}}
    counts.update(answers)
    negative = getattr(task, "negative", None)
    positives = {"positives": len(answers) - counts[negative]} if negative else {}
    return {"labels": {label: counts[label] for label in task.labels}, **positives}


def group_count(records: Sequence[Record]) -> dict[str, int]:
    """Returns {"documents": n}, the number of distinct groups, or {} where the corpus has none."""
    groups = {record.group for record in records if record.group}
    return {"documents": len(groups)} if groups else {}


def differences(expected: Mapping[str, int], found: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Returns count -> {"expected", "found"} of the published counts that were not met.

    Args:
      expected: `rows`, `mentions`, `items`, `documents`, `positives` (rows of other than the negative label),
        or a label.
      found: the facts of a split, as `prepare` writes them; a count that is not among them is taken as 0.
    """
    named = {**found.get("labels", {}), **found.get("letters", {}), **found}
    return {
        name: {"expected": count, "found": named.get(name, 0)}
        for name, count in expected.items()
        if named.get(name, 0) != count
    }


def gold_text(facts: Mapping[str, Any]) -> str:
    """Returns the gold counts of a split's facts in a few words, for tables."""
    for name in ("labels", "letters"):
        if name in facts:
            return ", ".join(f"{label} {count}" for label, count in facts[name].items())
    return next((f"{facts[name]} {name}" for name in ("mentions", "items") if name in facts), "free text")


def expected_text(facts: Mapping[str, Any]) -> str:
    """Returns "ok", "differs: ..." or "-" (nothing published is known), for tables."""
    if facts["differs"]:
        counts = (f"{name} {met['found']}, published {met['expected']}" for name, met in facts["differs"].items())
        return f"differs: {'; '.join(counts)}"
    return "ok" if facts["expected"] else "-"
