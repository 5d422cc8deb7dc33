"""Planning of template decoding: the allowed outputs of a row, cut into pieces and encoded.

The text is cut inside forced parts into pieces of (mostly) one slot each. A cut is made between two characters that no
token of the vocabulary holds side by side, where in fact a token begins whatever the options are. So no token ever
spans a cut, both sides are encoded independently, and the trie of all allowed sequences is the concatenation of those
of the pieces. Where no such place is found between two slots, or where one option's tokens begin another's so that what
follows the cut would decide between them, the slots share a piece, and all combinations of their options are encoded;
in the extreme one piece holds the whole output.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from medtune_jax.data.prompts import Template
from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.errors import UserError
from medtune_jax.generate.template import Piece, Row, TemplateRequest, common_prefix
from medtune_jax.tasks.base import Allowed, Slot

_MOST_COMBINATIONS = 4096  # of options within one piece; only texts that cannot be cut come near
_BROKEN = "\ufffd"  # what part of a character's bytes decodes to


class Planner:
    """Plans rows for one tokenizer and template."""

    def __init__(self, tokenizer: Tokenizer, template: Template):
        self._tokenizer = tokenizer
        self._template = template
        self._inseparable = _neighbours(tokenizer)

    def plan(self, request: TemplateRequest) -> Row:
        """Cuts a request's allowed outputs into pieces and encodes them.

        Raises:
          UserError: slots that cannot be parted have too many combinations.
          ValueError: `follows` permits no output at all.
        """
        allowed, tokenizer, template = request.allowed, self._tokenizer, self._template
        viable = _viable(allowed)
        before, between = _forced(allowed)
        places = [self._places(forced) for forced in between]
        prompt = template.prompt(request.instruction, request.input)
        prompt_ids = tokenizer.encode(prompt)
        joined: set[int] = set()
        while True:
            cuts = [cut for cut in range(len(between)) if cut not in joined]
            edges = [0, *(cut + 1 for cut in cuts), len(viable)]
            pieces = [_combinations(request, viable[first:last]) for first, last in itertools.pairwise(edges)]
            coverings = _coverings(pieces)
            texts = [prompt + template.completion(allowed.text(tuple(itertools.chain(*one)))) for one in coverings]
            encoded = tokenizer.encode_batch_with_offsets(texts)
            shared = min(common_prefix(prompt_ids, ids.tolist()) for ids, _ in encoded)
            start = len(prompt) + template.output_at + len(before)
            spans = [spans for _, spans in encoded]
            ends, failed = _place_cuts(coverings, between, {cut: places[cut] for cut in cuts}, spans, start)
            if not failed:
                sequences = [[*ids.tolist(), tokenizer.eos_id] for ids, _ in encoded]
                tokens, failed = _read_pieces(coverings, sequences, ends, shared, cuts)
            if not failed:
                made = [_piece(allowed, piece, found) for piece, found in zip(pieces, tokens, strict=True)]
                return Row([tokenizer.bos_id, *prompt_ids[:shared]], made)
            joined |= failed

    def _places(self, forced: str) -> list[int]:
        """Returns the offsets inside a forced text at which no token can span, in the order in which they are tried.

        First behind line breaks and before spaces, where tokenizers split words anyway; then from the middle outwards.
        """
        return sorted(
            (at for at in range(1, len(forced)) if not self._spans(forced[at - 1], forced[at])),
            key=lambda at: (forced[at - 1] != "\n", not forced[at].isspace(), abs(at - len(forced) / 2)),
        )

    def _spans(self, left: str, right: str) -> bool:
        """Whether some token holds these characters side by side (a byte of one may be in a token of its own)."""
        lefts = (left,) if left.isascii() else (left, _BROKEN)
        rights = (right,) if right.isascii() else (right, _BROKEN)
        return any((one, other) in self._inseparable for one in lefts for other in rights)


def _neighbours(tokenizer: Tokenizer) -> frozenset[tuple[str, str]]:
    """Returns the pairs of characters that stand side by side in some token."""
    anchor = tokenizer.encode("a")  # decoded alone, a token would lose its leading space
    begin = len(tokenizer.decode(anchor))
    pieces = (tokenizer.decode([*anchor, token])[begin:] for token in range(tokenizer.vocab_size))
    return frozenset(pair for piece in pieces for pair in itertools.pairwise(piece))


def _piece(
    allowed: Allowed, combinations: Sequence[tuple[str, ...]], tokens: Mapping[tuple[str, ...], tuple[int, ...]]
) -> Piece:
    first = {tokens[combination]: combination for combination in reversed(combinations)}  # of equal texts the first
    options = [combination for combination in combinations if first[tokens[combination]] == combination]
    return Piece(allowed, tuple(options), tuple(tokens[combination] for combination in options))


def _viable(allowed: Allowed) -> list[tuple[str, ...]]:
    """Returns, per slot, the options from which the end can be reached."""
    viable: list[tuple[str, ...]] = []
    for slot in reversed(allowed.slots):
        after = viable[-1] if viable else None
        viable.append(
            tuple(o for o in slot.options if after is None or any(allowed.permits(o, later) for later in after))
        )
    viable.reverse()
    if viable and not any(allowed.permits(None, option) for option in viable[0]):
        raise ValueError("`follows` permits no output at all")
    return viable


def _forced(allowed: Allowed) -> tuple[str, list[str]]:
    """Returns the forced text before the first slot, and that between each slot and the next."""
    texts = [""]
    for part in allowed.parts:
        if isinstance(part, Slot):
            texts.append("")
        else:
            texts[-1] += part
    return texts[0], texts[1:-1]


def _combinations(request: TemplateRequest, options: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Returns the permitted combinations of the slots of one piece, the draft's preferred option first."""
    found: list[tuple[str, ...]] = [()]
    for slot in options:
        ordered = sorted(slot, key=lambda option: option != request.draft)
        found = [(*c, o) for c in found for o in ordered if not c or request.allowed.permits(c[-1], o)]
        if len(found) > _MOST_COMBINATIONS:
            raise UserError(
                f"Template decoding of {request.name}: this tokenizer merges text across {len(options)} "
                f"neighbouring decisions with over {_MOST_COMBINATIONS} combinations. Use --decode=greedy, or a "
                "tokenizer that splits lines."
            )
    return found


