"""Adapters on a quantised base learn, and exactly as they do on the weights that it stands for."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_run import lora_settings, run_lora_steps
from resumable import arrays, restore
from tiny_run import MODEL, distance, tiny_data, write_data, write_model

from medtune_jax.config import MeshConfig
from medtune_jax.errors import UserError
from medtune_jax.model.llama import Params, init_params
from medtune_jax.model.quantize import QuantizedKernel, dequantize, quantize
from medtune_jax.sharding import make_mesh
from medtune_jax.train.loop import train
from medtune_jax.train.trainable import abstract_frozen, load_frozen

BLOCKS = dataclasses.replace(  # whole blocks on each of two devices
    MODEL, hidden_size=128, intermediate_size=128, num_heads=8, num_kv_heads=2, head_dim=16
)
ALL_AXES = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qlora")
    write_model(folder / "model", BLOCKS)
    write_data(folder / "data", train=60, validation=0)
    return folder


def quantized(params: Params, kind: str) -> Params:
    def kernel(path: Any, leaf: jax.Array) -> Any:
        return quantize(leaf, kind) if path[-2].key.endswith("_proj") else leaf

    return jax.tree.map_with_path(kernel, params)


def restored(params: Params) -> Params:
    def kernel(leaf: Any) -> jax.Array:
        return dequantize(leaf, jnp.float32) if isinstance(leaf, QuantizedKernel) else leaf

    return jax.tree.map(kernel, params, is_leaf=lambda leaf: isinstance(leaf, QuantizedKernel))


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_adapters_learn_on_a_quantised_base_as_on_its_dequantised_weights(tokenizer, kind):
    config = lora_settings(base=kind, train__batch_size=4, train__steps=6)
    data = tiny_data(tokenizer, config)
    batches = [data.batch(step) for step in range(6)]
    base = quantized(init_params(jax.random.key(7), BLOCKS), kind)
    state, metrics = run_lora_steps(config, BLOCKS, batches, base=base)
    plain = lora_settings(train__batch_size=4, train__steps=6)
    expected_state, expected = run_lora_steps(plain, BLOCKS, batches, base=restored(base))
    losses = [each["loss"] for each in metrics]
    np.testing.assert_allclose(losses, [each["loss"] for each in expected], rtol=1e-6)
    assert distance(state.params, expected_state.params) < 1e-6
    assert losses[-1] < 0.95 * losses[0]


def test_eight_devices_train_on_a_quantised_base_as_one(tokenizer):
    config = lora_settings(base="nf4", train__batch_size=8, train__steps=2)
    data = tiny_data(tokenizer, config, count=60)
    batches = [data.batch(step) for step in range(2)]
    base = quantized(init_params(jax.random.key(7), BLOCKS), "nf4")
    state, metrics = run_lora_steps(config, BLOCKS, batches, base=base, mesh=ALL_AXES)
    expected_state, expected = run_lora_steps(config, BLOCKS, batches, base=base)
    np.testing.assert_allclose([m["loss"] for m in metrics], [m["loss"] for m in expected], rtol=1e-5)
    assert distance(state.params, expected_state.params) < 1e-4


def test_the_base_is_read_quantised_and_where_it_is_expected(home):
    config = lora_settings(home / "model", home / "data", base="nf4", train__precision="bf16_compute")
    mesh = make_mesh(ALL_AXES)
    structs, found = abstract_frozen(config, BLOCKS, mesh), load_frozen(config, BLOCKS, home / "model", mesh)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding), structs, found)
    assert all(jax.tree.leaves(same))
    assert found["layers"]["down_proj"]["kernel"].codes.dtype == jnp.uint8
    assert found["embed_tokens"]["embedding"].dtype == jnp.bfloat16


def test_a_run_on_a_quantised_base_resumes_bit_for_bit(home, tmp_path):
    changes = {"train__batch_size": 8, "train__steps": 4, "evaluation__every_steps": 0, "base": "nf4"}
    axes = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
    config = lora_settings(home / "model", home / "data", **changes, **axes)
    train(config, tmp_path / "run")
    expected = arrays(restore(config, tmp_path / "run"))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert train(config, tmp_path / "run").resumed_from == 2
    for found, leaf in zip(arrays(restore(config, tmp_path / "run")), expected, strict=True):
        np.testing.assert_array_equal(found, leaf)


def test_a_mesh_that_cuts_blocks_is_refused_before_anything_is_read(home):
    config = lora_settings(home / "model", home / "data", base="nf4", mesh__fsdp=8)
    with pytest.raises(UserError, match=r"layers/q_proj/kernel: its 128 inputs, 16 on each device"):
        abstract_frozen(config, BLOCKS, make_mesh(config.mesh))
