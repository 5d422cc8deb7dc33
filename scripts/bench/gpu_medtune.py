"""This system's side of scripts/bench/gpu.py: updates of a Llama with random weights, made on the device.

    python scripts/bench/gpu_medtune.py --tuning=full --out=full.json

The update is that of `medtune train` (train/step.py), compiled ahead, with the state donated. Precision bf16_compute;
Adam's first moment is bfloat16 (optimizer.first_moment_dtype), so that one H200 holds 7B.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from absl import app, flags
from gpu_work import ALPHA, LEARNING_RATE, RANK, SHAPES, batches, best_of, timed_updates

_TUNING = flags.DEFINE_enum("tuning", "full", ["full", "lora", "qlora"], "What is tuned; qlora: on an nf4 base.")
_SHAPE = flags.DEFINE_enum("shape", "llama2_7b", list(SHAPES), "The model.")
_LAYERS = flags.DEFINE_integer("layers", None, "Layers, where fewer than the shape has.")
_ATTENTION = flags.DEFINE_string("attention", "auto", "model.attention.")
_STEPS = flags.DEFINE_integer("steps", 8, "Updates that are timed.", lower_bound=1)
_WAYS = flags.DEFINE_integer("ways", 2, "Ways of computing that are measured.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 150.0, "No further way of computing is begun that could take longer.")
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.", required=True)

# (model.remat, packs of an update), those that should be fastest first; what does not fit is passed over.
WAYS = {
    "full": [("dots", 2), ("dots", 1), ("full", 8), ("full", 4), ("full", 1)],
    "lora": [("dots", 8), ("none", 4), ("dots", 4), ("full", 8), ("full", 2)],
    "qlora": [("dots", 4), ("full", 4)],
}
_A_WAY_TAKES = 60.0  # seconds, compilation included


def main(_: list[str]) -> None:
    import jax

    from medtune_jax.model.backends import verified
    from medtune_jax.model.llama import LlamaConfig
    from medtune_jax.sharding import make_mesh
    from medtune_jax.train.records.throughput import Work, flops_per_token, peak_flops
    from medtune_jax.train.step import attention_backend

    until = time.monotonic() + _SECONDS.value
    shape = SHAPES[_SHAPE.value]
    model = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_layers=_LAYERS.value or shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        max_positions=shape.sequence,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
    )
    asked = settings("none", 1, _ATTENTION.value)
    device = jax.devices()[0]
    mesh = make_mesh(asked.mesh, [device])
    documents = max(int(batch["segment_ids"].max()) for batch in batches(shape, 1))
    chosen = attention_backend(asked, model, mesh, documents)
    backend = verified(chosen, mesh, heads=model.num_heads, kv_heads=model.num_kv_heads)
    work = Work(flops_per_token(model, asked.model.lora, shape.sequence), 1, peak_flops(device.device_kind))

    def tell(figures: dict[str, Any]) -> None:
        figures |= {
            "device": device.device_kind,
            "jax": jax.__version__,
            "layers": model.num_layers,
            "attention": str(backend),
            "mfu": work.mfu(figures["padded_tokens_per_second"]) if "error" not in figures else None,
        }
        Path(_OUT.value).write_text(json.dumps(figures, indent=2) + "\n")

    ways = WAYS[_TUNING.value]
    best_of(ways, partial(measure, model, mesh, backend.name), tell, most=_WAYS.value, until=until, enough=_A_WAY_TAKES)


def settings(saving: Any, packs: int, attention: Any) -> Any:
    """Returns the configuration of a run."""
    from medtune_jax.config import Config, LoraConfig

    lora = LoraConfig(rank=RANK, alpha=ALPHA, base="nf4" if _TUNING.value == "qlora" else "compute")
    plain = Config()
    return dataclasses.replace(
        plain,
        model=dataclasses.replace(
            plain.model,
            attention=attention,
            remat=saving,
            lora=LoraConfig() if _TUNING.value == "full" else lora,
        ),
        data=dataclasses.replace(plain.data, max_length=SHAPES[_SHAPE.value].sequence),
        train=dataclasses.replace(plain.train, batch_size=packs),
        optimizer=dataclasses.replace(plain.optimizer, learning_rate=LEARNING_RATE, first_moment_dtype="bfloat16"),
    )


def measure(model: Any, mesh: Any, attention: str, saving: str, packs: int) -> dict[str, Any]:
    """Compiles an update, makes the weights and times it.

    Raises:
      MemoryError: the compiler says that it does not fit; nothing was allocated.
    """
    import jax

    from medtune_jax.train.abstract import lower_step
    from medtune_jax.train.feed import put
    from medtune_jax.train.optimizer import make_optimizer
    from medtune_jax.train.records.throughput import device_memory
    from medtune_jax.train.state import init_state

    gc.collect()  # what a way before this one held
    config = settings(saving, packs, attention)
    optimizer = make_optimizer(config.optimizer, 10**6)
    shape = SHAPES[_SHAPE.value]
    with jax.set_mesh(mesh):
        began = time.perf_counter()
        lowered = lower_step(config, model, mesh, optimizer=optimizer, batch=next(batches(shape, packs)))
        update = lowered.compile()
        compiled = time.perf_counter() - began
        needed = bytes_needed(update)
        limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
        if limit and needed > limit:
            raise MemoryError(f"needs {needed / 2**30:.1f} GiB of {limit / 2**30:.1f}")
        trainable, frozen = random_weights(config, model, mesh)
        state = init_state(trainable, config, model, optimizer, mesh)
        del trainable

        def step(given: Any) -> float:
            nonlocal state
            state, metrics = update(state, frozen, given)
            return float(metrics["loss"])

        made = ((put(batch, mesh), batch) for batch in batches(shape, packs))
        figures = timed_updates(step, made, _STEPS.value, time.monotonic() + _A_WAY_TAKES / 2)
    # What the device was seen to hold at the highest is of the whole process: of the ways before this one too.
    return {
        **figures,
        "compile_seconds": compiled,
        "bytes_by_compiler": needed,
        "highest_bytes_of_process": device_memory(),
    }


def bytes_needed(update: Any) -> int:
    """Returns what the compiler says that a donated update takes of the device, at its highest."""
    told = update.memory_analysis()
    return told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes + told.temp_size_in_bytes


def random_weights(config: Any, model: Any, mesh: Any) -> tuple[Any, Any]:
    """Returns (trainable, frozen) with random weights, made on the device in the place of load_params' files."""
    import jax
    import jax.numpy as jnp

    from medtune_jax.model.llama import init_params
    from medtune_jax.model.lora import init_adapter
    from medtune_jax.model.quantize import quantize
    from medtune_jax.train.precision import compute_dtype
    from medtune_jax.train.state import shardings
    from medtune_jax.train.trainable import abstract_frozen, abstract_trainable

    lora = config.model.lora
    places = shardings(abstract_trainable(config, model, mesh))
    key = jax.random.key(0)
    if not lora.rank:
        return jax.jit(partial(init_params, config=model, dtype=jnp.float32), out_shardings=places)(key), {}

    def base(key: Any) -> Any:
        params = init_params(key, model, compute_dtype(config))
        if lora.base != "compute":
            for name, leaves in params["layers"].items():
                if name.endswith("_proj"):  # layer by layer, for quantising works in float32
                    leaves["kernel"] = jax.lax.map(lambda kernel: quantize(kernel, lora.base), leaves["kernel"])
        return params

    frozen = jax.jit(base, out_shardings=shardings(abstract_frozen(config, model, mesh)))(key)
    return jax.jit(lambda key: init_adapter(key, model, lora), out_shardings=places)(key), frozen


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.94")
    app.run(main)
