"""Products of two matrices with float32 accumulation, and the spelling that XLA:CPU needs to make them fast.

In float32 nothing here differs from `@`. In bfloat16 the gradient of a float32 kernel is float32: rounded to bfloat16
first, it would be summed over devices in bfloat16. A quantised kernel is dequantised for each product, never kept.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from medtune_jax.model.quantize import QuantizedKernel, dequantize


def dot(a_MK: jax.Array, b_KN: jax.Array) -> jax.Array:
    """Returns a @ b, float32 [M, N], of operands of one dtype."""
    if a_MK.dtype != jnp.bfloat16:
        return jnp.dot(a_MK, b_KN, preferred_element_type=jnp.float32)
    if jax.sharding.get_abstract_mesh().size > 1:  # the compiler cannot split a layout constraint: it would gather both
        return _dot(a_MK, b_KN)
    return jax.lax.platform_dependent(a_MK, b_KN, cpu=_row_major_dot, default=_dot)


def dense(x_MK: jax.Array, kernel_KN: jax.Array | QuantizedKernel) -> jax.Array:
    """Returns x @ kernel, [M, N] in x's dtype; the gradient of the kernel has its dtype, a quantised one has none."""
    if isinstance(kernel_KN, QuantizedKernel):
        return _dense_quantized(x_MK, kernel_KN)
    if x_MK.dtype != jnp.bfloat16:
        return x_MK @ kernel_KN.astype(x_MK.dtype)
    return _dense(x_MK, kernel_KN)


@jax.custom_vjp
def _dense(x_MK: jax.Array, kernel_KN: jax.Array) -> jax.Array:
    return dot(x_MK, kernel_KN.astype(x_MK.dtype)).astype(x_MK.dtype)


def _forward(x_MK: jax.Array, kernel_KN: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _dense(x_MK, kernel_KN), (x_MK, kernel_KN)


def _backward(saved: tuple[jax.Array, jax.Array], d_MN: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_MK, kernel_KN = saved
    d_x_MK = dot(d_MN, kernel_KN.astype(d_MN.dtype).T).astype(x_MK.dtype)
    return d_x_MK, dot(x_MK.T, d_MN).astype(kernel_KN.dtype)


_dense.defvjp(_forward, _backward)


@jax.custom_vjp
def _dense_quantized(x_MK: jax.Array, kernel_KN: QuantizedKernel) -> jax.Array:
    return dense(x_MK, dequantize(kernel_KN, x_MK.dtype))


def _quantized_forward(x_MK: jax.Array, kernel_KN: QuantizedKernel) -> tuple[jax.Array, QuantizedKernel]:
    return _dense_quantized(x_MK, kernel_KN), kernel_KN


def _quantized_backward(kernel_KN: QuantizedKernel, d_MN: jax.Array) -> tuple[jax.Array, None]:
    return dot(d_MN, dequantize(kernel_KN, d_MN.dtype).T).astype(d_MN.dtype), None


_dense_quantized.defvjp(_quantized_forward, _quantized_backward)


def _dot(a_MK: jax.Array, b_KN: jax.Array) -> jax.Array:
    return jnp.dot(a_MK, b_KN, preferred_element_type=jnp.float32)


def _row_major_dot(a_MK: jax.Array, b_KN: jax.Array) -> jax.Array:
    """XLA:CPU multiplies bfloat16 at twice float32's speed (or more), but only row-major operands into float32."""
    row_major = Layout((0, 1))
    return _dot(with_layout_constraint(a_MK, row_major), with_layout_constraint(b_KN, row_major))
