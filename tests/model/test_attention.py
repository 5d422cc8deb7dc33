"""Every backend computes the same attention, and no document learns of its neighbour."""

from __future__ import annotations

from functools import cache, partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_harness import BACKENDS, Case, forward_and_gradients, inputs, naive, segment_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.config import MeshConfig
from medtune_jax.model.attention import attention
from medtune_jax.model.kernels import _own_kv_heads, over_mesh, splash, triton
from medtune_jax.model.llama import LlamaConfig, abstract_params, forward
from medtune_jax.sharding import make_mesh

# 200 positions are not a multiple of any kernel's block; the second document crosses a boundary of 128
CASES = {
    "grouped": Case(batch=2, sequence=200, heads=4, kv_heads=2, width=16, documents=(60, 90, 1, 29)),
    "multi_head": Case(batch=2, sequence=200, heads=2, kv_heads=2, width=64, documents=(200,)),
}


@pytest.fixture(autouse=True, scope="module")
def several_blocks():
    """The kernels take blocks of 128, so that 200 positions are more than one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splash, "_LARGEST_BLOCK", 128)
        yield


@cache
def compiled(backend: str, case: str):
    with jax.default_matmul_precision("highest"):
        arguments = (*inputs(CASES[case])[:3], segment_ids(CASES[case]), inputs(CASES[case])[3])
        return forward_and_gradients(BACKENDS[backend]).lower(*arguments).compile()


def outcome(backend: str, case: str, q, k, v, cotangent) -> list[np.ndarray]:
    output, gradients = compiled(backend, case)(q, k, v, segment_ids(CASES[case]), cotangent)
    return [np.asarray(x) for x in (output, *gradients)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_gradients_are_those_of_the_contract_written_out(backend: str, case: str):
    q, k, v, cotangent = inputs(CASES[case])
    segments = segment_ids(CASES[case])
    with jax.default_matmul_precision("highest"):
        expected, gradients = forward_and_gradients(naive)(q, k, v, segments, cotangent)
    found = outcome(backend, case, q, k, v, cotangent)
    documents = np.asarray(segments) > 0
    np.testing.assert_allclose(found[0][documents], expected[documents], atol=2e-6)
    for name, gradient, reference in zip("qkv", found[1:], gradients, strict=True):
        np.testing.assert_allclose(gradient, reference, atol=1e-5, err_msg=name)
    for array in found:
        assert np.isfinite(array).all()
    for gradient in found[1:]:
        assert not gradient[~documents].any(), "padding bears no loss, so nothing reaches its queries, keys and values"


@pytest.mark.parametrize("segment", [0, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_document_or_padding_holds_changes_nothing_in_the_others(backend: str, segment: int):
    """Bit for bit, though the changed values are a hundred times larger."""
    arrays = inputs(CASES["grouped"])
    changed = np.asarray(segment_ids(CASES["grouped"]) == segment)
    others = [jnp.where(changed[:, :, None, None], 100.0 * x + 1.0, x) for x in arrays[:3]]
    cotangent = jnp.where(changed[:, :, None, None], -arrays[3], arrays[3])
    before, after = (outcome(backend, "grouped", *x) for x in (arrays, (*others, cotangent)))
    for name, x, y in zip(("output", "q", "k", "v"), before, after, strict=True):
        np.testing.assert_array_equal(x[~changed], y[~changed], err_msg=name)
    if segment:
        assert (before[0][changed] != after[0][changed]).any()


@pytest.mark.parametrize("kernel", [splash, triton], ids=["splash", "triton"])
@pytest.mark.parametrize("width", [64, 80, 128])
def test_shape_and_dtype_are_those_of_the_queries(kernel: ModuleType, width: int):
    case = Case(2, 100, 6, 3, width, (50, 40))
    q, k, v, _ = inputs(case, jnp.bfloat16)
    found = jax.eval_shape(partial(kernel.attend, interpret=True), q, k, v, segment_ids(case))
    assert (found.shape, found.dtype) == (q.shape, jnp.bfloat16)


# ------------------------------------------------------------------------------------------------------ over a mesh

MESHES = {
    "data_fsdp_tensor": {"data": 2, "fsdp": 2, "tensor": 2},  # key-value heads are split
    "tensor_above_kv_heads": {"fsdp": 2, "tensor": 4},  # two devices share a key-value head
    "nothing_to_split": {"data": 8},  # 8 ways do not divide 4 rows
}


# the layout is shared: the cheapest runs on every mesh, each kernel on the hardest
@pytest.mark.parametrize(
    ("backend", "mesh"),
    [*(("cudnn", mesh) for mesh in MESHES), ("splash", "tensor_above_kv_heads"), ("triton", "tensor_above_kv_heads")],
)
def test_eight_devices_compute_what_one_does_also_rematerialised_in_a_scan(backend: str, mesh: str):
    case = Case(batch=4, sequence=40, heads=8, kv_heads=2, width=16, documents=(17, 13))
    q, k, v, cotangent = inputs(case)

    def layers(attend):
        def run(q, k, v, segments):
            body = jax.checkpoint(lambda x, _: (x + attend(x, k, v, segments), None))
            return jax.lax.scan(body, q, length=2)[0]

        return forward_and_gradients(run)(q, k, v, segment_ids(case), cotangent)

    with jax.default_matmul_precision("highest"):
        expected = layers(naive)
        with jax.set_mesh(make_mesh(MeshConfig(**{"fsdp": 1, **MESHES[mesh]}))):
            found = layers(partial(over_mesh, BACKENDS[backend]))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


@settings(deadline=None)  # the first example waits for jax
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8))
def test_every_query_head_of_a_shard_finds_its_key_value_head(kv_heads: int, groups: int, shards: int):
    heads = kv_heads * groups
    if heads % shards:
        return
    local = heads // shards
    for shard in range(shards):
        own = np.asarray(_own_kv_heads(jnp.asarray(shard), local, groups)).tolist()
        assert local % len(own) == 0
        assert [own[h // (local // len(own))] for h in range(local)] == [
            (shard * local + h) // groups for h in range(local)
        ]


@pytest.mark.parametrize("kernel", ["splash", "triton"])
def test_the_decoder_and_its_gradient_take_a_kernel_by_name(kernel: str):
    """Traced, which needs no such device: the kernel's call stands in the rematerialised scan."""
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        max_positions=64,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
    )
    tokens = positions = jnp.zeros((2, 24), jnp.int32)

    def total(params):
        return forward(params, config, tokens, positions_BS=positions, attention=kernel, remat="full").sum()

    traced = str(jax.make_jaxpr(jax.grad(total))(abstract_params(config)))
    assert traced.count("pallas_call[") >= 3, "forward, recomputed forward, backward"


def test_the_entry_takes_no_name_that_is_not_resolved():
    with pytest.raises(ValueError, match="resolve it first"):
        attention(*inputs(CASES["grouped"])[:3], segment_ids(CASES["grouped"]), implementation="auto")
