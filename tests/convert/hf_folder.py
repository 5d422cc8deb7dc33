"""A tiny Hugging Face folder written with safetensors alone, in a float type of choice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from medtune_jax.convert.hf_config import config_to_hf
from medtune_jax.model.llama import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=131,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
    rms_norm_eps=1e-5,
    rope_theta=1000.0,
)


def tensors_of(config: LlamaConfig, dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random tensors under Hugging Face's names, written out here and not taken from the table."""
    width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, feed_forward = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (width, hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv_width, hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv_width, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, width),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.mlp.gate_proj.weight": (feed_forward, hidden),
            f"{prefix}.mlp.up_proj.weight": (feed_forward, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, feed_forward),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32).astype(dtype) for name, shape in shapes.items()}


def write_folder(folder: Path, config: LlamaConfig, tensors: dict[str, np.ndarray]) -> Path:
    """Writes config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
