"""The cross entropy of the training loss: fused with the output projection, in pieces.

Dimensions: B sequences, M loss targets of a sequence, C targets of a piece, D model width, V padded vocabulary.

The logits of all targets in float32 are the largest array of a training step. Here they exist a piece of C targets at a
time, and the gradients of a piece are taken while it is there, so the backward pass makes no logits again (the idea of
Hsu et al. 2024, Liger Kernel, arXiv 2410.10989).
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

PIECE_BYTES = 2**25  # float32 logits of a piece on one device
_PIECE_MULTIPLE = 64


def chunk_size(rows: int, vocab: int) -> int:
    """Returns C, a multiple of 64, for `rows` sequences and `vocab` logit columns on one device."""
    return max(1, PIECE_BYTES // (4 * rows * vocab * _PIECE_MULTIPLE)) * _PIECE_MULTIPLE


def linear_cross_entropy(
    hidden_BMD: jax.Array,
    head_DV: jax.Array,
    targets_BM: jax.Array,
    weights_BM: jax.Array,
    config: LlamaConfig,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Sums the negative log likelihood of the targets.

    Args:
      hidden_BMD: the positions that predict the targets, in the compute dtype, which is that of the matmuls.
      head_DV: the output projection, in its own dtype, which is that of its gradient.
      targets_BM: int32; weights_BM: float32, 0 = unused.
      config: says which columns are padding (they get no probability).
      chunk: C, targets of a sequence whose logits exist at a time.

    Returns:
      (weighted, plain), float32 scalars in nats: the sum of weight x loss, and the sum of loss where the weight is not
      0. Only `weighted` has a gradient, and only towards hidden and head.
    """
    chunk = min(chunk, hidden_BMD.shape[1])
    short = -hidden_BMD.shape[1] % chunk
    if short:
        hidden_BMD = jnp.pad(hidden_BMD, ((0, 0), (0, short), (0, 0)))
        targets_BM, weights_BM = (jnp.pad(x, ((0, 0), (0, short))) for x in (targets_BM, weights_BM))
    return _fused(config, chunk, hidden_BMD, head_DV, targets_BM, weights_BM)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(
    config: LlamaConfig,
    chunk: int,
    hidden_BMD: jax.Array,
    head_DV: jax.Array,
    targets_BM: jax.Array,
    weights_BM: jax.Array,
) -> Sums:
    def own_sums(hidden_BMD: jax.Array, head_DV: jax.Array, targets_BM: jax.Array, weights_BM: jax.Array) -> Sums:
        head = _gathered(head_DV, hidden_BMD.dtype)

        def piece(sums: Sums, inputs: tuple[jax.Array, ...]) -> tuple[Sums, None]:
            hidden_BCD, targets_BC, weights_BC = inputs
            loss_BC, _, _ = _piece_loss(config, hidden_BCD, head, targets_BC)
            return _add(sums, loss_BC, weights_BC), None

        sums, _ = jax.lax.scan(piece, _no_sums(), _pieces(chunk, hidden_BMD, targets_BM, weights_BM))
        return _total(sums, BATCH_AXES)

    sums: Sums = _on_each_device(own_sums, _SUMS, hidden_BMD, head_DV, targets_BM, weights_BM)
    return sums


def _fused_forward(
    config: LlamaConfig,
    chunk: int,
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
            hidden_BCD, targets_BC, weights_BC = inputs
            loss_BC, logits_BCV, normalizer_BC = _piece_loss(config, hidden_BCD, head, targets_BC)
            is_target_BCV = targets_BC[..., None] == columns_V
            d_BCV = (jnp.exp(logits_BCV - normalizer_BC[..., None]) - is_target_BCV) * weights_BC[..., None]
            d_nV = d_BCV.astype(hidden_BCD.dtype).reshape(-1, d_BCV.shape[-1])
            hidden_nD = hidden_BCD.reshape(-1, hidden_BCD.shape[-1])
            d_hidden_nD = _total(matmul.dot(d_nV, head.T), ("tensor",)).astype(hidden_BCD.dtype)
            d_head_DV += matmul.dot(hidden_nD.T, d_nV)
            return (d_head_DV, _add(sums, loss_BC, weights_BC)), d_hidden_nD.reshape(hidden_BCD.shape)

        start = (jnp.zeros(head.shape, jnp.float32), _no_sums())
        pieces = _pieces(chunk, hidden_BMD, targets_BM, weights_BM)
        (d_head_DV, sums), d_hidden_nBCD = jax.lax.scan(piece, start, pieces)
        d_hidden_BMD = jnp.moveaxis(d_hidden_nBCD, 0, 1).reshape(hidden_BMD.shape)
        return _total(sums, BATCH_AXES), (d_hidden_BMD, _scattered(d_head_DV).astype(head_DV.dtype))

    places = (_SUMS, (_ROWS, _HEAD))
    found: tuple[Sums, tuple[jax.Array, jax.Array]] = _on_each_device(
        own_gradients, places, hidden_BMD, head_DV, targets_BM, weights_BM
    )
    return found


def _fused_backward(
    config: LlamaConfig,
    chunk: int,
    gradients: tuple[jax.Array, jax.Array],
    cotangents: Sums,
) -> tuple[jax.Array | None, ...]:
    d_hidden_BMD, d_head_DV = gradients
    scale = cotangents[0]
    return (d_hidden_BMD * scale).astype(d_hidden_BMD.dtype), (d_head_DV * scale).astype(d_head_DV.dtype), None, None


_fused.defvjp(_fused_forward, _fused_backward)


def _pieces(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """[B, M, ...] -> [M / C, B, C, ...] each."""
    return tuple(jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0) for x in arrays)


def _piece_loss(
    config: LlamaConfig, hidden_BCD: jax.Array, head_DV: jax.Array, targets_BC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (loss [B, C], logits [B, C, own V], log of the softmax's denominator [B, C]), all float32."""
    logits_nV = matmul.dot(hidden_BCD.reshape(-1, hidden_BCD.shape[-1]), head_DV)
    logits_BCV = logits_nV.reshape(*targets_BC.shape, -1)
    columns_V = _columns(head_DV)
    if config.padded_vocab > config.vocab_size:
        logits_BCV = jnp.where(columns_V < config.vocab_size, logits_BCV, -jnp.inf)
    highest_BC = logits_BCV.max(axis=-1)
    highest_BC = jax.lax.pmax(highest_BC, "tensor") if _on_a_device() else highest_BC
    normalizer_BC = _total(jnp.exp(logits_BCV - highest_BC[..., None]).sum(axis=-1), ("tensor",))
    normalizer_BC = jnp.log(normalizer_BC) + highest_BC
    own_BC = targets_BC - columns_V[0]
    target_BC = jnp.take_along_axis(logits_BCV, jnp.clip(own_BC, 0, columns_V.size - 1)[..., None], axis=-1)[..., 0]
    target_BC = _total(jnp.where((own_BC >= 0) & (own_BC < columns_V.size), target_BC, 0), ("tensor",))
    return normalizer_BC - target_BC, logits_BCV, normalizer_BC


def _no_sums() -> Sums:
    return jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)


def _add(sums: Sums, loss_BC: jax.Array, weights_BC: jax.Array) -> Sums:
    weighted, plain = sums
    return weighted + jnp.sum(loss_BC * weights_BC), plain + jnp.sum(jnp.where(weights_BC != 0, loss_BC, 0.0))


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
