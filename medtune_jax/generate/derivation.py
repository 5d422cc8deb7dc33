"""A text of a grammar on its way: what is forced is written, what was chosen is, and at its limit the text is closed.

A text is closed within its limit: where that is reached and the grammar permits no end, the last 1, 2, 4, ... tokens
are taken back until a closing fits in their place (`Language.closing`), in the end all of them, for the least text.
So a limit that holds the least text gives a text of the grammar, whatever the model writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from medtune_jax.errors import UserError
from medtune_jax.generate.matcher import Language, Vocabulary, fault, forced


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
                following = forced(self._matcher)
                if not following:
                    break
                self._write(following)

    def _end(self) -> None:
        """Ends the text here, closed where the grammar permits no end; see the top of the module."""
        self.done, self.complete = True, self._matcher.is_accepting()
        taken = 1
        while not self.complete and taken < len(self.tokens):
            kept = len(self.tokens) - taken
            state = self._language.start.deep_copy()
            state.consume_tokens(self.tokens[:kept])
            closing = self._language.closing(state, self._limit - kept)
            if closing is not None:
                self.tokens[kept:] = closing
                self.complete = True
            taken *= 2
        least = self._language.least
        if not self.complete and len(least) <= self._limit:
            self.tokens, self.complete = list(least), True

    def _fail(self) -> NoReturn:
        raise UserError(f"The grammar cannot be followed any further: {fault(self._matcher)}")

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
