"""Extraction written as JSON: a list of names, or an object of one such list per field.

An annotation is (input, items): items holds one tuple of items per field, or a single one where the task has no
fields; an item is the tuple of its names, of which the first is written and the others are synonyms. A list of two
items without fields: ("Which ..?", ((("paracetamol", "acetaminophen"), ("ibuprofen",)),)).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medtune_jax.tasks.base import Grammar, Parsed, RowError, Task, leading_metric
from medtune_jax.tasks.counts import f1, ratio
from medtune_jax.tasks.extract_grammar import names_regex
from medtune_jax.tasks.extract_reading import read_fields, read_list
from medtune_jax.tasks.matching import match, normalise

Item = tuple[str, ...]
Items = tuple[tuple[Item, ...], ...]
Annotation = tuple[str, Items]

SYNONYMS = "synonyms"
# BioASQ scores at most five candidates of a factoid question since its third year.
MOST_CANDIDATES = 5
_CANDIDATE_ANSWERS = 10


class ExtractTask(Task):
    """Names found in, or asked of, the input.

    Names are compared normalised (`matching.normalise`). A predicted name stands for at most one gold item, which it
    matches by any of its names (a largest matching); repeats count once, in gold and prediction, and what matches
    nothing, a second synonym of one item too, is spurious. Four forms:

    list (the default): metrics f1, precision, recall over all items of the corpus (f1 leads); mean_f1, mean_precision,
      mean_recall, the means over rows that BioASQ reports for list questions (Balikas et al. 2013, `Evaluation
      framework specifications`; its sources pass metric="mean_f1"); exact_match: nothing missed, nothing spurious.
    fields: the same over (field, item) pairs, macro_f1 over the fields (one that never occurs counts 0), f1/FIELD, and
      status_accuracy: of the gold items named in any field, the share named in their own field and in none where the
      gold does not name them. It is the accuracy conditional on extraction of Agrawal et al. 2022 (arXiv 2205.12689) as
      we read it; the code of microsoft/clinical-self-verification conditions on what all compared models found, which
      one run cannot know.
    ranked: candidates, best first; any gold item answers. strict_accuracy (the first candidate is right),
      lenient_accuracy (one of the first five is), and mrr (leads; 1 / rank of the first right one of the five), as
      BioASQ defines them for factoid questions.
    single: one answer. exact_match (leads) and token_f1 (of the bags of words, the best over the names of the item;
      Rajpurkar et al. 2016).
    """

    kind = "extract"
    labels: tuple[str, ...] = ()
    max_new_tokens = 512

    def __init__(
        self, fields: Sequence[str] = (), *, ranked: bool = False, single: bool = False, metric: str | None = None
    ):
        """Raises ValueError: forms that exclude each other, fields that differ only in case, or an unknown metric."""
        self.fields = tuple(fields)
        if bool(self.fields) + ranked + single > 1:
            raise ValueError("a task has fields, or is ranked, or asks for a single answer; not two of these")
        plain = {field.casefold() for field in self.fields if field and field == field.strip()}
        if len(plain) != len(self.fields):
            raise ValueError(f"fields must be non-empty, unpadded and differ in more than case: {self.fields}")
        self.ranked = ranked
        self.single = single
        leads = "mrr" if ranked else "exact_match" if single else "f1"
        self.metric = leading_metric(metric or leads, list(self.metrics(defaultdict(lambda: np.zeros(())))))

    def render(self, annotation: Annotation) -> tuple[str, str]:
        """Returns (input, JSON on one line), with the first name of each item.

        Raises:
          ValueError: another number of fields, an item without names, a name that is blank or padded, no item where
            the task is ranked, or not one where it asks for a single answer.
        """
        input, items = annotation
        if len(items) != max(1, len(self.fields)):
            raise ValueError(f"{len(items)} lists of items but the task has {len(self.fields) or 'no'} fields")
        for item in (item for of_field in items for item in of_field):
            if not item or not all(name and name == name.strip() for name in item):
                raise ValueError(f"an item has one name or more, neither blank nor padded: {item!r}")
        if (self.ranked and not items[0]) or (self.single and len(items[0]) != 1):
            raise ValueError(f"{len(items[0])} answers, but {'exactly' if self.single else 'at least'} one is needed")
        names = [[item[0] for item in of_field] for of_field in items]
        value = dict(zip(self.fields, names, strict=True)) if self.fields else names[0]
        return input, json.dumps(value, ensure_ascii=False)

    def parse(self, text: str, input: str) -> Parsed:
        """Reads JSON strictly, else by the named repairs of `extract_reading`; an explicit empty list is an answer.

        Items have one name each. Of several single answers the first counts (extra_items). Linear time.
        """
        problems: list[str] = []
        if self.fields:
            found = read_fields(text, self.fields, problems)
        else:
            names = read_list(text, self.single, problems)
            found = None if names is None else [names]
        if found is None:
            return Parsed(None, tuple(problems))
        if self.single and len(found[0]) > 1:
            problems.append("extra_items")
            del found[0][1:]
        return Parsed((input, tuple(tuple((name,) for name in names) for names in found)), tuple(problems))

    def allowed(self, input: str) -> None:
        """Returns None: names are free text, which no list of slots can say; `grammar` does."""

    def grammar(self, input: str) -> Grammar:
        """Returns the grammar of the JSON that `render` writes; names, and of most forms their number, are unbounded.

        What it accepts is parsed as exact.
        """
        least, most = int(self.ranked or self.single), 1 if self.single else None
        return Grammar("regex", names_regex(self.fields, least=least, most=most))

    def facts(self, annotation: Annotation) -> dict[str, Any]:
        """Returns {"synonyms": per field, per item, its names but the first}; {} where no item has any."""
        items = annotation[1]
        if not any(len(item) > 1 for of_field in items for item in of_field):
            return {}
        return {SYNONYMS: [[list(item[1:]) for item in of_field] for of_field in items]}

    def gold(self, output: str, input: str, facts: Mapping[str, Any]) -> Parsed:
        """Reads the output and gives its items their synonyms; synonyms that are not those of these items are left out
        and named as the problem synonyms_mismatch."""
        parsed = self.parse(output, input)
        synonyms = facts.get(SYNONYMS)
        if parsed.annotation is None or synonyms is None:
            return parsed
        items = parsed.annotation[1]
        if not _fits(synonyms, items):
            return Parsed(parsed.annotation, (*parsed.problems, "synonyms_mismatch"))
        named = tuple(
            tuple((*item, *others) for item, others in zip(of_field, of_others, strict=True))
            for of_field, of_others in zip(items, synonyms, strict=True)
        )
        return Parsed((input, named), parsed.problems)

    def classes(self, annotation: Annotation) -> tuple[str, ...]:
        """Returns the fields that hold items ("items" where it has no fields)."""
        return tuple(name for name, items in zip(self.fields or ("items",), annotation[1], strict=True) if items)

    def statistics(self, gold: Annotation, parsed: Parsed, input: str) -> dict[str, float]:
        """Returns rows, unparsable, and the sums that the metrics of the task's form need (see the class)."""
        answered = parsed.annotation is not None
        predicted: Items = parsed.annotation[1] if parsed.annotation is not None else ((),) * len(gold[1])
        counts: dict[str, float] = {"rows": 1, "unparsable": int(not answered)}
        if self.ranked:
            rank = self._rank(gold[1][0], predicted[0])
            return counts | {"strict": int(rank == 1), "lenient": int(rank > 0), "reciprocal": 1 / rank if rank else 0}
        if self.single:
            return counts | {
                "exact": int(answered and _same(gold[1][0], predicted[0])),
                "token_f1": _token_f1(gold[1][0], predicted[0]) if answered else 0,
            }
        golds, founds = [_merged(items) for items in gold[1]], [_distinct(items) for items in predicted]
        correct = [_matched(items, names) for items, names in zip(golds, founds, strict=True)]
        total = {"correct": sum(correct), "predicted": sum(map(len, founds)), "gold": sum(map(len, golds))}
        nothing_asked = answered and not total["gold"] and not total["predicted"]
        of_row = {
            "precision": 1 if nothing_asked else float(ratio(total["correct"], total["predicted"])),
            "recall": 1 if nothing_asked else float(ratio(total["correct"], total["gold"])),
            "f1": 1 if nothing_asked else float(f1(*total.values())),
        }
        counts |= total | {f"row_{name}": value for name, value in of_row.items()}
        counts["exact"] = int(answered and len(set(total.values())) == 1)
        for at, field in enumerate(self.fields):
            counts |= {
                f"correct/{field}": correct[at],
                f"predicted/{field}": len(founds[at]),
                f"gold/{field}": len(golds[at]),
            }
        if self.fields:
            counts |= _statuses(golds, founds)
        return counts

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the metrics of the task's form (see the class); 0/0 is 0.

        A row without gold items answered by an explicit empty list counts 1 in the means over rows.
        """
        rows = totals["rows"]
        if self.ranked:
            sums = {"strict_accuracy": "strict", "lenient_accuracy": "lenient", "mrr": "reciprocal"}
            return {name: ratio(totals[key], rows) for name, key in sums.items()}
        if self.single:
            return {"exact_match": ratio(totals["exact"], rows), "token_f1": ratio(totals["token_f1"], rows)}
        scores = {
            "f1": f1(totals["correct"], totals["predicted"], totals["gold"]),
            "precision": ratio(totals["correct"], totals["predicted"]),
            "recall": ratio(totals["correct"], totals["gold"]),
            **{f"mean_{name}": ratio(totals[f"row_{name}"], rows) for name in ("f1", "precision", "recall")},
            "exact_match": ratio(totals["exact"], rows),
        }
        if self.fields:
            of_fields = {
                f"f1/{field}": f1(*(totals[f"{name}/{field}"] for name in ("correct", "predicted", "gold")))
                for field in self.fields
            }
            scores["macro_f1"] = np.mean(list(of_fields.values()), axis=0)
            scores["status_accuracy"] = ratio(totals["in_own_field"], totals["in_any_field"])
            scores |= of_fields
        return scores

    def breakdown(self, totals: Mapping[str, float]) -> dict[str, Any]:
        """Returns the counts per field; {} without fields."""
        if not self.fields:
            return {}
        return {
            "per_label": {
                field: {name: int(totals[f"{name}/{field}"]) for name in ("gold", "predicted", "correct")}
                for field in self.fields
            }
        }

    def errors(self, gold: Annotation, parsed: Parsed, input: str) -> list[RowError]:
        """Returns what differs: `unparsable` (one per gold item, or one), else `wrong_label` where the answer or the
        first candidate is not right, else per field `type` (named in the wrong field), `missed` and `spurious`.

        `where` holds the `field`, the `predicted_field` of a `type` error, the `rank` of the first right candidate.
        """
        written = [(at, item[0]) for at, items in enumerate(gold[1]) for item in items]
        if parsed.annotation is None:
            unread = [RowError("unparsable", name, "", self._where(at)) for at, name in written]
            return unread or [RowError("unparsable", "", "")]
        predicted: Items = parsed.annotation[1]
        if self.ranked or self.single:
            rank = self._rank(gold[1][0], predicted[0])
            if rank == 1 or (not gold[1][0] and not predicted[0]):
                return []
            first = predicted[0][0][0] if predicted[0] else ""
            return [RowError("wrong_label", written[0][1] if written else "", first, {"rank": rank} if rank else {})]
        return self._list_errors(gold[1], predicted)

    def _list_errors(self, gold: Items, predicted: Items) -> list[RowError]:
        missed: list[tuple[int, set[str], str]] = []
        spurious: list[tuple[int, str, str]] = []
        for at, (items, guesses) in enumerate(zip(gold, predicted, strict=True)):
            golds, names = _merged(items), _distinct(guesses)
            holders = match(list(names), list(golds.values()))
            spelled = {normalise(item[0]): item[0] for item in reversed(items)}
            missed += [
                (at, known, spelled[name])
                for (name, known), held in zip(golds.items(), holders, strict=True)
                if held is None
            ]
            spurious += [(at, name, names[name]) for index, name in enumerate(names) if index not in set(holders)]
        errors = []
        for at, known, name in missed:
            rival = next((one for one in spurious if one[0] != at and one[1] in known), None)
            if rival is None:
                errors.append(RowError("missed", name, "", self._where(at)))
                continue
            spurious.remove(rival)
            where = self._where(at) | {"predicted_field": self.fields[rival[0]]}
            errors.append(RowError("type", name, rival[2], where))
        return errors + [RowError("spurious", "", name, self._where(at)) for at, _, name in spurious]

    def _where(self, at: int) -> dict[str, Any]:
        return {"field": self.fields[at]} if self.fields else {}

    def _rank(self, gold: Sequence[Item], candidates: Sequence[Item]) -> int:
        """Returns the place of the first right one of the candidates that count, from 1; 0 where there is none."""
        right = {normalise(name) for item in gold for name in item}
        ranked = enumerate(candidates[:MOST_CANDIDATES], 1)
        return next((place for place, (name,) in ranked if normalise(name) in right), 0)

    def baselines(self, train: Sequence[tuple[str, str]]) -> dict[str, Callable[[str], str]]:
        """Returns `constant`: of the empty answer and the ten most frequent training answers, the one that scores most
        on the leading metric where every training row is given it (ties: the more frequent, then the earlier)."""
        answers = Counter(output for _, output in train if self.parse(output, "").annotation is not None)
        empty = json.dumps({field: [] for field in self.fields} if self.fields else [])
        golds: list[tuple[Any, int]] = [(self.parse(output, "").annotation, n) for output, n in answers.items()]
        tried = list(dict.fromkeys([*(answer for answer, _ in answers.most_common(_CANDIDATE_ANSWERS)), empty]))

        def score(answer: str) -> float:
            parsed = self.parse(answer, "")
            totals: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros(()))
            for gold, count in golds:
                for name, value in self.statistics(gold, parsed, "").items():
                    totals[name] = totals[name] + value * count
            return float(self.metrics(totals)[self.metric])

        best = max(tried, key=score)
        return {"constant": lambda input: best}


def _fits(synonyms: Any, items: Items) -> bool:
    """Returns whether `synonyms` holds a list of strings for each item of each field."""
    return (
        isinstance(synonyms, list)
        and all(isinstance(of_field, list) for of_field in synonyms)
        and [len(of_field) for of_field in synonyms] == [len(of_field) for of_field in items]
        and all(
            isinstance(others, list) and all(isinstance(name, str) for name in others)
            for of_field in synonyms
            for others in of_field
        )
    )


def _merged(items: Sequence[Item]) -> dict[str, set[str]]:
    """Returns normalised first name -> all normalised names; items of one first name are one."""
    merged: dict[str, set[str]] = {}
    for item in items:
        merged.setdefault(normalise(item[0]), set()).update(map(normalise, item))
    return merged


def _distinct(items: Sequence[Item]) -> dict[str, str]:
    """Returns normalised name -> as first written, of predicted items."""
    names: dict[str, str] = {}
    for (name,) in items:
        names.setdefault(normalise(name), name)
    return names


def _matched(golds: Mapping[str, set[str]], names: Mapping[str, str]) -> int:
    return sum(held is not None for held in match(list(names), list(golds.values())))


def _statuses(golds: Sequence[Mapping[str, set[str]]], founds: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Returns how many gold items are named in any field, and in how many cases only in fields of their own."""
    in_any = in_own = 0
    for at, of_field in enumerate(golds):
        for known in of_field.values():
            named = {other for other, names in enumerate(founds) if not known.isdisjoint(names)}
            own = {other for other, items in enumerate(golds) if any(not known.isdisjoint(i) for i in items.values())}
            in_any += bool(named)
            in_own += at in named and named <= own
    return {"in_any_field": in_any, "in_own_field": in_own}


def _same(gold: Sequence[Item], answers: Sequence[Item]) -> bool:
    names = {normalise(name) for item in gold for name in item}
    return {normalise(name) for (name,) in answers} <= names and bool(gold) == bool(answers)


def _token_f1(gold: Sequence[Item], answers: Sequence[Item]) -> float:
    if not gold or not answers:
        return float(not gold and not answers)
    answer = Counter(normalise(answers[0][0]).split())
    best = 0.0
    for name in gold[0]:
        words = Counter(normalise(name).split())
        best = max(best, 2 * (words & answer).total() / (words.total() + answer.total()))
    return best
