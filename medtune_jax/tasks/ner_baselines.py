"""Taggers without a model: what an entity score is worth is seen beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

Mention = tuple[str, tuple[str, ...]]  # (type, tokens)


def _key(tokens: Sequence[str]) -> tuple[str, ...]:
    """Case rule: a mention with a lower-case letter is matched in any case; one without ("ALL", "A-T") as written."""
    if any(character.islower() for token in tokens for character in token):
        return tuple(token.casefold() for token in tokens)
    return tuple(tokens)


def dictionary_tagger(mentions: Iterable[Mention]) -> Callable[[Sequence[str]], list[str]]:
    """Returns tokens -> tags by longest match, left to right, against the training mentions.

    A mention seen with several types gets its most frequent one (ties: the first in the alphabet). A span without a
    lower-case letter is looked up as written first, then in any case.
    """
    counts: dict[tuple[str, ...], Counter[str]] = {}
    for type_, tokens in mentions:
        counts.setdefault(_key(tokens), Counter())[type_] += 1
    types = {key: min(seen, key=lambda type_: (-seen[type_], type_)) for key, seen in counts.items()}
    lengths: dict[str, set[int]] = {}
    for key in types:
        lengths.setdefault(key[0], set()).add(len(key))
    descending = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def longest(tokens: Sequence[str], folded: Sequence[str], start: int) -> tuple[int, str] | None:
        written = descending.get(tokens[start], [])
        in_any_case = descending.get(folded[start], [])
        for length in sorted({*written, *in_any_case}, reverse=True):
            if start + length > len(tokens):
                continue
            for form in (tokens, folded):
                type_ = types.get(tuple(form[start : start + length]))
                if type_ is not None:
                    return length, type_
        return None

    def tag(tokens: Sequence[str]) -> list[str]:
        folded = [token.casefold() for token in tokens]
        tags = ["O"] * len(tokens)
        at = 0
        while at < len(tokens):
            found = longest(tokens, folded, at)
            if found is None:
                at += 1
                continue
            length, type_ = found
            suffix = f"-{type_}" if type_ else ""
            tags[at : at + length] = ["B" + suffix] + ["I" + suffix] * (length - 1)
            at += length
        return tags

    return tag
