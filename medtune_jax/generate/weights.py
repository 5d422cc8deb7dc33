"""Parameters as decoding wants them: one tree per layer, cast, and placed over the mesh once."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medtune_jax.model.llama import LlamaConfig, Params, head, param_shardings
from medtune_jax.model.lora import LoraAdapter, scale
from medtune_jax.model.quantize import QuantizedKernel, dequantize


class Weights(NamedTuple):
    """Parameters for decoding: one tree per layer, so that no step slices a stack.

    Attributes:
      embedding: [V, D]; layers: per layer, model/llama.py's tree without the L dimension; norm: [D]; head: [D, V].
    """

    embedding: jax.Array
    layers: tuple[Params, ...]
    norm: jax.Array
    head: jax.Array


def decoding_mesh(mesh: Mesh, config: LlamaConfig) -> Mesh:
    """Returns a mesh to decode on over the devices of another, in their order.

    As much `tensor` as the model's heads and widths divide by and a slice holds; the rest is `data`. Whether the
    weights then fit is not looked at: where they do not, give a mesh with more `tensor` than key-value heads, which
    every device then holds whole.
    """
    slices = mesh.shape["dcn_data"]
    within = mesh.size // slices
    tensor = math.gcd(within, config.num_heads, config.num_kv_heads, config.intermediate_size, config.padded_vocab)
    return Mesh(mesh.devices.reshape(slices, within // tensor, 1, tensor), mesh.axis_names, axis_types=mesh.axis_types)


def decoding_weights(
    params: Params,
    config: LlamaConfig,
    dtype: Any,
    mesh: Mesh | None,
    adapter: LoraAdapter | None = None,
    *,
    donate: bool = False,
) -> Weights:
    """Returns `params`, with the adapter merged into them, cast to `dtype` and unstacked; `params` stay as they are.

    Under a mesh they are split over its `tensor` only (FSDP's split would gather every weight again for every token).
    They may come from another mesh over the same devices: they are cast where they lie, then moved.

    donate: give `params` up. They are freed one by one, so that beside the weights one stack is held.
    """

    def tensor_only(sharding: NamedSharding, first: int) -> NamedSharding:
        parts = ["tensor" if part and "tensor" in part else None for part in sharding.spec[first:]]
        return NamedSharding(sharding.mesh, PartitionSpec(*parts))

    places = None if mesh is None else param_shardings(config, mesh)
    layers: list[Params] = [{} for _ in range(config.num_layers)]
    for name, group in params["layers"].items():
        update = None if adapter is None else adapter.params["layers"].get(name)
        factor = 1.0 if adapter is None else scale(adapter.lora)
        for key, stack in group.items():
            parts = _unstack(stack, update, dtype=dtype, factor=factor)
            if places is not None:
                parts = jax.device_put(parts, tensor_only(places["layers"][name][key], 1))
            for layer, part in zip(layers, parts, strict=True):
                layer.setdefault(name, {})[key] = part
            if donate:
                jax.tree.map(lambda leaf: leaf.delete(), stack)

    def whole(leaf: jax.Array, place: Any) -> jax.Array:
        cast = leaf if donate and leaf.dtype == dtype else _cast(leaf, dtype=dtype)
        return cast if place is None else jax.device_put(cast, place)

    vocab = None if places is None else tensor_only(places["embed_tokens"]["embedding"], 0)
    across = None if vocab is None else NamedSharding(vocab.mesh, PartitionSpec(*vocab.spec[::-1]))
    norm = None if places is None else tensor_only(places["norm"]["scale"], 0)
    return Weights(
        whole(params["embed_tokens"]["embedding"], vocab),
        tuple(layers),
        whole(params["norm"]["scale"], norm),
        whole(head(params, config), across),
    )


@partial(jax.jit, static_argnames="dtype")
def _cast(leaf: jax.Array, *, dtype: Any) -> jax.Array:
    return leaf.astype(dtype)


@partial(jax.jit, static_argnames=("dtype", "factor"))
def _unstack(stack: Any, update: Params | None, *, dtype: Any, factor: float) -> tuple[jax.Array, ...]:
    """Returns the layers of a stack [L, ...]; `update`, adapters, is merged into each in float32."""

    def one(number: int) -> jax.Array:
        weight = jax.tree.map(lambda leaf: leaf[number], stack)
        if isinstance(weight, QuantizedKernel):
            weight = dequantize(weight, jnp.float32)
        if update is not None:
            product_io = jnp.matmul(update["a"][number], update["b"][number], precision="highest")
            weight = weight.astype(jnp.float32) + factor * product_io
        return weight.astype(dtype)

    return tuple(one(number) for number in range(jax.tree.leaves(stack)[0].shape[0]))
