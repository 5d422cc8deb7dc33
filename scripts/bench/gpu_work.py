"""What scripts/bench/gpu.py and its peer both work on: shapes, documents, packs, and how an update is timed.

Imports neither jax nor torch, so that each side has the GPU to itself.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, whether or not it is installed


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Llama: layers, widths, heads (of queries and of keys), vocabulary; and the positions of a pack."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    vocab: int
    sequence: int


SHAPES = {
    "llama2_7b": Shape(32, 4096, 11008, 32, 32000, 4096),
    "tiny": Shape(2, 64, 128, 2, 512, 128),  # for a CPU: does everything, measures nothing
}
RANK, ALPHA = 16, 32
LEARNING_RATE = 1e-5
_WARM_UP = 2  # updates that are not counted: first allocations, autotuning
_MEDIAN_LENGTH, _SPREAD = 230, 0.5  # of a document in tokens: about that of the named-entity rows, log-normal


def parameters(shape: Shape) -> int:
    """Returns the weights of the whole model."""
    layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.feed_forward + 2 * shape.hidden
    return shape.layers * layer + 2 * shape.vocab * shape.hidden + shape.hidden


def batches(shape: Shape, packs: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of `packs` packs, the same on every machine, in the form of medtune_jax/data/loader.py.

    Documents have random tokens; the second half of each bears loss, as in named-entity rows.
    """
    from medtune_jax.data.encode import Encoded
    from medtune_jax.data.loader import TrainData

    draw = np.random.default_rng(0)
    lengths = np.exp(draw.normal(np.log(_MEDIAN_LENGTH), _SPREAD, 2000)).astype(int)
    rows = []
    for length in np.clip(lengths, 16, shape.sequence):
        tokens = draw.integers(3, shape.vocab, length, dtype=np.int32)
        weights = (np.arange(length) >= length // 2).astype(np.float32)
        rows.append(Encoded(tokens, weights, int(length // 2)))
    data = TrainData(rows, max_length=shape.sequence, batch_size=packs, packing=True, seed=0, epochs=1.0)
    for step in range(data.total_steps - 1):  # the last is not full
        yield data.batch(step)


def random_prompts(shape: Shape, rows: int, tokens: int) -> list[list[int]]:
    """Returns the same prompts on every machine."""
    draw = np.random.default_rng(0)
    return [list(map(int, row)) for row in draw.integers(3, shape.vocab, (rows, tokens))]


def decode_times(run: Callable[[int, int, int], float], shape: Shape, batch: int, prompt: int) -> tuple[float, int]:
    """Returns (seconds of one step of decoding, positions that the cache held in the middle).

    Args:
      run: (rows, prompt tokens, new tokens) -> seconds; called for a short and a long answer, each once to compile.
    """
    prompt = min(prompt, shape.sequence // 4)
    short, long = 16, min(144, shape.sequence - prompt)
    for new in (short, long):
        run(batch, prompt, new)
    step = (min(run(batch, prompt, long) for _ in range(2)) - min(run(batch, prompt, short) for _ in range(2))) / (
        long - short
    )
    return step, prompt + (short + long) // 2


# Bytes per second of device memory, by the makers' data sheets.
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.04e12, "TPU v5 lite": 0.819e12, "TPU v5": 2.765e12}


def decode_limit(
    shape: Shape, batch: int, positions: int, device: str, copying: float, cache_bytes: int
) -> dict[str, float]:
    """Returns the least seconds of one step by memory traffic: name of the limit -> seconds.

    Read are all weights but the embedding, 2 bytes each, and keys and values of `positions` for every row.
    """
    weights = 2 * (parameters(shape) - shape.vocab * shape.hidden)
    cache = batch * positions * 2 * shape.layers * shape.hidden * cache_bytes
    limits = {"share_of_copy_speed": (weights + cache) / copying}
    for name, speed in BANDWIDTH.items():
        if name in device:
            return {"share_of_bandwidth": (weights + cache) / speed, **limits}
    return limits


def forward_flops(shape: Shape, tokens: int) -> float:
    """Returns the FLOPs of one prompt token: 2 per weight (the embedding is looked up), and causal attention."""
    return 2 * (parameters(shape) - shape.vocab * shape.hidden) + 2 * shape.layers * shape.hidden * tokens


def timed_updates(update: Callable[[Any], float], made: Iterator[Any], steps: int, until: float) -> dict[str, Any]:
    """Times `steps` updates after warming up; fewer, but one at least, when time.monotonic() passes `until`.

    Args:
      update: does one on a batch and waits for it; returns the loss.
      made: pairs of (what `update` takes, the host's batch).

    Returns:
      step_seconds (median), tokens_per_second (without padding) and padded_tokens_per_second at it, filled, losses.
    """
    seconds: list[float] = []
    losses: list[float] = []
    tokens = padded = 0
    for index in range(_WARM_UP + steps):
        given, batch = next(made)
        began = time.perf_counter()
        losses.append(update(given))
        if index >= _WARM_UP:
            seconds.append(time.perf_counter() - began)
            tokens += int((batch["segment_ids"] > 0).sum())
            padded += batch["segment_ids"].size
            if time.monotonic() > until:
                break
    if not np.isfinite(losses).all():
        raise ValueError(f"the loss is not finite: {losses}")
    typical = statistics.median(seconds)
    return {
        "step_seconds": typical,
        "tokens_per_second": tokens / len(seconds) / typical,
        "padded_tokens_per_second": padded / len(seconds) / typical,
        "filled": tokens / padded,
        "steps": len(seconds),
        "losses": losses,
    }


def best_of(
    ways: list[tuple[str, int]],
    measure: Callable[[str, int], dict[str, Any]],
    tell: Callable[[dict[str, Any]], None],
    *,
    most: int,
    until: float,
    enough: float,
) -> None:
    """Measures ways of computing (how the backward pass saves memory, packs) until `most` have run or the time is up.

    Args:
      ways: those that should be fastest first; one that raises (memory) is noted and passed over.
      tell: is given the fastest one's figures so far, all of them under "ways", after each.
      until: of time.monotonic(); enough: seconds a way takes: with less left, no other is begun.
    """
    told: list[dict[str, Any]] = []
    for saving, packs in ways:
        if sum("error" not in one for one in told) == most or (told and time.monotonic() + enough > until):
            break
        try:
            figures = measure(saving, packs)
        except Exception as error:  # out of memory has many types; anything else shows in the report too
            figures = {"error": f"{type(error).__name__}: {str(error)[:400]}"}
        told.append({"saving": saving, "packs": packs, **figures})
        print(told[-1], file=sys.stderr, flush=True)
        ran = [one for one in told if "error" not in one]
        best = max(ran, key=lambda one: one["tokens_per_second"], default={"error": "no way of computing ran"})
        tell({**best, "ways": [{key: value for key, value in one.items() if key != "losses"} for one in told]})
