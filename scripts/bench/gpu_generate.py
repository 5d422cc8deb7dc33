"""This system's decoding on one GPU, for scripts/bench/gpu.py: tokens per second, and what share of the limit they are.

    python scripts/bench/gpu_generate.py --out=decode.json

bfloat16, random weights made on the device, prompts of --prompt_tokens, as many new tokens forced on every row. A step
of decoding reads all weights but the embedding, and every key and value so far: no more steps than that memory traffic
allows can be done in a second. The limit is told twice, by the maker's bandwidth and by that of a copy measured here.
A step's time is the difference of a long and a short answer over the tokens between them, so prefill does not count.
Prefill: prompts of --prefill_tokens, model FLOPs (2 per weight and token, and causal attention) over the peak.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import app, flags
from gpu_work import SHAPES, Shape, decode_limit, decode_times, forward_flops, random_prompts

_SHAPE = flags.DEFINE_enum("shape", "llama2_7b", list(SHAPES), "The model.")
_BATCHES = flags.DEFINE_list("batches", ["1", "8", "64", "256"], "Rows decoded together.")
_PROMPT = flags.DEFINE_integer("prompt_tokens", 128, "Tokens of each prompt.")
_PREFILL = flags.DEFINE_list("prefill_tokens", ["1024"], "Lengths of prompts whose prefill is timed.")
_CACHE = flags.DEFINE_enum("cache_dtype", None, ["int8"], "Type of the cache; that of the weights without it.")
_SECONDS = flags.DEFINE_float("seconds", 150.0, "No further batch is begun after it.")
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.", required=True)

_PREFILLED = 8  # prompts


def main(_: list[str]) -> None:
    import jax
    import jax.numpy as jnp

    from medtune_jax.generate.engine import Engine
    from medtune_jax.generate.sampling import Greedy
    from medtune_jax.model.llama import LlamaConfig, init_params
    from medtune_jax.train.records.throughput import peak_flops

    until = time.monotonic() + _SECONDS.value
    shape, device = SHAPES[_SHAPE.value], jax.devices()[0]
    model = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        max_positions=shape.sequence,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
    )
    params = jax.jit(lambda key: init_params(key, model, jnp.bfloat16))(jax.random.key(0))
    silent: Any = SimpleNamespace(eos_id=-1, decode=lambda ids: "")  # no text, and no end: the length is forced
    engine = Engine(params, model, silent, dtype="bfloat16", cache_dtype=_CACHE.value)
    del params
    found: dict[str, Any] = {
        "device": device.device_kind,
        "jax": jax.__version__,
        "cache_dtype": _CACHE.value or "bfloat16",
        "copy_bytes_per_second": copy_speed(),
        "decode": {},
        "prefill": {},
    }

    def run(rows: int, tokens: int, new: int) -> float:
        prompts = random_prompts(shape, rows, tokens)
        began = time.perf_counter()
        answers = engine.generate(prompts, method=Greedy(), max_new_tokens=new, batch_size=rows)
        assert all(len(answer.tokens) == new for answer in answers)
        return time.perf_counter() - began

    def tell() -> None:
        Path(_OUT.value).write_text(json.dumps(found, indent=2) + "\n")

    for batch in map(int, _BATCHES.value):
        if time.monotonic() > until:
            break
        found["decode"][batch] = guarded(lambda batch=batch: decode(shape, batch, run, found))  # type: ignore[misc]
        tell()
    for tokens in map(int, _PREFILL.value):
        if tokens < shape.sequence:
            found["prefill"][tokens] = guarded(
                lambda tokens=tokens: prefill(shape, tokens, run, peak_flops(device.device_kind))  # type: ignore[misc]
            )
            tell()


def decode(shape: Shape, batch: int, run: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Returns tokens per second of a batch, and the shares of both limits."""
    step, middle = decode_times(run, shape, batch, _PROMPT.value)
    wide = 1 if _CACHE.value else 2
    limits = decode_limit(shape, batch, middle, found["device"], found["copy_bytes_per_second"], wide)
    shares = {name: seconds / step for name, seconds in limits.items()}
    return {"tokens_per_second": batch / step, "step_seconds": step, "positions": middle, **shares}


def prefill(shape: Shape, tokens: int, run: Any, peak: float | None) -> dict[str, Any]:
    """Returns prompt tokens per second and their share of the peak FLOPs."""
    run(_PREFILLED, tokens, 1)
    seconds = min(run(_PREFILLED, tokens, 1) for _ in range(3))
    speed = _PREFILLED * tokens / seconds
    return {"tokens_per_second": speed, "mfu": speed * forward_flops(shape, tokens) / peak if peak else None}


def guarded(measure: Any) -> dict[str, Any]:
    """Returns what `measure` returns, or what it failed of."""
    try:
        return dict(measure())
    except Exception as error:  # out of memory has many types; the report says what it was
        return {"error": f"{type(error).__name__}: {str(error)[:400]}"}


def copy_speed() -> float:
    """Returns bytes read and written per second by x + 1 over a large array."""
    import jax
    import jax.numpy as jnp

    size = 2**30 if jax.default_backend() != "cpu" else 2**24
    x = jnp.zeros(size // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    add(x).block_until_ready()
    began = time.perf_counter()
    for _ in range(10):
        y = add(x)
    y.block_until_ready()
    return 10 * 2 * size / (time.perf_counter() - began)


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.94")
    app.run(main)
