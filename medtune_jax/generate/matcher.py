"""Grammars, host side: which tokens may stand next, which are forced, and how a text is closed in time (llguidance).

A grammar is over bytes: any tokens whose bytes make up a text of the grammar may be chosen, not only the ids that the
tokenizer would give that text. (Template decoding allows the canonical ids alone; a grammar's texts cannot be listed.)

A text is closed within its limit: where the limit is reached and the grammar permits no end, the last 1, 2, 4, ...
tokens are taken back until a closing fits in their place (`_closing` finds it), in the end all of them, for the least
text that was found beforehand. So a limit that holds that text gives one of the grammar, whatever the model writes.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.errors import UserError
from medtune_jax.tasks.base import Grammar

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

# Order of the bytes by which a text is closed; others follow.
_ALPHANUMERIC = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OUTSIDE = {byte: rank for rank, byte in enumerate(b']})"' + _ALPHANUMERIC)}
_IN_STRING = {byte: rank for rank, byte in enumerate(b'"' + _ALPHANUMERIC)}
_MOST_OUTSIDE = 64  # bytes of which one begins the next token outside a string
_MOST_STATES = 64  # from which a search looks on
_LONGEST_CLOSING = 1024  # tokens
_ANCHOR = "\n"  # before a text, so that none of its tokens is one for the beginning of a document
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
        ids = _Ids(tokenizer, self.pieces)
        self._inside = ids.encode
        self._wrapped: Any = LLTokenizer(TokenizerWrapper(ids))
        self._languages: dict[tuple[Grammar, str, str], Language] = {}

    def language(self, grammar: Grammar, before: str = "", after: str = "") -> Language:
        """Returns the texts `before` + a text of the grammar + `after`.

        Raises:
          UserError: the grammar is not one.
        """
        key = (grammar, before, after)
        if key not in self._languages:
            start, tail = self._compile(*key), self._inside(after)
            least = _closing(self, start, tail, _LONGEST_CLOSING)
            if least is not None:
                usual = self._inside(self.text(least))  # longer pieces than a search by first bytes takes
                if 0 < len(usual) < len(least) and start.validate_tokens(usual) == len(usual):
                    least = usual
            self._languages[key] = Language(start, tail, least, _forced(start))
        return self._languages[key]

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
            framed = LLMatcher.grammar_from_lark(f"start: {rule}\njson: %json {json.dumps(schema)}")
        matcher = LLMatcher(self._wrapped, framed, log_level=0)
        _check(matcher, grammar)
        return matcher


def _schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise UserError(f"The JSON schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UserError(f"The JSON schema is not a JSON object: {text[:80]}")
    return {**schema, "x-guidance": _JSON}


def _check(matcher: LLMatcher, grammar: Grammar) -> None:
    if matcher.is_error():
        name = "regular expression" if grammar.kind == "regex" else "JSON schema"
        raise UserError(f"The {name} cannot be decoded by: {matcher.get_error()}\nIn: {grammar.text[:200]}")


@functools.lru_cache(maxsize=4)
def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Returns the tokenizer's vocabulary, made once (0.7 s for 32,000 pieces); errors as of `Vocabulary`."""
    return Vocabulary(tokenizer)


