"""How the next token is chosen: small frozen values with one method each; they hash, so jit takes them as static."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from medtune_jax.errors import UserError
from medtune_jax.sharding import by_rows

_LEAST_TEMPERATURE = float(jnp.finfo(jnp.float32).tiny)  # what is less is 0 to a processor that flushes such numbers


@dataclass(frozen=True)
class Greedy:
    """The likeliest token; of equals the lowest id.

    Attributes:
      repetition_penalty: see `penalised`; 1 = none.

    Raises:
      UserError: a value out of range.
    """

    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check_penalty(self.repetition_penalty)

    def __call__(self, keys_B: jax.Array, logits_BV: jax.Array, seen_BV: jax.Array | None = None) -> jax.Array:
        """Returns int32 tokens [B] of float32 logits [B, V]; the keys are not used.

        seen_BV: bool, the tokens that stand in each row already; None = no penalty.
        """
        return first_maximum(penalised(logits_BV, seen_BV, self.repetition_penalty))


@dataclass(frozen=True)
class Sample:
    """A draw from softmax(logits / temperature), cut to top_k, then to the nucleus of top_p, then by min_p.

    Order and cuts are transformers'; of equals the lowest ids are kept.

    Attributes:
      temperature: above 0.
      top_k: tokens kept; 0 = all.
      top_p: the fewest likeliest tokens whose probabilities (after top_k, renormalised) sum to at least this are kept;
        1 = all. Holtzman et al. 2020.
      min_p: tokens that are less than this times as likely as the likeliest are dropped; 0 = none. Nguyen et al. 2024.
      repetition_penalty: see `penalised`, before all else; 1 = none.

    Raises:
      UserError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature {self.temperature} is no number above 0; for the likeliest token use greedy.")
        if self.top_k < 0:
            raise UserError(f"top_k {self.top_k} is negative; 0 keeps every token.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} is not in (0, 1]; 1 keeps every token.")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p {self.min_p} is not in [0, 1]; 0 keeps every token.")
        _check_penalty(self.repetition_penalty)

    def __call__(self, keys_B: jax.Array, logits_BV: jax.Array, seen_BV: jax.Array | None = None) -> jax.Array:
        """Returns int32 tokens [B] drawn from float32 logits [B, V], row b with key keys_B[b] alone.

        seen_BV: bool, the tokens that stand in each row already; None = no penalty.
        """
        logits_BV = penalised(logits_BV, seen_BV, self.repetition_penalty)
        below_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)  # none above 0: no division overflows upwards
        scaled_BV = below_BV / max(self.temperature, _LEAST_TEMPERATURE)
        if self.top_k == 0 and self.top_p == 1:
            return _draw(keys_B, self._cut(scaled_BV))
        return by_rows(self._draw_of_likeliest, keys_B, scaled_BV)

    def _draw_of_likeliest(self, keys_B: jax.Array, scaled_BV: jax.Array) -> jax.Array:
        kept = min(self.top_k or scaled_BV.shape[-1], scaled_BV.shape[-1])
        sorted_Bk, tokens_Bk = jax.lax.top_k(scaled_BV, kept)  # equals: lowest id first
        probability_Bk = jax.nn.softmax(sorted_Bk, axis=-1)
        before_Bk = jnp.cumsum(probability_Bk, axis=-1) - probability_Bk
        inside_Bk = (before_Bk < self.top_p).at[:, 0].set(True)
        drawn_B = _draw(keys_B, self._cut(jnp.where(inside_Bk, sorted_Bk, -jnp.inf)))
        return jnp.take_along_axis(tokens_Bk, drawn_B[:, None], axis=-1)[:, 0].astype(jnp.int32)

    def _cut(self, scaled_BN: jax.Array) -> jax.Array:
        """Returns the logits, of which the highest is 0, with -inf where min_p drops one."""
        if self.min_p == 0:
            return scaled_BN
        return jnp.where(scaled_BN >= math.log(self.min_p), scaled_BN, -jnp.inf)


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


def penalised(logits_BV: jax.Array, seen_BV: jax.Array | None, penalty: float) -> jax.Array:
    """Returns the logits with those of seen tokens divided by `penalty` where positive, multiplied where negative.

    Keskar et al. 2019 as transformers has it: seen is what stands in prompt or answer. seen_BV: bool; None = none.
    """
    if seen_BV is None or penalty == 1:
        return logits_BV
    return jnp.where(seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)


def _draw(keys_B: jax.Array, logits_BN: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.categorical)(keys_B, logits_BN).astype(jnp.int32)


def _check_penalty(penalty: float) -> None:
    if not 0 < penalty < math.inf:
        raise UserError(f"repetition_penalty {penalty} is no number above 0; 1 is no penalty, more avoids repeating.")


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
