"""Attention backends on one CPU: kernels interpreted, cuDNN's function stood in for, all under one signature."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medtune_jax.model.attention import attention
from medtune_jax.model.kernels import cudnn, splash, triton

Attend = Callable[..., jax.Array]


class Case(NamedTuple):
    """Shapes and documents; the documents lie one after another from position 0, what remains is padding."""

    batch: int
    sequence: int
    heads: int
    kv_heads: int
    width: int
    documents: tuple[int, ...]


def naive(q_BSHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
    """The contract written out: full scores, full mask, softmax, in float32."""
    groups = q_BSHE.shape[2] // k_BSKE.shape[2]
    k_BSHE, v_BSHE = (jnp.repeat(x, groups, axis=2) for x in (k_BSKE, v_BSKE))
    scores_BHST = jnp.einsum("BSHE,BTHE->BHST", q_BSHE, k_BSHE) / np.sqrt(q_BSHE.shape[-1])
    same_BST = segment_ids_BS[:, :, None] == segment_ids_BS[:, None, :]
    visible_BST = same_BST & jnp.tri(q_BSHE.shape[1], dtype=bool)
    weights_BHST = jax.nn.softmax(jnp.where(visible_BST[:, None], scores_BHST, -jnp.inf), axis=-1)
    return jnp.einsum("BHST,BTHE->BSHE", weights_BHST, v_BSHE)


def packed_attention(
    q_BSHE, k_BSKE, v_BSKE, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type, qkv_layout
):
    """What jax's docstring promises of cuDNN's packed layout; rows in no segment are NaN, as memory nobody wrote."""
    assert (mask_type, qkv_layout) == ("padding_causal", "BTNH") and q_seqlen.dtype == q_offsets.dtype == jnp.int32
    assert q_seqlen.shape[1] + 1 == q_offsets.shape[1] and q_seqlen is kv_seqlen and q_offsets is kv_offsets
    assert np.isclose(scale, q_BSHE.shape[-1] ** -0.5)
    starts_BR1, ends_BR1 = q_offsets[:, :-1, None], (q_offsets[:, :-1] + q_seqlen)[:, :, None]
    index_S = jnp.arange(q_BSHE.shape[1])
    inside_BRS = (q_seqlen > 0)[:, :, None] & (starts_BR1 <= index_S) & (index_S < ends_BR1)
    segment_BS = jnp.argmax(inside_BRS, axis=1)
    o_BSHE = naive(q_BSHE, k_BSKE, v_BSKE, segment_BS)
    return jnp.where(inside_BRS.any(axis=1)[:, :, None, None], o_BSHE, jnp.nan)


def _cudnn(*arrays: jax.Array) -> jax.Array:
    stand_in = SimpleNamespace(
        dot_product_attention=packed_attention, MaskType=SimpleNamespace(PADDING_CAUSAL="padding_causal")
    )
    before, cudnn._implementation = cudnn._implementation, lambda: stand_in
    try:
        return cudnn.attend(*arrays)
    finally:
        cudnn._implementation = before


BACKENDS: dict[str, Attend] = {
    "xla": partial(attention, implementation="xla"),
    "splash": partial(splash.attend, interpret=True),
    "triton": partial(triton.attend, interpret=True),
    "cudnn": _cudnn,
}


def segment_ids(case: Case) -> jax.Array:
    """Returns int32 [B, S]; the rows of a batch hold the documents in different order."""
    rows = np.zeros((case.batch, case.sequence), np.int32)
    for b in range(case.batch):
        documents = np.roll(case.documents, b)
        rows[b, : sum(documents)] = np.repeat(np.arange(1, len(documents) + 1), documents)
    return jnp.asarray(rows)


def inputs(case: Case, dtype=jnp.float32) -> tuple[jax.Array, ...]:
    """Returns q, k, v and the cotangent of the output, which is 0 on padding as a loss mask makes it."""
    rng = np.random.default_rng(0)
    sizes = (case.heads, case.kv_heads, case.kv_heads, case.heads)
    q, k, v, cotangent = (
        jnp.asarray(rng.normal(size=(case.batch, case.sequence, size, case.width)), dtype) for size in sizes
    )
    return q, k, v, cotangent * (segment_ids(case) > 0)[:, :, None, None]


def forward_and_gradients(attend: Attend) -> Callable[..., tuple[jax.Array, tuple[jax.Array, ...]]]:
    """Returns the jitted (q, k, v, segment_ids, cotangent) -> (output, gradients of q, k and v)."""

    def run(q, k, v, segments, cotangent):
        output, pull_back = jax.vjp(lambda q, k, v: attend(q, k, v, segments), q, k, v)
        return output, pull_back(cotangent)

    return jax.jit(run)
