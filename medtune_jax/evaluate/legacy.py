"""Protocol `legacy_medtuned`: the public scoring scripts of the Llama2-MedTuned authors, defects included.

A text may be the answer alone, or prompt and answer as the authors' generation scripts save them; it is the latter
where, special tokens aside, it begins with `### Instruction:` as all their templates do. How a script stops with an
error is said under `crash` of the scores, and what the figures then are under `crash_figures`.

Named entities (evaluating_ner.py): of prompt and answer, the text after the second `### Output:`, which fits one-shot
prompts only; of an answer alone, all of it; up to the next `###`. Lines are split at every colon into a dictionary
token -> tag: a repeated token keeps its last tag at its first place, a token with a colon its wrong parts. Tags are
compared over the keys of the gold dictionary; a missing tag, and any but B, I and O (all typed ones), is O; seqeval
in its default mode.

Inference (evaluating_nli.py): the text after the last `### Output:`, line feeds taken out, equals the gold or not.

Relations: legacy_relation.py. The authors publish no scorer of any other task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from medtune_jax.tasks.base import Allowed, Parsed, RowError, Task
from medtune_jax.tasks.counts import ratio
from medtune_jax.tasks.ner import NerTask

PROTOCOL: Literal["legacy_medtuned"] = "legacy_medtuned"
MARKER = "### Output:"

_PROMPT = re.compile(r"(?:\s|<s>|<unk>|<pad>)*### Instruction:")


def holds_prompt(text: str) -> bool:
    """Returns whether a text begins with a prompt of the authors."""
    return _PROMPT.match(text) is not None


class LegacyTask(Task):
    """A scoring script of the authors in the shape of a task; rendering and baselines are the real task's.

    `gold` and `parse` read one text. `pair` does what the script does with all of them together, and must be called
    before `statistics`.
    """

    def __init__(self, task: Task):
        self.task = task
        self.kind, self.labels, self.max_new_tokens = task.kind, task.labels, task.max_new_tokens

    def render(self, annotation: Any) -> tuple[str, str]:
        return self.task.render(annotation)

    def allowed(self, input: str) -> Allowed | None:
        return self.task.allowed(input)

    def baselines(self, train: Sequence[tuple[str, str]]) -> dict[str, Callable[[str], str]]:
        return self.task.baselines(train)

    def pair(self, golds: Sequence[Any], parsed: Sequence[Parsed]) -> tuple[list[Parsed], list[Parsed], dict[str, Any]]:
        """Returns (what each row's own text was read as, what the script compares with each row's gold, facts for
        scores.json, among them "crash": how the script stops, or None)."""
        raise NotImplementedError


class LegacyNer(LegacyTask):
    """An annotation of a gold output is (tokens, tags), of an answer ((token, tag), ...); tokens are distinct."""

    metric = "f1"

    def __init__(self, task: Task):
        super().__init__(task)
        self._untyped = NerTask()

    def gold(self, output: str, input: str, facts: Mapping[str, Any]) -> Parsed:
        """Reads the dictionary of a gold output; tags other than B, I, O count as O."""
        found = _tags_by_token(output)
        return Parsed((tuple(found), tuple(map(_legal, found.values()))) if found else None)

    def parse(self, text: str, input: str) -> Parsed:
        """Reads the dictionary of an answer; unparsable where no line holds a colon, which scores as all O."""
        text = text.strip()
        problems: tuple[str, ...] = ()
        if holds_prompt(text):
            parts = text.split(MARKER)
            problems = () if len(parts) > 2 else ("no_second_marker",)
            text = parts[2 if len(parts) > 2 else -1]
        found = _tags_by_token(text.split("###")[0])
        return Parsed(tuple(found.items()) or None, problems)

    def pair(self, golds: Sequence[Any], parsed: Sequence[Parsed]) -> tuple[list[Parsed], list[Parsed], dict[str, Any]]:
        """Returns each gold's tokens with the tags that the answer's dictionary has for them."""
        own = []
        for (tokens, _), one in zip(golds, parsed, strict=True):
            read = dict(one.annotation or ())
            tags = tuple(_legal(read.get(token, "O")) for token in tokens)
            own.append(Parsed(None if one.annotation is None else (tokens, tags), one.problems))
        short = sum("no_second_marker" in one.problems for one in parsed)
        crash = f"IndexError: {short:,} prompts lack the second {MARKER!r}" if short else None
        return own, own, {"crash": crash, "crash_figures": "read after the last marker" if crash else None}

    def statistics(self, gold: Any, parsed: Parsed, input: str) -> dict[str, float]:
        """Returns counts of tokens and entities over the gold dictionary; an unparsable row is all O."""
        tokens, tags = gold
        predicted = ("O",) * len(tokens) if parsed.annotation is None else parsed.annotation[1]
        expected, found = (set(self._untyped.entities(one)) for one in (tags, predicted))
        return {
            "rows": 1,
            "unparsable": int(parsed.annotation is None),
            "tokens": len(tokens),
            "correct_tokens": sum(map(str.__eq__, tags, predicted)),
            "tp": len(expected & found),
            "predicted": len(found),
            "gold": len(expected),
        }

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns seqeval's overall f1, precision, recall and accuracy, f1 by seqeval's own formula to its last bit."""
        precision, recall = ratio(totals["tp"], totals["predicted"]), ratio(totals["tp"], totals["gold"])
        return {
            "f1": ratio(2 * precision * recall, precision + recall),
            "precision": precision,
            "recall": recall,
            "accuracy": ratio(totals["correct_tokens"], totals["tokens"]),
        }

    def errors(self, gold: Any, parsed: Parsed, input: str) -> list[RowError]:
        """Returns the entities that differ over the gold dictionary; positions count its keys."""
        return self._untyped.errors(gold, parsed, input)


