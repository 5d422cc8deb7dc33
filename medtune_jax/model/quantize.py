"""Frozen kernels stored in 8 or 4 bits: blockwise absmax int8, and NF4 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314).

Every 64 consecutive inputs of one output form a block. A block keeps its largest magnitude (absmax, float32) and, for
each weight, the level nearest to weight / absmax: one of 255 equidistant levels for int8 (8.5 bits a weight in all), of
the 16 of NF4 (4.5 bits). Blocks, levels and scales of NF4 are those of bitsandbytes (`bnb_4bit_quant_type="nf4"` in
transformers, whose default is fp4), so that an adapter means the same on either base: of 524,288 weights each in
float32, bfloat16 and float16 none differed from bitsandbytes 0.50.2 on a CPU. The bytes are packed otherwise. The paper
also quantises the scales (4.13 bits a weight); that would save 0.3 GB of a 7B model's 3.6 and is left out.

The library qwix (0.1.8) has arrays that would do here, with the same levels. It was left out because it looks levels up
on TPUs too (see `_chosen`), finds them by 16 distances a weight, leaves the packing of four-bit types to the backend,
and would be one more dependency tied to flax.

Dimensions: ... leading (layers), I inputs, O outputs, P = I / 2 packed inputs, N = I / 64 blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from medtune_jax.errors import UserError

KINDS = ("int8", "nf4")
BLOCK = 64

# Appendix E of the paper: quantiles of N(0, 1), eight per sign, zero among them, scaled to [-1, 1].
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_INT8_MAX = 127
_HALF = BLOCK // 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantizedKernel:
    """What stands where a kernel [..., I, O] would: a pytree that scan slices and shardings split just as they do that.

    Attributes:
      codes: int8 [..., I, O], or for nf4 uint8 [..., P, O]: byte p of a block holds weights p (low bits) and p + 32.
      scales: float32 [..., N, O], the blocks' absmax.
      kind: one of KINDS.
    """

    codes: Any
    scales: Any
    kind: str = field(metadata={"static": True})

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales, over all devices."""
        return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in (self.codes, self.scales))


def quantize(kernel: jax.Array, kind: str) -> QuantizedKernel:
    """Returns the nearest representable kernel (of two equally near levels, nf4 takes the lower and int8 the even).

    Args:
      kernel: floating [..., I, O] with I a multiple of 64.
    """
    *leading, inputs, outputs = kernel.shape
    blocks = kernel.astype(jnp.float32).reshape(*leading, inputs // BLOCK, BLOCK, outputs)
    scales = jnp.max(jnp.abs(blocks), axis=-2)
    relative = blocks / jnp.where(scales == 0, 1.0, scales)[..., None, :]
    if kind == "int8":
        codes = jnp.round(relative * _INT8_MAX).astype(jnp.int8)
        return QuantizedKernel(codes.reshape(kernel.shape), scales, kind)
    codes = _nearest_nf4(relative)
    packed = codes[..., :_HALF, :] | codes[..., _HALF:, :] << 4
    return QuantizedKernel(packed.reshape(*leading, inputs // 2, outputs), scales, kind)


def dequantize(kernel: QuantizedKernel, dtype: Any) -> jax.Array:
    """Returns level * absmax, multiplied in float32 and cast: [..., I, O] of `dtype`."""
    *leading, blocks, outputs = kernel.scales.shape
    if kernel.kind == "int8":
        levels = kernel.codes.astype(jnp.float32) * (1 / _INT8_MAX)
        levels = levels.reshape(*leading, blocks, BLOCK, outputs)
    else:
        packed = kernel.codes.reshape(*leading, blocks, 1, _HALF, outputs)
        shift = jnp.array([0, 4], jnp.uint8)[:, None, None]
        levels = _nf4_level(packed >> shift).reshape(*leading, blocks, BLOCK, outputs)
    values = levels * kernel.scales[..., None, :]
    return values.reshape(*leading, blocks * BLOCK, outputs).astype(dtype)


def abstract_kernel(
    name: str, shape: tuple[int, ...], kind: str, sharding: NamedSharding | None = None
) -> QuantizedKernel:
    """Returns the ShapeDtypeStructs of a quantised kernel [..., I, O], which lie as the kernel would (`sharding`).

    Raises:
      UserError: naming the parameter `name`: a block would be cut by the sharding, or does not divide the inputs.
    """
    *leading, inputs, outputs = shape
    on_device = inputs if sharding is None else sharding.shard_shape(shape)[-2]
    if on_device % BLOCK:
        split = "" if on_device == inputs else f", {on_device} on each device,"
        raise UserError(
            f"{name}: its {inputs} inputs{split} are no multiple of the quantisation block of {BLOCK}. "
            "Choose another --config.mesh, or --config.model.lora.base=compute."
        )
    codes = (jnp.int8, inputs) if kind == "int8" else (jnp.uint8, inputs // 2)

    def leaf(dtype: Any, rows: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*leading, rows, outputs), dtype, sharding=sharding)

    return QuantizedKernel(leaf(*codes), leaf(jnp.float32, inputs // BLOCK), kind)


def _nearest_nf4(relative: jax.Array) -> jax.Array:
    """Returns the index of the level nearest to each number of [-1, 1]: how many midpoints lie below it."""
    codes = jnp.zeros(relative.shape, jnp.uint8)
    for lower, upper in pairwise(NF4_LEVELS):
        codes += (relative > (lower + upper) / 2).astype(jnp.uint8)
    return codes


def _nf4_level(codes: jax.Array) -> jax.Array:
    """Returns the levels of the low four bits, float32."""
    return jax.lax.platform_dependent(codes & 15, cpu=_looked_up, default=_chosen)


def _looked_up(codes: jax.Array) -> jax.Array:
    """One load a weight; XLA:CPU would keep every step of `_chosen` in memory."""
    return jnp.array(NF4_LEVELS, jnp.float32)[codes]


def _chosen(codes: jax.Array) -> jax.Array:
    """Bit by bit, 15 selections a weight: a TPU's vectors have no table (its compiler expects a look-up to take 65 ms
    where this takes 0.3, for 11.5 million weights on a v5e)."""
    levels = [jnp.float32(level) for level in NF4_LEVELS]
    for bit in range(4):
        is_set = (codes >> bit & 1) == 1
        levels = [jnp.where(is_set, odd, even) for even, odd in zip(levels[::2], levels[1::2], strict=True)]
    return levels[0]
