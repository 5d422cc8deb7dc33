"""config.json of a Hugging Face Llama checkpoint to LlamaConfig and back."""

from __future__ import annotations

from typing import Any

from medtune_jax.errors import UserError
from medtune_jax.model.llama import LlamaConfig, RopeScaling


def config_from_hf(hf: dict[str, Any]) -> LlamaConfig:
    """Reads the dict of a config.json, in either spelling of RoPE (`rope_theta` or `rope_parameters`).

    Raises:
      UserError: a field is missing, or asks for something that Llama 2 and 3 do not have.
    """
    if hf.get("model_type", "llama") != "llama":
        raise UserError(f"config.json: model_type is '{hf['model_type']}'; only 'llama' is supported.")
    for key, plain in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if hf.get(key, plain) != plain:
            raise UserError(f"config.json: {key} is {hf[key]!r}; only {plain!r} is supported.")
    rope = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaling = None
    try:
        if kind == "llama3":
            scaling = RopeScaling(
                factor=float(rope["factor"]),
                low_freq_factor=float(rope["low_freq_factor"]),
                high_freq_factor=float(rope["high_freq_factor"]),
                original_max_positions=int(rope["original_max_position_embeddings"]),
            )
        elif kind != "default":
            raise UserError(f"config.json: RoPE type '{kind}' is not supported; 'default' and 'llama3' are.")
        heads = hf["num_attention_heads"]
        eos = hf.get("eos_token_id", 2)
        return LlamaConfig(
            vocab_size=hf["vocab_size"],
            hidden_size=hf["hidden_size"],
            intermediate_size=hf["intermediate_size"],
            num_layers=hf["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=hf.get("num_key_value_heads") or heads,
            head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
            max_positions=hf["max_position_embeddings"],
            rms_norm_eps=hf["rms_norm_eps"],
            rope_theta=float(rope.get("rope_theta", hf.get("rope_theta", 10000.0))),
            rope_scaling=scaling,
            tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
            initializer_range=hf.get("initializer_range", 0.02),
            bos_id=hf.get("bos_token_id", 1),
            eos_id=eos[0] if isinstance(eos, list) else eos,
        )
    except KeyError as missing:
        raise UserError(f"config.json: {missing.args[0]} is missing; is this a Llama checkpoint?") from None


def config_to_hf(config: LlamaConfig) -> dict[str, Any]:
    """Returns the dict of a config.json that transformers 4 and 5 both read (both spellings of RoPE)."""
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        rope = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_positions,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if config.rope_scaling is not None else None,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "use_cache": True,
    }
