"""Relation sentences in which markers stand for the two entities, as BLUE writes them."""

from __future__ import annotations


def mark(text: str, one: tuple[int, int, str], other: tuple[int, int, str]) -> str:
    """Returns `text` with `@TYPE$` in place of each of two entities (start, end, type), end exclusive.

    Entities that overlap or touch become one marker, `@ONE-OTHER$`, over both. BLUE's own code, where the second entity
    of a pair stands first in the text, writes the two names in the order of the pair; here each name stands where its
    entity stood, so rows of such pairs differ from BLUE's in their text.
    """
    if one[0] <= other[1] and other[0] <= one[1]:
        start, end = min(one[0], other[0]), max(one[1], other[1])
        return f"{text[:start]}@{one[2]}-{other[2]}${text[end:]}"
    first, second = sorted((one, other))
    return f"{text[: first[0]]}@{first[2]}${text[first[1] : second[0]]}@{second[2]}${text[second[1] :]}"