class LegacyNli(LegacyTask):
    """An annotation is the label's text as it stands."""

    metric = "accuracy"

    def gold(self, output: str, input: str, facts: Mapping[str, Any]) -> Parsed:
        return Parsed(output or None)

    def parse(self, text: str, input: str) -> Parsed:
        """Reads the text after the last `### Output:`, without line feeds."""
        return Parsed(label_text(text.split(MARKER)[-1]))

    def pair(self, golds: Sequence[Any], parsed: Sequence[Parsed]) -> tuple[list[Parsed], list[Parsed], dict[str, Any]]:
        """Returns the answers; one that is no gold label of any row stops the script, and is counted wrong here."""
        known = set(golds)
        own = [one if one.annotation in known else Parsed(None, ("unknown_label",)) for one in parsed]
        unread = sum(one.annotation is None for one in own)
        crash = f"KeyError: {unread:,} answers are none of the labels" if unread else None
        return own, own, {"crash": crash, "crash_figures": "such answers counted as wrong" if crash else None}

    def statistics(self, gold: Any, parsed: Parsed, input: str) -> dict[str, float]:
        """Returns rows, unparsable and correct."""
        return {
            "rows": 1,
            "unparsable": int(parsed.annotation is None),
            "correct": int(parsed.annotation == gold),
        }

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns accuracy."""
        return {"accuracy": ratio(totals["correct"], totals["rows"])}

    def errors(self, gold: Any, parsed: Parsed, input: str) -> list[RowError]:
        return label_errors(gold, parsed)


def label_text(text: str) -> str:
    """Returns a label as the authors clean it: edges stripped, line feeds taken out."""
    return text.strip().replace("\n", "").strip()


def label_errors(gold: str, parsed: Parsed) -> list[RowError]:
    """Returns at most one error: wrong_label or unparsable."""
    if parsed.annotation is None:
        return [RowError("unparsable", gold, "")]
    return [] if parsed.annotation == gold else [RowError("wrong_label", gold, parsed.annotation)]


def _tags_by_token(text: str) -> dict[str, str]:
    parts = [line.split(":") for line in text.strip().split("\n")]
    return {part[0].strip(): part[1].strip() for part in parts if len(part) > 1}


def _legal(tag: str) -> str:
    return tag if tag in ("B", "I", "O") else "O"
