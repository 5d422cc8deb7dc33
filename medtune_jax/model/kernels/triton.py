"""NVIDIA GPU, Ampere or later: the flash attention in Pallas (lowered through Triton) that comes with jax.

It takes segment ids of any packing. jax 0.11 announces the end of it and of Pallas on Triton, in favour of tokamax,
which needs jax 0.11 and so cannot serve Python 3.11; in 0.11.2 it is as it was in 0.10.2. Key-value heads are repeated,
as the kernel asks. The block sizes are jax's defaults. Tested in interpret mode; not timed, no GPU was at hand.

Dimensions: B batch, S sequence, H query heads, K key-value heads, E width of a head.
"""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp

from medtune_jax.model.kernels import pad_sequence

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

_BLOCKS = BlockSizes.get_default()


def attend(
    q_BSHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, segment_ids_BS: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Causal attention within segments on one GPU; see `model.attention.attention`.

    Args:
      interpret: runs the kernel as ordinary operations, on any platform.
    """
    _, sequence, heads, width = q_BSHE.shape
    groups = heads // k_BSKE.shape[2]
    q_BSHE, k_BSHE, v_BSHE, segments_BS = (
        pad_sequence(x, _BLOCKS.block_q)
        for x in (q_BSHE, jnp.repeat(k_BSKE, groups, axis=2), jnp.repeat(v_BSKE, groups, axis=2), segment_ids_BS)
    )
    o_BSHE = mha(q_BSHE, k_BSHE, v_BSHE, segments_BS, sm_scale=width**-0.5, causal=True, interpret=interpret)
    return o_BSHE[:, :sequence]
