"""A conversation: its earlier turns stand before the new prompt, each as the document that it was in training.

A tuned model has seen documents, BOS + prompt + completion + EOS, one by one. So a history is written as such documents
in a row, and the new prompt behind them with a BOS of its own (Llama 2's chat format joins turns in this way too). That
a model tuned on single documents makes sense of several is our assumption; /reset begins anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from medtune_jax.data.prompts import Template
from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.errors import UserError


def render(template: Template | None, prompt: str, instruction: str | None) -> str:
    """Returns the text that a model is given: the prompt is the input that the instruction is about, or without one the
    instruction itself; without a template the text as it is.

    Raises:
      UserError: an instruction without a template to write it into.
    """
    if template is None:
        if instruction is not None:
            raise UserError("An instruction needs a template to be written into: give --template.")
        return prompt
    return template.prompt(prompt, "") if instruction is None else template.prompt(instruction, prompt)


def refuse_too_long(what: str, tokens: int, max_positions: int) -> None:
    """Raises UserError where a prompt of so many tokens leaves no position for an answer; `what` names it."""
    if tokens >= max_positions:
        raise UserError(
            f"{what} has {tokens} tokens with its template; the model has {max_positions} positions for prompt and "
            "answer together. Shorten it."
        )


class Asked(NamedTuple):
    """Attributes:
    tokens: the history and the new prompt; document: the latter alone, BOS first.
    dropped: the oldest turns that were forgotten to make room.
    """

    tokens: list[int]
    document: list[int]
    dropped: int


@dataclass
class Conversation:
    """The history of one session, in memory only: what is asked of a medical model is nobody else's.

    Attributes:
      template: None = texts as they are; instruction: what prompts are asked about; None = each is its own.
      max_positions: of history, prompt and answer together.
      max_new_tokens: kept free for the answer, as far as the prompt alone leaves room for them.
      turns: token ids of each turn as a document, oldest first.
    """

    tokenizer: Tokenizer
    template: Template | None
    max_positions: int
    max_new_tokens: int
    instruction: str | None = None
    turns: list[list[int]] = field(default_factory=list)

    def ask(self, prompt: str) -> Asked:
        """Returns what the model is to continue; forgets the oldest turns where the context is full.

        Raises:
          UserError: the prompt alone leaves no position for an answer, or see `render`; the history stays as it was.
        """
        text = render(self.template, prompt, self.instruction)
        document = [self.tokenizer.bos_id, *self.tokenizer.encode(text)]
        refuse_too_long("The prompt", len(document), self.max_positions)
        room = max(0, self.max_positions - len(document) - self.max_new_tokens)
        kept, dropped = list(self.turns), 0
        while sum(map(len, kept)) > room:
            kept.pop(0)
            dropped += 1
        self.turns = kept
        return Asked([*(token for turn in kept for token in turn), *document], document, dropped)

    def record(self, asked: Asked, answer: Sequence[int]) -> None:
        """Adds a turn: what was asked, and the tokens of its answer (EOS not included)."""
        self.turns.append([*asked.document, *answer, self.tokenizer.eos_id])
