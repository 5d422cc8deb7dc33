"""Adapters: their settings, what they add, how they lie, and how they are merged."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from medtune_jax.config import Config, LoraConfig, MeshConfig
from medtune_jax.config_values import changed_math, override
from medtune_jax.errors import UserError
from medtune_jax.model.llama import (
    LlamaConfig,
    forward,
    get_param,
    init_params,
    logits,
    param_shardings,
    parameter_rows,
)
from medtune_jax.model.lora import PROJECTIONS, LoraAdapter, abstract_adapter, init_adapter, merge, scale, targets
from medtune_jax.model.quantize import dequantize, quantize
from medtune_jax.sharding import make_mesh

RUNNABLE = override(Config(), {"model.path": "m", "data.path": "d", "train.steps": "1", "model.lora.rank": "4"})
MODEL = LlamaConfig(
    vocab_size=100,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    max_positions=64,
    rms_norm_eps=1e-5,
    rope_theta=1000.0,
    initializer_range=0.1,
)
LORA = LoraConfig(rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def params():
    return init_params(jax.random.key(0), MODEL)


def random_adapter(lora):
    fresh = init_adapter(jax.random.key(1), MODEL, lora)
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), fresh)


def run(params, adapter=None, dtype=jnp.float32):
    tree, lora = (None, None) if adapter is None else (adapter.params, adapter.lora)
    return np.asarray(_run(params, tree, lora=lora, dtype=dtype))


@partial(jax.jit, static_argnames=("lora", "dtype"))
def _run(params, tree, *, lora, dtype):
    tokens = jax.random.randint(jax.random.key(3), (2, 9), 0, MODEL.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    adapter = None if tree is None else LoraAdapter(tree, lora)
    hidden = forward(params, MODEL, tokens, positions_BS=positions, compute_dtype=dtype, adapter=adapter)
    return logits(params, MODEL, hidden)[..., : MODEL.vocab_size]


# ---------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("path", "text"),
    [("rank", "-1"), ("alpha", "0"), ("alpha", "inf"), ("dropout", "1"), ("dropout", "-0.1"), ("targets", "")],
)
def test_a_setting_out_of_range_is_named(path, text):
    with pytest.raises(UserError, match=rf"^model.lora.{path} is .*; it must be"):
        override(RUNNABLE, {f"model.lora.{path}": text}).validate()


def test_an_unknown_projection_is_named_with_a_guess():
    with pytest.raises(UserError, match=r"no projection is called 'q_porj'. Did you mean 'q_proj'"):
        override(RUNNABLE, {"model.lora.targets": "v_proj,q_porj"}).validate()


@pytest.mark.parametrize(
    ("path", "text"),
    [("alpha", "8"), ("dropout", "0.1"), ("targets", "q_proj"), ("rslora", "true"), ("base", "nf4")],
)
def test_a_setting_of_adapters_is_refused_where_there_are_none(path, text):
    with pytest.raises(UserError, match=rf"model.lora.{path} is .*, but model.lora.rank is 0"):
        override(RUNNABLE, {"model.lora.rank": "0", f"model.lora.{path}": text}).validate()


def test_the_names_in_the_configuration_are_the_tables_projections():
    assert tuple(PROJECTIONS) == tuple(r.keys[1] for r in parameter_rows(MODEL) if r.keys[-1] == "kernel")[:-1]
    assert [row.keys[1] for row in targets(LoraConfig(rank=1, targets=("down_proj", "q_proj")))] == [
        "q_proj",
        "down_proj",
    ]
    assert len(targets(LoraConfig(rank=1))) == 7


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("q_proj,v_proj", "v_proj,q_proj,v_proj"),
        ("all", "down_proj,q_proj,k_proj,v_proj,o_proj,up_proj,gate_proj"),
        ("all", "q_proj,all"),
    ],
)
def test_the_same_targets_are_equal_however_they_are_listed(one, other):
    listed = [override(RUNNABLE, {"model.lora.targets": names}).validate() for names in (one, other)]
    assert not changed_math(*listed)
    assert ",".join(listed[0].model.lora.targets) == one
    assert changed_math(listed[0], override(RUNNABLE, {"model.lora.targets": "q_proj"}))


def test_rslora_divides_by_the_root_of_the_rank():
    assert scale(LoraConfig(rank=16, alpha=8.0)) == 0.5
    assert scale(LoraConfig(rank=16, alpha=8.0, rslora=True)) == 2.0


# -------------------------------------------------------------------------------------------------- what adapters add


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_fresh_adapters_leave_every_bit_of_the_logits(params, dtype):
    fresh = LoraAdapter(init_adapter(jax.random.key(1), MODEL, LORA), LORA)
    assert all(
        np.asarray(leaf["a"]).all() and not np.asarray(leaf["b"]).any() for leaf in fresh.params["layers"].values()
    )
    np.testing.assert_array_equal(run(params, fresh, dtype), run(params, None, dtype))


@pytest.mark.parametrize(
    "lora",
    [LORA, LoraConfig(rank=5, alpha=3.0, rslora=True, targets=("k_proj", "up_proj"))],
    ids=["all", "two with rsLoRA"],
)
def test_merged_weights_compute_what_adapters_add(params, lora):
    adapter = random_adapter(lora)
    adapted, plain = run(params, LoraAdapter(adapter, lora)), run(params)
    merged = merge(jax.tree.map(jnp.copy, params), adapter, lora, jnp.float32)
    assert np.abs(adapted - plain).max() > 0.1
    np.testing.assert_allclose(run(merged), adapted, rtol=1e-4, atol=1e-5)
    changed = {row.path for row in parameter_rows(MODEL) if (get_param(merged, row) != get_param(params, row)).any()}
    assert changed == {row.path for row in targets(lora)}


def test_merging_rounds_once_after_a_sum_in_float32(params):
    adapter = random_adapter(LORA)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    kernel, parts = np.asarray(low["layers"]["q_proj"]["kernel"], np.float64), adapter["layers"]["q_proj"]
    exact = kernel + 2.0 * np.einsum("lir,lro->lio", *(np.asarray(parts[p], np.float64) for p in "ab"))
    found = merge(low, adapter, LORA, jnp.bfloat16)["layers"]["q_proj"]["kernel"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_is_merged_as_it_was_trained_on(params, kind):
    lora = LoraConfig(rank=3, alpha=6.0, targets=("o_proj",), base=kind)
    adapter = random_adapter(lora)
    stored = {name: quantize(params["layers"][name]["kernel"], kind) for name in ("o_proj", "up_proj")}
    layers = {**params["layers"], **{name: {"kernel": kernel} for name, kernel in stored.items()}}
    merged = merge({**params, "layers": layers}, adapter, lora, jnp.float32)["layers"]
    held = {name: dequantize(kernel, jnp.float32) for name, kernel in stored.items()}
    np.testing.assert_allclose(merged["up_proj"]["kernel"], held["up_proj"], atol=1e-7)
    parts = adapter["layers"]["o_proj"]
    update = 2.0 * np.einsum("lir,lro->lio", np.asarray(parts["a"]), np.asarray(parts["b"]))
    np.testing.assert_allclose(merged["o_proj"]["kernel"] - held["o_proj"], update, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ dropout


def test_dropout_of_a_row_is_decided_by_its_key_the_layer_and_the_projection():
    lora = dataclasses.replace(LORA, dropout=0.25)
    keys = jax.random.split(jax.random.key(5), 4)
    drop = partial(LoraAdapter({}, lora, keys)._drop, jnp.ones((4, 50, 40)))
    first = np.asarray(drop(jnp.int32(0), "q_proj"))
    assert set(np.unique(first)) == {0.0, np.float32(1 / 0.75)}
    assert np.mean(first == 0) == pytest.approx(0.25, abs=0.02)
    others = [drop(jnp.int32(0), "k_proj"), drop(jnp.int32(1), "q_proj"), first[::-1]]
    assert all(0.3 < np.mean(np.asarray(other) != first) < 0.45 for other in others)  # 2 x 0.25 x 0.75
    alone = LoraAdapter({}, lora, keys[2:3])._drop(jnp.ones((1, 50, 40)), jnp.int32(0), "q_proj")
    np.testing.assert_array_equal(alone[0], first[2])


def test_without_keys_nothing_is_dropped():
    x = jnp.ones((1, 5, 4))
    assert LoraAdapter({}, dataclasses.replace(LORA, dropout=0.5))._drop(x, jnp.int32(0), "q_proj") is x


# ----------------------------------------------------------------------------------------------------------- sharding


def test_adapters_lie_as_their_kernels_do_and_the_rank_is_never_split():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    kernels = param_shardings(MODEL, mesh)["layers"]
    for name, parts in abstract_adapter(MODEL, dataclasses.replace(LORA, rank=4), mesh)["layers"].items():
        _, rows, columns = kernels[name]["kernel"].spec
        assert parts["a"].sharding.spec == P(None, rows, None)
        assert parts["b"].sharding.spec == P(None, None, columns)
        assert rows or columns


def test_adapters_of_heads_that_are_replicated_are_replicated_too():
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=8))
    kernels = param_shardings(MODEL, mesh)["layers"]
    parts = abstract_adapter(MODEL, LORA, mesh)["layers"]
    assert kernels["k_proj"]["kernel"].spec == P(None, ("fsdp",), None)  # 4 key-value heads
    assert parts["k_proj"]["b"].sharding.spec == P(None, None, None)
    assert parts["q_proj"]["b"].sharding.spec == P(None, None, ("tensor",))


def test_what_does_not_divide_is_named_as_the_adapters_parameter():
    odd = dataclasses.replace(MODEL, hidden_size=63)
    with pytest.raises(UserError, match=r"^lora/layers/q_proj/a: dimension 'embed' of size 63 cannot be split 8 ways"):
        abstract_adapter(odd, LORA, make_mesh(MeshConfig(fsdp=8)))


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_merging_keeps_the_layout(params, sizes):
    mesh = make_mesh(MeshConfig(**{"fsdp": 1, **sizes}))
    places = param_shardings(MODEL, mesh)
    adapter = random_adapter(LORA)
    one = merge(jax.tree.map(jnp.copy, params), adapter, LORA, jnp.float32)
    laid = jax.device_put(adapter, jax.tree.map(lambda leaf: leaf.sharding, abstract_adapter(MODEL, LORA, mesh)))
    many = merge(jax.device_put(params, places), laid, LORA, jnp.float32)
    for row in parameter_rows(MODEL):
        assert get_param(many, row).sharding == get_param(places, row)
        np.testing.assert_allclose(get_param(many, row), get_param(one, row), atol=1e-6)
