"""cuDNN's packed layout, as far as it can be checked without a GPU: what it is told, and that jax lowers it."""

from __future__ import annotations

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_harness import BACKENDS, Case, inputs, segment_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.cudnn import fused_attention_stablehlo as fused

from medtune_jax.config import MeshConfig
from medtune_jax.model.kernels import cudnn, over_mesh, triton
from medtune_jax.sharding import make_mesh

SEQUENCE, RUNS, BATCH = 24, 6, 3
ROWS = st.lists(st.integers(0, 4), min_size=SEQUENCE, max_size=SEQUENCE)


def runs(row: list[int]) -> list[tuple[int, int]]:
    """Returns (start, length) of each run of equal ids."""
    starts = [i for i, segment in enumerate(row) if i == 0 or row[i - 1] != segment]
    return [(start, end - start) for start, end in zip(starts, [*starts[1:], len(row)], strict=True)]


@settings(deadline=None)
@given(st.lists(ROWS.map(sorted) | ROWS, min_size=BATCH, max_size=BATCH))
def test_the_layout_lists_the_runs_and_says_whether_they_fit(rows: list[list[int]]):
    found = jax.jit(cudnn.layout, static_argnums=1)(jnp.asarray(rows, jnp.int32), RUNS)
    offsets, lengths, fits = (np.asarray(x) for x in found)
    for b, row in enumerate(rows):
        expected = runs(row)
        assert fits[b] == (len(expected) <= RUNS)
        if fits[b]:
            unused = [-1] * (RUNS - len(expected))
            assert offsets[b].tolist() == [start for start, _ in expected] + unused + [-1]
            assert lengths[b].tolist() == [length for _, length in expected] + unused


def test_jax_turns_the_layout_into_the_element_offsets_of_every_run_of_the_batch(monkeypatch: pytest.MonkeyPatch):
    """By its own conversion, which is wrong for grouped heads in jax 0.10.2: there, heads are repeated first."""
    case = Case(batch=3, sequence=24, heads=4, kv_heads=2, width=8, documents=(5, 9, 4))
    found = {}

    def convert(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, **_):
        converted = fused._fix_seqlen_offsets(q_seqlen, kv_seqlen, q_offsets, kv_offsets, q, k)
        found.update(q=(q.shape, converted[0], converted[2]), k=(k.shape, converted[1], converted[3]))
        return q

    stand_in = SimpleNamespace(dot_product_attention=convert, MaskType=fused.MaskType)
    monkeypatch.setattr(cudnn, "_implementation", lambda: stand_in)
    segments = segment_ids(case)
    cudnn.attend(*inputs(case)[:3], segments)
    expected = [(b * 24 + start, length) for b in range(3) for start, length in runs(np.asarray(segments[b]).tolist())]
    for (_, _, heads, width), lengths, offsets in found.values():
        assert offsets.ravel()[: len(expected)].tolist() == [start * heads * width for start, _ in expected]
        assert lengths.ravel()[: len(expected)].tolist() == [length for _, length in expected]
        assert not lengths.ravel()[len(expected) :].any(), "Blackwell wants 0 for what is unused"


def test_more_documents_than_the_layout_holds_are_nan_and_never_a_leak():
    most = cudnn.most_documents(64)
    case = Case(batch=1, sequence=64, heads=1, kv_heads=1, width=8, documents=(2,) * (most + 1))
    too_many, as_many = (segment_ids(case._replace(documents=(2,) * n)) for n in (most + 1, most))
    q, k, v, _ = inputs(case)
    attend = jax.jit(BACKENDS["cudnn"])
    assert np.isnan(attend(q, k, v, too_many)).all()
    assert np.isfinite(attend(q, k, v, as_many)).all()


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch):
    """jax's own checks see a Hopper GPU with cuDNN 9.10."""
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda _: False)


@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["one_device", "mesh"])
def test_both_gpu_kernels_lower_for_cuda_with_their_gradients(hopper: None, mesh: dict[str, int] | None):
    q, k, v, cotangent = inputs(Case(4, 256, 8, 2, 64, (200, 30)), jnp.bfloat16)
    segments = jnp.ones((4, 256), jnp.int32)

    def targets(kernel) -> list[str]:
        def loss(q, k, v):
            return jnp.vdot(over_mesh(jax.checkpoint(kernel.attend), q, k, v, segments), cotangent)

        lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
        return re.findall(r"custom_call @([\w$]+)", lowered)

    def both() -> tuple[list[str], list[str]]:
        if jax.__version_info__ >= (0, 11):  # lowers Pallas on Triton only where a GPU is
            return targets(cudnn), []
        return targets(cudnn), targets(triton)

    if mesh is None:
        packed, pallas = both()
    else:
        with jax.set_mesh(make_mesh(MeshConfig(**mesh))):
            packed, pallas = both()
    assert {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"} <= set(packed)
    assert len(pallas) >= 3 or jax.__version_info__ >= (0, 11)


def test_what_stands_in_the_way_of_cudnn_is_said(hopper: None, monkeypatch: pytest.MonkeyPatch):
    assert cudnn.why_not() is None
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 90500)
    assert "cuDNN 90500 is older than 90600" in str(cudnn.why_not())
    monkeypatch.setattr(fused, "dot_product_attention", lambda query, key, value: None)
    assert "takes other arguments" in str(cudnn.why_not())
    monkeypatch.delattr(fused, "check_cudnn_version")
    assert "has no packed attention" in str(cudnn.why_not())


def test_without_cudnn_that_is_the_reason():
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("cuDNN is here")
    assert cudnn.why_not() == "cuDNN is not found"
