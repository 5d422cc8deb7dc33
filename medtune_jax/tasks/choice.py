"""Multiple choice: a question with lettered options, answered by the letter alone.

An annotation is (question, options, letter): options is a tuple of 2 to 26 texts. The input is the question and a line
`A. text` per option; the options are read back from its last lines, so the question may hold such lines itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np

from medtune_jax.tasks.base import Allowed, Parsed, RowError, Slot, Task, leading_metric
from medtune_jax.tasks.choice_reading import find_letter
from medtune_jax.tasks.counts import ratio

Annotation = tuple[str, tuple[str, ...], str]
METRICS = ("accuracy", "accuracy_parsed")
_OPTION = re.compile(r"([A-Z])\.(?: (.*))?", re.DOTALL)
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_COUNTS = ("gold", "predicted", "correct")


class ChoiceTask(Task):
    """One right option per question; how many there are may differ from row to row."""

    kind = "choice"
    labels = tuple(ascii_uppercase)
    max_new_tokens = 32

    def __init__(self, *, metric: str | None = None):
        """Raises ValueError where there is no such metric."""
        self.metric = leading_metric(metric, METRICS)

    def render(self, annotation: Annotation) -> tuple[str, str]:
        """Returns ("question\\nA. first\\nB. second", letter).

        An option is one line: a line break inside it is written as a space, and it reads back so.

        Raises:
          ValueError: fewer than 2 or more than 26 options, or the letter is none of theirs.
        """
        question, options, letter = annotation
        if not 2 <= len(options) <= len(self.labels):
            raise ValueError(f"{len(options)} options; a question has 2 to {len(self.labels)}")
        letters = self.labels[: len(options)]
        if letter not in letters:
            raise ValueError(f"letter {letter!r} is none of {' '.join(letters)}")
        lines = [f"{mark}. {_LINE_BREAK.sub(' ', option)}" for mark, option in zip(letters, options, strict=True)]
        return "\n".join([question, *lines]), letter

    def options(self, input: str) -> tuple[str, tuple[str, ...]]:
        """Returns (question, options) of a row's input; no options where its last lines are not `A. ..`, `B. ..`."""
        lines = input.split("\n")
        last = _OPTION.fullmatch(lines[-1])
        count = self.labels.index(last[1]) + 1 if last else 0
        block = [_OPTION.fullmatch(line) for line in lines[len(lines) - count :]] if count < len(lines) else []
        texts = tuple(
            found[2] or "" for found, mark in zip(block, self.labels, strict=False) if found and found[1] == mark
        )
        if len(texts) < 2 or len(texts) != count:
            return input, ()
        return "\n".join(lines[:-count]), texts

    def parse(self, text: str, input: str) -> Parsed:
        """Reads one letter of the row's options (see `find_letter`); unparsable too where the input has no options."""
        question, options = self.options(input)
        if not options:
            return Parsed(None, ("no_options",))
        letter, problems = find_letter(text, options)
        return Parsed(None if letter is None else (question, options, letter), problems)

    def allowed(self, input: str) -> Allowed | None:
        """Returns a single slot of the row's letters; None where the input has no options."""
        _, options = self.options(input)
        return Allowed((Slot(self.labels[: len(options)]),)) if options else None

    def classes(self, annotation: Annotation) -> tuple[str, ...]:
        """Returns its letter."""
        return (annotation[-1],)

    def statistics(self, gold: Annotation, parsed: Parsed, input: str) -> dict[str, float]:
        """Returns rows, unparsable, and per letter gold/, predicted/ and correct/LETTER."""
        counts: dict[str, float] = {"rows": 1, "unparsable": int(parsed.annotation is None)}
        counts |= {f"{name}/{letter}": 0 for letter in self.labels for name in _COUNTS}
        counts[f"gold/{gold[-1]}"] = 1
        if parsed.annotation is not None:
            counts[f"predicted/{parsed.annotation[-1]}"] = 1
            counts[f"correct/{gold[-1]}"] = int(parsed.annotation[-1] == gold[-1])
        return counts

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns accuracy (an unparsable answer is wrong) and accuracy_parsed (over the parsed rows only, 0 without
        any; never to be read without the share of parsed rows)."""
        correct = sum(np.asarray(totals[f"correct/{letter}"]) for letter in self.labels)
        rows = np.asarray(totals["rows"])
        return {
            "accuracy": ratio(correct, rows),
            "accuracy_parsed": ratio(correct, rows - np.asarray(totals["unparsable"])),
        }

    def breakdown(self, totals: Mapping[str, float]) -> dict[str, Any]:
        """Returns {"per_label": {letter: {"gold", "predicted", "correct"}}} of the letters that occur."""
        counts = {letter: {name: int(totals[f"{name}/{letter}"]) for name in _COUNTS} for letter in self.labels}
        return {"per_label": {letter: of_letter for letter, of_letter in counts.items() if any(of_letter.values())}}

    def errors(self, gold: Annotation, parsed: Parsed, input: str) -> list[RowError]:
        """Returns at most one error, wrong_label or unparsable, with "letter. option" as its texts."""
        if parsed.annotation is None:
            return [RowError("unparsable", _named(gold), "")]
        if parsed.annotation[-1] != gold[-1]:
            return [RowError("wrong_label", _named(gold), _named(parsed.annotation))]
        return []

    def baselines(self, train: Sequence[tuple[str, str]]) -> dict[str, Callable[[str], str]]:
        """Returns `constant`: the letter that is right most often in the training rows, the earlier of equals."""
        read = (self.parse(output, input).annotation for input, output in train)
        counts = Counter(annotation[-1] for annotation in read if annotation is not None)
        best = max(self.labels, key=lambda letter: counts[letter])
        return {"constant": lambda input: best}


def _named(annotation: Annotation) -> str:
    _, options, letter = annotation
    return f"{letter}. {options[ascii_uppercase.index(letter)]}"
