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

The trie is never built as a whole: planning.py cuts the output into pieces of (mostly) one slot each, such that it is
the concatenation of small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medtune_jax.data.prompts import Template
from medtune_jax.errors import UserError
from medtune_jax.tasks.base import Allowed

NOT_FINITE = (
    "The model's scores for the next token are not finite (NaN or infinite): its weights are damaged or training "
    "diverged, or their values overflow. Check the checkpoint; with --dtype=bfloat16 try float32."
)


@dataclass(frozen=True)
class TemplateRequest:
    """One row to be decoded by template.

    Attributes:
      instruction, input: the row's.
      outputs: its task's `allowed(input)`, or what finds it when it is asked for: many rows should not hold theirs.
      name: of the row, for errors.
      preface: what stands before the row's prompt: demonstrations.
    """

    instruction: str
    input: str
    outputs: Allowed | Callable[[], Allowed]
    name: str = "a row"
    preface: str = ""

    @property
    def allowed(self) -> Allowed:
        """The outputs that are permitted."""
        return self.outputs if isinstance(self.outputs, Allowed) else self.outputs()

    def prompt(self, template: Template) -> str:
        """Returns all that the model is given."""
        return self.preface + template.prompt(self.instruction, self.input)


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of the output between two cuts.

    Attributes:
      options: the permitted combinations of the options of its slots; one, empty, if it has none.
      tokens: the token ids of each combination. They are empty where the output has ended before this piece; of the
        others none is a prefix of another, and none of them may follow where an empty one may.
    """

    allowed: Allowed
    options: tuple[tuple[str, ...], ...]
    tokens: tuple[tuple[int, ...], ...]

    @cached_property
    def shared(self) -> int:
        """How many leading tokens all combinations have in common."""
        return common_prefix(min(self.tokens), max(self.tokens))

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
            alive = [index for index, tokens in enumerate(self.tokens) if tokens]
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
      draft: the combination chosen in each piece; at first each piece's first that is permitted.
      longest: tokens of prompt and longest allowed output, EOS included.
      passes: forward passes over the draft so far.
      settled: tokens of the draft that are final: the next pass begins behind all of them but the last.
    """

    def __init__(self, prompt: Sequence[int], pieces: Sequence[Piece], longest_output: int):
        self.prompt = list(prompt)
        self.pieces = tuple(pieces)
        self.passes = 0
        self.settled = 0
        self.longest = len(self.prompt) + longest_output
        self.draft: list[int] = []
        previous: str | None = None
        for piece in self.pieces:
            self.draft.append(piece.permitted(previous)[0])
            previous = last_option(piece.options[self.draft[-1]], previous)

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
        """Returns (index into `tokens`, tokens that may stand there) wherever the unsettled draft's way forks."""
        forks, start = [], 0
        for piece, chosen in zip(self.pieces, self.draft, strict=True):
            forks += [(start + depth, children) for depth, children in piece.branches(chosen)]
            start += len(piece.tokens[chosen])
        return [(at, children) for at, children in forks if at >= self.settled]

    def improve(self, logits_mU: np.ndarray, columns: Mapping[int, int]) -> bool:
        """Adopts every choice that the logits behind the draft make; returns whether the result is final.

        Args:
          logits_mU: float32, row i for the i-th of `decisions()`; columns: token id -> column.

        Raises:
          UserError: a logit is not finite.
        """
        if not np.isfinite(logits_mU[: len(self.decisions())]).all():
            raise UserError(NOT_FINITE)
        self.passes += 1
        previous: str | None = None
        before = self.tokens
        at = 0  # the next row of logits_mU
        start = 0  # of the piece in the draft
        changed, final = False, True
        draft = []
        for piece, drafted in zip(self.pieces, self.draft, strict=True):
            settled = self.settled - start  # of the piece's tokens
            start += len(piece.tokens[drafted])
            forks = [(depth, children) for depth, children in piece.branches(drafted) if depth >= settled]
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
                        best = piece.tokens[drafted if depth < settled else alive[0]][depth]
                    changed = changed or not same or best != piece.tokens[drafted][depth]
                    alive = tuple(index for index in alive if piece.tokens[index][depth] == best)
                depth += 1
            draft.append(alive[0])
            changed |= alive[0] != drafted
            previous = last_option(piece.options[alive[0]], previous)
        self.draft = draft
        self.settled = min(common_prefix(before, self.tokens) + 1, len(before))
        return final


class Walk:
    """A way through the trie of a row's allowed sequences, token by token.

    Attributes:
      chosen: the combination of each piece that is written; the next one is the piece that is being written.
      depth: tokens of that piece that are written.
    """

    def __init__(self, pieces: Sequence[Piece]):
        self._pieces = pieces
        self._previous: str | None = None
        self._alive: tuple[int, ...] = ()
        self.chosen: list[int] = []
        self.depth = 0
        self._enter()

    @property
    def children(self) -> list[int]:
        """The tokens that may come next, ascending; none behind EOS."""
        tokens = self._pieces[len(self.chosen)].tokens if len(self.chosen) < len(self._pieces) else ()
        return sorted({tokens[one][self.depth] for one in self._alive}) if tokens else []

    @property
    def first(self) -> int:
        """Of `children`, that of the combination which stands first in its piece."""
        return self._pieces[len(self.chosen)].tokens[self._alive[0]][self.depth]

    @property
    def begun(self) -> tuple[int, ...]:
        """The written tokens of the piece that is being written."""
        return self._pieces[len(self.chosen)].tokens[self._alive[0]][: self.depth]

    def take(self, token: int) -> None:
        """Writes one of `children`."""
        tokens = self._pieces[len(self.chosen)].tokens
        self._alive = tuple(one for one in self._alive if tokens[one][self.depth] == token)
        self.depth += 1
        # None of the combinations that may stand here begins another: the last token of one leaves only this one.
        if self.depth == len(tokens[self._alive[0]]):
            self._leave()
            self._enter()

    def _enter(self) -> None:
        """Goes to the next piece in which something is to be written."""
        for piece in self._pieces[len(self.chosen) :]:
            self._alive, self.depth = piece.permitted(self._previous), 0
            if piece.tokens[self._alive[0]]:
                return
            self._leave()

    def _leave(self) -> None:
        combination = self._pieces[len(self.chosen)].options[self._alive[0]]
        self._previous = last_option(combination, self._previous)
        self.chosen.append(self._alive[0])


def longest_output(pieces: Sequence[Piece]) -> int:
    """Returns the number of tokens of the longest permitted way through the pieces."""
    longest: dict[str | None, int] = {None: 0}  # by the last option of the way so far
    for piece in pieces:
        longer: dict[str | None, int] = {}
        added = [len(tokens) for tokens in piece.tokens]
        for previous, length in longest.items():
            for index in piece.permitted(previous):
                last = last_option(piece.options[index], previous)
                if longer.get(last, -1) < length + added[index]:
                    longer[last] = length + added[index]
        longest = longer
    return max(longest.values())


def last_option(combination: tuple[str, ...], previous: str | None) -> str | None:
    """Returns the last option of a way that ends in a piece's `combination`; previous: of the way before it."""
    return combination[-1] if combination else previous


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """Returns the length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
