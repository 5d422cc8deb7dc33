"""How the next token is chosen: small frozen values with one method each; they hash, so jit takes them as static."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from medtune_jax.errors import UserError


@dataclass(frozen=True)
class Greedy:
    """The likeliest token; of equals the lowest id."""

    def __call__(self, keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
        """Returns int32 tokens [B] of float32 logits [B, V]; the keys are not used."""
        return first_maximum(logits_BV)


@dataclass(frozen=True)
class Sample:
    """A draw from softmax(logits / temperature), cut to the top_k likeliest tokens and then to the nucleus of top_p.

    Attributes:
      temperature: above 0.
      top_k: tokens kept; 0 = all.
      top_p: the fewest likeliest tokens whose probabilities (after top_k, renormalised) sum to at least this are kept;
        1 = all. Holtzman et al. 2020; cuts as transformers makes them, and of equals the lowest ids are kept.

    Raises:
      UserError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"temperature {self.temperature} is not above 0; for the likeliest token use greedy.")
        if self.top_k < 0:
            raise UserError(f"top_k {self.top_k} is negative; 0 keeps every token.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} is not in (0, 1]; 1 keeps every token.")

    def __call__(self, keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
        """Returns int32 tokens [B] drawn from float32 logits [B, V], row b with key keys_B[b] alone."""
        scaled_BV = logits_BV / self.temperature
        if self.top_k == 0 and self.top_p == 1:
            return jax.vmap(jax.random.categorical)(keys_B, scaled_BV).astype(jnp.int32)
        kept = self.top_k or logits_BV.shape[-1]
        sorted_Bk, tokens_Bk = jax.lax.top_k(scaled_BV, min(kept, logits_BV.shape[-1]))  # equals: lowest id first
        probability_Bk = jax.nn.softmax(sorted_Bk, axis=-1)
        before_Bk = jnp.cumsum(probability_Bk, axis=-1) - probability_Bk
        inside_Bk = (before_Bk < self.top_p).at[:, 0].set(True)
        drawn_B = jax.vmap(jax.random.categorical)(keys_B, jnp.where(inside_Bk, sorted_Bk, -jnp.inf))
        return jnp.take_along_axis(tokens_Bk, drawn_B[:, None], axis=-1)[:, 0].astype(jnp.int32)


@dataclass(frozen=True)
class Beam:
    """Beam search as transformers does it: the best texts of those that `num_beams` parallel lines of writing come to.

    A text's score is the sum of its tokens' log-probabilities over (its tokens, EOS included) ** length_penalty; the
    prompt counts for neither.

    Attributes:
      num_beams: unfinished texts kept; 1 = greedy.
      length_penalty: above 0 favours longer texts, below 0 shorter ones.
      early_stopping: when a row ends that has `num_beams` finished texts. True: at once. False: when the best
        unfinished one, scored at the length it has now, is below the worst of them. "never": when it would be so at
        any length up to the row's limit (where length_penalty is above 0; else as False).
      n_best: texts answered, of `num_beams` at most.

    Raises:
      UserError: a value out of range.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    n_best: int = 1

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise UserError(f"num_beams {self.num_beams} is below 1; 1 is greedy decoding, 4 is usual.")
        if not math.isfinite(self.length_penalty):
            raise UserError(f"length_penalty {self.length_penalty} is not a finite number; 1 scores by the mean.")
        if self.early_stopping not in (False, True, "never"):
            raise UserError(f"early_stopping {self.early_stopping!r} is not False, True or 'never'.")
        if not 1 <= self.n_best <= self.num_beams:
            raise UserError(f"n_best {self.n_best} is not in 1..{self.num_beams}, the texts that num_beams ends with.")


Method = Greedy | Sample


def first_maximum(logits_BV: jax.Array) -> jax.Array:
    """Returns the lowest index [B] of each row's maximum, int32.

    Two reductions instead of jnp.argmax, whose pair reduction XLA:CPU does not vectorise (3 to 4 ms for [32, 32000]).
    """
    size = logits_BV.shape[-1]
    is_top_BV = logits_BV == jnp.max(logits_BV, axis=-1, keepdims=True)
    return jnp.minimum(jnp.min(jnp.where(is_top_BV, jnp.arange(size, dtype=jnp.int32), size), axis=-1), size - 1)


def request_keys(seed: jax.typing.ArrayLike, rows_B: jax.Array, steps_B: jax.Array) -> jax.Array:
    """Returns one key per row that depends on (seed, row, step) only, never on the batch around it.

    Args:
      seed: uint32 scalar; rows_B: int32, the request's number; steps_B: int32, tokens that it has chosen before.
    """
    key = jax.random.key(seed)
    return jax.vmap(lambda row, step: jax.random.fold_in(jax.random.fold_in(key, row), step))(rows_B, steps_B)
