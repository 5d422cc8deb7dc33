"""The cross entropy of the training loss: fused with the output projection, in pieces.

Dimensions: B sequences, M loss targets of a sequence, N = B M targets, C targets of a piece, D model width, V padded
vocabulary.

The logits of all targets in float32 are the largest array of a training step. Here they exist a piece of C targets at a
time, and the gradients of a piece are taken while it is there, so the backward pass makes no logits again (the idea of
Hsu et al. 2024, Liger Kernel, arXiv 2410.10989).

C is bounded on both sides. From above by the memory of a piece, whatever B and M are. From below by bandwidth: a piece
costs 6 C D V operations in three products, and reads and writes the float32 [D, V] gradient of the head, 8 D V bytes;
that is 0.75 C operations a byte. TPU v5e, H100 and H200 have peaks of 240, 295 and 206 operations for each byte that
their memory moves. PIECE_BYTES gives a vocabulary of 32,000 1,024 targets: 768 operations a byte. One of 128,256 gets
256 targets and 192 operations a byte on one device, and more of both where a tensor axis cuts it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from medtune_jax.model import matmul
from medtune_jax.model.llama import LlamaConfig
from medtune_jax.sharding import BATCH_AXES, rows_divide, spec

Sums = tuple[jax.Array, jax.Array]  # (weighted, plain)

PIECE_BYTES = 2**27  # float32 logits of a piece on one device
_TILE = 128  # rows that accelerators multiply at once


def chunk_size(targets: int, vocab: int, piece_bytes: int = PIECE_BYTES) -> int:
    """Returns C for `targets` targets and `vocab` logit columns on one device.

    As few pieces as `piece_bytes` allows, of equal size, and that a multiple of 128 where there are several.
    """
    most = max(1, piece_bytes // (4 * vocab))
    tile = _TILE if most >= _TILE else 1
    pieces = -(-targets // (most - most % tile))
    return min(targets, -(-targets // (pieces * tile)) * tile)


def linear_cross_entropy(
    hidden_BMD: jax.Array,
    head_DV: jax.Array,
    targets_BM: jax.Array,
    weights_BM: jax.Array,
    config: LlamaConfig,
    piece_bytes: int = PIECE_BYTES,
) -> tuple[jax.Array, jax.Array]:
    """Sums the negative log likelihood of the targets.

    Args:
      hidden_BMD: the positions that predict the targets, in the compute dtype, which is that of the matmuls.
      head_DV: the output projection, in its own dtype, which is that of its gradient.
      targets_BM: int32; weights_BM: float32, 0 = unused.
      config: says which columns are padding (they get no probability).
      piece_bytes: of float32 logits that exist at a time on a device.

    Returns:
      (weighted, plain), float32 scalars in nats: the sum of weight x loss, and the sum of loss where the weight is not
      0. Only `weighted` has a gradient, and only towards hidden and head.
    """
    return _fused(config, piece_bytes, hidden_BMD, head_DV, targets_BM, weights_BM)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(
    config: LlamaConfig,
    piece_bytes: int,
    hidden_BMD: jax.Array,
    head_DV: jax.Array,
    targets_BM: jax.Array,
    weights_BM: jax.Array,
) -> Sums:
    def own_sums(hidden_BMD: jax.Array, head_DV: jax.Array, targets_BM: jax.Array, weights_BM: jax.Array) -> Sums:
        head = _gathered(head_DV, hidden_BMD.dtype)

        def piece(sums: Sums, inputs: tuple[jax.Array, ...]) -> tuple[Sums, None]:
            hidden_CD, targets_C, weights_C = inputs
            loss_C, _, _ = _piece_loss(config, hidden_CD, head, targets_C)
            return _add(sums, loss_C, weights_C), None

        chunk = chunk_size(targets_BM.size, head.shape[1], piece_bytes)
        sums, _ = jax.lax.scan(piece, _no_sums(), _pieces(chunk, hidden_BMD, targets_BM, weights_BM))
        return _total(sums, BATCH_AXES)

    sums: Sums = _on_each_device(own_sums, _SUMS, hidden_BMD, head_DV, targets_BM, weights_BM)
    return sums


def _fused_forward(
    config: LlamaConfig,
    piece_bytes: int,
    hidden_BMD: jax.Array,
    head_DV: jax.Array,
    targets_BM: jax.Array,
    weights_BM: jax.Array,
) -> tuple[Sums, tuple[jax.Array, jax.Array]]:
    def own_gradients(
        hidden_BMD: jax.Array, head_DV: jax.Array, targets_BM: jax.Array, weights_BM: jax.Array
    ) -> tuple[Sums, tuple[jax.Array, jax.Array]]:
        head = _gathered(head_DV, hidden_BMD.dtype)
        columns_V = _columns(head)

        def piece(
            carry: tuple[jax.Array, Sums], inputs: tuple[jax.Array, ...]
        ) -> tuple[tuple[jax.Array, Sums], jax.Array]:
            d_head_DV, sums = carry
            hidden_CD, targets_C, weights_C = inputs
            loss_C, logits_CV, normalizer_C = _piece_loss(config, hidden_CD, head, targets_C)
            is_target_CV = targets_C[:, None] == columns_V
            d_CV = (jnp.exp(logits_CV - normalizer_C[:, None]) - is_target_CV) * weights_C[:, None]
            d_CV = d_CV.astype(hidden_CD.dtype)
            d_hidden_CD = _total(matmul.dot(d_CV, head.T), ("tensor",)).astype(hidden_CD.dtype)
            d_head_DV += matmul.dot(hidden_CD.T, d_CV)
            return (d_head_DV, _add(sums, loss_C, weights_C)), d_hidden_CD

        chunk = chunk_size(targets_BM.size, head.shape[1], piece_bytes)
        start = (jnp.zeros(head.shape, jnp.float32), _no_sums())
        pieces = _pieces(chunk, hidden_BMD, targets_BM, weights_BM)
        (d_head_DV, sums), d_hidden_nCD = jax.lax.scan(piece, start, pieces)
        d_hidden_ND = d_hidden_nCD.reshape(-1, hidden_BMD.shape[-1])[: targets_BM.size]
        gradients = (d_hidden_ND.reshape(hidden_BMD.shape), _scattered(d_head_DV).astype(head_DV.dtype))
        return _total(sums, BATCH_AXES), gradients

    places = (_SUMS, (_ROWS, _HEAD))
    found: tuple[Sums, tuple[jax.Array, jax.Array]] = _on_each_device(
        own_gradients, places, hidden_BMD, head_DV, targets_BM, weights_BM
    )
    return found


def _fused_backward(
    config: LlamaConfig,
    piece_bytes: int,
    gradients: tuple[jax.Array, jax.Array],
    cotangents: Sums,
) -> tuple[jax.Array | None, ...]:
    d_hidden_BMD, d_head_DV = gradients
    scale = cotangents[0]
    return (d_hidden_BMD * scale).astype(d_hidden_BMD.dtype), (d_head_DV * scale).astype(d_head_DV.dtype), None, None


_fused.defvjp(_fused_forward, _fused_backward)


def _pieces(chunk: int, *arrays_BM: jax.Array) -> tuple[jax.Array, ...]:
    """[B, M, ...] -> [n, C, ...] each, n = N / C rounded up: the targets in their order, then zeros."""

    def pieces(x: jax.Array) -> jax.Array:
        x = x.reshape(-1, *x.shape[2:])
        x = jnp.pad(x, ((0, -x.shape[0] % chunk), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(-1, chunk, *x.shape[1:])

    return tuple(pieces(x) for x in arrays_BM)


def _piece_loss(
    config: LlamaConfig, hidden_CD: jax.Array, head_DV: jax.Array, targets_C: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (loss [C], logits [C, own V], log of the softmax's denominator [C]), all float32."""
    logits_CV = matmul.dot(hidden_CD, head_DV)
    columns_V = _columns(head_DV)
    if config.padded_vocab > config.vocab_size:
        logits_CV = jnp.where(columns_V < config.vocab_size, logits_CV, -jnp.inf)
    highest_C = logits_CV.max(axis=-1)
    highest_C = jax.lax.pmax(highest_C, "tensor") if _on_a_device() else highest_C
    normalizer_C = _total(jnp.exp(logits_CV - highest_C[:, None]).sum(axis=-1), ("tensor",))
    normalizer_C = jnp.log(normalizer_C) + highest_C
    own_C = targets_C - columns_V[0]
    target_C = jnp.take_along_axis(logits_CV, jnp.clip(own_C, 0, columns_V.size - 1)[:, None], axis=-1)[:, 0]
    target_C = _total(jnp.where((own_C >= 0) & (own_C < columns_V.size), target_C, 0), ("tensor",))
    return normalizer_C - target_C, logits_CV, normalizer_C