def _coverings(pieces: Sequence[Sequence[tuple[str, ...]]]) -> list[tuple[tuple[str, ...], ...]]:
    """Returns whole outputs (a combination per piece) in which every combination of every piece occurs.

    They serve to encode only; `follows` need not permit them.
    """
    most = max(map(len, pieces))
    return [tuple(piece[turn % len(piece)] for piece in pieces) for turn in range(most)]


def _place_cuts(
    coverings: Sequence[tuple[tuple[str, ...], ...]],
    between: Sequence[str],
    places: Mapping[int, Sequence[int]],
    spans: Sequence[np.ndarray],
    start: int,
) -> tuple[list[list[int]], frozenset[int]]:
    """Finds for each cut the first of its places at which a token begins in every covering.

    Args:
      places: cut -> offsets in its forced text.
      spans: int32 [S, 2] of each covering's tokens; start: the character at which the first slot begins.

    Returns:
      (per covering the token index of each cut, cuts for which there is no such place).
    """
    begins = []  # per covering: character -> index of the token that begins there
    regions = []  # per covering: the character at which each forced text begins
    for covering, found in zip(coverings, spans, strict=True):
        fresh = np.flatnonzero(found[1:, 0] >= found[:-1, 1]) + 1  # not inside a character of several byte tokens
        begins.append({int(found[i, 0]): int(i) for i in fresh[::-1]})
        at, of_covering = start, []
        for option, forced in zip(itertools.chain(*covering), (*between, ""), strict=False):
            at += len(option)
            of_covering.append(at)
            at += len(forced)
        regions.append(of_covering)
    ends: list[list[int]] = [[] for _ in coverings]
    failed = set()
    for cut, offsets in places.items():
        for offset in offsets:
            tokens = [begin.get(region[cut] + offset) for begin, region in zip(begins, regions, strict=True)]
            if None not in tokens:
                for end, token in zip(ends, tokens, strict=True):
                    end.append(token or 0)
                break
        else:
            failed.add(cut)
    return ends, frozenset(failed)


def _read_pieces(
    coverings: Sequence[tuple[tuple[str, ...], ...]],
    sequences: Sequence[list[int]],
    ends: Sequence[Sequence[int]],
    shared: int,
    cuts: Sequence[int],
) -> tuple[list[dict[tuple[str, ...], tuple[int, ...]]], frozenset[int]]:
    """Returns (per piece: combination -> tokens, the cuts that must go).

    A cut must go where one combination's tokens begin another's, and where a combination is read otherwise between
    other neighbours: then the two sides of the cut are not independent.
    """
    found: list[dict[tuple[str, ...], tuple[int, ...]]] = [{} for _ in coverings[0]]
    failed: set[int] = set()
    for covering, sequence, end in zip(coverings, sequences, ends, strict=True):
        for index, (first, last) in enumerate(itertools.pairwise((shared, *end, len(sequence)))):
            tokens = tuple(sequence[first:last])
            if found[index].setdefault(covering[index], tokens) != tokens:
                failed |= {max(0, index - 1), index}  # the cuts before and behind it
    if cuts:
        for index, piece in enumerate(found):
            ordered = sorted(piece.values())
            if any(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(ordered)):
                failed.add(index)
    return found, frozenset(cuts[min(index, len(cuts) - 1)] for index in failed)