class _Ids:
    """What llguidance asks of a tokenizer: the bytes of its ids, and the ids of bytes that stand inside a text."""

    def __init__(self, tokenizer: Tokenizer, pieces: Sequence[bytes | None]):
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.special_token_ids = [token for token, piece in enumerate(pieces) if piece is None]
        self.tokens = [b"<special %d>" % token if piece is None else piece for token, piece in enumerate(pieces)]
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode(_ANCHOR)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text inside another; none where they are not known."""
        ids = self._tokenizer.encode(_ANCHOR + text)
        return ids[len(self._anchor) :] if ids[: len(self._anchor)] == self._anchor else []

    def __call__(self, text: bytes) -> list[int]:
        return self.encode(text.decode())


@dataclass(frozen=True, eq=False)
class Language:
    """A grammar with what stands around its texts, compiled.

    Attributes:
      start: its matcher before the first token.
      tail: ids of what stands behind.
      least: a short text of it, as short as `_closing` finds one; None where it finds none.
      begin: the tokens with which every text is made to begin.
    """

    start: LLMatcher
    tail: Sequence[int]
    least: Sequence[int] | None
    begin: Sequence[int]


class Derivation:
    """A text of a grammar on its way.

    Attributes:
      tokens: written so far, EOS not included.
      decisions: how many of them, and of the text's end, were chosen among several.
      done: nothing is to be chosen any more; complete: `tokens` make up a text of the grammar.
      mask: int32 [words], what may stand next where something is to be chosen.
    """

    def __init__(self, vocabulary: Vocabulary, language: Language, limit: int):
        """limit: of tokens, EOS not included."""
        self._vocabulary, self._language, self._limit = vocabulary, language, limit
        self._matcher = language.start.deep_copy()
        self.tokens: list[int] = []
        self.decisions = 0
        self.done = self.complete = False
        self.mask = np.zeros(vocabulary.words, np.int32)

    def choose(self, token: int) -> None:
        """Writes what was chosen among several; `settle` comes next."""
        self.decisions += 1
        self._write([token])

    def _write(self, tokens: Sequence[int]) -> None:
        tokens = list(tokens[: self._limit - len(self.tokens)])
        if tokens == [self._vocabulary.tokenizer.eos_id]:
            self.done = self.complete = True
        elif self._matcher.consume_tokens(tokens):
            self.tokens += tokens
        else:
            self._fail()

    def _force(self) -> None:
        """Writes what is forced, up to the limit, and sees whether that is the end."""
        while not self.done:
            if self._matcher.is_error():
                self._fail()
            if self._matcher.is_stopped():
                self.done = self.complete = True
            elif len(self.tokens) == self._limit:
                self._end()
            else:
                forced = _forced(self._matcher)
                if not forced:
                    break
                self._write(forced)

    def _end(self) -> None:
        """Ends the text here, closed where the grammar permits no end; see the top of the module."""
        self.done, self.complete = True, self._matcher.is_accepting()
        taken = 1
        while not self.complete and taken < len(self.tokens):
            kept = len(self.tokens) - taken
            state = self._language.start.deep_copy()
            state.consume_tokens(self.tokens[:kept])
            closing = _closing(self._vocabulary, state, self._language.tail, self._limit)
            if closing is not None and kept + len(closing) <= self._limit:
                self.tokens[kept:] = closing
                self.complete = True
            taken *= 2
        least = self._language.least
        if not self.complete and least is not None and len(least) <= self._limit:
            self.tokens, self.complete = list(least), True

    def _fail(self) -> NoReturn:
        raise UserError(f"The grammar cannot be followed any further: {self._matcher.get_error()}")

    @staticmethod
    def settle(vocabulary: Vocabulary, texts: Sequence[Derivation]) -> None:
        """Brings texts to where something is to be chosen, or to their end.

        Raises:
          UserError: a grammar is too large for llguidance.
        """
        while texts:
            for one in texts:
                one._force()
            texts = [one for one in texts if not one.done]
            if not texts:
                break
            masks = vocabulary.masks([one._matcher for one in texts])
            single = []
            for one, one.mask in zip(texts, masks, strict=True):
                several = int(np.bitwise_count(one.mask).sum())
                if several == 1:
                    one._write(vocabulary.tokens(one.mask).tolist())
                    single.append(one)
                elif not several:
                    one._end()  # no token spells what the grammar asks for
            texts = single


def _closing(vocabulary: Vocabulary, state: LLMatcher, tail: Sequence[int], limit: int) -> list[int] | None:
    """Returns a way on to an end, of at most `limit` tokens; None where none is found.

    First the straight way is tried, always the first of `_ways`; then all ways, breadth first. Of states that are
    equally many steps away and permit the same tokens next, one is followed. tail: with which a way may end.
    """
    tokens: list[int] = []
    at = state.deep_copy()
    while len(tokens) <= limit:
        if (end := _end_of(at, tail)) is not None:
            if len(tokens) + len(end) <= limit:
                return [*tokens, *end]
            break
        way = next(iter(_ways(vocabulary, at)), None)
        if way is None or not at.consume_tokens(way):
            break
        tokens += way
    level: list[tuple[list[int], LLMatcher]] = [([], state)]
    left = _MOST_STATES
    while level and left > 0:
        found: dict[bytes, tuple[list[int], LLMatcher]] = {}
        left -= len(level)
        for tokens, before in level:
            for way in _ways(vocabulary, before):
                at, reached = before.deep_copy(), [*tokens, *way]
                if len(reached) > limit or not at.consume_tokens(way):
                    continue
                end = _end_of(at, tail)
                if end is not None and len(reached) + len(end) <= limit:
                    return [*reached, *end]
                found.setdefault(vocabulary.masks([at]).tobytes(), (reached, at))
        level = list(found.values())
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
    if forced := _forced(state):
        return [forced]
    return [[token] for token in vocabulary.ways_on(vocabulary.masks([state])[0])]


def _forced(state: LLMatcher) -> list[int]:
    """Returns the tokens by which every text goes on, as far as they are the same in all."""
    forced = state.compute_ff_tokens()
    return forced[: state.validate_tokens(forced)]
