"""The model gives transformers' float32 logits for every shape class; transformers loads what is exported."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from llama_reference import SHAPE_CLASSES, reference_logits
from safetensors.torch import load_file

from medtune_jax.convert.hf_export import export_params, verify_export
from medtune_jax.convert.hf_import import load_params, read_config
from medtune_jax.model.llama import LlamaConfig, Params, forward, logits

TOLERANCE = 1e-4


def tokens_of(config: LlamaConfig, batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.vocab_size, (batch, length), dtype=np.int32)


def our_logits(params: Params, config: LlamaConfig, tokens_BS: np.ndarray) -> np.ndarray:
    """Returns logits [B, S, padded vocabulary]."""

    @jax.jit
    def run(params: Params, tokens_BS: jax.Array) -> jax.Array:
        positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
        return logits(params, config, forward(params, config, tokens_BS, positions_BS=positions_BS))

    with jax.default_matmul_precision("highest"):
        return np.asarray(run(params, tokens_BS))


@pytest.mark.parametrize("name", SHAPE_CLASSES)
def test_logits_equal_those_of_transformers(name: str, checkpoint: Callable[[str], Path]) -> None:
    config = read_config(checkpoint(name))
    tokens = tokens_of(config, 2, 48)
    found = our_logits(load_params(checkpoint(name), config, "float32"), config, tokens)
    expected = reference_logits(checkpoint(name), tokens)
    assert expected.std() > 0.3  # a model that says something
    np.testing.assert_allclose(found[..., : config.vocab_size], expected, atol=TOLERANCE, rtol=0)
    assert np.all(found[..., config.vocab_size :] == -np.inf)


def test_the_shape_classes_are_what_their_names_say(checkpoint: Callable[[str], Path]) -> None:
    configs = {name: read_config(checkpoint(name)) for name in SHAPE_CLASSES}
    stored = {name: set(load_file(checkpoint(name) / "model.safetensors")) for name in SHAPE_CLASSES if "tied" in name}
    assert configs["mha"].num_heads == configs["mha"].num_kv_heads > configs["mqa"].num_kv_heads == 1
    assert configs["gqa"].num_heads > configs["gqa"].num_kv_heads > 1
    assert len(list(checkpoint("several_files").glob("*.safetensors"))) > 2
    assert stored["tied"] & {"lm_head.weight", "model.embed_tokens.weight"} == {"model.embed_tokens.weight"}
    assert stored["tied_only_lm_head"] & {"lm_head.weight", "model.embed_tokens.weight"} == {"lm_head.weight"}
    assert stored["tied_both_stored"] >= {"lm_head.weight", "model.embed_tokens.weight"}
    for new, old in (("rope_parameters", "rope_theta"), ("llama3", "llama3_old_spelling")):
        texts = [json.loads((checkpoint(name) / "config.json").read_text()) for name in (new, old)]
        assert ["rope_parameters" in text for text in texts] == [True, False]
        assert ["rope_theta" in text for text in texts] == [False, True]
        assert configs[new] == configs[old]
    assert configs["llama3"].rope_scaling is not None
    assert configs["explicit_head_dim"].head_dim * 4 != configs["explicit_head_dim"].hidden_size


@pytest.mark.parametrize(
    "mistake",
    [{"rope_theta": 450.0}, {"rms_norm_eps": 1e-2}, {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16}],
    ids=["theta", "epsilon", "heads"],
)
def test_the_tolerance_would_catch_a_mistake(mistake: dict[str, Any], checkpoint: Callable[[str], Path]) -> None:
    right = read_config(checkpoint("rope_theta"))
    wrong = dataclasses.replace(right, **mistake)
    tokens = tokens_of(right, 1, 48)
    params = load_params(checkpoint("rope_theta"), right, "float32")
    found, expected = (our_logits(params, config, tokens)[..., : right.vocab_size] for config in (wrong, right))
    assert np.abs(found - expected).max() > 50 * TOLERANCE


@pytest.mark.parametrize("name", ["gqa", "tied", "tied_only_lm_head", "several_files", "llama3", "explicit_head_dim"])
def test_import_then_export_is_bit_equal_and_loads_in_transformers(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    config = read_config(checkpoint(name))
    params = load_params(checkpoint(name), config, "float32")
    export_params(params, config, tmp_path / "out", max_file_bytes=20_000 if name == "several_files" else 10**9)
    assert verify_export(params, config, tmp_path / "out") == 3 + 9 * config.num_layers - config.tie_embeddings
    originals, copies = (
        {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
        for folder in (checkpoint(name), tmp_path / "out")
    )
    if name == "tied_only_lm_head":
        originals["model.embed_tokens.weight"] = originals.pop("lm_head.weight")
    assert originals.keys() == copies.keys()
    assert all(torch.equal(originals[key], copies[key]) for key in originals)
    tokens = tokens_of(config, 1, 24)
    np.testing.assert_array_equal(
        reference_logits(tmp_path / "out", tokens), reference_logits(checkpoint(name), tokens)
    )


def test_stories260k_gives_the_logits_of_transformers(shared_data: Path) -> None:
    folder = shared_data / "models" / "stories260K"
    config = read_config(folder)
    tokens = tokens_of(config, 2, 400)
    found = our_logits(load_params(folder, config, "float32"), config, tokens)
    np.testing.assert_allclose(found, reference_logits(folder, tokens), atol=TOLERANCE, rtol=0)
