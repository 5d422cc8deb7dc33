"""Relation sentences in which markers stand for the two entities, in the way of BLUE's preprocessing."""

from __future__ import annotations


def mark(text: str, one: tuple[int, int, str], other: tuple[int, int, str], both: str = "") -> str:
    """Returns `text` with `@TYPE$` in place of each of two entities (start, end, type), end exclusive.

    Entities that overlap or touch become one marker over both, `@ONE-OTHER$` or what `both` says. One difference from
    BLUE: where the second entity of a pair stands first in the text, BLUE writes the two names in the order of the
    pair, so that each stands where the other's entity stood; here each stands where its own did.
    """
    if one[0] <= other[1] and other[0] <= one[1]:
        start, end = min(one[0], other[0]), max(one[1], other[1])
        return f"{text[:start]}@{both or f'{one[2]}-{other[2]}'}${text[end:]}"
    first, second = sorted((one, other))
    return f"{text[: first[0]]}@{first[2]}${text[first[1] : second[0]]}@{second[2]}${text[second[1] :]}"
