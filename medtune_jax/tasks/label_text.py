"""Finding labels of a fixed set in a model's text.

Kinds of problems, of a repaired text: case, extra_text (other words in the first line that is not blank),
trailing_text (more lines), cut_at_marker (a line that starts with `###` and what follows it was dropped).
Of an unparsable one: empty_output, no_label, ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medtune_jax.tasks.base import MARKER

BULLET = re.compile(r"^(?:[-*\u2022]{1,3}|\d{1,3}[.)])\s+")
# Words that deny a label before or after them in their clause. The list is ours; it cannot be all of English.
_DENYING = (
    r"(?i:not|no|non|none|nothing|never|neither|nor|without|cannot|hardly|barely|scarcely|unlikely|little"
    r"|lack(?:s|ed|ing)?|fail(?:s|ed|ing|ure)?|insufficient|unclear|uncertain|unknown|unable|impossible|whether"
    r"|doubt(?:s|ed|ful)?|against|absent|absence|unless|wrong|incorrect|false|excluded|den(?:y|ies|ied)"
    r"|unsupported|reject(?:s|ed)?|refut(?:e|es|ed)|rul(?:e|es|ed|ing)\s{1,4}out"
    r"|(?:is|was|do|does|did|ca)nt|\w*n['\u2019]t)"
)
# These deny what follows them only: "Neutral is the answer rather than Entailment".
_SETTING_ASIDE = r"(?i:rather\s{1,4}than|instead\s{1,4}of|except|excluding)"
# These begin another clause: a denial before them has ended ..
_TURNING = r"(?i:but|so|therefore|thus|hence|however)"
# .. and these begin one in which a denial is of something else: "Neutral as the first does not say".
_SUBORDINATE = r"(?i:because|since|as|due|although|though|while|whereas|which|who|where|when)"
_ABBREVIATED = r"(?i:e\.g\.|i\.e\.|vs\.)"
_STOP = r"\.(?!\w)|:(?!\d)|[;!?,()]|(?<=\s)[-\u2013\u2014]{1,2}(?=\s)"
_ARTICLES = ("a", "an", "the")
_LISTING = ("or", "and")
_RESUMING = ("of", "for", "to")
_DENIED_AFTER = re.compile(r"\s*[:=\u2013-]\s*(?i:no|false|absent|not present)\s*(?=[.,;]|$)")
# `no` before a word is a determiner ("no effect was seen"), save before these, after which the answer `no` stands.
_AFTER_NO = "because|since|as|due|but|so|and|or|is|was|it|this|these|they|we|the|there"
_HYPHENS = r"[-\u2010\u2011]"


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


def fold(text: str) -> str:
    """Returns the text without regard to case, character for character: what would become two stays as it is."""
    folded = text.casefold()
    if len(folded) == len(text):
        return folded
    return "".join(one if len(one) == 1 else was for was, one in zip(text, map(str.casefold, text), strict=True))


def phrase_pattern(phrases: Sequence[str], pattern_of: Callable[[str], str] = re.escape) -> str:
    """Returns the pattern of any of `phrases` as whole words, the longest that fits at a place.

    Part of a hyphenated word ("HIV-positive") is no whole word, save after "non-", which denies.
    """
    longest_first = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    alternatives = "|".join(map(pattern_of, longest_first))
    return rf"(?<!\w)(?:(?<!\w{_HYPHENS})|(?<=(?i:non){_HYPHENS}))(?:{alternatives})(?!\w|{_HYPHENS}\w)"


class Scanner:
    """Walks a line from left to right and yields the phrases named in it, and whether each is denied.

    A denying word denies every phrase of its clause, before and after it ("no sign at all of an entailment", "a
    positive association was not found"), with these exceptions. Between two phrases ("Positive, not Negative", "B not
    A") and in "rather than", "instead of", "except" it denies what follows only; in brackets only what they hold. A
    phrase that begins with a denying word ("No Relations") is a phrase first.

    A clause ends at `; : ! ?`, at a full stop, a dash between spaces, "but", "so", "therefore" and their like, and at a
    comma, save the comma of "not, in my view, ..", those of the list "not A, B or C" and one before "of", "for" or "to"
    ("no sign, direct or indirect, of A"). A subordinate clause ("because", "which", ..) denies nothing before it. Where
    this cannot be right for all of English, it errs towards denied: an answer taken for denied is unparsable, which is
    wrong and visible, where the other mistake would be credit for the opposite answer.

    Linear time: each character is passed once; at each, every phrase is tried, and no pattern has nested repeats.
    """

    def __init__(self, pattern: str):
        """Compiles the pattern of the phrases, which has no groups of its own."""
        kinds = (_DENYING, _SETTING_ASIDE, _TURNING, _SUBORDINATE)
        words = "|".join(rf"(?<!\w)({kind})(?!\w)" for kind in kinds)
        self._token = re.compile(rf"({pattern})|{words}|({_ABBREVIATED}|\w+(?:['\u2019]\w+)?)|({_STOP})")

    def named(self, line: str) -> list[Named]:
        """Returns the phrases of one line in order, none overlapping another."""
        clause = _Clause()
        found: list[re.Match] = []
        for match in self._token.finditer(line):
            phrase, deny, aside, turn, subordinate, word, stop = match.groups()
            if phrase is not None:
                clause.name(len(found), _DENIED_AFTER.match(line, match.end()) is not None)
                found.append(match)
            elif deny is not None:
                clause.deny(deny)
            elif aside is not None:
                clause.set_aside()
            elif turn is not None:
                clause.end()
            elif stop is not None:
                clause.stop(stop)
            else:
                clause.pass_word((subordinate or word).lower(), begins_clause=subordinate is not None)
        clause.end()
        return [Named(match[1], match.start(), match.end(), at in clause.denied) for at, match in enumerate(found)]


class _Clause:
    """Which phrases, by their number, are denied; fed one token after the other.

    Attributes:
      denied: numbers of the denied phrases so far.
    """

    def __init__(self) -> None:
        self.denied: set[int] = set()
        self._open: list[int] = []  # phrases of this clause that a denying word after them would deny
        self._denying = False  # a denying word stood in this clause
        self._commas_end = True
        self._lapsed = False  # what a comma of this clause ended was denying
        self._outside: tuple[list[int], bool] | None = None  # _open and _denying before the bracket
        self._before = ""  # what the last token was: phrase, a denying word, a comma, or nothing of these
        self._between = False  # a denying word stood right after a phrase

    def name(self, number: int, denied_after: bool) -> None:
        if self._denying or denied_after:
            self.denied.add(number)
        self._open.append(number)
        self._before, self._between = "phrase", False

    def deny(self, word: str) -> None:
        self._settle()
        if self._before == "phrase":
            self._between = True
        else:
            self._deny_open()
        self._denying, self._before = True, word.lower()

    def set_aside(self) -> None:
        self._settle()
        self._denying, self._before = True, "aside"

    def pass_word(self, word: str, begins_clause: bool) -> None:
        if self._between and word in _ARTICLES:
            return
        resumes = self._before == "comma" and self._lapsed and word in _RESUMING
        self._settle(lists=word in _LISTING)
        self._denying = self._denying or resumes
        if begins_clause:
            self._open = []
        if word not in _LISTING:
            self._before = ""

    def stop(self, mark: str) -> None:
        self._settle()
        if mark == "(" and self._outside is None:
            self._outside, self._open = (self._open, self._denying), []
        elif mark == ")" and self._outside is not None:
            self._open, self._denying = self._outside
            self._outside = None
        elif mark == ",":
            self._comma()
        elif mark not in "()":
            self.end()

    def end(self) -> None:
        self._settle()
        self._open, self._denying, self._commas_end, self._lapsed = [], False, True, False
        self._outside, self._before = None, ""

    def _comma(self) -> None:
        listed = self._before == "phrase" and self._denying
        if self._before not in ("", "phrase", "no", "doubt", "aside") and self._denying:
            self._commas_end = False
        if self._commas_end:
            self._open = []
            self._lapsed = self._lapsed or self._denying
            self._denying = self._denying and listed
        self._before = "comma"

    def _settle(self, lists: bool = False) -> None:
        """Decides what the next token, which is no phrase, leaves undecided."""
        if self._between:
            self._deny_open()
            self._between = False
        if self._before == "comma" and not lists and self._commas_end:
            self._denying, self._before = False, ""

    def _deny_open(self) -> None:
        self.denied.update(self._open)
        self._open = []


class LabelFinder:
    """Finds which label a text names; labels differ in more than case and are tried longest first."""

    def __init__(self, labels: Sequence[str]):
        folded = {fold(label): label for label in labels}
        if len(folded) != len(labels) or not all(label == label.strip() and label for label in labels):
            raise ValueError(
                f"labels must be non-empty, unpadded, one line each and differ in more than case: {labels}"
            )
        self._by_folded = folded
        self._scanner = Scanner(phrase_pattern(list(labels), self._pattern_of))

    def _pattern_of(self, label: str) -> str:
        if label.isalpha() and not label[1:].islower() and len(label) > 1:
            return re.escape(label)  # in its own case: "a trap" is no TrAP
        pattern = rf"(?i:{re.escape(label)})"
        if label.casefold() != "no":
            return pattern
        stands = "|".join([_AFTER_NO, *map(re.escape, self._by_folded)])
        return rf"{pattern}(?!\s{{1,8}}(?!(?i:{stands})(?!\w))\w)"

    def find(self, text: str) -> tuple[str | None, tuple[str, ...]]:
        """Returns (label, problems), or (None, problems) where no label or more than one is named.

        A text that is a label, white space around it aside, is exact. Otherwise the first line that is not blank must
        be a label in any case, punctuation around it aside, or name exactly one as a whole word or phrase; a label
        inside a longer one named there ("Relations" in "No Relations") does not count. In prose a label of one word
        such as TrAP is named in its own case only, any other in any; `no` before a word ("no effect") is no label.

        Labels that are denied (see `Scanner`) beside exactly one that is not leave that one ("Neutral - neither
        entailment nor contradiction"); a denied label alone says only what the answer is not: ambiguous. So is a label
        both denied and not, and a next line that is another label (an echoed list of options). Linear time.
        """
        lines, problems = answer_lines(text)
        if not lines:
            return None, (*problems, "empty_output")
        if len(lines) > 1:
            problems.append("trailing_text")
        first = lines[0]
        label = self._by_folded.get(_bare(first))
        if label is None:
            named = [(self._by_folded.get(fold(one.phrase)), one.denied) for one in self._scanner.named(first)]
            affirmed = {label for label, denied in named if not denied}
            if len(affirmed) != 1 or not affirmed.isdisjoint(label for label, denied in named if denied):
                return None, (*problems, "ambiguous" if named else "no_label")
            label = affirmed.pop()
        following = self._by_folded.get(_bare(BULLET.sub("", lines[1], count=1)), label) if len(lines) > 1 else label
        if label is None or following != label:
            return None, (*problems, "ambiguous")
        if fold(first) != fold(label):
            problems.append("extra_text")
        elif first != label:
            problems.append("case")
        return label, tuple(problems)


def _bare(line: str) -> str:
    return fold(line).strip(" .,;:!?*_\"'`()[]")
