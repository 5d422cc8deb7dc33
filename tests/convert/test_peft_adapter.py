"""PEFT's adapter folder: written and read bit for bit; what it can say and we do not compute is refused by name."""

import dataclasses
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_folder import CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from medtune_jax.config import LORA_TARGETS, LoraConfig
from medtune_jax.convert.origin import Data, Origin
from medtune_jax.convert.peft_adapter import (
    export_adapter,
    hub_id,
    read_adapter,
    read_matching_adapter,
    verify_adapter,
)
from medtune_jax.errors import UserError
from medtune_jax.model.llama import Params
from medtune_jax.model.lora import abstract_adapter

LORA = LoraConfig(rank=3, alpha=6.0, dropout=0.05, targets=("q_proj", "down_proj"))


def random_adapter(lora: LoraConfig, seed: int = 0) -> Params:
    rng = np.random.default_rng(seed)
    shapes = abstract_adapter(CONFIG, lora)["layers"]
    return {
        "layers": {
            name: {part: rng.standard_normal(leaf.shape, np.float32) for part, leaf in parts.items()}
            for name, parts in shapes.items()
        }
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export_adapter(random_adapter(LORA), LORA, CONFIG, tmp_path / "adapter", base="base")
    return tmp_path / "adapter"


def change(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_tensors(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


@settings(max_examples=25, deadline=None)
@given(
    st.sets(st.sampled_from(LORA_TARGETS), min_size=1),
    st.integers(1, 9),
    st.floats(0.01, 1e3),
    st.floats(0, 0.9),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_subset_and_rank_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    names: set[str],
    rank: int,
    alpha: float,
    dropout: float,
    rslora: bool,
    seed: int,
) -> None:
    targets = tuple(name for name in LORA_TARGETS if name in names)
    lora = LoraConfig(rank=rank, alpha=alpha, dropout=dropout, targets=targets, rslora=rslora)
    adapter = random_adapter(lora, seed)
    folder = tmp_path_factory.mktemp("round") / "adapter"
    export_adapter(adapter, lora, CONFIG, folder)
    found, settings = read_adapter(folder, CONFIG)
    assert settings == lora
    assert found["layers"].keys() == adapter["layers"].keys()
    for name, parts in adapter["layers"].items():
        assert all(found["layers"][name][part].tobytes() == parts[part].tobytes() for part in "ab")
    assert verify_adapter(adapter, lora, CONFIG, folder) == 2 * 2 * len(targets)


def test_tensors_have_pefts_names_and_orientation(folder: Path) -> None:
    adapter, stored = random_adapter(LORA)["layers"], load_file(folder / "adapter_model.safetensors")
    assert len(stored) == 2 * 2 * 2
    a = stored["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"]
    b = stored["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"]
    np.testing.assert_array_equal(a, adapter["q_proj"]["a"][1].T)
    np.testing.assert_array_equal(b, adapter["down_proj"]["b"][0].T)


def test_half_precision_is_read_without_loss(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    found, _ = read_adapter(folder, CONFIG)
    half = random_adapter(LORA)["layers"]["q_proj"]["a"].astype(np.float16)
    np.testing.assert_array_equal(found["layers"]["q_proj"]["a"], half.astype(np.float32))


@pytest.mark.parametrize(
    "modules", [["self_attn.q_proj", "down_proj"], r".*\.(q_proj|down_proj)", "all-linear"], ids=str
)
def test_other_spellings_of_the_targets_are_understood(folder: Path, modules: Any) -> None:
    change(folder, target_modules=modules)
    assert read_adapter(folder, CONFIG)[1] == LORA


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("layers_to_transform", [0]),
        ("layers_to_transform", 0),
        ("layer_replication", [[0, 1], [0, 2]]),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [3]),
        ("target_parameters", ["experts.weight"]),
        ("use_dora", True),
        ("use_qalora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "corda"),
        ("loftq_config", {"loftq_bits": 4}),
        ("alora_invocation_tokens", [1]),
        ("a_field_of_next_year", "on"),
        ("peft_type", "IA3"),
        ("task_type", "SEQ_CLS"),
        ("target_modules", ["q_proj", "lm_head"]),
        ("target_modules", ["embed_tokens"]),
        ("r", 0),
        ("r", "8"),
        ("lora_alpha", None),
        ("lora_dropout", 1.0),
    ],
)
def test_what_is_not_computed_here_is_refused_by_its_field(folder: Path, name: str, value: Any) -> None:
    change(folder, **{name: value})
    spoken = {"lora_dropout": "dropout"}.get(name, name)
    with pytest.raises(UserError, match=rf"adapter_config\.json: .*\b{spoken}\b"):
        read_adapter(folder, CONFIG)


def test_neutral_values_of_every_field_that_peft_writes_are_read(folder: Path) -> None:
    """As PEFT 0.21 writes them."""
    change(
        folder,
        alpha_pattern={},
        rank_pattern={},
        loftq_config={},
        layers_to_transform=None,
        layers_pattern=None,
        use_dora=False,
        use_qalora=False,
        qalora_group_size=16,
        lora_bias=False,
        megatron_core="megatron.core",
        megatron_config=None,
        auto_mapping=None,
        peft_version="0.21.2",
        inference_mode=True,
        ensure_weight_tying=False,
        init_lora_weights="gaussian",
    )
    assert read_adapter(folder, CONFIG)[1] == LORA


def test_settings_other_than_the_adapters_are_named_where_training_would_go_on_from_it(folder: Path) -> None:
    own = dataclasses.replace(LORA, path=str(folder), dropout=0.5)
    assert read_matching_adapter(own, CONFIG)["layers"].keys() == {"q_proj", "down_proj"}
    other = dataclasses.replace(own, rank=4, rslora=True, targets=("all",))
    with pytest.raises(UserError, match=r"rank is 4, the adapter's 3; .*rslora is True, .*targets is q_proj,k_proj"):
        read_matching_adapter(other, CONFIG)


def test_an_adapter_of_other_layers_or_another_base_is_named(folder: Path) -> None:
    for wrong, message in (
        (dataclasses.replace(CONFIG, num_layers=1), r"holds base_model\..*layers\.1.*in 1 layers"),
        (dataclasses.replace(CONFIG, num_layers=3), r"lacks base_model\.model\.model\.layers\.2\.self_attn\.q_proj"),
        (dataclasses.replace(CONFIG, hidden_size=64), r"q_proj\.lora_A\.weight has shape \[3, 32\].* \[3, 64\]"),
    ):
        with pytest.raises(UserError, match=message):
            read_adapter(folder, wrong)


def test_a_tensor_that_is_no_adapter_is_named(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {**tensors, "base_model.model.lm_head.weight": np.ones(3, np.float32)})
    with pytest.raises(UserError, match=r"holds base_model\.model\.lm_head\.weight"):
        read_adapter(folder, CONFIG)


def test_a_missing_or_pickled_file_is_named(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle, which is not read"):
        read_adapter(folder, CONFIG)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json is damaged"):
        read_adapter(folder, CONFIG)
    with pytest.raises(UserError, match="is no PEFT adapter"):
        read_adapter(folder.parent, CONFIG)


def test_a_flipped_bit_or_another_setting_fails_the_verification(folder: Path) -> None:
    adapter = random_adapter(LORA)
    with pytest.raises(RuntimeError, match="alpha does not read back"):
        verify_adapter(adapter, dataclasses.replace(LORA, alpha=7.0), CONFIG, folder)
    path = folder / "adapter_model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(RuntimeError, match="does not read back as it was exported"):
        verify_adapter(adapter, LORA, CONFIG, folder)


def test_an_adapter_of_gated_text_is_its_owners_only_and_says_its_licences(tmp_path: Path) -> None:
    gated = Origin("llama-2-7b", "llama2", {"ward": Data(3, "ward agreement", True)})
    lora = dataclasses.replace(LORA, base="nf4")
    export_adapter(random_adapter(lora), lora, CONFIG, tmp_path / "out", origin=gated, template="alpaca")
    written = [tmp_path / "out", *(tmp_path / "out").iterdir()]
    assert not any(stat.S_IMODE(path.stat().st_mode) & 0o077 for path in written)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: peft" in card and "llama2 AND ward agreement" in card and "rank 3, alpha 6" in card
    assert "the base quantised to nf4" in card
    assert json.loads((tmp_path / "out" / "medtune.json").read_text())["template"] == "alpaca"


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="not an empty folder"):
        export_adapter(random_adapter(LORA), LORA, CONFIG, folder)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left on device"):
        export_adapter(random_adapter(LORA), LORA, CONFIG, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
        ("mine", "meta-llama/Llama-2-7b-hf", None),  # what it was tuned from
        ("Llama-2-7b-hf", "/home/me/Llama-2-7b-hf", None),
        ("Llama-2-7b-hf", "../Llama-2-7b-hf", None),
        ("Llama-2-7b-hf", None, None),
        ("models--meta-llama--Llama-2-7b-hf/snapshots/01c7f73", None, "meta-llama/Llama-2-7b-hf"),
    ],
)
def test_the_hubs_id_of_a_base_is_told_by_its_folder(
    tmp_path: Path, folder: str, name: str | None, expected: str | None
) -> None:
    base = tmp_path / folder
    base.mkdir(parents=True)
    assert hub_id(base) == (expected if name is None else None)
    (base / "config.json").write_text(json.dumps({"_name_or_path": name} if name else {}))
    assert hub_id(base) == expected


def test_the_same_targets_in_another_order_are_gone_on_from(tmp_path: Path) -> None:
    lora = LoraConfig(rank=2, targets=tuple(reversed(LORA_TARGETS)), path=str(tmp_path / "adapter"))
    export_adapter(random_adapter(lora), lora, CONFIG, tmp_path / "adapter", base="base")
    assert set(read_matching_adapter(lora, CONFIG)["layers"]) == set(LORA_TARGETS)
