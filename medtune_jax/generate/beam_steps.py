"""What beam search runs on the device: steps of all beams of all slots over one static cache.

A row's beams share one slot. It holds the prompt once, then the positions that the beams computed, step after step:
behind a prompt whose first `start` positions are filled, beam j computes at step t the position start + t n + j. Which
of them are a beam's own past is a mask [n, T], and it alone is reordered when beams branch or die: keys and values are
written once and never moved, and the n beams of a row are n queries of one product with them.

Dimensions as in decode.py, and n beams, c = 2 n candidates, N steps of one call.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from medtune_jax.generate.cache import Cache, Stored, heads_first, write
from medtune_jax.generate.decode import through, vocabulary_logits
from medtune_jax.generate.weights import Weights
from medtune_jax.model.attention import attend_visible
from medtune_jax.model.llama import LlamaConfig, Params, layer, rope_angles
from medtune_jax.sharding import by_rows, constrain

NEVER = -1e9  # score of beams 2..n before the first step, when all would write the same: transformers' value

_BLOCK = 64  # ids of which `likeliest` first looks at the maximum alone


class Steps(NamedTuple):
    """What some steps did in each slot; the same on every process.

    Attributes:
      used_B: steps that the slot's row took part in; done_B: whether it has ended; finite_B: False where its logits
        were not finite, which ends it.
      score_Bn: sums of log-probabilities of the unfinished texts.
      best_Bn: scores of the finished texts, highest first; -inf = none.
      origin_Bn: where they come from: k < n: the k-th of those before; n + t n + k: candidate k of step t.
      parent_BNc, token_BNc: the candidates of each step, best first: the beam that was continued, and by which token.
      kept_BNn: which of them are the beams of the next step.
    """

    used_B: jax.Array
    done_B: jax.Array
    finite_B: jax.Array
    score_Bn: jax.Array
    best_Bn: jax.Array
    origin_Bn: jax.Array
    parent_BNc: jax.Array
    token_BNc: jax.Array
    kept_BNn: jax.Array


@partial(jax.jit, static_argnames=("config", "at_once", "eos_id"), donate_argnames=("cache",))
def beam_steps(
    weights: Weights,
    cache: Cache,
    token_Bn: jax.Array,
    visible_BnT: jax.Array,
    score_Bn: jax.Array,
    best_Bn: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    limit_B: jax.Array,
    penalty_BN: jax.Array,
    hope_BN: jax.Array,
    enough: jax.Array,
    *,
    config: LlamaConfig,
    at_once: bool,
    eos_id: int,
) -> tuple[Cache, Steps]:
    """Continues the beams of every slot by up to N tokens; stops early when enough slots are done.

    The rules are those of transformers' GenerationMixin._beam_search for a row on its own. Of equals, the better beam
    and the lower id come first.

    Args:
      token_Bn: the last token of each unfinished text, not yet in the cache.
      visible_BnT: bool, the positions of the slot that hold each text's past.
      score_Bn, best_Bn: as in Steps.
      start_B: the position of a prompt's last token; count_B: tokens written before; limit_B: tokens allowed in all,
        EOS included; a slot without a row has count = limit.
      penalty_BN: float32, by what a sum that is complete at each step is divided: its length ** length_penalty.
      hope_BN: the same for the best unfinished text: where it is not above the worst of n finished ones, the row ends.
      enough: of slots, int32.
      at_once: n finished texts end a row.
    """
    batch, beams = token_Bn.shape
    steps = penalty_BN.shape[1]
    places_T = jnp.arange(visible_BnT.shape[2])

    def unfinished(state: tuple[Any, ...]) -> jax.Array:
        step, done = state[0], state[-1]
        return (step < steps) & (jnp.sum(done.done_B) < enough)

    def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, token_Bn, visible_BnT, cache, was = state
        count = count_B + step
        place_Bn = (start_B + count * beams)[:, None] + jnp.arange(beams)
        visible_BnT |= place_Bn[:, :, None] == places_T
        logits_BnV, cache = _forward(weights, config, token_Bn, start_B + count, place_Bn, visible_BnT, cache)

        sum_Bc, parent_Bc, token_Bc, finite_B = by_rows(_candidates, logits_BnV, was.score_Bn)
        last_B = count + 1 >= limit_B
        ends_Bc = (token_Bc == eos_id) | last_B[:, None]
        score_Bn, kept_Bn = _highest(jnp.where(ends_Bc, -jnp.inf, sum_Bc), beams)

        # Only the first n candidates may end; the others are there to go on in their place.
        new_Bn = jnp.where(ends_Bc[:, :beams], sum_Bc[:, :beams] / penalty_BN[:, step, None], -jnp.inf)
        best_Bn, from_Bn = _highest(jnp.concatenate([was.best_Bn, new_Bn], axis=1), beams)
        fresh_Bn = jnp.broadcast_to(beams + step * beams + jnp.arange(beams), (batch, beams))
        origin_Bn = _take(jnp.concatenate([was.origin_Bn, fresh_Bn], axis=1), from_Bn)

        full_B = best_Bn[:, -1] > -jnp.inf
        hopeless_B = score_Bn[:, 0] / hope_BN[:, step] <= best_Bn[:, -1]
        done_B = was.done_B
        now = Steps(
            used_B=was.used_B + ~done_B,
            done_B=done_B | last_B | ~finite_B | (full_B if at_once else full_B & hopeless_B),
            finite_B=was.finite_B & (finite_B | done_B),
            score_Bn=score_Bn,
            best_Bn=jnp.where(done_B[:, None], was.best_Bn, best_Bn),
            origin_Bn=jnp.where(done_B[:, None], was.origin_Bn, origin_Bn),
            parent_BNc=was.parent_BNc.at[:, step].set(parent_Bc),
            token_BNc=was.token_BNc.at[:, step].set(token_Bc),
            kept_BNn=was.kept_BNn.at[:, step].set(kept_Bn),
        )
        parent_Bn = _take(parent_Bc, kept_Bn)
        visible_BnT = jnp.take_along_axis(visible_BnT, parent_Bn[:, :, None], axis=1)
        return step + 1, _take(token_Bc, kept_Bn), visible_BnT, cache, now

    nothing_BNc = jnp.zeros((batch, steps, 2 * beams), jnp.int32)
    begin = Steps(
        used_B=jnp.zeros(batch, jnp.int32),
        done_B=count_B >= limit_B,
        finite_B=jnp.ones(batch, bool),
        score_Bn=score_Bn,
        best_Bn=best_Bn,
        origin_Bn=jnp.broadcast_to(jnp.arange(beams), (batch, beams)),
        parent_BNc=nothing_BNc,
        token_BNc=nothing_BNc,
        kept_BNn=nothing_BNc[:, :, :beams],
    )
    *_, cache, end = jax.lax.while_loop(unfinished, advance, (jnp.int32(0), token_Bn, visible_BnT, cache, begin))
    return cache, jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), end)  # whole on every process: each reads it


def likeliest(logits_RV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns the `count` highest logits of each row, highest first, and their ids [R, count].

    They lie in the `count` blocks with the highest maxima, so only those are sorted: a quarter of the time of one top_k
    over V = 32,000 (0.6 for 2.6 ms, 32 rows, XLA:CPU).
    """
    rows, size = logits_RV.shape
    blocks_RXb = logits_RV.reshape(rows, size // _BLOCK, _BLOCK)  # V is padded to a multiple of 128
    kept = min(count, size // _BLOCK)
    # In the order of ids, so that of equal logits the lowest id comes first.
    block_Rk = jnp.sort(jax.lax.top_k(blocks_RXb.max(axis=-1), kept)[1], axis=-1)
    few_Rm = jnp.take_along_axis(blocks_RXb, block_Rk[:, :, None], axis=1).reshape(rows, -1)
    top_Rc, index_Rc = jax.lax.top_k(few_Rm, count)
    return top_Rc, _take(block_Rk, index_Rc // _BLOCK) * _BLOCK + index_Rc % _BLOCK


def _candidates(logits_BnV: jax.Array, score_Bn: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns (sums of log-probabilities, beams that are continued, tokens; each [B, c], best first; finite [B])."""
    batch, beams, size = logits_BnV.shape
    logits_RV = logits_BnV.reshape(batch * beams, size)
    count = 2 * beams
    top_Rc, token_Rc = likeliest(logits_RV, count)
    total_R1 = jnp.exp(logits_RV - top_Rc[:, :1]).sum(axis=-1, keepdims=True)  # nan where a logit is nan or inf
    sum_Rc = score_Bn.reshape(-1, 1) + (top_Rc - top_Rc[:, :1] - jnp.log(total_R1))
    sum_Bc, index_Bc = jax.lax.top_k(sum_Rc.reshape(batch, -1), count)
    finite_B = jnp.isfinite(total_R1).reshape(batch, beams).all(axis=1)
    return sum_Bc, index_Bc // count, _take(token_Rc.reshape(batch, -1), index_Bc), finite_B


def _forward(
    weights: Weights,
    config: LlamaConfig,
    token_Bn: jax.Array,
    position_B: jax.Array,
    place_Bn: jax.Array,
    visible_BnT: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Returns (float32 logits [B, n, V] behind one more token of every beam, the cache that holds them)."""
    batch, beams = token_Bn.shape
    position_Bn = jnp.broadcast_to(position_B[:, None], (batch, beams))
    x_BnD = constrain(weights.embedding[token_Bn], "batch", "sequence", "act_embed")
    rope = rope_angles(position_Bn, config)

    def run(layer_weights: Params, x_BnD: jax.Array, keys: Stored, values: Stored) -> tuple[jax.Array, Stored, Stored]:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[Stored, Stored]]:
            now = write(keys, k, place_Bn), write(values, v, place_Bn)
            read_k, read_v = map(heads_first, now)
            return attend_visible(q, read_k.values, read_v.values, visible_BnT, read_k.scale, read_v.scale), now

        x_BnD, (new_keys, new_values) = layer(x_BnD, layer_weights, config, rope, attend)
        return x_BnD, new_keys, new_values

    x_BnD, cache = through(weights, x_BnD, cache, run)
    logits_RV = vocabulary_logits(weights, x_BnD.reshape(batch * beams, -1), config)
    return logits_RV.reshape(batch, beams, -1), cache


def _highest(x_Bm: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    return by_rows(lambda own_Bm: jax.lax.top_k(own_Bm, count), x_Bm)


def _take(x_Bm: jax.Array, index_Bk: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_Bm, index_Bk, axis=1)
