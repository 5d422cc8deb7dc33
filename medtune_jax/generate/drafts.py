"""What greedy is likely to write next, host side: the drafts that exact speculation verifies (speculative.py).

A draft costs nothing but the width of a pass, so it may be wrong at any place; what is written does not depend on it.
Two sources of drafts:

- The row's template. Drafted is the allowed output that begins with all that was written; where it forks further on,
  the option that the model chose there behind the last draft, else the first (template.py improves its drafts alike).
- Look-up: what followed the last few tokens where they stood before, in prompt and answer (prompt look-up decoding,
  Saxena 2023). Where a text has left its template, first in what the template still had to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from medtune_jax.generate.template import Piece, Row, Walk, common_prefix

_NGRAMS = (3, 2, 1)  # tokens that must have stood before, longest first
_LOOKED_UP = 15  # tokens of a look-up at first: with the token before them a pass of 16
_AHEAD = 4  # a template is drafted so many times as far as the last pass came, where that is more


@dataclass
class Lookup:
    """Where the last few tokens of a growing text stood before, and what followed.

    Attributes:
      text: of these tokens; ends: of each of its n-grams but the one at its end, where the latest such ends.
    """

    text: list[int] = field(default_factory=list)
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            end = len(self.text)
            for size in _NGRAMS:
                if size <= end:
                    self.ends[tuple(self.text[end - size :])] = end
            self.text.append(token)

    def following(self, most: int, *, least: int = 1) -> list[int]:
        """Returns up to `most` tokens that stood behind the longest of the text's last n-grams; [] where none did.

        least: tokens that the n-gram must have.
        """
        for size in _NGRAMS:
            if size < least:
                break
            end = self.ends.get(tuple(self.text[-size:]))
            if end is not None and size <= len(self.text):
                return self.text[end : end + most]
        return []


@dataclass
class _Pass:
    """A pass over a template's text.

    Attributes:
      tokens: the output that was drafted, EOS last; starts: per piece that has any, the place of its first.
      greedy: place -> the token that greedy would write behind all drafted before it.
    """

    tokens: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    greedy: dict[int, int] = field(default_factory=dict)

    def chosen(self, piece: int, begun: Sequence[int]) -> list[int]:
        """Returns which tokens may come behind the first few of a piece: greedy's choice, then the drafted one."""
        if piece >= len(self.starts):
            return []
        start = self.starts[piece]
        at = start + len(begun)
        if self.tokens[start:at] != list(begun):
            return []
        return [self.greedy[at], *self.tokens[at : at + 1]] if at in self.greedy else self.tokens[at : at + 1]


class Guess:
    """Drafts of one row.

    Args:
      prompt: its tokens, BOS first.
      row: the row as template.py would decode it; None = look-up only.
    """

    def __init__(self, prompt: Sequence[int], row: Row | None):
        self._lookup = Lookup()
        self._lookup.extend(prompt)
        self._most = _LOOKED_UP
        self._least = 1  # tokens that must have stood before: more, the more look-ups in turn have failed
        self._came: int | None = None  # tokens that the last pass wrote
        follows = row is not None and row.prompt == list(prompt[: len(row.prompt)])
        self._row = row if follows else None
        # Of the output, as the template counts it: what the prompt's last tokens may already hold of it.
        self._written: list[int] = list(prompt[len(row.prompt) :]) if row is not None and follows else []
        self._last = _Pass()
        self._left: list[int] = []  # what the template still had to say when it was left

    def draft(self, most: int) -> list[int]:
        """Returns up to `most` tokens that greedy may write next, without EOS."""
        if self._row is not None:
            found = _walk(self._row.pieces, self._written, self._last)
            if found is not None:
                self._last = found
                if self._came is not None:  # passes are as wide as the longest draft: hopeless ones slow the others
                    most = min(most, max(_LOOKED_UP, _AHEAD * self._came))
                # EOS ends the text: behind it nothing is to be predicted.
                return found.tokens[len(self._written) : -1][:most]
            self._left = self._last.tokens[common_prefix(self._last.tokens, self._written) : -1]
            self._row = None
        most = min(most, self._most)
        return self._rejoin(most) or self._lookup.following(most, least=self._least)

    def learn(self, draft: Sequence[int], greedy: Sequence[int], new: Sequence[int]) -> None:
        """Takes in what a pass over a draft showed.

        Args:
          greedy: greedy's choice behind each beginning of the draft, from the empty one to the whole.
          new: the tokens that were written, of which all but the last were drafted.
        """
        begin = len(self._written)
        self._last.greedy = {begin + i: token for i, token in enumerate(greedy)}
        self._most = 2 * self._most + 1 if len(new) > len(draft) > 0 else _LOOKED_UP
        if draft:
            self._least = 1 if len(new) > 1 else min(self._least + 1, _NGRAMS[0])
        self._came = len(new)
        self._written += new
        self._lookup.extend(new)

    def _rejoin(self, most: int) -> list[int]:
        """Looks the last tokens up in what the template had to say, earliest place first, and goes on behind it."""
        for size in _NGRAMS:
            found = tuple(self._written[-size:])
            for end in range(size, len(self._left)):
                if tuple(self._left[end - size : end]) == found:
                    del self._left[: end - size]
                    return self._left[size : size + most]
        return []


def _walk(pieces: Sequence[Piece], written: Sequence[int], last: _Pass) -> _Pass | None:
    """Returns the likeliest allowed output that begins with `written`; None where none does."""
    walk, found = Walk(pieces), _Pass()
    while children := walk.children:
        at = len(found.tokens)
        if len(found.starts) == len(walk.chosen):
            found.starts.append(at)
        if at < len(written):
            token = written[at]
        elif len(children) == 1:
            [token] = children
        else:
            guesses = last.chosen(len(walk.chosen), walk.begun)
            token = next((guess for guess in guesses if guess in children), walk.first)
        if token not in children:
            return None
        found.tokens.append(token)
        walk.take(token)
    return found if len(written) <= len(found.tokens) else None
