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
    if not isinstance(hf, dict):
        raise UserError("config.json: not a JSON object.")
    if hf.get("model_type", "llama") != "llama":
        raise UserError(f"config.json: model_type is '{hf['model_type']}'; only 'llama' is supported.")
    for key, plain in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if hf.get(key, plain) != plain:
            raise UserError(f"config.json: {key} is {hf[key]!r}; only {plain!r} is supported.")
    if hf.get("quantization_config"):
        raise UserError(
            "config.json: the weights are quantised (quantization_config); give the unquantised checkpoint."
        )
    rope: dict[str, Any] = {
        "rope_theta": hf.get("rope_theta", 10000.0),
        **(hf.get("rope_scaling") or {}),
        **(hf.get("rope_parameters") or {}),
    }
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
        heads = _count(hf, "num_attention_heads")
        kv_heads = _count({"num_key_value_heads": hf.get("num_key_value_heads") or heads}, "num_key_value_heads")
        head_dim = _count({"head_dim": hf.get("head_dim") or _count(hf, "hidden_size") // heads}, "head_dim")
        if heads % kv_heads or head_dim % 2:
            raise UserError(
                f"config.json: {heads} query heads, {kv_heads} key-value heads, head_dim {head_dim}: query heads must "
                "be a multiple of key-value heads, and head_dim even."
            )
        return LlamaConfig(
            vocab_size=_count(hf, "vocab_size"),
            hidden_size=_count(hf, "hidden_size"),
            intermediate_size=_count(hf, "intermediate_size"),
            num_layers=_count(hf, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_positions=_count(hf, "max_position_embeddings"),
            rms_norm_eps=float(hf["rms_norm_eps"]),
            rope_theta=float(rope["rope_theta"]),
            rope_scaling=scaling,
            tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
            initializer_range=float(hf.get("initializer_range", 0.02)),
            bos_id=_token(hf, "bos_token_id", 1),
            eos_id=_token(hf, "eos_token_id", 2),
        )
    except KeyError as missing:
        raise UserError(f"config.json: {missing.args[0]} is missing; is this a Llama checkpoint?") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"config.json: a number was expected: {error}.") from None


def _count(hf: dict[str, Any], key: str) -> int:
    value = hf[key]
    if type(value) is not int or value < 1:
        raise UserError(f"config.json: {key} is {value!r}; a positive whole number is expected.")
    return value


def _token(hf: dict[str, Any], key: str, default: int) -> int:
    """Returns a token id; of several (Llama 3's ends) the first; Llama's own where the file says null."""
    value = hf.get(key)
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) else default


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
