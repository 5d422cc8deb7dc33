"""A checksum of arrays that does not depend on how they lie over devices and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def checksum(tree: Any) -> int:
    """Returns 32 bits that depend on every bit of every leaf and its place, and not on how the leaves are sharded.

    Of a leaf it is the sum over elements of bits x (2 place + 1), modulo 2**32. An odd multiplier loses no bit, so any
    one element that changes changes the sum; sums of integers do not depend on their order. `place` wraps beyond 2**32
    elements: two elements that lie so far apart could be exchanged unseen, and nothing else. It finds damage, not
    forgery: many changes at once can cancel. Leaves are of any real, integer or Boolean dtype, also those under a byte.

    Of several processes each calls it, and gets the same. Leaf by leaf: beside the tree at most one leaf, as uint32,
    is in memory (XLA for CPU materialises it).
    """
    return of_parts([leaf_part(leaf) for leaf in jax.tree.leaves(tree)])


def of_parts(parts: Sequence[jax.Array]) -> int:
    """Returns the checksum of a tree from `leaf_part` of each of its leaves, in order."""
    total = 0
    for part in jax.device_get(parts):
        total = (total * 0x9E3779B1 + int(part)) % 2**32
    return total


@jax.jit
def leaf_part(leaf: jax.Array) -> jax.Array:
    """Returns what one leaf gives to the checksum of its tree, a uint32 scalar."""
    bits = _bits(jax.device_put(leaf, jax.memory.Space.Device))  # it may wait in host memory (optimizer.offload)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * size + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def _bits(leaf: jax.Array) -> jax.Array:
    """Returns the bits of each element as uint32; of 8 bytes as two of them along a new last axis."""
    width = jax.dtypes.itemsize_bits(leaf.dtype)
    if width < 8 or leaf.dtype == jnp.bool:
        return leaf.astype(jnp.int8).astype(jnp.uint32)  # exact: an integer of fewer bits
    unsigned = jnp.uint32 if width > 32 else jnp.dtype(f"uint{width}")
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
