"""Tiny random checkpoints written by transformers, one for each shape class, and transformers' own answers to them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()

TINY = {
    "vocab_size": 131,  # not a multiple of 128
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def save_checkpoint(folder: Path, *, shards: str = "1GB", dtype: torch.dtype = torch.float32, **fields: Any) -> Path:
    """Writes a random Llama with TINY's fields, overridden by `fields`; weights large enough to show mistakes."""
    config = transformers.LlamaConfig(**{**TINY, **fields})
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else noise / parameter.shape[-1] ** 0.5)
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    return folder


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """Applies `edit` to the folder's config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))
    return folder


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """Applies `edit` to the folder's single file of tensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return folder


def reference_logits(folder: Path, tokens_BS: np.ndarray) -> np.ndarray:
    """Returns transformers' float32 logits [B, S, V]."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens_BS).long()).logits.numpy()


def _old_spelling(config: dict[str, Any]) -> None:
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None


def _only_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


def _both(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def _frequencies(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)


SHAPE_CLASSES: dict[str, Callable[[Path], Path]] = {
    "mha": lambda folder: save_checkpoint(folder, num_key_value_heads=4),
    "gqa": lambda folder: save_checkpoint(folder, num_attention_heads=8),
    "mqa": lambda folder: save_checkpoint(folder, num_key_value_heads=1),
    "one_layer": lambda folder: save_checkpoint(folder, num_hidden_layers=1),
    "tied": lambda folder: save_checkpoint(folder, tie_word_embeddings=True),
    "tied_only_lm_head": lambda folder: edit_tensors(save_checkpoint(folder, tie_word_embeddings=True), _only_head),
    "tied_both_stored": lambda folder: edit_tensors(save_checkpoint(folder, tie_word_embeddings=True), _both),
    "several_files": lambda folder: save_checkpoint(folder, shards="20KB"),
    "bfloat16": lambda folder: save_checkpoint(folder, dtype=torch.bfloat16),
    "float16": lambda folder: save_checkpoint(folder, dtype=torch.float16),
    "rope_parameters": lambda folder: save_checkpoint(folder, rope_theta=500.0),
    "rope_theta": lambda folder: edit_config(save_checkpoint(folder, rope_theta=500.0), _old_spelling),
    "llama3": lambda folder: save_checkpoint(folder, rope_theta=5000.0, rope_scaling=LLAMA3),
    "llama3_old_spelling": lambda folder: edit_config(
        save_checkpoint(folder, rope_theta=5000.0, rope_scaling=LLAMA3), _old_spelling
    ),
    "stored_frequencies": lambda folder: edit_tensors(save_checkpoint(folder), _frequencies),
    "vocab_fits": lambda folder: save_checkpoint(folder, vocab_size=128),
    "explicit_head_dim": lambda folder: save_checkpoint(folder, head_dim=24),
}
