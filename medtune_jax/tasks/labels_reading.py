"""Reading one line of a model's answer as a set of labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medtune_jax.tasks.label_text import BULLET, Named, Scanner, phrase_pattern

NONE = "None"
_NAME_AND_SHORT = re.compile(r"(\S.*) (\(\w[\w-]*\))")
_WORD_FOLLOWS = re.compile(r"\s+\w")
_WORD = re.compile(r"\w")
# A whole line that says that no label of the set applies.
_NO_LABEL = re.compile(
    r"(?:none(?: of (?:the|these)(?: above| labels| hallmarks| categories| classes| options)?)?"
    r"|no (?:labels?|hallmarks?|category|class))(?: of cancer)?"
    r"(?: appl(?:y|ies)| (?:is|are) (?:present|described|mentioned|shown|found))?[.!]?"
)
_SEPARATORS = re.compile(r"\s*[,;/]\s*(?:and\s)?|\s+and\s+")
# "PS: yes" begins a form that is filled in label by label; which answer it gives is not simply readable.
_VERDICT = re.compile(r"\s*[:=\u2013-]\s*(?:yes|no|true|false|present|absent|[01])(?!\w)")
_REASON = re.compile(r"\s*[,;]?\s*(?:because|since|as|for|there|the|this|it)(?!\w)")


@dataclass(frozen=True)
class LineReading:
    """What one line says.

    Attributes:
      labels: the labels named, in the order of the line, repeats kept.
      problems: the kinds of repairs made.
      says_none: `None` stands there, alone or at the end of a clause.
      vague_none: `None` stands there with a word after it ("none of the first two").
      contradictory: a label or `None` is denied, a name is followed by another label's bracket, or `None` stands beside
        a separate piece ("None, Singing") that is no reason ("None, as no label fits").
      judged: a verdict follows a label ("CD: yes").
      only_labels: nothing but labels or `None`, a bullet and punctuation.
    """

    labels: tuple[str, ...]
    problems: tuple[str, ...]
    says_none: bool
    vague_none: bool
    contradictory: bool
    judged: bool
    only_labels: bool

    @property
    def names_something(self) -> bool:
        return bool(self.labels) or self.says_none or self.vague_none or self.contradictory


class LabelLines:
    """Reads lines as sets of the given labels."""

    def __init__(self, labels: Sequence[str], aliases: Mapping[str, str]):
        """Raises ValueError where labels cannot be told apart or an alias stands for none (see `LabelsTask`)."""
        _check_separable(labels)
        self._forms = _forms(labels, aliases)
        self._short = {form.strip("()"): label for form, (label, kind) in self._forms.items() if kind == "abbreviation"}
        self._scanner = Scanner(phrase_pattern([*self._forms, NONE.casefold()]))

    def read(self, line: str) -> LineReading:
        """Reads one line without line feeds or white space at its edges."""
        bare = BULLET.sub("", line, count=1)
        folded = bare.casefold()
        if folded != NONE.casefold() and _NO_LABEL.fullmatch(folded.strip()) and " " in folded:
            return LineReading((), ("extra_text",), True, False, False, False, True)
        pieces = [*filter(None, _SEPARATORS.split(bare.strip(" .")))]
        if pieces and all(piece.isupper() and piece.casefold() in self._short for piece in pieces):
            short = tuple(self._short[piece.casefold()] for piece in pieces)
            return LineReading(short, ("abbreviation",), False, False, False, False, True)
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
            contradictory=any(one.denied for one in named)
            or self._mismatched(folded, found)
            or (bool(nones) and _beside_none(folded, nones)),
            judged=any(_VERDICT.match(folded, one.end) for one in found),
            only_labels=bool(named) and not worded,
        )

    def _mismatched(self, line: str, found: list[Named]) -> bool:
        """Whether a name is followed at once by the bracket of another label."""
        kinds = [self._forms[one.phrase][1] for one in found]
        return any(
            kinds[i : i + 2] in (["name_only", "abbreviation"], ["alias", "abbreviation"])
            and not line[found[i].end : found[i + 1].start].strip()
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


def _beside_none(line: str, nones: Sequence[Named]) -> bool:
    """Whether a piece with words that is no reason is separated from a `None` by `,` or `;`."""
    before, after = line[: nones[0].start].rstrip(), line[nones[-1].end :]
    return (before.endswith((",", ";")) and _WORD.search(before) is not None) or (
        after.lstrip().startswith((",", ";")) and _WORD.search(after) is not None and not _REASON.match(after)
    )


def _forms(labels: Sequence[str], aliases: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Returns each form that is read, folded -> (label, the problem it is: "", name_only, abbreviation or alias).

    An alias is read alone and with the bracket of its label. A half that several labels share, or that is a label, is
    no form; nor is a bracket of one letter, which may be that of an option.
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
    forms |= {
        half: meaning for half, meaning in halves if counts[half] == 1 and half not in forms and half != NONE.casefold()
    }
    for alias, label in aliases.items():
        if label not in labels or not alias.strip() or alias.casefold() in (*forms, NONE.casefold()):
            raise ValueError(f"alias {alias!r} of {label!r} is a form of a label already, or that is no label")
        parts = _NAME_AND_SHORT.fullmatch(label)
        forms[alias.casefold()] = (label, "alias")
        if parts is not None:
            forms[f"{alias} {parts[2]}".casefold()] = (label, "alias")
    return forms


def _all_separate(outside: Sequence[str]) -> bool:
    """Whether a line starts with a label and what stands outside labels is separated from them by `,` or `;`."""
    return (
        not _WORD.search(outside[0])
        and all(not _WORD.search(one) or one.lstrip()[0] in ",;" for one in outside[1:])
        and all(not _WORD.search(one) or one.rstrip()[-1] in ",;" for one in outside[1:-1])
    )
