"""Meshes and rules: what divides is split, what does not is replicated where that is allowed, else named."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from medtune_jax.config import MeshConfig
from medtune_jax.errors import UserError
from medtune_jax.model.llama import LlamaConfig, abstract_params, param_shardings
from medtune_jax.sharding import batch_sharding, constrain, make_mesh

CONFIG = LlamaConfig(
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_layers=3,
    num_heads=8,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({"fsdp": -1}, (1, 1, 8, 1)),
        ({"fsdp": 8}, (1, 1, 8, 1)),
        ({"dcn_data": 2, "data": -1, "fsdp": 2, "tensor": 2}, (2, 1, 2, 2)),
    ],
)
def test_minus_one_takes_the_devices_that_remain(sizes: dict[str, int], shape: tuple[int, ...]) -> None:
    assert tuple(make_mesh(MeshConfig(**sizes)).shape.values()) == shape


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"fsdp": 3}, ["fsdp=3", "needs 3 devices", "8"]),
        ({"fsdp": -1, "tensor": 3}, ["tensor=3", "cannot be split by 3"]),
        ({"fsdp": -1, "data": -1}, ["-1", "once"]),
        ({"fsdp": 0}, ["fsdp=0", "at least 1"]),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_an_error(sizes: dict[str, int], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make_mesh(MeshConfig(**sizes))
    assert all(word in str(error.value) for word in words)


def test_parameters_are_split_as_the_table_says() -> None:
    shardings = param_shardings(CONFIG, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    assert shardings["embed_tokens"]["embedding"].spec == PartitionSpec("tensor", "fsdp")
    assert shardings["layers"]["k_proj"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert shardings["layers"]["down_proj"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert shardings["layers"]["input_layernorm"]["scale"].is_fully_replicated
    kernel = abstract_params(CONFIG, jnp.bfloat16, shardings["norm"]["scale"].mesh)["layers"]["q_proj"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (3, 32, 32)


def test_key_value_heads_fewer_than_tensor_are_replicated_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """2 heads of width 8 make 16 columns, which 4 would divide: a head is never cut in two all the same."""
    with caplog.at_level(logging.WARNING):
        shardings = param_shardings(CONFIG, make_mesh(MeshConfig(fsdp=2, tensor=4)))
    assert shardings["layers"]["k_proj"]["kernel"].spec == PartitionSpec(None, "fsdp", None)
    assert shardings["layers"]["v_proj"]["kernel"].spec == PartitionSpec(None, "fsdp", None)
    assert shardings["layers"]["q_proj"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert ["k_proj" in text or "v_proj" in text for text in caplog.messages] == [True, True]
    assert all("replicated" in text for text in caplog.messages)


@pytest.mark.parametrize(
    ("field", "value", "mesh", "parameter"),
    [
        ("hidden_size", 60, {"fsdp": 8}, "embed_tokens/embedding"),
        ("intermediate_size", 90, {"tensor": 4, "fsdp": 2}, "layers/gate_proj/kernel"),
    ],
)
def test_what_does_not_divide_is_an_error_that_names_the_parameter(
    field: str, value: int, mesh: dict[str, int], parameter: str
) -> None:
    changes: dict[str, Any] = {field: value}
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(UserError) as error:
        param_shardings(config, make_mesh(MeshConfig(**mesh)))
    assert parameter in str(error.value) and str(value) in str(error.value)


def test_key_value_heads_that_outnumber_tensor_must_divide() -> None:
    config = dataclasses.replace(CONFIG, num_heads=12, num_kv_heads=6, hidden_size=96)
    with pytest.raises(UserError, match=r"k_proj.*'kv_heads' of size 6 cannot be split 4 ways over mesh axis tensor"):
        param_shardings(config, make_mesh(MeshConfig(fsdp=2, tensor=4)))


def test_a_vocabulary_that_does_not_divide_is_padded_and_split() -> None:
    """32,001 tokens, as in checkpoints with an added padding token."""
    config = dataclasses.replace(CONFIG, vocab_size=32_001)
    params = abstract_params(config, jnp.float32, make_mesh(MeshConfig(fsdp=1, tensor=8)))
    table = params["embed_tokens"]["embedding"]
    assert table.shape[0] == 32_128
    assert table.sharding.shard_shape(table.shape) == (32_128 // 8, 64)


def test_query_heads_are_never_cut_in_two() -> None:
    """6 heads of width 8 make 48 columns, which 8 divides, though 8 devices cannot share 6 heads."""
    config = dataclasses.replace(CONFIG, num_heads=6, num_kv_heads=6)
    with pytest.raises(UserError, match="q_proj"):
        param_shardings(config, make_mesh(MeshConfig(fsdp=1, tensor=8)))


def test_an_index_of_dcn_data_is_one_slice(tpu_devices: Callable[..., list[Any]]) -> None:
    devices = tpu_devices("v5e:2x2", num_slices=2)
    shuffled = devices[1::2] + devices[::2]
    mesh = make_mesh(MeshConfig(dcn_data=2, fsdp=2, tensor=2), shuffled)
    assert tuple(mesh.shape.values()) == (2, 1, 2, 2)
    assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"dcn_data": 4, "fsdp": 2}])
def test_slices_that_dcn_data_does_not_count_are_an_error(
    sizes: dict[str, int], tpu_devices: Callable[..., list[Any]]
) -> None:
    with pytest.raises(UserError, match=r"2 slices: set --config.mesh.dcn_data=2"):
        make_mesh(MeshConfig(**sizes), tpu_devices("v5e:2x2", num_slices=2))


@dataclasses.dataclass(frozen=True)
class Gpu:
    """As jax lists those of two nodes: a node is a slice, ids and processes need not follow it."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"
    client: Any = None


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [({}, (1, 1, 16, 1)), ({"fsdp": 1, "tensor": 16}, (1, 1, 1, 16)), ({"dcn_data": 2, "tensor": 4}, (2, 1, 2, 4))],
)
def test_axes_span_nodes_of_gpus_and_inner_ones_keep_to_one(sizes: dict[str, int], shape: tuple[int, ...]) -> None:
    devices = [Gpu(id=n, process_index=n // 8, slice_index=1 - n // 8) for n in reversed(range(16))]
    mesh = make_mesh(MeshConfig(**sizes), devices)
    assert tuple(mesh.shape.values()) == shape
    assert [device.id for device in mesh.devices.flat] == [*range(8, 16), *range(8)]


def test_a_batch_is_split_over_all_data_axes() -> None:
    mesh = make_mesh(MeshConfig(dcn_data=2, data=2, fsdp=2))
    placed = jax.device_put(np.zeros((16, 5), np.int32), batch_sharding(mesh))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 5)}


def test_constrain_without_a_mesh_is_the_identity() -> None:
    x = jnp.ones((2, 3))
    assert constrain(x, "batch", "sequence") is x


def test_constrain_splits_what_divides_and_leaves_the_rest() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    with jax.set_mesh(mesh):
        split = jax.jit(lambda x: constrain(x, "batch", "sequence", "mlp"))(jnp.zeros((4, 3, 8)))
        odd = jax.jit(lambda x: constrain(x, "batch", "sequence", "mlp"))(jnp.zeros((3, 3, 6)))
    assert split.sharding.shard_shape(split.shape) == (2, 3, 2)
    assert odd.sharding.shard_shape(odd.shape) == (3, 3, 6)
