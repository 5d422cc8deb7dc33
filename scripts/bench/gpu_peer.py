"""The other side of scripts/bench/gpu.py: transformers, and PEFT for adapters, on the same packs.

    python scripts/bench/gpu_peer.py --tuning=lora --out=peer_lora.json

Documents are laid end to end without padding, as transformers' collator with flattening does, and attend themselves
only. Attention: torch's own variable-length flash attention, registered with transformers, where it runs; else
transformers' sdpa with its mask of documents. Fused AdamW, clipping at norm 1, gradient checkpointing only where the
memory calls for it. What is tuned:
  full      all weights in bfloat16, gradients and moments too: the least memory and time that torch offers;
  full_f32  all weights in float32 under autocast: the arithmetic that medtune does;
  lora      PEFT's adapters, float32 as it makes them, on a bfloat16 base, under autocast.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from gpu_work import ALPHA, LEARNING_RATE, RANK, SHAPES, batches, best_of, timed_updates

_TUNING = flags.DEFINE_enum("tuning", "full", ["full", "full_f32", "lora"], "What is tuned, and in which precision.")
_SHAPE = flags.DEFINE_enum("shape", "llama2_7b", list(SHAPES), "The model.")
_LAYERS = flags.DEFINE_integer("layers", None, "Layers, where fewer than the shape has.")
_STEPS = flags.DEFINE_integer("steps", 8, "Updates that are timed.", lower_bound=1)
_WAYS = flags.DEFINE_integer("ways", 2, "Ways of computing that are measured.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 90.0, "No further way of computing is begun that could take longer.")
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.", required=True)

# (gradient checkpointing or not, packs of an update), those that should be fastest first; what does not fit is passed.
WAYS = {
    "full": [("none", 3), ("none", 2), ("checkpointing", 8), ("checkpointing", 4), ("checkpointing", 1)],
    "full_f32": [("checkpointing", 4), ("checkpointing", 2), ("checkpointing", 1)],
    "lora": [("none", 4), ("none", 2), ("checkpointing", 8), ("checkpointing", 4), ("checkpointing", 1)],
}
_A_WAY_TAKES = 25.0  # seconds
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(_: list[str]) -> None:
    import torch
    import transformers

    until = time.monotonic() + _SECONDS.value
    cuda = torch.cuda.is_available()
    attention = choose_attention("cuda" if cuda else "cpu")

    def tell(figures: dict[str, Any]) -> None:
        figures |= {
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "layers": _LAYERS.value or SHAPES[_SHAPE.value].layers,
            "attention": attention,
        }
        Path(_OUT.value).write_text(json.dumps(figures, indent=2) + "\n")

    ways = WAYS[_TUNING.value]
    best_of(ways, partial(measure, attention), tell, most=_WAYS.value, until=until, enough=_A_WAY_TAKES)


def measure(attention: str, saving: str, packs: int) -> dict[str, Any]:
    """Makes the model and times updates."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gc.collect()  # what a way before this one held
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model, trained = make_model(attention, device, checkpointing=saving == "checkpointing")
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=_TUNING.value != "full")

    def update(inputs: dict[str, Any]) -> float:
        with autocast:
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()  # waits

    figures = timed_updates(update, flattened(packs, device), _STEPS.value, time.monotonic() + _A_WAY_TAKES)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {**figures, "bytes_by_allocator": peak}


def make_model(attention: str, device: Any, *, checkpointing: bool) -> tuple[Any, list[Any]]:
    """Returns a random model on `device`, and its parameters that are trained."""
    import torch
    import transformers

    shape = SHAPES[_SHAPE.value]
    make_config: Any = transformers.LlamaConfig  # its signature leaves out what every configuration takes
    config = make_config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=_LAYERS.value or shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.sequence,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    dtype = torch.float32 if _TUNING.value == "full_f32" else torch.bfloat16
    torch.set_default_dtype(dtype)
    try:
        with device:
            model: Any = transformers.LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    if _TUNING.value == "lora":
        import peft

        adapters = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, adapters)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return model, [weight for weight in model.parameters() if weight.requires_grad]


def flattened(packs: int, device: Any) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Yields (the model's inputs, the batch), documents end to end: [1, T] each, T tokens without padding."""
    import torch

    for batch in batches(SHAPES[_SHAPE.value], packs):
        labels = np.full(batch["tokens"].shape, -100)
        rows, columns = np.nonzero(batch["weights"])
        labels[rows, batch["loss_positions"][rows, columns] + 1] = batch["targets"][rows, columns]
        real = batch["segment_ids"] > 0
        positions = batch["positions"][real]
        starts = np.append(np.flatnonzero(positions == 0), len(positions)).astype(np.int32)
        longest = int(np.diff(starts).max())
        arrays = {"input_ids": batch["tokens"][real], "position_ids": positions, "labels": labels[real]}
        inputs: dict[str, Any] = {
            name: torch.tensor(x[None], dtype=torch.long, device=device) for name, x in arrays.items()
        }
        offsets = torch.tensor(starts, device=device)
        inputs |= {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": longest, "max_length_k": longest}
        yield inputs, batch


def choose_attention(device: str) -> str:
    """Registers torch's variable-length flash attention and returns its name; "sdpa" where it does not run."""
    import torch
    import transformers

    if device == "cpu":
        return "sdpa"
    try:
        x = torch.randn(1, 4, 192, 128, device=device, dtype=torch.bfloat16, requires_grad=True)
        offsets = torch.tensor([0, 64, 192], device=device, dtype=torch.int32)
        out, _ = variable_length(None, x, x, x, None, cu_seq_lens_q=offsets, max_length_q=128)
        out.sum().backward()
        last = x[:, :, 64:]
        alone = torch.nn.functional.scaled_dot_product_attention(last, last, last, is_causal=True)
        torch.testing.assert_close(out[:, 64:], alone.transpose(1, 2), rtol=2e-2, atol=2e-2)
    except Exception as error:  # an older torch, another GPU: told in the report by the name that is returned
        print(f"no variable-length flash attention: {error}", flush=True)
        return "sdpa"
    transformers.AttentionInterface.register("varlen", variable_length)
    return "varlen"


def variable_length(module: Any, query: Any, key: Any, value: Any, mask: Any, **told: Any) -> tuple[Any, None]:
    """Causal attention within documents, in the form of transformers' attention functions.

    Args:
      query, key, value: [1, heads, T, width]; told: cu_seq_lens_q, the documents' starts and T; max_length_q.

    Returns:
      ([1, T, heads, width], None).
    """
    import inspect

    from torch.nn.attention import varlen

    attend: Any = varlen.varlen_attn
    causal: dict[str, Any] = {"window_size": (-1, 0)}  # torch 2.12's name for it
    if "is_causal" in inspect.signature(attend).parameters:
        causal = {"is_causal": True}
    flat = [x.squeeze(0).transpose(0, 1) for x in (query, key, value)]
    offsets, longest = told["cu_seq_lens_q"], told["max_length_q"]
    return attend(*flat, offsets, offsets, longest, longest, **causal).unsqueeze(0), None


if __name__ == "__main__":
    app.run(main)
