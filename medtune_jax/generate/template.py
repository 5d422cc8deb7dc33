"""Template decoding, host side: which tokens may stand where, and how a draft is improved.

Allowed sequences. An `Allowed` (tasks/base.py) permits a set of outputs. Each has one canonical token sequence: the ids
of prompt + template.completion(output), encoded jointly, after the longest prefix that all of them share with the
prompt's own ids; then EOS. No sequence is a prefix of another, because EOS ends each. Constrained greedy walks the trie
of these sequences: at every node the child with the highest logit is taken, of equals the lowest id.

Parallel decisions. One pass over a drafted sequence gives the logits behind every one of its prefixes. `Row.improve`
then walks the trie again, deciding every branching by those logits. Let i be the first position at which the result
differs from the draft. Claim: the result agrees with constrained greedy up to and including i. By induction over
positions: before i the draft's tokens were the best children of their own prefixes, so that prefix is greedy's; hence
the children at i and their logits (which depend on the prefix alone) are greedy's, and the best child is greedy's
token. What is written behind i is only a guess for the next pass. So every pass makes at least one more decision final,
there are at most as many passes as decisions, plus one, and a draft that does not change is greedy's sequence.

Pieces. The trie is never built: the text is cut inside forced parts, at places where a token begins whatever the
options are, into pieces of (mostly) one slot each, and the tokens of a piece depend on its own options only. The trie
is then the concatenation of small ones. That is checked, not assumed: each option of each piece is encoded in two
different surroundings within the whole text, and every finished sequence is compared with the joint encoding of its
text. Where a check fails, the two pieces at the offending cut become one, whose combinations are all enumerated; in the
extreme one piece holds the whole output and every allowed text is encoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medtune_jax.data.prompts import Template
from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.errors import UserError
from medtune_jax.tasks.base import Allowed, Slot

_MOST_COMBINATIONS = 4096  # of options within one piece; only texts that cannot be cut come near


@dataclass(frozen=True)
class TemplateRequest:
    """One row to be decoded by template.

    Attributes:
      instruction, input: the row's; allowed: its task's `allowed(input)`.
      draft: the option that the first draft prefers wherever it is permitted; None = each slot's first option. It
        changes the number of passes, never the text.
    """

    instruction: str
    input: str
    allowed: Allowed
    draft: str | None = None


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of the output between two cuts.

    Attributes:
      options: the permitted combinations of the options of its slots, preferred ones first; one, empty, if it has none.
      tokens: the token ids of each combination; none is a prefix of another.
    """

    allowed: Allowed
    options: tuple[tuple[str, ...], ...]
    tokens: tuple[tuple[int, ...], ...]

    @cached_property
    def shared(self) -> int:
        """How many leading tokens all combinations have in common."""
        return _common_prefix(min(self.tokens), max(self.tokens))

    @cached_property
    def _after(self) -> dict[str | None, tuple[int, ...]]:
        return {}

    def permitted(self, previous: str | None) -> tuple[int, ...]:
        """Returns the combinations that may follow the option `previous` (None: at the beginning)."""
        if previous not in self._after:
            self._after[previous] = tuple(
                index
                for index, combination in enumerate(self.options)
                if not combination or self.allowed.permits(previous, combination[0])
            )
        return self._after[previous]

    @cached_property
    def _branches(self) -> dict[int, tuple[tuple[int, frozenset[int]], ...]]:
        return {}

    def branches(self, chosen: int) -> tuple[tuple[int, frozenset[int]], ...]:
        """Returns (depth, tokens that some combination has there) wherever `chosen`'s way through the trie forks."""
        if chosen not in self._branches:
            forks = []
            alive = list(range(len(self.tokens)))
            for depth in range(self.shared, len(self.tokens[chosen])):
                children = frozenset(self.tokens[index][depth] for index in alive)
                if len(children) > 1:
                    forks.append((depth, children))
                    alive = [index for index in alive if self.tokens[index][depth] == self.tokens[chosen][depth]]
            self._branches[chosen] = tuple(forks)
        return self._branches[chosen]


