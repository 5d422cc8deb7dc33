"""The static cache of keys and values: how it is stored, written, cut, and shared out over a mesh.

int8 storage is symmetric, with one float32 scale per token and key-value head, set when the token is written:
value = int8 * scale, scale = max |value| / 127 over the head's width. Attention multiplies scores and weights by the
scales instead of restoring keys and values (model/attention.py), so no dequantised copy of the cache is ever whole.

Functions speak of [B, K, T, E], in whose order the batched products of attention read without a transpose. A TPU stores
[B, T, K, E] (`heads_first` turns it): there a token is one slice to write, and of the other order the compiler would
make a turned copy of the whole cache before a loop and after it.

Dimensions: B slots, K key-value heads, T positions, E width of a head, N new tokens, R slots of one call.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from medtune_jax.model.llama import LlamaConfig
from medtune_jax.sharding import constrain

_LARGEST = 127  # of int8, symmetric


class Stored(NamedTuple):
    """Keys or values of one layer, in the order in which this backend stores them.

    Attributes:
      values: [B, K, T, E], floating point or int8.
      scale: of int8, float32 [B, K, T]; otherwise None.
    """

    values: jax.Array
    scale: jax.Array | None = None


class Cache(NamedTuple):
    """Keys and values of every layer."""

    k: tuple[Stored, ...]
    v: tuple[Stored, ...]

    @property
    def length(self) -> int:
        return int(self.k[0].values.shape[1 if _tokens_first() else 2])


def _tokens_first() -> bool:
    return jax.default_backend() == "tpu"


def heads_first(stored: Stored) -> Stored:
    """Returns keys or values as [B, K, T, E] of what is stored, and what is stored of such."""
    return stored._replace(values=jnp.swapaxes(stored.values, 1, 2)) if _tokens_first() else stored


def stored_dtype(dtype: Any) -> Any:
    """Returns the dtype in which a cache that is asked for in `dtype` is held."""
    if dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        return jnp.dtype(jnp.float32)  # XLA:CPU scatters into bfloat16 by converting the whole array there and back
    return jnp.dtype(dtype)


@partial(jax.jit, static_argnames=("config", "batch", "length", "dtype"))
def empty_cache(config: LlamaConfig, batch: int, length: int, dtype: Any) -> Cache:
    """Returns a cache of `batch` slots with `length` positions each; dtype int8 has scales."""
    dtype = stored_dtype(dtype)
    shape = (batch, config.num_kv_heads, length, config.head_dim)

    def blank() -> Stored:
        scale = jnp.zeros(shape[:3], jnp.float32) if dtype == jnp.int8 else None
        return _store(Stored(jnp.zeros(shape, dtype), scale))

    return Cache(*(tuple(blank() for _ in range(config.num_layers)) for _ in range(2)))


def resize(cache: Cache, length: int) -> Cache:
    """Returns the cache cut or lengthened to `length` positions; the old one is deleted as it goes.

    Layer by layer, so that both are never whole at one time.
    """

    def one(old: Stored) -> Stored:
        new = _resize(old, length=length)
        for leaf in jax.tree.leaves(old):
            leaf.delete()
        return new

    return Cache(tuple(map(one, cache.k)), tuple(map(one, cache.v)))


def write(full: Stored, new_BNKE: jax.Array, positions_BN: jax.Array) -> Stored:
    """Returns the cache of a layer with new tokens of every slot; positions beyond its end are dropped."""
    values, scale = heads_first(full)
    new_values, new_scale = heads_first(as_stored(new_BNKE, values.dtype))
    values = _write_each(values, new_values, positions_BN)
    if scale is None or new_scale is None:
        return _store(Stored(values))
    if positions_BN.shape[1] > 1:
        return _store(Stored(values, _write_each(scale, new_scale, positions_BN)))
    # All scales are small beside the values; of a scatter a TPU would pad each to 128 lanes, 32 times its size.
    here_B1T = jnp.arange(scale.shape[2]) == positions_BN[:, :, None]
    return _store(Stored(values, jnp.where(here_B1T, new_scale, scale)))


@jax.vmap  # and no index of the slot: by it the compiler would send what is written to every device
def _write_each(full_KT: jax.Array, new_KN: jax.Array, positions_N: jax.Array) -> jax.Array:
    return full_KT.at[:, positions_N].set(new_KN)


def as_stored(new_BNKE: jax.Array, dtype: Any) -> Stored:
    """Returns new keys or values as a cache of this dtype holds them, a cache of N positions."""
    new_BKNE = jnp.swapaxes(new_BNKE, 1, 2)
    if dtype != jnp.int8:
        return _store(Stored(new_BKNE.astype(dtype)))
    new_BKNE = new_BKNE.astype(jnp.float32)
    scale_BKN = jnp.max(jnp.abs(new_BKNE), axis=-1) / _LARGEST
    steps_BKNE = new_BKNE / jnp.where(scale_BKN > 0, scale_BKN, 1.0)[..., None]
    return _store(Stored(jnp.round(steps_BKNE).astype(jnp.int8), scale_BKN))


def copy_in(full: Stored, part: Stored, slots_R: jax.Array) -> Stored:
    """Returns the cache of a layer with what is stored in `part` at the beginning of some slots."""
    put = jax.tree.map(lambda x, new: x.at[slots_R, :, : new.shape[2]].set(new), heads_first(full), heads_first(part))
    return _store(put)


fill = jax.jit(copy_in, donate_argnames=("full",))  # on its own; `full` is given up


def copy_out(full: Stored, slots_R: jax.Array, length: int) -> Stored:
    """Returns the first `length` positions of some slots; zeros beyond the end of the cache."""
    return _cut(jax.tree.map(lambda x: x[slots_R], full), length)


@partial(jax.jit, static_argnames=("length",))
def _resize(full: Stored, *, length: int) -> Stored:
    return _cut(full, length)


def _cut(full: Stored, length: int) -> Stored:
    def cut(x: jax.Array) -> jax.Array:
        extra = max(0, length - x.shape[2])
        return jnp.pad(x[:, :, :length], ((0, 0), (0, 0), (0, extra), *((0, 0),) * (x.ndim - 3)))

    return _store(jax.tree.map(cut, heads_first(full)))


def _store(stored: Stored) -> Stored:
    """Returns what is stored of keys or values with heads first.

    Under a mesh: slots over the batch axes, key-value heads over `tensor`, each where it divides.
    """
    return heads_first(jax.tree.map(lambda x: constrain(x, "batch", "kv_heads", *(None,) * (x.ndim - 2)), stored))
