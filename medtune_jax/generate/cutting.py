"""Where an allowed output may be cut into pieces, and which whole outputs to encode so as to read every piece.

Pure functions of texts and token spans; planning.py puts them together. A cut has the number of the slot before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from medtune_jax.tasks.base import Allowed, Slot

Combination = tuple[str, ...]  # the options of a piece's slots
Covering = tuple[Combination, ...]  # a combination per piece: a whole output


def viable_options(allowed: Allowed) -> list[tuple[str, ...]]:
    """Returns, per slot, the options that stand in some permitted output.

    Raises:
      ValueError: `follows` permits no output at all.
    """

    @cache  # most slots of a row have the same options
    def following(before: tuple[str | None, ...], options: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(o for o in options if any(allowed.permits(earlier, o) for earlier in before))

    @cache
    def leading(options: tuple[str, ...], after: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(o for o in options if any(allowed.permits(o, later) for later in after))

    options = [slot.options for slot in allowed.slots]
    for index in range(len(options)):
        options[index] = following(options[index - 1] if index else (None,), options[index])
    for index in reversed(range(len(options) - 1)):
        options[index] = leading(options[index], options[index + 1])
    if not all(options):
        raise ValueError("`follows` permits no output at all")
    return options


def forced_texts(allowed: Allowed) -> tuple[str, list[str]]:
    """Returns the forced text before the first slot, and that between each slot and the next."""
    texts = [""]
    for part in allowed.parts:
        if isinstance(part, Slot):
            texts.append("")
        else:
            texts[-1] += part
    return texts[0], texts[1:-1]


def ending_options(allowed: Allowed, viable: Sequence[tuple[str, ...]], between: Sequence[str]) -> list[frozenset[str]]:
    """Returns, per slot, the options behind which the output ends: only empty options, and no text, may follow."""
    ends = [frozenset(viable[-1])] if viable else []
    for options, forced, after in zip(viable[-2::-1], between[::-1], viable[:0:-1], strict=True):
        if forced:
            ends.append(frozenset())
            continue
        written = [later for later in after if later or later not in ends[-1]]  # with which the output goes on
        ends.append(frozenset(o for o in options if not any(allowed.permits(o, later) for later in written)))
    return ends[::-1]


def neighbours(
    allowed: Allowed, before: Sequence[str], after: Sequence[str], ending: frozenset[str]
) -> set[tuple[str, str]] | None:
    """Returns the pairs of characters that may meet between two adjacent slots where the output goes on.

    None where a cut between them would be none: an option is empty although the output goes on.
    """
    pairs = {(o, later) for o in before if o not in ending for later in after if allowed.permits(o, later)}
    return {(o[-1], later[0]) for o, later in pairs} if all(o and later for o, later in pairs) else None


def mixed_coverings(pieces: Sequence[Sequence[Combination]]) -> list[Covering]:
    """Returns few outputs in which every combination of every piece occurs.

    They serve to encode only; `follows` need not permit them.
    """
    most = max(map(len, pieces))
    return [tuple(piece[turn % len(piece)] for piece in pieces) for turn in range(most)]


def permitted_coverings(allowed: Allowed, pieces: Sequence[Sequence[Combination]]) -> list[Covering]:
    """Returns permitted outputs in which every combination of every piece occurs, none twice."""
    found: dict[Covering, None] = {}
    for index, piece in enumerate(pieces):
        for combination in piece:
            way = [combination]
            for earlier in pieces[:index][::-1]:
                way.insert(0, next(one for one in earlier if allowed.permits(one[-1], way[0][0])))
            for later in pieces[index + 1 :]:
                way.append(next(one for one in later if allowed.permits(way[-1][-1], one[0])))
            found[tuple(way)] = None
    return list(found)


def place_cuts(
    coverings: Sequence[Covering],
    between: Sequence[str],
    ends: Sequence[frozenset[str]],
    places: Mapping[int, Sequence[int]],
    spans: Sequence[np.ndarray],
    start: int,
) -> tuple[list[list[int]], frozenset[int]]:
    """Finds for each cut the first of its places at which a token begins in every covering that goes on there.

    Args:
      ends: per slot, the options behind which the output ends; a cut behind one lies behind EOS.
      places: cut -> offsets in the forced text behind its slot.
      spans: int32 [S, 2] of each covering's tokens, EOS not included; start: the character at which the first slot
        begins.

    Returns:
      (per covering the token index of each cut, cuts for which there is no such place).
    """
    begins = []  # per covering: character -> index of the token that begins there
    regions: list[list[int | None]] = []  # per covering: where each forced text begins; None = the output has ended
    for covering, found in zip(coverings, spans, strict=True):
        begins.append(beginnings(found))
        at, of_covering = start, []
        for option, forced, ending in zip(itertools.chain(*covering), between, ends, strict=False):
            at += len(option)
            of_covering.append(None if option in ending else at)
            at += len(forced)
        regions.append(of_covering)
    cuts: list[list[int]] = [[] for _ in coverings]
    failed = set()
    for cut, offsets in places.items():
        for offset in offsets:
            tokens = []
            for found, begin, region in zip(spans, begins, regions, strict=True):
                character = region[cut]
                tokens.append(len(found) + 1 if character is None else begin.get(character + offset))
            if None not in tokens:
                for of_cut, token in zip(cuts, tokens, strict=True):
                    of_cut.append(token or 0)
                break
        else:
            failed.add(cut)
    return cuts, frozenset(failed)


def beginnings(spans: np.ndarray) -> dict[int, int]:
    """Returns character -> index of the token that begins there, for spans int32 [S, 2].

    Where a character has several byte tokens only the first one begins there.
    """
    fresh = np.flatnonzero(spans[1:, 0] >= spans[:-1, 1]) + 1
    fresh = fresh[::-1]  # of several the first counts
    return dict(zip(spans[fresh, 0].tolist(), fresh.tolist(), strict=True))


def read_pieces(
    coverings: Sequence[Covering],
    sequences: Sequence[list[int]],
    ends: Sequence[Sequence[int]],
    shared: int,
    cuts: Sequence[int],
) -> tuple[list[dict[Combination, tuple[int, ...]]], frozenset[int]]:
    """Returns (per piece: combination -> tokens, the cuts that must go).

    A cut must go where one combination's tokens begin another's, and where a combination is read otherwise between
    other neighbours: then the two sides of the cut are not independent.
    """
    found: list[dict[Combination, tuple[int, ...]]] = [{} for _ in coverings[0]]
    failed: set[int] = set()
    for covering, sequence, end in zip(coverings, sequences, ends, strict=True):
        for index, (first, last) in enumerate(itertools.pairwise((shared, *end, len(sequence)))):
            tokens = tuple(sequence[first:last])
            if found[index].setdefault(covering[index], tokens) != tokens:
                failed |= {max(0, index - 1), index}  # the cuts before and behind it
    if cuts:
        for index, piece in enumerate(found):
            ordered = sorted(filter(None, piece.values()))
            if any(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(ordered)):
                failed.add(index)
    return found, frozenset(cuts[min(index, len(cuts) - 1)] for index in failed)