class Row:
    """A request on its way: its prompt, its pieces, the current draft.

    Attributes:
      prompt: ids before the first token that depends on the output, BOS first.
      draft: the combination chosen in each piece.
      longest: tokens of prompt and longest allowed output, EOS included.
      passes: forward passes over the draft so far.
    """

    def __init__(self, prompt: Sequence[int], pieces: Sequence[Piece]):
        self.prompt = list(prompt)
        self.pieces = tuple(pieces)
        self.passes = 0
        self.longest = len(self.prompt) + sum(max(map(len, piece.tokens)) for piece in self.pieces)
        self.draft: list[int] = []
        previous: str | None = None
        for piece in self.pieces:
            self.draft.append(piece.permitted(previous)[0])
            previous = _last(piece.options[self.draft[-1]], previous)

    @property
    def tokens(self) -> list[int]:
        """The draft's tokens after the prompt, EOS last."""
        return [token for piece, chosen in zip(self.pieces, self.draft, strict=True) for token in piece.tokens[chosen]]

    @property
    def options(self) -> tuple[str, ...]:
        """The draft's option in every slot."""
        return tuple(
            option for piece, chosen in zip(self.pieces, self.draft, strict=True) for option in piece.options[chosen]
        )

    def decisions(self) -> list[tuple[int, frozenset[int]]]:
        """Returns (index into `tokens`, tokens that may stand there) wherever the draft's way forks."""
        forks, start = [], 0
        for piece, chosen in zip(self.pieces, self.draft, strict=True):
            forks += [(start + depth, children) for depth, children in piece.branches(chosen)]
            start += len(piece.tokens[chosen])
        return forks

    def improve(self, logits_mU: np.ndarray, columns: Mapping[int, int]) -> bool:
        """Adopts every choice that the logits behind the draft make; returns whether the result is final.

        Args:
          logits_mU: float32, row i for the i-th of `decisions()`; columns: token id -> column.
        """
        self.passes += 1
        previous: str | None = None
        at = 0  # the next row of logits_mU
        changed, final = False, True
        draft = []
        for piece, drafted in zip(self.pieces, self.draft, strict=True):
            forks = piece.branches(drafted)
            known = {depth: logits_mU[at + i] for i, (depth, _) in enumerate(forks)}
            at += len(forks)
            alive = piece.permitted(previous)
            depth = piece.shared
            while len(alive) > 1:
                children = {piece.tokens[index][depth] for index in alive}
                if len(children) > 1:
                    if changed:
                        final = False  # something is still to be decided behind the first change
                    same = piece.tokens[alive[0]][:depth] == piece.tokens[drafted][:depth]
                    if same and depth in known:
                        scores = known[depth]
                        best = min(children, key=lambda token: (-scores[columns[token]], token))
                    else:
                        best = piece.tokens[alive[0]][depth]
                    changed |= not same or best != piece.tokens[drafted][depth]
                    alive = tuple(index for index in alive if piece.tokens[index][depth] == best)
                depth += 1
            draft.append(alive[0])
            changed |= alive[0] != drafted
            previous = _last(piece.options[alive[0]], previous)
        self.draft = draft
        return final


def plan(
    tokenizer: Tokenizer, template: Template, request: TemplateRequest, joined: frozenset[int] = frozenset()
) -> Row:
    """Cuts a request's allowed outputs into pieces and encodes them.

    Args:
      joined: cuts known to fail; the i-th lies between slots i and i + 1.

    Raises:
      UserError: the outputs cannot be cut and are too many to enumerate.
      ValueError: `follows` permits no output at all.
    """
    allowed = request.allowed
    viable = _viable(allowed)
    before, between = _forced(allowed)
    prompt = template.prompt(request.instruction, request.input)
    prompt_ids = tokenizer.encode(prompt)
    while True:
        cuts = [cut for cut in range(len(between)) if cut not in joined]
        pieces = [
            _combinations(allowed, viable[first:last], request.draft) for first, last in _groups(len(viable), cuts)
        ]
        coverings = _coverings(pieces)
        texts = [prompt + template.completion(allowed.text(tuple(itertools.chain(*one)))) for one in coverings]
        encoded = tokenizer.encode_batch_with_offsets(texts)
        shared = min(_common_prefix(prompt_ids, ids.tolist()) for ids, _ in encoded)
        start = len(prompt) + template.output_at + len(before)
        ends, failed = _place_cuts(coverings, between, cuts, [spans for _, spans in encoded], start)
        if not failed:
            sequences = [[*ids.tolist(), tokenizer.eos_id] for ids, _ in encoded]
            tokens, failed = _read_pieces(coverings, sequences, ends, shared, cuts)
        if not failed:
            kept = [{tokens[i][c]: c for c in reversed(piece)} for i, piece in enumerate(pieces)]  # texts, once each
            ordered = [[c for c in piece if kept[i][tokens[i][c]] == c] for i, piece in enumerate(pieces)]
            return Row(
                [tokenizer.bos_id, *prompt_ids[:shared]],
                [Piece(allowed, tuple(o), tuple(tokens[i][c] for c in o)) for i, o in enumerate(ordered)],
            )
        joined |= failed