def _no_sums() -> Sums:
    return jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)


def _add(sums: Sums, loss_C: jax.Array, weights_C: jax.Array) -> Sums:
    weighted, plain = sums
    return weighted + jnp.sum(loss_C * weights_C), plain + jnp.sum(jnp.where(weights_C != 0, loss_C, 0.0))


# ------------------------------------------------------------------------------------------------ over the devices

_ROWS, _HEAD, _SUMS = PartitionSpec(BATCH_AXES), spec(("embed", "vocab")), (PartitionSpec(), PartitionSpec())


def _on_each_device(own: Callable[..., Any], places: Any, *arrays: jax.Array) -> Any:
    """Returns own(hidden, head, targets, weights), computed by each device of the mesh in context on its own rows.

    Written out because the compiler, left alone, adds the whole [D, V] gradient up over all devices in every piece.
    Within `own` the head is one device's block, and what is summed over devices says so. places: PartitionSpecs of the
    result. Without a mesh, or where the rows do not divide, `own` sees whole arrays.
    """
    if not rows_divide(arrays[0].shape[0]):
        return own(*arrays)
    return jax.shard_map(
        own,
        in_specs=(_ROWS, _HEAD, _ROWS, _ROWS),
        out_specs=places,
        check_vma=False,  # it would have the zeros that the loops start from declared as varying; nothing else is lost
    )(*arrays)


def _on_a_device() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _total(tree: Any, axes: tuple[str, ...]) -> Any:
    """Sums over the devices along mesh axes; whole arrays are sums already."""
    return jax.lax.psum(tree, axes) if _on_a_device() else tree


def _columns(head_DV: jax.Array) -> jax.Array:
    """Returns the vocabulary ids of the head's columns, int32 [V]."""
    first = jax.lax.axis_index("tensor") * head_DV.shape[1] if _on_a_device() else 0
    return first + jnp.arange(head_DV.shape[1])


def _gathered(head_DV: jax.Array, dtype: Any) -> jax.Array:
    """Returns the head as the matmuls use it: gathered over fsdp, once instead of once per piece."""
    head_DV = head_DV.astype(dtype)
    return jax.lax.all_gather(head_DV, "fsdp", axis=0, tiled=True) if _on_a_device() else head_DV


def _scattered(d_head_DV: jax.Array) -> jax.Array:
    """Returns this device's block of the gradient, summed over devices once instead of once per piece."""
    if not _on_a_device():
        return d_head_DV
    return _total(jax.lax.psum_scatter(d_head_DV, "fsdp", scatter_dimension=0, tiled=True), ("dcn_data", "data"))
