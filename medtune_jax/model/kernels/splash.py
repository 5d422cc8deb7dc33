"""TPU: splash attention, the flash kernel that comes with jax, with segment ids and grouped key-value heads.

Blocks above the diagonal are skipped; segments are masked within blocks. The block sizes are our assumption (those that
MaxText starts from): compiled for TPU v5e here, not timed.

Dimensions: B batch, S sequence, H query heads, K key-value heads, E width of a head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)

from medtune_jax.model.kernels import pad_sequence
from medtune_jax.model.remat import ATTENTION

_LANES = 128  # of a TPU vector register; blocks are multiples of it
_LARGEST_BLOCK = 512  # [block, block] float32 scores must lie in the 16 MiB of on-chip memory several times
_NARROWEST_HEAD = 64  # narrower ones, and those between multiples of the lanes, are filled up with zeros


def attend(
    q_BSHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, segment_ids_BS: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Causal attention within segments on one TPU; see `model.attention.attention`.

    Args:
      interpret: runs the kernel as ordinary operations, on any platform.
    """
    _, sequence, heads, width = q_BSHE.shape

    def lay_out(x_BShE: jax.Array) -> jax.Array:
        wider = 0 if width == _NARROWEST_HEAD else -width % _LANES  # zeros add nothing to a product, nor to an output
        x_BShE = jnp.pad(x_BShE, ((0, 0), (0, 0), (0, 0), (0, wider))) if wider else x_BShE
        return jnp.swapaxes(pad_sequence(x_BShE, _LANES), 1, 2)

    q_BHSE, k_BKSE, v_BKSE = lay_out(q_BSHE * width**-0.5), lay_out(k_BSKE), lay_out(v_BSKE)
    segments_BS = pad_sequence(segment_ids_BS, _LANES)
    padded = segments_BS.shape[1]
    kernel = make_splash_mha(
        MultiHeadMask([CausalMask((padded, padded))] * heads),
        block_sizes=block_sizes(padded),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )
    o_BHSE = jax.vmap(kernel)(q_BHSE, k_BKSE, v_BKSE, SegmentIds(segments_BS, segments_BS))
    return jnp.swapaxes(o_BHSE, 1, 2)[:, :sequence, :, :width]


def block_sizes(sequence: int) -> BlockSizes:
    """Returns the blocks of the forward pass and of both backward kernels for a multiple of 128 positions."""
    block = max(size for size in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if sequence % size == 0)
    return BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
