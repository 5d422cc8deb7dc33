"""The arithmetic of bytes against the abstract state, and the page against it; test_tpu_compile.py has a compiler's."""

import math
import re
from pathlib import Path

import jax
import pytest
from tiny_run import settings

from medtune_jax.config import MeshConfig
from medtune_jax.errors import UserError
from medtune_jax.model.llama import LlamaConfig
from medtune_jax.sharding import make_mesh
from medtune_jax.train.footprint import footprint, peak
from medtune_jax.train.optimizer import make_optimizer
from medtune_jax.train.state import abstract_state

MEMORY_PAGE = Path(__file__).resolve().parents[2] / "docs" / "memory.md"
H200_GIB = 0.95 * 139
ONE = dict.fromkeys(("dcn_data", "data", "fsdp", "tensor"), 1)
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


def at_7b(**changes):
    changes = {"data__max_length": 4096, "model__remat": "full", "train__precision": "bf16_compute", **changes}
    return footprint(settings(**changes), LLAMA2_7B, ONE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [MeshConfig(fsdp=1), MeshConfig(data=2, fsdp=2, tensor=2)], ids=["one", "eight"])
def test_parameters_and_moments_are_those_of_the_state(sizes, dtype):
    config = settings(optimizer__first_moment_dtype=dtype, train__batch_size=8)
    mesh = make_mesh(sizes, jax.devices()[: sizes.data * sizes.fsdp * sizes.tensor])
    state = abstract_state(config, LLAMA2_7B, make_optimizer(config.optimizer, 10), mesh)
    for phase in footprint(config, LLAMA2_7B, mesh.shape).values():
        assert phase["parameters"] == pytest.approx(bytes_on_a_device(state.params), rel=1e-3)  # norms are whole
        assert phase["moments"] == pytest.approx(bytes_on_a_device(state.opt_state), rel=1e-3)


def test_a_step_needs_its_largest_phase_and_no_sum_of_phases():
    found = at_7b(train__batch_size=4)
    assert peak(found) == sum(found["layers"].values())
    assert (
        "logits" not in found["layers"]
        and "one layer" not in found["loss"]
        and "kept of the layers" not in found["update"]
    )
    assert at_7b(train__batch_size=32, train__accumulation=8)["update"] == found["update"]  # the sum is the gradient


def test_moments_in_host_memory_are_all_on_the_device_during_the_update():
    away, here = (at_7b(train__batch_size=4, optimizer__offload=offload) for offload in (True, False))
    assert away["update"] == here["update"]
    assert all(away[phase]["moments"] == 0 for phase in ("loss", "layers"))
    assert peak(away) == sum(here["update"].values()) < peak(here)  # 4 x 4 bytes a parameter


def test_adapters_are_not_counted_as_if_all_were_trained():
    with pytest.raises(UserError, match=r"lora\.rank=0"):
        at_7b(train__batch_size=4, model__lora={"rank": 8})


def test_the_page_gives_the_bytes_of_one_gpu_as_computed_and_they_fit_as_it_says():
    rows = re.findall(r"^\| (\d+) \((\d+)\) \| (\w+), (\w+) \| (.*) \|$", MEMORY_PAGE.read_text(), re.M)
    assert len(rows) == 8
    for batch, accumulation, dtype, place, cells in rows:
        found = at_7b(
            optimizer__first_moment_dtype=dtype,
            optimizer__offload=place == "host",
            train__batch_size=int(batch),
            train__accumulation=int(accumulation),
        )
        told = [float(cell.strip("*")) for cell in cells.split(" | ")]
        assert told == [round(sum(phase.values()) / 2**30, 1) for phase in found.values()]
        assert (peak(found) / 2**30 < H200_GIB) == ((accumulation, dtype, place) != ("8", "float32", "device"))
