"""Planning of template decoding: the allowed outputs of a row, cut into pieces and encoded.

The text is cut into pieces of (mostly) one slot each, inside the forced text between two slots or where two slots
adjoin. A cut is made between two characters that no token of the vocabulary holds side by side, where in fact a token
begins whatever the options are. So no token ever spans a cut, both sides are encoded independently, and the trie of all
allowed sequences is the concatenation of those of the pieces. Where an option ends the output (the last label of a
list), its piece holds the rest of the sequence, EOS included, and the pieces behind it are empty. Where no such place
is found between two slots, or where one option's tokens begin another's so that what follows the cut would decide
between them, the slots share a piece, and all combinations of their options are encoded; in the extreme one piece holds
the whole output.

Many tasks allow the same outputs for every input. Their pieces are read once: the prompt ends in text of the template,
and behind a cut in there nothing depends on the row. Every row's joint encoding with one output must end in the tokens
that the first row had; a row where it does not is planned on its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from medtune_jax.data.prompts import Template
from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.errors import UserError
from medtune_jax.generate import cutting
from medtune_jax.generate.cutting import Combination
from medtune_jax.generate.template import Piece, Row, TemplateRequest, common_prefix, longest_output
from medtune_jax.tasks.base import Allowed

_MOST_COMBINATIONS = 4096  # of options within one piece; only texts that cannot be cut come near
_KEPT = 64  # sets of allowed outputs whose pieces are remembered
_KNOWN = 1 << 16  # forced texts whose cuts are remembered: in a corpus, words and the like
_BROKEN = "\ufffd"  # what part of a character's bytes decodes to


@dataclass(frozen=True)
class _Read:
    """The pieces of one set of allowed outputs, and how another row is seen to have the same.

    Attributes:
      tail: characters of the prompt behind the cut in it.
      output: one of the outputs; tokens: what follows the cut in a prompt with it, EOS not included.
      shared: how many of `tokens` are the prompt's whatever the output.
      longest: tokens of the longest output, EOS included.
    """

    pieces: tuple[Piece, ...]
    tail: int
    output: str
    tokens: tuple[int, ...]
    shared: int
    longest: int


class Planner:
    """Plans rows for one tokenizer and template."""

    def __init__(self, tokenizer: Tokenizer, template: Template):
        self._tokenizer = tokenizer
        self._template = template
        self._inseparable = _neighbours(tokenizer)
        self._ending = _ending(template)
        self._separable = lru_cache(_KNOWN)(self._find_separable)
        self._read: dict[Allowed, _Read] = {}

    def plan(self, request: TemplateRequest) -> Row:
        """Cuts a request's allowed outputs into pieces and encodes them.

        Raises:
          UserError: slots that cannot be parted have too many combinations.
          ValueError: `follows` permits no output at all.
        """
        allowed = request.allowed
        read = self._read.pop(allowed, None)
        if read is not None:
            self._read[allowed] = read  # now the last to be forgotten
            row = self._again(request, read)
            if row is not None:
                return row
        return self._anew(request, allowed)

    def _again(self, request: TemplateRequest, read: _Read) -> Row | None:
        """Plans a row whose outputs have been read with another; None where its encoding ends otherwise."""
        prompt = request.prompt(self._template)
        [(ids, spans)] = self._tokenizer.encode_batch_with_offsets([prompt + self._template.completion(read.output)])
        cut = len(ids) - len(read.tokens)
        if tuple(ids[cut:].tolist()) != read.tokens or spans[cut, 0] != len(prompt) - read.tail:
            return None
        return Row([self._tokenizer.bos_id, *ids[: cut + read.shared].tolist()], read.pieces, read.longest)

    def _anew(self, request: TemplateRequest, allowed: Allowed) -> Row:
        tokenizer, template = self._tokenizer, self._template
        viable = cutting.viable_options(allowed)
        before, between = cutting.forced_texts(allowed)
        ends = cutting.ending_options(allowed, viable, between)
        # What is first in a piece is drafted first: a list that ends early is a short draft.
        viable = [
            (*filter(ending.__contains__, slot), *(option for option in slot if option not in ending))
            for slot, ending in zip(viable, ends, strict=True)
        ]
        places = [self._places(allowed, viable, between, ends, cut) for cut in range(len(between))]
        prompt = request.prompt(template)
        joined = {cut for cut, found in enumerate(places) if not found}
        while True:
            cuts = [cut for cut in range(len(between)) if cut not in joined]
            edges = [0, *(cut + 1 for cut in cuts), len(viable)]
            pieces = [
                _combinations(request.name, allowed, viable[first:last]) for first, last in itertools.pairwise(edges)
            ]
            coverings = (
                cutting.permitted_coverings(allowed, pieces) if any(ends[:-1]) else cutting.mixed_coverings(pieces)
            )
            outputs = [allowed.text(tuple(itertools.chain(*one))) for one in coverings]
            (alone, _), *encoded = tokenizer.encode_batch_with_offsets(
                [prompt, *(prompt + template.completion(output) for output in outputs)]
            )
            prompt_ids, spans = alone.tolist(), [spans for _, spans in encoded]
            shared = min(common_prefix(prompt_ids, ids.tolist()) for ids, _ in encoded)
            start = len(prompt) + template.output_at + len(before)
            at, failed = cutting.place_cuts(coverings, between, ends, {cut: places[cut] for cut in cuts}, spans, start)
            if not failed:
                sequences = [[*ids.tolist(), tokenizer.eos_id] for ids, _ in encoded]
                tokens, failed = cutting.read_pieces(coverings, sequences, at, shared, cuts)
            if not failed:
                break
            joined |= failed
        made = tuple(_piece(allowed, piece, found) for piece, found in zip(pieces, tokens, strict=True))
        longest = longest_output(made)
        self._remember(allowed, made, prompt, outputs[0], *encoded[0], shared, longest)
        return Row([tokenizer.bos_id, *prompt_ids[:shared]], made, longest)

    def _remember(
        self,
        allowed: Allowed,
        pieces: tuple[Piece, ...],
        prompt: str,
        output: str,
        ids: np.ndarray,
        spans: np.ndarray,
        shared: int,
        longest: int,
    ) -> None:
        """Keeps what was read for other rows, if the prompt can be cut in the template's own text."""
        begins = cutting.beginnings(spans)
        for offset in self._separable(self._ending):
            tail = len(self._ending) - offset
            cut = begins.get(len(prompt) - tail)
            if cut is not None and cut <= shared:
                self._read[allowed] = _Read(pieces, tail, output, tuple(ids[cut:].tolist()), shared - cut, longest)
                if len(self._read) > _KEPT:
                    del self._read[next(iter(self._read))]
                return

    def _places(
        self,
        allowed: Allowed,
        viable: Sequence[tuple[str, ...]],
        between: Sequence[str],
        ends: Sequence[frozenset[str]],
        cut: int,
    ) -> list[int]:
        """Returns the offsets in the forced text of a cut at which no token can span, in the order of trying."""
        if between[cut]:
            return self._separable(between[cut])
        pairs = cutting.neighbours(allowed, viable[cut], viable[cut + 1], ends[cut])
        return [] if pairs is None or any(self._spans(*pair) for pair in pairs) else [0]

    def _find_separable(self, text: str) -> list[int]:
        """Returns the offsets inside a text at which no token can span.

        First behind line breaks and before spaces, where tokenizers split words anyway; then from the middle outwards.
        """
        return sorted(
            (at for at in range(1, len(text)) if not self._spans(text[at - 1], text[at])),
            key=lambda at: (text[at - 1] != "\n", not text[at].isspace(), abs(at - len(text) / 2)),
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


def _ending(template: Template) -> str:
    """Returns the text in which all prompts of a template end."""
    prompts = [template.prompt(instruction, input) for instruction in "ab" for input in ("", "c", "d")]
    size = min(common_prefix(prompts[0][::-1], prompt[::-1]) for prompt in prompts)
    return prompts[0][len(prompts[0]) - size :]


def _piece(
    allowed: Allowed, combinations: Sequence[Combination], tokens: Mapping[Combination, tuple[int, ...]]
) -> Piece:
    first = {tokens[combination]: combination for combination in reversed(combinations)}  # of equal texts the first
    options = [combination for combination in combinations if first[tokens[combination]] == combination]
    return Piece(allowed, tuple(options), tuple(tokens[combination] for combination in options))


def _combinations(name: str, allowed: Allowed, options: Sequence[tuple[str, ...]]) -> list[Combination]:
    """Returns the permitted combinations of the slots of one piece."""
    found: list[Combination] = [()]
    for slot in options:
        found = [(*c, o) for c in found for o in slot if not c or allowed.permits(c[-1], o)]
        if len(found) > _MOST_COMBINATIONS:
            raise UserError(
                f"Template decoding of {name}: this tokenizer merges text across {len(options)} "
                f"neighbouring decisions with over {_MOST_COMBINATIONS} combinations. Use --decode=greedy, or a "
                "tokenizer that splits lines."
            )
    return found
