"""The other side of scripts/bench/gpu_generate.py: transformers' generate with a static cache and a compiled step.

    python scripts/bench/gpu_generate_peer.py --out=peer_decode.json

The same prompts, bfloat16, random weights, the same measure of a step. `cache_implementation="static"` has transformers
compile the forward pass of a step by itself on a GPU; where that fails the figure is of its dynamic cache, and says so.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from gpu_work import SHAPES, decode_times, random_prompts

_SHAPE = flags.DEFINE_enum("shape", "llama2_7b", list(SHAPES), "The model.")
_BATCHES = flags.DEFINE_list("batches", ["1", "8", "64", "256"], "Rows decoded together.")
_PROMPT = flags.DEFINE_integer("prompt_tokens", 128, "Tokens of each prompt.")
_SECONDS = flags.DEFINE_float("seconds", 150.0, "No further batch is begun after it.")
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.", required=True)


def main(_: list[str]) -> None:
    import torch
    import transformers

    until = time.monotonic() + _SECONDS.value
    shape = SHAPES[_SHAPE.value]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make_config: Any = transformers.LlamaConfig  # its signature leaves out what every configuration takes
    config = make_config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.sequence,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model: Any = transformers.LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "decode": {},
    }

    def measure(batch: int, cache: str) -> dict[str, Any]:
        def run(rows: int, tokens: int, new: int) -> float:
            prompts = torch.tensor(random_prompts(shape, rows, tokens), device=device)
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            with torch.no_grad():
                written = model.generate(
                    prompts,
                    attention_mask=torch.ones_like(prompts),
                    max_new_tokens=new,
                    min_new_tokens=new,
                    do_sample=False,
                    pad_token_id=0,
                    cache_implementation=cache,
                )
            assert written.shape[1] == tokens + new
            written.cpu()  # waits
            return time.perf_counter() - began

        step, middle = decode_times(run, shape, batch, _PROMPT.value)
        return {"tokens_per_second": batch / step, "step_seconds": step, "positions": middle, "cache": cache}

    for batch in map(int, _BATCHES.value):
        if time.monotonic() > until:
            break
        for cache in ("static", "dynamic"):
            try:
                found["decode"][batch] = measure(batch, cache)
                break
            except Exception as error:  # out of memory, or a compiler that is not there: the report says so
                found["decode"][batch] = {"error": f"{cache}: {type(error).__name__}: {str(error)[:400]}"}
        Path(_OUT.value).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
