"""NVIDIA GPU, Hopper or later: cuDNN's flash attention on packed sequences, by offset and length of each document.

jax's public `dot_product_attention` takes no segments, and a mask would become a [B, H, S, S] bias with a gradient of
its own; the packed layout is a private function of jax, so its signature is looked at before it is used (`why_not`).
What it computes has been lowered here, not run: no GPU was at hand. So a run checks it first (kernels/check.py).

Dimensions: B batch, S sequence, R runs of one segment id in a sequence, H query heads, K key-value heads, E head width.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp

_POSITIONS_PER_DOCUMENT = 64
_FEWEST_DOCUMENTS = 8
_OLDEST_CUDNN = 90600  # 9.6.0: what jax's own test of the packed layout asks for
_GROUPED_SINCE = (0, 11, 2)  # jax 0.10.2 scales the offsets of keys and values by the number of query heads
_ARGUMENTS = {"q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "scale", "mask_type", "qkv_layout"}


def attend(q_BSHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
    """Causal attention within segments on one GPU; see `model.attention.attention`. bfloat16 or float16.

    Padding is a segment like any other, so that every row is written. A sequence of more documents than
    `most_documents` gives NaN, not another document's values; `backends.resolve` refuses such data beforehand.
    """
    packed = _implementation()
    most = most_documents(q_BSHE.shape[1]) + 1  # and the padding
    if jax.__version_info__ < _GROUPED_SINCE:
        groups = q_BSHE.shape[2] // k_BSKE.shape[2]
        k_BSKE, v_BSKE = jnp.repeat(k_BSKE, groups, axis=2), jnp.repeat(v_BSKE, groups, axis=2)
    offsets_BR, lengths_BR, fits_B = layout(segment_ids_BS, most)
    o_BSHE = packed.dot_product_attention(
        q_BSHE,
        k_BSKE,
        v_BSKE,
        q_seqlen=lengths_BR,
        kv_seqlen=lengths_BR,
        q_offsets=offsets_BR,
        kv_offsets=offsets_BR,
        scale=q_BSHE.shape[-1] ** -0.5,
        mask_type=packed.MaskType.PADDING_CAUSAL,
        qkv_layout="BTNH",
    )
    return jnp.where(fits_B[:, None, None, None], o_BSHE, jnp.nan)


def layout(segment_ids_BS: jax.Array, runs: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns where the runs of equal segment ids lie, in the form that cuDNN's packed layout is given in.

    Returns:
      offsets: int32 [B, runs + 1], start of each run in its sequence, -1 after the last; lengths: int32 [B, runs], -1
      after the last; fits: bool [B], whether the sequence has no more than `runs` of them.
    """
    batch, sequence = segment_ids_BS.shape
    starts_BS = jnp.concatenate([jnp.ones((batch, 1), bool), segment_ids_BS[:, 1:] != segment_ids_BS[:, :-1]], axis=1)
    find = jax.vmap(lambda starts_S: jnp.nonzero(starts_S, size=runs + 1, fill_value=sequence)[0])
    starts_BR = find(starts_BS).astype(jnp.int32)
    lengths_BR = jnp.diff(starts_BR, axis=1)
    offsets_BR = jnp.where(starts_BR < sequence, starts_BR, -1)
    return offsets_BR, jnp.where(lengths_BR > 0, lengths_BR, -1), starts_BR[:, -1] == sequence


def most_documents(sequence: int) -> int:
    """Returns how many documents a sequence may hold: one in 64 positions, and 8 in a short one.

    cuDNN keeps softmax statistics [B R, H, S] in float32 and starts S / 128 blocks for each of the B R H, so the bound
    is memory and time: 34 MB a sequence for 32 heads at 4,096 positions. That documents are no shorter on average is
    our assumption.
    """
    return max(_FEWEST_DOCUMENTS, sequence // _POSITIONS_PER_DOCUMENT)


def why_not(*, library: bool = True) -> str | None:
    """Returns why cuDNN's packed attention cannot be called, None where it can.

    library: whether cuDNN is looked for in this process, and not only jax's side of it.
    """
    try:
        packed = _implementation()
        known = inspect.signature(packed.dot_product_attention).parameters
        version = packed.check_cudnn_version() if library else _OLDEST_CUDNN
    except (ImportError, AttributeError):
        return f"jax {jax.__version__} has no packed attention where 0.10.2 and 0.11.2 have it"
    except RuntimeError:
        return "cuDNN is not found"
    if not _ARGUMENTS.issubset(known) or not hasattr(packed.MaskType, "PADDING_CAUSAL"):
        return f"the packed attention of jax {jax.__version__} takes other arguments than that of 0.10.2 and 0.11.2"
    return None if version >= _OLDEST_CUDNN else f"cuDNN {version} is older than {_OLDEST_CUDNN}"


def _implementation() -> Any:
    from jax._src.cudnn import fused_attention_stablehlo

    return fused_attention_stablehlo
