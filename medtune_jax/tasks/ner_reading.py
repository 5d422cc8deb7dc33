"""Reading `token : TAG` lines from a model's text: what is well formed, what is repaired, and the name of each repair.

Lines end at "\\n" only and tokens at " " only, so that tokens may hold colons, no-break spaces or U+2028.

Kinds of problems:
  empty_output    nothing but white space
  cut_at_marker   the text from the first line that starts with `###` was dropped
  whitespace      blanks around a line, a token or a tag, or runs of them
  blank_line      an empty line inside the text
  no_space        a separator written `:`, ` :` or `: `
  merged_lines    several `token : TAG` on one line
  double_tag      a second tag after a token; the last one counts
  no_token        a tag without a token before it
  unread_text     words before a token that belong to no pair
  no_separator    a line without a separator; it is dropped
  tag_case        a tag in the wrong case
  bad_tag         a tag that the task does not have; it counts as O
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from medtune_jax.tasks.base import MARKER

SEPARATOR = " : "

_BLANKS = re.compile(r"[ \t\r]+")


@dataclass
class Lines:
    """What was read: parallel lists of tokens, their tags, whether each tag was legal; and the problems in order."""

    tokens: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    legal: list[bool] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, token: str, tag: str, legal: bool = True) -> None:
        self.tokens.append(token)
        self.tags.append(tag)
        self.legal.append(legal)


class LineReader:
    """Reads lines for one set of tags; holds what depends on the tags alone."""

    def __init__(self, tags: Collection[str]):
        self.tags = frozenset(tags)
        self._cased = {tag.casefold(): tag for tag in tags}
        longest_first = sorted(tags, key=lambda tag: (-len(tag), tag))
        # Applied after runs of blanks are collapsed, so that no quantifier can backtrack over long runs.
        self._separator_and_tag = re.compile(rf" ?: ?({'|'.join(map(re.escape, longest_first))})(?= |$)")

    def well_formed(self, text: str, tokens: tuple[str, ...]) -> tuple[str, ...] | None:
        """Returns the tags if `text` is exactly what render writes for `tokens`, else None."""
        lines = text.split("\n") if text else []
        if len(lines) != len(tokens):
            return None
        tags = []
        for line, token in zip(lines, tokens, strict=True):
            read, _, tag = line.rpartition(SEPARATOR)
            if read != token or tag not in self.tags:
                return None
            tags.append(tag)
        return tuple(tags)

    def read(self, text: str, known: Collection[str]) -> Lines:
        """Returns every pair that can be made out in `text`; `known` are the input's tokens. Linear time."""
        found = Lines()
        for line in text.split("\n"):
            token, separator, tag = line.rpartition(SEPARATOR)
            if separator and tag in self.tags and token in known:
                found.add(token, tag)
            elif line.lstrip(" ").startswith(MARKER):
                found.problems.append("cut_at_marker")
                break
            elif separator and tag in self.tags and token and not _BLANKS.search(token):
                found.add(self._strip_to_known(token, known, found), tag)
            else:
                self._read_loose(line, known, found)
        return found

    def _read_loose(self, line: str, known: Collection[str], found: Lines) -> None:
        collapsed = _BLANKS.sub(" ", line).strip(" ")
        if not collapsed:
            found.problems.append("blank_line")
            return
        if collapsed != line:
            found.problems.append("whitespace")
        at, pairs = 0, 0
        for match in self._separator_and_tag.finditer(collapsed):
            before = collapsed[at : match.start()].strip(" ")
            at = match.end()
            if not before:
                found.problems.append("double_tag" if pairs else "no_token")
                if pairs:
                    found.tags[-1] = match[1]
                continue
            if not match[0].startswith(SEPARATOR):
                found.problems.append("no_space")
            self._add(before, match[1], True, known, found)
            pairs += 1
        if pairs > 1:
            found.problems.append("merged_lines")
        rest = collapsed[at:].strip(" ")
        if rest:
            self._read_rest(rest, known, found)

    def _read_rest(self, rest: str, known: Collection[str], found: Lines) -> None:
        """Reads what is left of a line after its last legal tag: a pair with another tag, or nothing."""
        before, separator, tag = rest.rpartition(SEPARATOR)
        if not separator:
            before, separator, tag = rest.rpartition(":")
            if separator:
                found.problems.append("no_space")
        if not separator:
            found.problems.append("no_separator")
            return
        legal = self._cased.get(tag.strip().casefold())
        found.problems.append("bad_tag" if legal is None else "tag_case")
        if not before.strip(" "):
            found.problems.append("no_token")
            return
        self._add(before.strip(" "), legal or "O", legal is not None, known, found)

    def _add(self, before: str, tag: str, legal: bool, known: Collection[str], found: Lines) -> None:
        unread, _, token = before.rpartition(" ")
        if unread:
            found.problems.append("unread_text")
        found.add(self._strip_to_known(token, known, found), tag, legal)

    def _strip_to_known(self, token: str, known: Collection[str], found: Lines) -> str:
        """Returns the token, without surrounding white space (of any alphabet) where only that makes it known."""
        stripped = token.strip()
        if token in known or stripped not in known:
            return token
        found.problems.append("whitespace")
        return stripped