def failing_cut(tokenizer: Tokenizer, template: Template, request: TemplateRequest, row: Row) -> int | None:
    """Compares the draft's tokens with those of its text encoded jointly with the prompt.

    Returns None where they are equal, else the cut that `plan` must not make: the one nearest to the first difference.
    """
    text = template.prompt(request.instruction, request.input)
    text += template.completion(request.allowed.text(row.options))
    wrong = [*row.prompt, *row.tokens]
    right = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
    if wrong == right:
        return None
    at = _common_prefix(wrong, right)
    end, slots = len(row.prompt), 0
    found, nearest = 0, len(wrong) + len(right)
    for piece, chosen in zip(row.pieces[:-1], row.draft, strict=False):
        end += len(piece.tokens[chosen])
        slots += len(piece.options[chosen])
        if abs(end - at) < nearest:
            found, nearest = slots - 1, abs(end - at)
    return found


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


def _groups(slots: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the [first, last) slots of each piece; cut i lies between slots i and i + 1."""
    ends = [0, *(cut + 1 for cut in cuts), slots]
    return list(itertools.pairwise(ends))


def _combinations(allowed: Allowed, options: Sequence[tuple[str, ...]], draft: str | None) -> list[tuple[str, ...]]:
    """Returns the permitted combinations of the slots of one piece, the draft's preferred option first."""
    found: list[tuple[str, ...]] = [()]
    for slot in options:
        ordered = sorted(slot, key=lambda option: option != draft)
        found = [(*c, o) for c in found for o in ordered if not c or allowed.permits(c[-1], o)]
        if len(found) > _MOST_COMBINATIONS:
            raise UserError(
                f"Template decoding: this tokenizer merges text across {len(options)} neighbouring decisions, which "
                f"have more than {_MOST_COMBINATIONS} combinations. Use --decode=greedy, or a tokenizer that splits lines."
            )
    return found


def _coverings(pieces: Sequence[Sequence[tuple[str, ...]]]) -> list[tuple[tuple[str, ...], ...]]:
    """Returns whole outputs (a combination per piece) in which every combination occurs, in two surroundings each.

    They serve to encode only; `follows` need not permit them.
    """
    most = max(map(len, pieces))
    shifts = (0, 1) if len(pieces) > 1 else (0,)
    covering = [
        tuple(piece[(turn + shift * index) % len(piece)] for index, piece in enumerate(pieces))
        for shift in shifts
        for turn in range(most)
    ]
    return list(dict.fromkeys(covering))


def _place_cuts(
    coverings: Sequence[tuple[tuple[str, ...], ...]],
    between: Sequence[str],
    cuts: Sequence[int],
    spans: Sequence[np.ndarray],
    start: int,
) -> tuple[list[list[int]], frozenset[int]]:
    """Finds for each cut a place in its forced text at which a token begins in every covering.

    Args:
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
    for cut in cuts:
        for offset in _places(between[cut]):
            tokens = [begin.get(region[cut] + offset) for begin, region in zip(begins, regions, strict=True)]
            if None not in tokens:
                for end, token in zip(ends, tokens, strict=True):
                    end.append(token or 0)
                break
        else:
            failed.add(cut)
    return ends, frozenset(failed)


def _places(forced: str) -> list[int]:
    """Returns the offsets in a forced text in the order in which a cut is tried.

    First behind line breaks and before spaces, where tokenizers split words anyway; then from the middle outwards.
    """
    middle = len(forced) / 2
    return sorted(
        range(len(forced) + 1),
        key=lambda at: (
            forced[at - 1 : at] != "\n",
            at == len(forced) or not forced[at].isspace(),
            abs(at - middle),
        ),
    )


def _read_pieces(
    coverings: Sequence[tuple[tuple[str, ...], ...]],
    sequences: Sequence[list[int]],
    ends: Sequence[Sequence[int]],
    shared: int,
    cuts: Sequence[int],
) -> tuple[list[dict[tuple[str, ...], tuple[int, ...]]], frozenset[int]]:
    """Returns (per piece: combination -> tokens, the cuts that must go).

    A cut must go where a combination has other tokens in other surroundings, or where one combination's tokens begin
    another's: what follows then decides between them.
    """
    found: list[dict[tuple[str, ...], tuple[int, ...]]] = [{} for _ in coverings[0]]
    failed = set()
    for covering, sequence, end in zip(coverings, sequences, ends, strict=True):
        for index, (first, last) in enumerate(itertools.pairwise((shared, *end, len(sequence)))):
            tokens = tuple(sequence[first:last])
            if found[index].setdefault(covering[index], tokens) != tokens:
                failed.add(index)
    if cuts:
        for index, piece in enumerate(found):
            ordered = sorted(piece.values())
            if any(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(ordered)):
                failed.add(index)
    return found, frozenset(cuts[min(index, len(cuts) - 1)] for index in failed)


def _last(combination: tuple[str, ...], previous: str | None) -> str | None:
    return combination[-1] if combination else previous


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
