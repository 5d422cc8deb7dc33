"""Weights land in the right leaf, shard and float type; what is wrong with a folder is said by name."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hf_folder import CONFIG, tensors_of, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medtune_jax.config import MeshConfig
from medtune_jax.convert import safetensors_file
from medtune_jax.convert.hf_import import load_params, read_config, read_template, warn_of_further_ends, weights_sha256
from medtune_jax.convert.layout import tensor_shape, window
from medtune_jax.data.prompts import get_template
from medtune_jax.errors import UserError
from medtune_jax.model.llama import LlamaConfig, abstract_params, param_shardings, parameter_rows
from medtune_jax.sharding import make_mesh

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
WIDE = dataclasses.replace(CONFIG, num_heads=8, num_kv_heads=4)
MESHES = [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", CONFIG, tensors_of(CONFIG))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", DTYPES)
def test_every_tensor_lands_in_its_leaf_cast_and_padded(stored: str, dtype: str, tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG, DTYPES[stored])
    params = load_params(write_folder(tmp_path, CONFIG, tensors), CONFIG, dtype)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract_params(CONFIG, jnp.dtype(dtype))
    )
    embedding = np.asarray(params["embed_tokens"]["embedding"])
    expected = tensors["model.embed_tokens.weight"].astype(dtype)
    np.testing.assert_array_equal(embedding[: CONFIG.vocab_size], expected)
    assert not embedding[CONFIG.vocab_size :].any()
    np.testing.assert_array_equal(
        np.asarray(params["lm_head"]["kernel"])[:, : CONFIG.vocab_size], tensors["lm_head.weight"].astype(dtype).T
    )
    for layer in range(CONFIG.num_layers):
        for name in ("self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"):
            kernel = np.asarray(params["layers"][name.split(".")[1]]["kernel"][layer])
            stored_tensor = tensors[f"model.layers.{layer}.{name}.weight"]
            np.testing.assert_array_equal(kernel, stored_tensor.astype(dtype).T)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_a_mesh_gives_the_same_values_in_the_shardings_of_the_table(
    sizes: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path, WIDE, tensors_of(WIDE))
    whole = load_params(folder, WIDE, "float32")
    monkeypatch.setattr(safetensors_file, "BLOCK_BYTES", 7 * 32 * 4)  # blocks that no shard's edge divides
    mesh = make_mesh(MeshConfig(**{"fsdp": 1, **sizes}))
    sharded = load_params(folder, WIDE, "float32", mesh)
    assert jax.tree.map(lambda x: x.sharding, sharded) == param_shardings(WIDE, mesh)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), sharded, whole)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_the_windows_of_a_leafs_shards_tile_its_tensor(sizes: dict[str, int]) -> None:
    shardings = param_shardings(WIDE, make_mesh(MeshConfig(**{"fsdp": 1, **sizes})))
    for row in parameter_rows(WIDE):
        sharding: Any = shardings
        for key in row.keys:
            sharding = sharding[key]
        seen = np.zeros(tensor_shape(row, WIDE), int)
        indices = sharding.devices_indices_map(row.shape(WIDE)).values()
        for rows, columns in {window(row, WIDE, index) for index in indices}:
            seen[(slice(*rows), slice(*columns)) if columns else slice(*rows)] += 1
        assert (seen == 1).all(), row.path


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
def test_tied_weights_are_read_under_either_name(name: str, tmp_path: Path) -> None:
    tied = dataclasses.replace(CONFIG, tie_embeddings=True)
    tensors = tensors_of(tied)
    embedding = tensors.pop("model.embed_tokens.weight")
    params = load_params(write_folder(tmp_path, tied, {**tensors, name: embedding}), tied, "float32")
    np.testing.assert_array_equal(np.asarray(params["embed_tokens"]["embedding"])[:131], embedding)
    assert "lm_head" not in params


def test_tied_weights_that_are_stored_twice_and_differ_are_an_error(tmp_path: Path) -> None:
    tied = dataclasses.replace(CONFIG, tie_embeddings=True)
    write_folder(tmp_path, tied, tensors_of(CONFIG))
    with pytest.raises(UserError, match="tie_word_embeddings to false"):
        load_params(tmp_path, tied, "float32")


# ------------------------------------------------------------------------------------------------------- bad folders


def _without(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.__delitem__(name)


def _with(name: str, array: np.ndarray) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.__setitem__(name, array)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_without("lm_head.weight"), ["lack lm_head.weight", "tie_word_embeddings"]),
        (_without("model.layers.1.mlp.up_proj.weight"), ["lack model.layers.1.mlp.up_proj.weight"]),
        (_without("model.norm.weight"), ["lack model.norm.weight"]),
        (
            _with("model.layers.0.self_attn.q_proj.weight", np.ones((24, 32), np.float32)),
            ["model.layers.0.self_attn.q_proj.weight", "[24, 32]", "[32, 32]", "num_attention_heads"],
        ),
        (
            _with("model.embed_tokens.weight", np.ones((140, 32), np.float32)),
            ["model.embed_tokens.weight", "[140, 32]", "[131, 32]", "vocab_size"],
        ),
        (
            _with("model.layers.1.self_attn.q_proj.bias", np.ones(32, np.float32)),
            ["hold model.layers.1.self_attn.q_proj.bias"],
        ),
        (_with("model.layers.2.mlp.up_proj.weight", np.ones((48, 32), np.float32)), ["model.layers.2.mlp.up_proj"]),
        (_with("model.norm.weight", np.ones(32, np.int8)), ["model.norm.weight", "I8"]),
    ],
)
def test_a_folder_that_does_not_fit_its_config_names_the_tensor(
    edit: Callable[[dict[str, np.ndarray]], None], words: list[str], tmp_path: Path
) -> None:
    tensors = tensors_of(CONFIG)
    edit(tensors)
    write_folder(tmp_path, CONFIG, tensors)
    with pytest.raises(UserError) as error:
        load_params(tmp_path, CONFIG, "float32")
    assert all(word in str(error.value) for word in [*words, str(tmp_path)]), error.value


def test_of_many_unexpected_tensors_five_are_named(tmp_path: Path) -> None:
    extra = {f"adapter.{i}": np.ones(2, np.float32) for i in range(8)}
    write_folder(tmp_path, CONFIG, {**tensors_of(CONFIG), **extra})
    with pytest.raises(UserError, match=r"adapter.0, .*adapter.4 and 3 more"):
        load_params(tmp_path, CONFIG, "float32")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_in_the_header_is_an_error_or_changes_nothing(folder: Path, where: int, bit: int) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[where % (8 + int.from_bytes(whole[:8], "little"))] ^= 1 << bit
    expected = weights_sha256(folder)
    path.write_bytes(damaged)
    try:
        load_params(folder, CONFIG, "float32")
        assert weights_sha256(folder) == expected
    except UserError as error:
        assert str(folder) in str(error)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "RoPE type 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE type 'linear'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor is missing"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"rms_norm_eps": None}, "a number was expected"),
        ({"num_key_value_heads": 3}, "4 query heads, 3 key-value heads"),
        ({"head_dim": 7}, "head_dim 7"),
    ],
)
def test_an_unsupported_architecture_is_named_with_its_folder(fields: dict[str, Any], words: str, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(UserError, match=words) as error:
        read_config(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_config_is_named(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json"):
        read_config(folder)


def test_a_field_that_is_missing_is_named(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "rms_norm_eps"}))
    with pytest.raises(UserError, match="rms_norm_eps is missing"):
        read_config(folder)


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"meta-llama/Llama-2-7b-hf is not a folder"):
        read_config("meta-llama/Llama-2-7b-hf")


def test_of_several_ends_the_first_is_taken_and_null_ids_are_llamas_own(folder: Path) -> None:
    path = folder / "config.json"
    fields = {"eos_token_id": [7, 8], "bos_token_id": None}
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    assert (read_config(folder).bos_id, read_config(folder).eos_id) == (1, 7)


# ------------------------------------------------------------------------------------------------- hash and template


def test_the_hash_follows_the_weights_and_not_their_files(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    one = write_folder(tmp_path / "one", CONFIG, tensors)
    two = write_folder(tmp_path / "two", CONFIG, dict(reversed(tensors.items())))
    (two / "model.safetensors").rename(two / "part.safetensors")
    (two / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(tensors, "part.safetensors")})
    )
    changed = {**tensors, "model.norm.weight": np.nextafter(tensors["model.norm.weight"], np.float32(9))}
    three = write_folder(tmp_path / "three", CONFIG, changed)
    assert weights_sha256(one) == weights_sha256(two) != weights_sha256(three)


def test_the_template_is_read_from_the_folder(folder: Path) -> None:
    assert read_template(folder) is None
    path = folder / "medtune.json"
    path.write_text(json.dumps({"template": "alpaca", "template_sha256": get_template("alpaca").sha256}))
    assert read_template(folder) == read_template(folder, force=True) == "alpaca"


@pytest.mark.parametrize(("name", "said"), [("alpaca", "worded differently"), ("alpaka", "not known")])
def test_a_template_that_is_not_the_one_of_this_version_is_refused_unless_forced(
    folder: Path, name: str, said: str
) -> None:
    (folder / "medtune.json").write_text(json.dumps({"template": name, "template_sha256": "0" * 64}))
    with pytest.raises(UserError, match=rf"'{name}', which is {said}.*--force_template"):
        read_template(folder)
    assert read_template(folder, force=True) is None


@pytest.mark.parametrize("text", ["[]", "{", '{"template": ["alpaca"], "template_sha256": ""}'])
def test_a_damaged_medtune_json_is_named(folder: Path, text: str) -> None:
    (folder / "medtune.json").write_text(text)
    with pytest.raises(UserError, match=r"medtune.json is damaged"):
        read_template(folder, force=True)


def test_the_config_may_differ_in_what_is_not_stored(folder: Path) -> None:
    longer: LlamaConfig = dataclasses.replace(CONFIG, max_positions=4096, rope_theta=5e5)
    assert load_params(folder, longer, "float32")["norm"]["scale"].shape == (32,)


def test_raised_positions_are_warned_of_and_lowered_ones_are_not(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_config(folder, 32).max_positions == 32 and not caplog.messages
    assert read_config(folder, 128) == dataclasses.replace(CONFIG, max_positions=128)
    assert "from 64 to 128" in caplog.text


@pytest.mark.parametrize(
    ("named", "told"),
    [([2, 7, 9], "7, 9 too"), (7, "7 too"), ([2], ""), (2, ""), (None, "")],
    ids=str,
)
def test_ends_that_decoding_would_not_heed_are_warned_of(
    named: Any, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    warn_of_further_ends(tmp_path, 2)
    assert told in caplog.text and bool(caplog.text) == bool(told)
