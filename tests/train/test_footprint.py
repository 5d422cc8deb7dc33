"""The arithmetic of bytes against the abstract state, and the documentation against the arithmetic."""

import math
import re
from pathlib import Path

import jax
import pytest
from tiny_run import settings

from medtune_jax.config import MeshConfig
from medtune_jax.model.llama import LlamaConfig
from medtune_jax.sharding import make_mesh
from medtune_jax.train.footprint import footprint
from medtune_jax.train.optimizer import make_optimizer
from medtune_jax.train.state import abstract_state

MEMORY_PAGE = Path(__file__).resolve().parents[2] / "docs" / "memory.md"
H200_GIB = 0.95 * 139
LLAMA2_7B = LlamaConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    max_positions=4096,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
)


def bytes_on_a_device(tree):
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [MeshConfig(fsdp=1), MeshConfig(data=2, fsdp=2, tensor=2)], ids=["one", "eight"])
def test_parameters_and_moments_are_those_of_the_state(sizes, dtype):
    config = settings(optimizer__first_moment_dtype=dtype, train__batch_size=8)
    mesh = make_mesh(sizes, jax.devices()[: sizes.data * sizes.fsdp * sizes.tensor])
    state = abstract_state(config, LLAMA2_7B, make_optimizer(config.optimizer, 10), mesh)
    found = footprint(config, LLAMA2_7B, mesh.shape)
    assert found["parameters"] == pytest.approx(bytes_on_a_device(state.params), rel=1e-3)  # scales of norms are whole
    assert found["moments"] == pytest.approx(bytes_on_a_device(state.opt_state), rel=1e-3)


def test_the_documented_bytes_of_one_gpu_are_computed_and_fit_as_it_says():
    rows = re.findall(r"^\| (\d+) \((\d+)\) \| (\w+) \| (.*) \|$", MEMORY_PAGE.read_text(), re.M)
    assert len(rows) == 5
    for batch, accumulation, dtype, cells in rows:
        config = settings(
            data__max_length=4096,
            model__remat="full",
            optimizer__first_moment_dtype=dtype,
            train__batch_size=int(batch),
            train__accumulation=int(accumulation),
            train__precision="bf16_compute",
        )
        found = {name: x / 2**30 for name, x in footprint(config, LLAMA2_7B, dict.fromkeys(_AXES, 1)).items()}
        *parts, head, logits = found.values()
        told = [float(cell) for cell in cells.replace(" | | ", " | 0 | ").split(" | ")]
        assert told == [round(x, 1) for x in (*parts, head + logits, sum(found.values()))]
        assert (told[-1] < H200_GIB) == ((accumulation, dtype) != ("8", "float32"))


_AXES = ("dcn_data", "data", "fsdp", "tensor")
