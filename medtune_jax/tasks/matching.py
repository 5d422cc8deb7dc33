"""Comparing names: normalisation, and the largest one-to-one matching of predicted names to gold items."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set

_ARTICLES = ("a ", "an ", "the ")
_OUTER = " *_.,;:!?\"'`\u2018\u2019\u201c\u201d"


def normalise(name: str) -> str:
    """Returns the form in which names are compared (our convention; BioASQ's own scorer folds case only).

    Case is folded, runs of white space become one space; quotes, `.,;:!?` and the `*` and `_` of markdown around the
    name, and one leading article (a, an, the), are dropped. A name of which nothing would be left stays as it is,
    case folded.
    """
    collapsed = " ".join(name.casefold().split())
    bare = collapsed.strip(_OUTER)
    for article in _ARTICLES:
        if bare.startswith(article):
            bare = bare.removeprefix(article).strip(_OUTER)
            break
    return bare or collapsed


def match(predicted: Sequence[str], items: Sequence[Set[str]]) -> list[int | None]:
    """Returns, for each item, the index of the predicted name matched to it or None: no name serves twice, and as many
    items as possible are matched.

    Taking the first item that fits would match too few where items share a synonym; so a name that was matched moves
    to another item whenever that frees one (augmenting paths, Berge 1957; breadth first, hence no recursion).

    Args:
      predicted: normalised names.
      items: the normalised names of each item.
    """
    fitting: dict[str, list[int]] = {}
    for index, names in enumerate(items):
        for known in names:
            fitting.setdefault(known, []).append(index)
    holder: list[int | None] = [None] * len(items)
    item_of: dict[int, int] = {}
    for start in range(len(predicted)):
        wanted_by: dict[int, int] = {}  # item -> the name that would take it
        queue = deque([start])
        while queue:
            taker = queue.popleft()
            for item in fitting.get(predicted[taker], ()):
                if item in wanted_by:
                    continue
                wanted_by[item] = taker
                holding = holder[item]
                if holding is not None:
                    queue.append(holding)
                    continue
                free: int | None = item
                while free is not None:
                    name = wanted_by[free]
                    holder[free] = name
                    left, item_of[name] = item_of.get(name), free
                    free = left
                queue.clear()
                break
    return holder
