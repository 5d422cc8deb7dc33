"""bfloat16 products accumulate in float32, whatever the spelling; float32 ones are plain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medtune_jax.config import MeshConfig
from medtune_jax.model import matmul
from medtune_jax.sharding import make_mesh

M, K, N = 48, 32, 64


def operands(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, d = (jax.random.normal(key, shape) for key, shape in zip(keys, [(M, K), (K, N), (M, N)], strict=True))
    return x.astype(dtype), kernel, d.astype(dtype)


def exact(a, b) -> np.ndarray:
    return np.asarray(a, np.float64) @ np.asarray(b, np.float64)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dot_is_the_product_of_its_operands_to_float32_rounding(dtype):
    x, kernel, _ = operands(dtype)
    with jax.default_matmul_precision("highest"):
        product = jax.jit(matmul.dot)(x, kernel.astype(dtype))
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(product, exact(x, kernel.astype(dtype)), rtol=1e-5, atol=1e-5)


def test_bfloat16_activations_give_a_float32_kernel_a_float32_gradient():
    x, kernel, d = operands(jnp.bfloat16)
    out, pull = jax.vjp(jax.jit(matmul.dense), x, kernel)
    d_x, d_kernel = pull(d)
    rounded = kernel.astype(jnp.bfloat16)
    assert (out.dtype, d_x.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(d_kernel, exact(x.T, d), rtol=1e-5, atol=1e-5)  # not rounded to bfloat16 on the way
    np.testing.assert_allclose(np.asarray(out, np.float32), exact(x, rounded), rtol=4e-3, atol=1e-3)
    np.testing.assert_allclose(np.asarray(d_x, np.float32), exact(d, rounded.T), rtol=4e-3, atol=1e-3)


@pytest.mark.parametrize("spec", [PartitionSpec("data", None), PartitionSpec(None, "tensor")], ids=str)
def test_eight_devices_multiply_as_one(spec):
    mesh = make_mesh(MeshConfig(data=4, fsdp=1, tensor=2))
    x, kernel, d = operands(jnp.bfloat16)

    def gradients(x, kernel, d):
        return jax.vjp(matmul.dense, x, kernel)[1](d)

    alone = jax.jit(gradients)(x, kernel, d)
    place = NamedSharding(mesh, spec)
    split = jax.jit(gradients)(jax.device_put(x, place), kernel, d)
    np.testing.assert_allclose(np.asarray(split[0], np.float32), np.asarray(alone[0], np.float32), rtol=8e-3)
    np.testing.assert_allclose(split[1], alone[1], rtol=1e-5, atol=1e-5)
