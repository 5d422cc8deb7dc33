"""Finding labels of a fixed set in a model's text.

Kinds of problems, of a repaired text: case, extra_text (other words in the first line that is not blank),
trailing_text (more lines), cut_at_marker (a line that starts with `###` and what follows it was dropped).
Of an unparsable one: empty_output, no_label, ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MARKER = "###"
BULLET = re.compile(r"^(?:[-*\u2022]{1,3}|\d{1,3}[.)])\s+")
# How many words may stand between a word that denies and what it denies: "not clearly an entailment". Our choice.
REACH = 3
_DENYING = (
    r"(?i:not|no|non|never|neither|nor|without|cannot|hardly|unlikely|except|excluding"
    r"|(?:is|was|do|does|ca)nt|\w*n['\u2019]t)"
)
_VERB = r"(?i:is|are|was|were|does|do|did|can|could|would|should|may|might|must|has|have|be)"
_WRONG = r"(?i:wrong|incorrect|false|excluded|ruled\s+out|absent)"
_DENIED_AFTER = re.compile(
    rf"\s+(?:{_VERB}\s+)?(?:{_DENYING}|{_WRONG})(?!\w)"
    r"|\s*[:=\u2013-]\s*(?i:no|false|absent|not present)\s*(?=[.,;]|$)"
)


@dataclass(frozen=True)
class Named:
    """A phrase named in a line: which one, its [start, end) characters, and whether the text denies it."""

    phrase: str
    start: int
    end: int
    denied: bool


def answer_lines(text: str) -> tuple[list[str], list[str]]:
    """Returns (the lines that are not blank before the first that starts with `###`, stripped; problems)."""
    lines: list[str] = []
    for line in text.split("\n"):
        if line.lstrip(" ").startswith(MARKER):
            return lines, ["cut_at_marker"]
        if line.strip():
            lines.append(line.strip())
    return lines, []


def phrase_pattern(phrases: Sequence[str]) -> str:
    """Returns the pattern of any of `phrases` as whole words, the longest that fits at a place."""
    longest_first = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    return rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)"


class Scanner:
    """Walks a line from left to right and yields the phrases named in it.

    A phrase is denied by a denying word up to three words before it in the same clause ("not clearly an entailment"),
    or by what follows it at once ("entailment does not hold", "entailment: no"). A phrase that begins with a denying
    word ("No Relations") is a phrase first. A clause ends at `. : ; ! ?` and at a comma, save the comma of "not, in my
    view, ..". Where this cannot be right for all of English, it errs towards denied: an answer taken for denied is
    unparsable, which is wrong and visible, where the other mistake would be credit for the opposite answer.

    Linear time: each character is passed once; at each, every phrase is tried, and no pattern has nested repeats.
    """

    def __init__(self, pattern: str):
        """Compiles the pattern of the phrases, which has no groups of its own."""
        self._token = re.compile(rf"({pattern})|(?<!\w)({_DENYING})(?!\w)|(\w+(?:['\u2019]\w+)?)|([.:;!?,])")

    def named(self, line: str) -> Iterator[Named]:
        """Yields the phrases of one line in order, none overlapping another."""
        since: int | None = None  # words since a denying one
        comma_ends = True
        denying = ""
        for match in self._token.finditer(line):
            phrase, deny, word, stop = match.groups()
            if phrase is not None:
                denied = since is not None or _DENIED_AFTER.match(line, match.end()) is not None
                yield Named(phrase, match.start(), match.end(), denied)
                since = None
            elif deny is not None:
                since, comma_ends, denying = 0, True, deny.lower()
            elif word is not None and since is not None:
                since = since + 1 if since < REACH else None
            elif stop == "," and since == 0 and denying != "no":
                comma_ends = False
            elif stop is not None and (stop != "," or comma_ends):
                since = None


class LabelFinder:
    """Finds which label a text names; labels differ in more than case and are tried longest first."""

    def __init__(self, labels: Sequence[str]):
        folded = {label.casefold(): label for label in labels}
        if len(folded) != len(labels) or not all(label == label.strip() and label for label in labels):
            raise ValueError(
                f"labels must be non-empty, unpadded, one line each and differ in more than case: {labels}"
            )
        self._by_folded = folded
        self._scanner = Scanner(phrase_pattern(list(folded)))

    def find(self, text: str) -> tuple[str | None, tuple[str, ...]]:
        """Returns (label, problems), or (None, problems) where no label or more than one is named.

        A text that is a label, white space around it aside, is exact. Otherwise the first line that is not blank must
        name exactly one label as a whole word or phrase in any case; a label inside a longer one named there
        ("Relations" in "No Relations") does not count. A label that is denied ("not a Contradiction") says only
        what the answer is not: ambiguous; so is a next line that is another label (an echoed list of options). Linear
        time (see `Scanner`).
        """
        lines, problems = answer_lines(text)
        if not lines:
            return None, (*problems, "empty_output")
        if len(lines) > 1:
            problems.append("trailing_text")
        first = lines[0]
        folded = first.casefold()
        named = {None if found.denied else found.phrase for found in self._scanner.named(folded)}
        if len(named) != 1 or None in named:
            return None, (*problems, "ambiguous" if named else "no_label")
        label = self._by_folded[named.pop() or ""]
        following = BULLET.sub("", lines[1], count=1).casefold().strip(" .,;") if len(lines) > 1 else ""
        if self._by_folded.get(following, label) != label:
            return None, (*problems, "ambiguous")
        if folded != label.casefold():
            problems.append("extra_text")
        elif first != label:
            problems.append("case")
        return label, tuple(problems)
