"""One device and eight give the same logits and gradients, however the mesh is cut."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medtune_jax.config import MeshConfig
from medtune_jax.model.llama import LlamaConfig, Params, forward, init_params, logits, param_shardings
from medtune_jax.sharding import batch_sharding, make_mesh

CONFIG = LlamaConfig(
    vocab_size=1000,  # padded to 1,024
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=16,
    num_kv_heads=8,
    head_dim=8,
    max_positions=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    initializer_range=0.2,
)
MESHES = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "tensor": {"tensor": 8},
    "data_tensor": {"data": 4, "tensor": 2},
    "fsdp_tensor": {"fsdp": 2, "tensor": 4},
    "data_fsdp_tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "two_slices": {"dcn_data": 2, "fsdp": 4},
}
Outcome = tuple[np.ndarray, Params]


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, (8, 32), dtype=np.int32)
    return {
        "tokens": tokens,
        "positions": np.broadcast_to(np.concatenate([np.arange(20), np.arange(12)]), tokens.shape).astype(np.int32),
        "segment_ids": np.broadcast_to(np.repeat([1, 2], [20, 12]), tokens.shape).astype(np.int32),
    }


def _loss(params: Params, batch: dict[str, jax.Array], config: LlamaConfig) -> tuple[jax.Array, jax.Array]:
    hidden = forward(
        params, config, batch["tokens"], positions_BS=batch["positions"], segment_ids_BS=batch["segment_ids"]
    )
    out = logits(params, config, hidden)
    picked = jnp.take_along_axis(jax.nn.log_softmax(out[:, :-1]), batch["tokens"][:, 1:, None], axis=-1)
    return -jnp.mean(picked), out[..., : CONFIG.vocab_size]


def run(mesh_config: dict[str, int], config: LlamaConfig = CONFIG) -> Outcome:
    mesh = make_mesh(
        MeshConfig(**{"fsdp": 1, **mesh_config}), jax.devices()[: int(np.prod([*mesh_config.values(), 1]))]
    )
    params = jax.device_put(init_params(jax.random.key(0), config), param_shardings(config, mesh))
    placed: Any = jax.device_put(batch(), batch_sharding(mesh))
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        (_, out), gradient = jax.jit(jax.value_and_grad(_loss, has_aux=True), static_argnums=2)(params, placed, config)
    return np.asarray(out), jax.tree.map(np.asarray, gradient)


def assert_same(found: Outcome, expected: Outcome) -> None:
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4, rtol=0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected[1]):
        other = found[1]
        for key in path:
            other = other[key.key]
        assert np.linalg.norm(other - leaf) <= 1e-5 * np.linalg.norm(leaf), jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def one_device() -> Outcome:
    return run({})


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_give_the_logits_and_gradients_of_one(name: str, one_device: Outcome) -> None:
    assert len(jax.devices()) == 8
    assert_same(run(MESHES[name]), one_device)


def test_replicated_key_value_heads_give_the_logits_and_gradients_of_one_device() -> None:
    few = dataclasses.replace(CONFIG, num_kv_heads=2)
    assert_same(run({"fsdp": 2, "tensor": 4}, few), run({}, few))
