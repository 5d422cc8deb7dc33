"""Grammars, host side: which tokens may stand next, which are forced, and how a text can be closed (llguidance).

A grammar is over bytes: any tokens whose bytes make up a text of the grammar may be chosen, not only the ids that the
tokenizer would give that text. (Template decoding allows the canonical ids alone; a grammar's texts cannot be listed.)

Before anything is decoded a least text is found, by which every answer can be closed (derivation.py): least.py reads it
off the syntax, else `_search` looks for one, and the grammar itself must permit it. It is a short text, not always the
shortest. A grammar of which none is found is refused.
"""

from __future__ import annotations

import functools
import heapq
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.errors import UserError
from medtune_jax.generate import least as least_texts
from medtune_jax.tasks.base import Grammar

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

# Order of the bytes by which a text is closed; others follow.
_ALPHANUMERIC = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OUTSIDE = {byte: rank for rank, byte in enumerate(b']}),"' + _ALPHANUMERIC)}
_IN_STRING = {byte: rank for rank, byte in enumerate(b'"' + _ALPHANUMERIC)}
_MOST_OUTSIDE = 64  # bytes of which one begins the next token outside a string
_MOST_STATES = 256  # from which a search looks on
_LONGEST_SEARCH = 256  # tokens of a least text that is searched
_LONGEST_STRAIGHT = 16  # tokens of a straight way to an end
_MOST_CLOSINGS = 512  # ends of the least text that are tried
_ANCHORS = ("\n", ".")  # before a text, so that none of its tokens is one for the beginning of a document
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Vocabulary:
    """A tokenizer as llguidance needs it.

    Attributes:
      words: int32 words of a mask that has one bit per token, the lowest bit first.

    Raises:
      UserError: llguidance is not installed, or the tokenizer's pieces are not parts of a text.
    """

    def __init__(self, tokenizer: Tokenizer):
        try:
            from llguidance import LLExecutor, LLTokenizer, TokenizerWrapper
        except ImportError:
            raise UserError(
                "Decoding by a grammar needs llguidance, which is not installed: pip install 'medtune-jax[grammar]'."
            ) from None
        self.tokenizer = tokenizer
        self.words = -(-tokenizer.vocab_size // 32)
        self.pieces = tokenizer.pieces()
        self._executor: LLExecutor = LLExecutor()
        self._ids = _Ids(tokenizer, self.pieces)
        self._wrapped: Any = LLTokenizer(TokenizerWrapper(self._ids))
        self._languages: dict[tuple[Grammar, str, str], Language] = {}

    def language(self, grammar: Grammar, before: str = "", after: str = "") -> Language:
        """Returns the texts `before` + a text of the grammar + `after`.

        Raises:
          UserError: the grammar is not one, or no text of it was found.
        """
        key = (grammar, before, after)
        if key not in self._languages:
            start = self._compile(*key)
            least = self._least(start, *key)
            if least is None:
                raise UserError(
                    f"No text of the {_name(grammar)} was found, by which an answer could be closed in time. Write it "
                    "more plainly (a regular expression in what Rust's and Python's syntax share, a schema without "
                    f"keywords that exclude each other).\nIn: {grammar.text[:200]}"
                )
            self._languages[key] = Language(self, start, after, least, forced(start))
        return self._languages[key]

    def _least(self, start: LLMatcher, grammar: Grammar, before: str, after: str) -> Sequence[int] | None:
        """Returns a short text of the language; None where none is found."""
        if grammar.kind == "regex":
            text = least_texts.text_of_regex(grammar.text)
        else:
            text = least_texts.text_of_schema(_schema(grammar.text))
        if text is not None and self.completes(start, proposed := self.inside(before + text + after)):
            return proposed
        found = _straight(self, start, self.inside(after), _LONGEST_SEARCH)
        if found is None:
            found = _search(self, start, self.inside(after))
        if found is not None:
            usual = self.inside(self.text(found))  # longer pieces than a search by first bytes takes
            if len(usual) < len(found) and self.completes(start, usual):
                return usual
        return found

    def completes(self, state: LLMatcher, tokens: Sequence[int]) -> bool:
        """Says whether a text of the grammar ends behind `tokens`."""
        return state.validate_tokens([*tokens, self.tokenizer.eos_id]) == len(tokens) + 1

    def inside(self, text: str) -> list[int]:
        """Returns the ids of a text inside another."""
        return self._ids(text.encode())

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the text of whole characters that `tokens` make up."""
        return b"".join(self.pieces[token] or b"" for token in tokens).decode()

    def masks(self, matchers: Sequence[LLMatcher]) -> np.ndarray:
        """Returns int32 [matchers, words]: the tokens that may stand next, EOS where the grammar permits an end."""
        from llguidance.numpy import fill_next_token_bitmask_par

        masks = np.zeros((len(matchers), self.words), np.int32)
        fill_next_token_bitmask_par(self._executor, [(one, at) for at, one in enumerate(matchers)], masks)
        return masks

    def tokens(self, mask: np.ndarray) -> np.ndarray:
        """Returns the ids whose bits are set in a mask [words]."""
        return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))

    def ways_on(self, mask: np.ndarray) -> list[int]:
        """Returns, of a mask's tokens, the shortest for each first byte (of equals the lowest id), likely ends first.

        Where most bytes may stand, as inside a string, a quote is a likely end, and elsewhere a bracket.
        """
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little").astype(bool)
        tokens = self._by_byte[allowed[self._by_byte]]
        bytes_ = self._first_byte[tokens]
        tokens = tokens[np.diff(bytes_, prepend=-1) > 0]
        rank = _IN_STRING if len(tokens) > _MOST_OUTSIDE else _OUTSIDE
        return sorted(tokens.tolist(), key=lambda token: (rank.get(int(self._first_byte[token]), len(rank)), token))

    @functools.cached_property
    def _by_byte(self) -> np.ndarray:
        """Ids by first byte, then by length, then by themselves."""
        ids = [token for token, piece in enumerate(self.pieces) if piece]
        return np.array(sorted(ids, key=lambda token: ((self.pieces[token] or b"")[0], len(self.pieces[token] or b""))))

    @functools.cached_property
    def _first_byte(self) -> np.ndarray:
        return np.array([piece[0] if piece else 0 for piece in self.pieces], np.int64)

    def _compile(self, grammar: Grammar, before: str, after: str) -> LLMatcher:
        from llguidance import LLMatcher

        if grammar.kind == "regex":
            _check(LLMatcher(self._wrapped, LLMatcher.grammar_from_regex(grammar.text), log_level=0), grammar)
            framed = LLMatcher.grammar_from_regex(f"{re.escape(before)}(?:{grammar.text}){re.escape(after)}")
        else:
            schema = _schema(grammar.text)
            parts = [json.dumps(part) for part in (before, after) if part]
            rule = " ".join([*parts[: bool(before)], "json", *parts[bool(before) :]])
            written = json.dumps({**schema, "x-guidance": _JSON})
            framed = LLMatcher.grammar_from_lark(f"start: {rule}\njson: %json {written}")
        matcher = LLMatcher(self._wrapped, framed, log_level=0)
        _check(matcher, grammar)
        return matcher


def _schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise UserError(f"The JSON schema is not JSON: {error}") from None
    if schema is True:
        return {}
    if schema is False:
        raise UserError("The JSON schema is false, of which nothing is an instance. Write one that permits something.")
    if not isinstance(schema, dict):
        raise UserError(f"The JSON schema is not a JSON object or true: {text[:80]}")
    if "x-guidance" in schema:
        raise UserError(
            'The JSON schema has the key "x-guidance", which says how JSON is laid out; here it is always one line, as '
            "Python's json.dumps writes it. Leave the key out."
        )
    return schema


def _name(grammar: Grammar) -> str:
    return "regular expression" if grammar.kind == "regex" else "JSON schema"


def _check(matcher: LLMatcher, grammar: Grammar) -> None:
    if matcher.is_error():
        raise UserError(f"The {_name(grammar)} cannot be decoded by: {fault(matcher)}\nIn: {grammar.text[:200]}")


def fault(matcher: LLMatcher) -> str:
    """Returns what llguidance says is wrong, without the state of its parser behind."""
    return matcher.get_error().partition("\n<state>")[0].strip()[:500]


@functools.lru_cache(maxsize=4)
def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Returns the tokenizer's vocabulary, made once (0.7 s for 32,000 pieces); errors as of `Vocabulary`."""
    return Vocabulary(tokenizer)


class _Ids:
    """What llguidance asks of a tokenizer: the bytes of its ids, and the ids of bytes that stand inside a text."""

    def __init__(self, tokenizer: Tokenizer, pieces: Sequence[bytes | None]):
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.special_token_ids = [token for token, piece in enumerate(pieces) if piece is None]
        self._special = set(self.special_token_ids)
        self.tokens = [b"<special %d>" % token if piece is None else piece for token, piece in enumerate(pieces)]
        self._tokenizer = tokenizer
        self._anchors = [(anchor, tokenizer.encode(anchor)) for anchor in _ANCHORS]
        # Of equals the last: sentencepiece's bytes come before its characters.
        self._by_piece = {piece: token for token, piece in enumerate(pieces) if piece}
        self._longest = max(map(len, self._by_piece))

    def __call__(self, text: bytes) -> list[int]:
        """Returns ids whose pieces make up a text inside another.

        They are the tokenizer's own as far as those spell the text: sentencepiece drops a space at the end, and some
        normalize. The rest is spelled by the longest pieces. It ends early where no piece goes on.
        """
        ids, at = [], 0
        for token in self._usual(text):
            piece = self.tokens[token]
            if token in self._special or not text.startswith(piece, at):
                break
            ids.append(token)
            at += len(piece)
        while at < len(text):
            ends = range(min(len(text), at + self._longest), at, -1)
            end = next((end for end in ends if text[at:end] in self._by_piece), None)
            if end is None:
                break
            ids.append(self._by_piece[text[at:end]])
            at = end
        return ids

    def _usual(self, text: bytes) -> list[int]:
        """Returns the tokenizer's ids of the text behind an anchor; none where the anchor grows into it."""
        try:
            written = text.decode()
        except UnicodeDecodeError:
            return []
        for anchor, own in self._anchors:
            ids = self._tokenizer.encode(anchor + written)
            if ids[: len(own)] == own:
                return ids[len(own) :]
        return []


@dataclass(frozen=True, eq=False)
class Language:
    """A grammar with what stands around its texts, compiled.

    Attributes:
      start: its matcher before the first token.
      after: what stands behind.
      least: a short text of it.
      begin: the tokens with which every text is made to begin.
    """

    vocabulary: Vocabulary
    start: LLMatcher
    after: str
    least: Sequence[int]
    begin: Sequence[int]

    @functools.cached_property
    def _tail(self) -> list[int]:
        return self.vocabulary.inside(self.after)

    @functools.cached_property
    def _closings(self) -> list[list[int]]:
        """The ends of the least text, the shortest first."""
        text = self.vocabulary.text(self.least)
        ends = [self.vocabulary.inside(text[at:]) for at in range(max(0, len(text) - _MOST_CLOSINGS), len(text))]
        return sorted(ends, key=len)

    def closing(self, state: LLMatcher, limit: int) -> Sequence[int] | None:
        """Returns a way from `state` to an end, of at most `limit` tokens; None where none is found."""
        fitting = (closing for closing in self._closings if len(closing) <= limit)
        found = next((closing for closing in fitting if self.vocabulary.completes(state, closing)), None)
        return found or _straight(self.vocabulary, state, self._tail, min(limit, _LONGEST_STRAIGHT))


def _straight(vocabulary: Vocabulary, state: LLMatcher, tail: Sequence[int], limit: int) -> list[int] | None:
    """Returns the way to an end, of at most `limit` tokens, that always takes the first of `_ways`; None if there is
    none. tail: with which a way may end."""
    tokens: list[int] = []
    at = state.deep_copy()
    while len(tokens) <= limit:
        if (end := _end_of(at, tail)) is not None:
            return [*tokens, *end] if len(tokens) + len(end) <= limit else None
        way = next(iter(_ways(vocabulary, at)), None)
        if way is None or not at.consume_tokens(way):
            return None
        tokens += way
    return None


def _search(vocabulary: Vocabulary, state: LLMatcher, tail: Sequence[int]) -> list[int] | None:
    """Returns a way to an end, looking on from `_MOST_STATES` states at most; None if none is found.

    A state comes the earlier, the fewer steps away it is and the earlier each step's way stands in `_ways`. (Nothing
    says that two states are the same one: states that permit the same tokens may differ in what is permitted later.)
    """
    ahead: list[tuple[int, int, list[int], LLMatcher]] = [(0, 0, [], state)]
    seen = 1
    for _ in range(_MOST_STATES):
        if not ahead:
            break
        cost, _, tokens, before = heapq.heappop(ahead)
        for rank, way in enumerate(_ways(vocabulary, before)):
            at = before.deep_copy()
            if not at.consume_tokens(way):
                continue
            if (end := _end_of(at, tail)) is not None:
                return [*tokens, *way, *end]
            heapq.heappush(ahead, (cost + 1 + rank, seen, [*tokens, *way], at))
            seen += 1
    return None


def _end_of(state: LLMatcher, tail: Sequence[int]) -> Sequence[int] | None:
    """Returns what is missing to an end, nothing or `tail`; None where it is neither."""
    if state.is_accepting():
        return ()
    if not tail or state.validate_tokens(list(tail)) < len(tail):
        return None
    ended = state.deep_copy()
    ended.consume_tokens(list(tail))
    return tail if ended.is_accepting() else None


def _ways(vocabulary: Vocabulary, state: LLMatcher) -> list[list[int]]:
    """Returns what is forced, else tokens that may stand next (`Vocabulary.ways_on`)."""
    if following := forced(state):
        return [following]
    return [[token] for token in vocabulary.ways_on(vocabulary.masks([state])[0])]


def forced(state: LLMatcher) -> list[int]:
    """Returns the tokens by which every text goes on, as far as they are the same in all."""
    following = state.compute_ff_tokens()
    return following[: state.validate_tokens(following)]
