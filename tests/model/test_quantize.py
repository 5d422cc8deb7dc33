"""Quantised kernels hold the nearest representable weights, in the bytes claimed, however they are split."""

import dataclasses
import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from medtune_jax.config import MeshConfig
from medtune_jax.errors import UserError
from medtune_jax.model import matmul
from medtune_jax.model import quantize as quantization
from medtune_jax.model.llama import LlamaConfig, Params, abstract_params, forward, init_params
from medtune_jax.model.quantize import BLOCK, KINDS, NF4_LEVELS, QuantizedKernel, dequantize, quantize
from medtune_jax.sharding import make_mesh

CONFIG = LlamaConfig(
    vocab_size=128,
    hidden_size=128,
    intermediate_size=192,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_positions=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    initializer_range=0.1,
)
LLAMA2_7B = dataclasses.replace(
    CONFIG,
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
)
LEVELS = {"int8": np.arange(-127, 128) / 127, "nf4": np.array(NF4_LEVELS)}
SEEDS = st.integers(0, 2**32 - 1)


def kernels(seed: int, shape: tuple[int, ...] = (2 * BLOCK, 3), dtype: Any = np.float32) -> np.ndarray:
    """Returns weights whose blocks differ in size by orders of magnitude; one block is zero."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 6, (1, shape[-1]))
    kernel[..., :BLOCK, 0] = 0
    return kernel.astype(dtype)


def blocks_of(kernel: np.ndarray) -> np.ndarray:
    """[I, O] -> [N, O, 64], in double precision."""
    return np.asarray(kernel, np.float64).reshape(-1, BLOCK, kernel.shape[-1]).swapaxes(1, 2)


def by_brute_force(kernel: np.ndarray, kind: str) -> np.ndarray:
    """The nearest of level * absmax to each weight, by trying all: [N, O, 64]."""
    blocks = blocks_of(kernel)
    offered = LEVELS[kind] * np.abs(blocks).max(-1, keepdims=True)
    nearest = np.abs(blocks[..., None] - offered[..., None, :]).argmin(-1)
    return np.take_along_axis(offered, nearest, -1)


def projections(params: Params, kind: str) -> Params:
    """Returns `params` with the seven kernels quantised."""
    layers = {
        name: {"kernel": quantize(leaves["kernel"], kind)} if name.endswith("_proj") else leaves
        for name, leaves in params["layers"].items()
    }
    return {**params, "layers": layers}


def restored(params: Params, dtype: Any) -> Params:
    return jax.tree.map(
        lambda leaf: dequantize(leaf, dtype) if isinstance(leaf, QuantizedKernel) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, QuantizedKernel),
    )


def hidden(params: Params, config: LlamaConfig = CONFIG, dtype: Any = jnp.float32) -> jax.Array:
    tokens = jnp.arange(4, dtype=jnp.int32)[None]
    with jax.default_matmul_precision("highest"):
        return forward(params, config, tokens, positions_BS=tokens, compute_dtype=dtype)


def test_nf4_levels_are_the_papers_quantiles_of_the_normal_distribution() -> None:
    from scipy.stats import norm

    outermost = 1 - (1 / 32 + 1 / 30) / 2  # the paper's mean of the outer quantiles of 16 and 15 levels
    below = -norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
    above = norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])
    expected = np.sort(np.concatenate([below, [0], above])) / above.max()
    np.testing.assert_allclose(NF4_LEVELS, expected, atol=3e-7)  # the paper prints what float32 gave


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_every_weight_becomes_the_nearest_level_times_its_blocks_largest(kind: str, seed: int) -> None:
    kernel = kernels(seed)
    found = blocks_of(np.asarray(dequantize(quantize(jnp.asarray(kernel), kind), jnp.float32)))
    blocks = blocks_of(kernel)
    absmax = np.abs(blocks).max(-1, keepdims=True)
    error, least = np.abs(found - blocks), np.abs(by_brute_force(kernel, kind) - blocks)
    assert (error <= least + 2e-7 * absmax).all()
    assert (error <= absmax * np.diff(LEVELS[kind]).max() / 2 * (1 + 1e-6)).all()
    largest = np.abs(blocks) == absmax
    np.testing.assert_array_equal(found[largest], blocks[largest])  # exact where it matters most, zero blocks too


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_what_is_representable_is_kept_as_it_is(kind: str, dtype: Any, seed: int) -> None:
    once = quantize(jnp.asarray(kernels(seed, dtype=dtype)), kind)
    again = quantize(dequantize(once, dtype), kind)
    jax.tree.map(np.testing.assert_array_equal, again, once)


def test_midpoints_between_levels_round_down_as_in_bitsandbytes() -> None:
    kernel = np.ones((BLOCK, 1), np.float32)
    middle = [np.float32((a + b) / 2) for a, b in itertools.pairwise(NF4_LEVELS)]
    kernel[:15, 0] = middle
    found = np.asarray(dequantize(quantize(jnp.asarray(kernel), "nf4"), jnp.float32))[:15, 0]
    np.testing.assert_array_equal(found, np.float32(NF4_LEVELS[:-1]))


def test_a_byte_holds_two_nf4_weights_half_a_block_apart() -> None:
    codes = np.tile(np.arange(16, dtype=np.uint8)[::-1], 4)
    codes[32:] = codes[32:] // 2
    kernel = np.array(NF4_LEVELS, np.float32)[codes][:, None]
    packed = quantize(jnp.asarray(kernel), "nf4")
    np.testing.assert_array_equal(packed.codes[:, 0], codes[:32] | codes[32:] << 4)
    np.testing.assert_array_equal(dequantize(packed, jnp.float32), kernel)


def test_levels_are_the_same_looked_up_and_chosen_bit_by_bit() -> None:
    codes = jnp.arange(16, dtype=jnp.uint8)
    found = (quantization._looked_up(codes), quantization._chosen(codes))
    for levels in found:
        np.testing.assert_array_equal(levels, np.array(NF4_LEVELS, np.float32))


def test_nf4_gives_the_bytes_that_bitsandbytes_gives() -> None:
    """What bitsandbytes 0.50.2 made of two blocks on a CPU; it packs neighbours, the first in the high bits."""
    stored = (
        "031ab373ba12f21892518701d1f5502f42de9ec11ceb0f69274dd483a901e0e3"
        "3e0e109a384dd47296f0bec11ce9ed24f2055f1d10781529812f21ab373ba130"
    )
    i = np.arange(2 * BLOCK)
    weight = ((i * i * 37) % 127 - 63).astype(np.float32).reshape(2, BLOCK)  # [out, in]
    weight[0] /= 1024
    kernel = quantize(jnp.asarray(weight).T, "nf4")
    np.testing.assert_array_equal(kernel.scales, [[63 / 1024, 63]])
    low, high = np.asarray(kernel.codes).T & 15, np.asarray(kernel.codes).T >> 4
    codes = np.concatenate([low, high], axis=1).ravel()
    assert (codes[::2] << 4 | codes[1::2]).tobytes().hex() == stored
    eight = [-0.0615234375, -0.024296682327985764, -0.04283217340707779, 0.015141675248742104]
    eight += [0.020789707079529762, -0.024296682327985764, 0.0, -0.024296682327985764]
    np.testing.assert_array_equal(dequantize(kernel, jnp.float32)[:8, 0], np.float32(eight))


def test_nf4_equals_bitsandbytes_bit_for_bit_where_it_is_installed() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    import torch

    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn((96, 256), generator=torch.Generator().manual_seed(0)).to(dtype)  # [out, in]
        expected = functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4", blocksize=BLOCK))
        ours = quantize(jnp.asarray(weight.float().numpy()).T, "nf4")
        found = dequantize(ours, str(dtype).removeprefix("torch."))
        np.testing.assert_array_equal(np.asarray(found, np.float32).T, expected.float().numpy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [("fsdp", None), (None, "tensor"), ("fsdp", "tensor")], ids=str)
def test_shards_are_the_parts_of_the_whole_bit_for_bit(kind: str, split: tuple[str | None, ...]) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    kernel = kernels(0, (3, 4 * BLOCK, 8))
    place = NamedSharding(mesh, PartitionSpec(None, *split))
    struct = quantization.abstract_kernel("kernel", kernel.shape, kind, place)
    work = jax.jit(partial(quantize, kind=kind), out_shardings=jax.tree.map(lambda leaf: leaf.sharding, struct))
    parts, whole = work(jax.device_put(kernel, place)), quantize(jnp.asarray(kernel), kind)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), parts) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), struct
    )
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    values = jax.jit(partial(dequantize, dtype=jnp.bfloat16))
    np.testing.assert_array_equal(values(parts), values(whole))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_quantised_product_and_its_gradient_are_those_of_the_dequantised_kernel(kind: str, dtype: Any) -> None:
    kernel = quantize(jnp.asarray(kernels(1, (2 * BLOCK, 48)) * 1e-3), kind)
    x, d = (jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate([(24, 2 * BLOCK), (24, 48)]))

    def product_and_gradient(x: jax.Array, kernel: Any, d: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(lambda x: matmul.dense(x, kernel), x)
        return out, *pull(d)

    found = jax.jit(product_and_gradient)(x, kernel, d)
    expected = jax.jit(product_and_gradient)(x, dequantize(kernel, dtype), d)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_is_the_model_of_its_dequantised_weights(kind: str) -> None:
    plain = init_params(jax.random.key(0), CONFIG)
    params = projections(plain, kind)
    structs = abstract_params(CONFIG, quantize=kind)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), structs
    )
    found = jax.jit(hidden)(params)
    np.testing.assert_array_equal(found, jax.jit(hidden)(restored(params, jnp.float32)))
    assert not np.array_equal(found, jax.jit(hidden)(plain))


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_one_layer_at_a_time_is_dequantised(kind: str) -> None:
    """The gradient's scratch memory does not grow by a layer's weights with each layer; nothing is recomputed here."""

    def scratch(layers: int) -> int:
        config = dataclasses.replace(CONFIG, num_layers=layers)
        structs = abstract_params(config, jnp.bfloat16, quantize=kind)

        def loss(embedding: jax.Array, params: Params) -> jax.Array:
            params = {**params, "embed_tokens": {"embedding": embedding}}
            return hidden(params, config, jnp.bfloat16).astype(jnp.float32).sum()

        compiled = jax.jit(jax.grad(loss)).lower(structs["embed_tokens"]["embedding"], structs).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    layers = jax.tree.leaves(abstract_params(CONFIG, jnp.bfloat16)["layers"])
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in layers) / CONFIG.num_layers
    assert scratch(6) - scratch(2) < 4 * weights / 4


@pytest.mark.parametrize(("kind", "gigabytes"), [("int8", 7.41), ("nf4", 4.17)])
def test_a_7b_model_takes_the_bytes_that_its_format_claims(kind: str, gigabytes: float) -> None:
    params = abstract_params(LLAMA2_7B, jnp.bfloat16, quantize=kind)
    kernels = [leaf["kernel"] for name, leaf in params["layers"].items() if name.endswith("_proj")]
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    bits = {"int8": 8, "nf4": 4}[kind] + 32 / BLOCK
    assert 8 * sum(kernel.nbytes for kernel in kernels) == bits * weights
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    assert total / 1e9 == pytest.approx(gigabytes, abs=0.005)  # 13.48 in bfloat16


def test_blocks_that_do_not_divide_are_refused_by_the_parameters_name() -> None:
    odd = dataclasses.replace(CONFIG, intermediate_size=96)
    with pytest.raises(UserError, match=r"layers/down_proj/kernel: its 96 inputs are no multiple of .* block of 64"):
        abstract_params(odd, quantize="nf4")
    with pytest.raises(UserError, match=r"layers/q_proj/kernel: its 128 inputs, 32 on each device, .*--config.mesh"):
        abstract_params(CONFIG, mesh=make_mesh(MeshConfig(data=2, fsdp=4)), quantize="int8")
