"""What the engine answers, and the collecting of answers while it works."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["eos", "length", "stop", "constrained", "prompt_too_long"]
OnDone = Callable[[int, "Generation"], None]


@dataclass(frozen=True)
class Alternative:
    """One of several answers to a prompt.

    Attributes:
      score: summed natural log-probability over the length to the power of the length penalty; higher is better.
    """

    tokens: tuple[int, ...]
    text: str
    score: float


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
      tokens: the ids written, EOS not included.
      text: what they add to the text of the prompt; under template decoding and by log-likelihood the row's output,
        without the template's frame around it.
      finish_reason: `eos`; `length` (max_new_tokens, or no position left); `stop` (a stop string came);
        `constrained` (decoded by template or grammar, or the likeliest candidate); `prompt_too_long` (nothing was
        written).
      passes: forward passes after the prompt's: one per token in free decoding, one per draft in template decoding.
      decisions: what the model chose: every token in free decoding, else the options that are not empty.
      loglikelihoods: candidate output -> summed natural log-probability; None where none were computed.
      alternatives: of beam search, the best answers, best first; the first is this one.
      drafted, accepted: of speculative decoding: tokens proposed, and those of them that were kept.
    """

    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    passes: int
    decisions: int
    loglikelihoods: Mapping[str, float] | None = None
    alternatives: tuple[Alternative, ...] = ()
    drafted: int = 0
    accepted: int = 0


PROMPT_TOO_LONG = Generation((), "", "prompt_too_long", 0, 0)


class Results:
    """Collects answers, tells `on_done`, and keeps the progress line.

    Args:
      count: of rows asked.
      skip: indices of rows that need no answer; what is computed for them is dropped.
      label: of the progress line on stderr; None = none.
    """

    def __init__(self, count: int, skip: Collection[int] = (), on_done: OnDone | None = None, label: str | None = None):
        self._answers: dict[int, Generation] = {}
        self._wanted = [index for index in range(count) if index not in skip]
        self._skip = skip
        self._on_done = on_done
        self._label = label
        self._bar: Any = None
        self._tokens = 0
        self._started = time.monotonic()

    def __enter__(self) -> Results:
        if self._label is not None:
            from tqdm import tqdm

            # On a terminal the line moves; in a log file it is written twice a minute.
            pause = 0.5 if sys.stderr.isatty() else 30
            self._bar = tqdm(total=len(self._wanted), desc=self._label, unit="row", file=sys.stderr, mininterval=pause)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, index: int, answer: Generation) -> None:
        if index in self._skip:
            return
        self._answers[index] = answer
        self._tokens += len(answer.tokens)
        if self._bar is not None:
            rate = self._tokens / max(1e-9, time.monotonic() - self._started)
            self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            self._bar.update()
        if self._on_done is not None:
            self._on_done(index, answer)

    def finished(self) -> list[Generation]:
        """Returns the answers to the rows that were not skipped, in order."""
        missing = [index for index in self._wanted if index not in self._answers]
        assert not missing, f"rows {missing} were never answered"
        return [self._answers[index] for index in self._wanted]
