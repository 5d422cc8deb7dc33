"""Reading one line of a model's answer as a set of labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from medtune_jax.tasks.label_text import BULLET, Named, Scanner, phrase_pattern

NONE = "None"
_NAME_AND_SHORT = re.compile(r"(\S.*) (\(\w[\w-]*\))")
_WORD_FOLLOWS = re.compile(r"\s+\w")
_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class LineReading:
    """What one line says.

    Attributes:
      labels: the labels named, in the order of the line, repeats kept.
      problems: the kinds of repairs made.
      says_none: `None` stands there, alone or at the end of a clause.
      vague_none: `None` stands there with a word after it ("none of the first two").
      contradictory: a label or `None` is denied, or a name is followed by another label's bracket.
      only_labels: nothing but labels or `None`, a bullet and punctuation.
    """

    labels: tuple[str, ...]
    problems: tuple[str, ...]
    says_none: bool
    vague_none: bool
    contradictory: bool
    only_labels: bool

    @property
    def names_something(self) -> bool:
        return bool(self.labels) or self.says_none or self.vague_none or self.contradictory


class LabelLines:
    """Reads lines as sets of the given labels."""

    def __init__(self, labels: Sequence[str]):
        """Raises ValueError where labels cannot be told apart (see `LabelsTask`)."""
        _check_separable(labels)
        self._forms = _forms(labels)
        self._scanner = Scanner(phrase_pattern([*self._forms, NONE.casefold()]))

    def read(self, line: str) -> LineReading:
        """Reads one line without line feeds or white space at its edges."""
        bare = BULLET.sub("", line, count=1)
        folded = bare.casefold()
        named = list(self._scanner.named(folded))
        found = [one for one in named if one.phrase in self._forms]
        nones = [one for one in named if one.phrase not in self._forms]
        vague = [one for one in nones if _WORD_FOLLOWS.match(folded, one.end)]
        labels = [self._forms[one.phrase][0] for one in found]
        problems = {kind: None for one in found if (kind := self._forms[one.phrase][1])}
        if any(label not in bare and not self._forms[one.phrase][1] for one, label in zip(found, labels, strict=True)):
            problems["case"] = None
        if len(nones) > len(vague) and NONE not in bare:
            problems["case"] = None
        edges = [0, *(edge for one in named for edge in (one.start, one.end)), len(folded)]
        outside = [folded[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
        worded = any(map(_WORD.search, outside))
        if worded:
            problems["unknown_label" if found and _all_separate(outside) else "extra_text"] = None
        elif bare != line or outside[0] or outside[-1] or any(between != ", " for between in outside[1:-1]):
            problems["separator"] = None
        return LineReading(
            labels=tuple(labels),
            problems=tuple(problems),
            says_none=len(nones) > len(vague),
            vague_none=bool(vague),
            contradictory=any(one.denied for one in named) or self._mismatched(folded, found),
            only_labels=bool(named) and not worded,
        )

    def _mismatched(self, line: str, found: list[Named]) -> bool:
        """Whether a name is followed at once by the bracket of another label."""
        kinds = [self._forms[one.phrase][1] for one in found]
        return any(
            kinds[i : i + 2] == ["name_only", "abbreviation"] and not line[found[i].end : found[i + 1].start].strip()
            for i in range(len(found) - 1)
        )


def _check_separable(labels: Sequence[str]) -> None:
    """Raises ValueError where a joined answer could be read in two ways."""
    pieces: Counter[str] = Counter()
    for label in labels:
        own = label.casefold().split(", ")
        if label != label.strip() or not all(own) or re.search(r"[\n\r;]|,(?! )", label) or NONE.casefold() in own:
            raise ValueError(
                f"label {label!r} is empty, padded, 'none', or holds a line feed, a semicolon or a comma without space"
            )
        pieces.update(set(own))
    shared = [piece for piece, count in pieces.items() if count > 1]
    if shared or not labels:
        named = ", ".join(shared) or "there are none"
        raise ValueError(f"labels must differ in more than case and share no part between commas: {named}")


def _forms(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns each form that is read, folded -> (label, the problem it is: "", name_only or abbreviation).

    A half that several labels share, or that is a label, is no form; nor is a bracket of one letter, which may be that
    of an option.
    """
    forms = {label.casefold(): (label, "") for label in labels}
    halves = []
    for label in labels:
        parts = _NAME_AND_SHORT.fullmatch(label)
        if parts is not None:
            halves.append((parts[1].casefold(), (label, "name_only")))
            if len(parts[2]) > len("(x)"):
                halves.append((parts[2].casefold(), (label, "abbreviation")))
    counts = Counter(half for half, _ in halves)
    return forms | {
        half: meaning for half, meaning in halves if counts[half] == 1 and half not in forms and half != NONE.casefold()
    }


def _all_separate(outside: Sequence[str]) -> bool:
    """Whether a line starts with a label and what stands outside labels is separated from them by `,` or `;`."""
    return (
        not _WORD.search(outside[0])
        and all(not _WORD.search(one) or one.lstrip()[0] in ",;" for one in outside[1:])
        and all(not _WORD.search(one) or one.rstrip()[-1] in ",;" for one in outside[1:-1])
    )
