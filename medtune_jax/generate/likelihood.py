"""Log-likelihoods of candidate outputs, host side: which texts to pass through the model, and what to sum.

A candidate's tokens are those of prompt + template.completion(candidate), encoded jointly, behind the longest prefix
that all candidates of the row share with the prompt's own ids; its log-likelihood is the sum of their natural
log-probabilities, each behind all that precedes it. EOS is not included. What the template writes around an output is
(the space before it, say, which is the same for all, and a line break behind it).

EleutherAI's lm-evaluation-harness asks the same of its multiple-choice tasks, in prompts of its own: its MedQA scores
" A" to " D" behind "Answer:", where we score the letter in the template that the model was tuned with. The figures are
of one kind, not of the same questions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medtune_jax.generate.results import Generation
from medtune_jax.generate.template import Row


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidate outputs of one row.

    Attributes:
      index: of the row's request.
      row: the planned row; its one piece holds a combination of one option per candidate. A candidate that the
        tokenizer does not tell from an earlier one is not among them.
    """

    index: int
    row: Row

    @property
    def filled(self) -> Sequence[int]:
        return self.row.prompt[:-1]

    @property
    def need(self) -> int:
        return self.row.longest

    @property
    def texts(self) -> tuple[str, ...]:
        piece = self.row.pieces[0]
        return tuple(map(piece.allowed.text, piece.options))

    @cached_property
    def tokens(self) -> tuple[tuple[int, ...], ...]:
        """Each candidate's tokens, EOS not included."""
        return tuple(tokens[:-1] for tokens in self.row.pieces[0].tokens)

    @cached_property
    def contexts(self) -> tuple[tuple[int, ...], ...]:
        """The fewest token sequences such that each candidate but for its last token begins one of them.

        One pass over such a sequence scores all these candidates: it gives the probabilities behind each prefix.
        """
        heads = sorted({tokens[:-1] for tokens in self.tokens})
        followed = {head for head, after in itertools.pairwise(heads) if after[: len(head)] == head}
        return tuple(head for head in heads if head not in followed)

    def answer(self, logprobs: Sequence[np.ndarray], columns: Mapping[int, int]) -> Generation:
        """Returns the likeliest candidate, of equals the first, with the log-likelihoods of all.

        Args:
          logprobs: per context, float32 [>= S + 1, U]: row i are log-probabilities behind its first i tokens; columns:
            token id -> column.
        """
        found = {}
        for text, tokens in zip(self.texts, self.tokens, strict=True):
            context = next(i for i, one in enumerate(self.contexts) if one[: len(tokens) - 1] == tokens[:-1])
            terms = [logprobs[context][i, columns[token]] for i, token in enumerate(tokens)]
            found[text] = float(np.sum(terms, dtype=np.float64))
        best = max(found, key=lambda text: found[text])
        tokens = self.tokens[self.texts.index(best)]
        return Generation(tokens, best, "constrained", len(self.contexts), 1, found)
