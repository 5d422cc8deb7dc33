"""A checksum of arrays that does not depend on how they lie over devices and processes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def checksum(tree: Any) -> jax.Array:
    """Returns a uint32 scalar that depends on every bit of every leaf and its place, and not on how they are sharded.

    The sum over elements of bits x (2 place + 1), modulo 2**32. An odd multiplier loses no bit, so any one element that
    changes changes the sum; sums of integers do not depend on their order. `place` wraps beyond 2**32 elements: two
    elements that lie so far apart could be exchanged unseen, and nothing else. Leaves are of any real, integer or
    Boolean dtype, also those under a byte. One fused pass: no leaf is copied.
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        bits = _bits(leaf)
        place = jnp.zeros(bits.shape, jnp.uint32)
        for axis, size in enumerate(bits.shape):
            place = place * size + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        total = total * jnp.uint32(0x9E3779B1) + jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
    return total


def _bits(leaf: jax.Array) -> jax.Array:
    """Returns the bits of each element as uint32; of 8 bytes as two of them along a new last axis."""
    width = jax.dtypes.itemsize_bits(leaf.dtype)
    if width < 8 or leaf.dtype == jnp.bool:
        return leaf.astype(jnp.int8).astype(jnp.uint32)  # exact: an integer of fewer bits
    unsigned = jnp.uint32 if width > 32 else jnp.dtype(f"uint{width}")
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
