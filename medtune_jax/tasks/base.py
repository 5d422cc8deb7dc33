"""What a task is: how its rows are written, read back, scored and constrained, each said once.

data_prep renders with a task, evaluate parses and scores with it, generate walks its `allowed` outputs, and the
training loss finds the decision tokens through the same `allowed`. Tasks know text only: no tokenizer,
no arrays of JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

MARKER = "###"  # a line that starts with it begins another part of a prompt: an answer ends before it


@dataclass(frozen=True)
class Parsed:
    """What a task read in a model's text.

    Attributes:
      annotation: the task's annotation, or None when nothing usable was found.
      problems: the kinds of defects met, in order of appearance, repeats kept; empty for a well-formed text.
    """

    annotation: Any | None
    problems: tuple[str, ...] = ()

    @property
    def status(self) -> Literal["exact", "repaired", "unparsable"]:
        if self.annotation is None:
            return "unparsable"
        return "repaired" if self.problems else "exact"


@dataclass(frozen=True)
class Slot:
    """One decision inside an output: exactly one of `options` stands here."""

    options: tuple[str, ...]


@dataclass(frozen=True)
class Allowed:
    """Every output that a task permits for one input: forced text and decisions, in order.

    Attributes:
      parts: forced strings and Slots; their concatenation, with one option per slot, is an output.
      follows: the permitted (previous option, option) pairs of neighbouring slots, with None before the first slot;
        None where any option may follow any other.
    """

    parts: tuple[str | Slot, ...]
    follows: frozenset[tuple[str | None, str]] | None = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(part for part in self.parts if isinstance(part, Slot))

    def permits(self, previous: str | None, option: str) -> bool:
        return self.follows is None or (previous, option) in self.follows

    def text(self, options: tuple[str, ...]) -> str:
        """Returns the output in which the i-th slot holds options[i]."""
        chosen = iter(options)
        return "".join(part if isinstance(part, str) else next(chosen) for part in self.parts)

    def spans(self, output: str) -> list[tuple[int, int]] | None:
        """Returns the [start, end) characters of each decision in `output`, or None if it is not of this shape.

        An option that is a prefix of another is preferred only when the text after it fits too.
        """
        ends: list[tuple[int, int]] = []
        at = 0
        for index, part in enumerate(self.parts):
            if isinstance(part, str):
                if not output.startswith(part, at):
                    return None
                at += len(part)
                continue
            forced = self.parts[index + 1] if index + 1 < len(self.parts) else None
            fits = [
                option
                for option in sorted(part.options, key=len, reverse=True)
                if output.startswith(option, at)
                and (
                    at + len(option) == len(output)
                    if forced is None
                    else isinstance(forced, Slot) or output.startswith(forced, at + len(option))
                )
            ]
            if not fits:
                return None
            ends.append((at, at + len(fits[0])))
            at += len(fits[0])
        return ends if at == len(output) else None


@dataclass(frozen=True)
class Grammar:
    """A language of outputs, for tasks whose outputs no list of slots can say.

    Attributes:
      kind: `regex`, a regular expression that the whole output matches (Rust's syntax: no look-around, no references);
        `json_schema`, a JSON schema of which the output is an instance, on one line with the separators `", "` and
        `": "`.
      text: the expression, or the schema as JSON.
    """

    kind: Literal["regex", "json_schema"]
    text: str


def leading_metric(asked: str | None, names: Sequence[str]) -> str:
    """Returns the metric that leads: the one asked for, else the first of a task's names.

    Raises:
      ValueError: the task has no such metric.
    """
    if asked is not None and asked not in names:
        raise ValueError(f"metric {asked!r} is none of {', '.join(names)}")
    return asked or names[0]


@dataclass(frozen=True)
class RowError:
    """One scored mistake of one row, as errors.jsonl holds it.

    Attributes:
      kind: missed, spurious, boundary, type, wrong_label or unparsable.
      gold: the gold text or label concerned ("" for a spurious prediction).
      predicted: the predicted text or label ("" for a missed one).
      where: task-specific position (token span for NER), JSON-ready.
    """

    kind: str
    gold: str
    predicted: str
    where: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """The contract of every task; tasks inherit it for the methods that have a default.

    Annotations are hashable plain Python values compared with ==. `statistics` returns a row's sufficient statistics,
    every key always present; the corpus score is `metrics` of their sums: a bootstrap resamples rows by weights.
    """

    kind: str  # "ner", "relation", "nli", ...
    labels: tuple[str, ...]
    metric: str  # name of the leading metric in what `metrics` returns
    max_new_tokens: int  # default budget of free decoding

    def render(self, annotation: Any) -> tuple[str, str]:
        """Returns (input, output), the two columns of an instruction row."""
        ...

    def parse(self, text: str, input: str) -> Parsed:
        """Reads any string; never raises. parse(render(gold)[1], render(gold)[0]).annotation == gold."""
        ...

    def allowed(self, input: str) -> Allowed | None:
        """Returns the outputs that `render` can produce for `input`; None where any text may be one."""
        ...

    def grammar(self, input: str) -> Grammar | None:
        """Returns the grammar of the outputs that `render` can produce for `input` where `allowed` cannot say them;
        None where any text may be one."""
        return None

    def facts(self, annotation: Any) -> dict[str, Any]:
        """Returns what scoring needs and the output does not say (synonyms), JSON-ready, for the row's `meta`."""
        return {}

    def gold(self, output: str, input: str, facts: Mapping[str, Any]) -> Parsed:
        """Reads a row's gold answer. gold(*reversed(render(a)), facts(a)).annotation == a, also where `parse` alone
        cannot give back all of `a`."""
        return self.parse(output, input)

    def merge(self, annotations: Sequence[Any | None]) -> Any | None:
        """Returns the annotation of a document from those of its parts, in their order.

        A None in `annotations` is an unparsable part. Returns None for an unparsable document, and always where
        documents of this task are not scored.
        """
        return None

    def classes(self, annotation: Any) -> tuple[str, ...]:
        """Returns of which classes an annotation is an example, none where it holds no mention or label: by these the
        rows that are shown to a model before it is asked are balanced."""
        return ()

    def statistics(self, gold: Any, parsed: Parsed, input: str) -> dict[str, float]:
        """Returns this row's sufficient statistics; an unparsable row earns no credit and is counted."""
        ...

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns metric name -> value in 0..1 from summed statistics (scalars or arrays of one shape [R])."""
        ...

    def breakdown(self, totals: Mapping[str, float]) -> dict[str, Any]:
        """Returns what the totals say of each label, JSON-ready, for the report: {"confusion": {gold: {predicted:
        count}}} ("" = unparsable) where a row has one label, {"per_label": {label: {"gold", "predicted", "correct"}}}
        where it has several, {} where there are none."""
        return {}

    def errors(self, gold: Any, parsed: Parsed, input: str) -> list[RowError]:
        """Returns what was wrong in this row, for errors.jsonl and the report."""
        ...

    def baselines(self, train: Sequence[tuple[str, str]]) -> dict[str, Callable[[str], str]]:
        """Returns model-free answerers, name -> (input -> output text), fitted on (input, output) training rows.

        "constant" always exists (the constant label that scores most on the leading metric; all-O for NER); NER adds
        "train_dictionary".
        """
        ...
