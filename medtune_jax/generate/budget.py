"""The memory that a cache may take, and how many slots fit into it, computed before anything is allocated.

What a device has free once the weights are placed is shared by the cache and by the temporaries of a pass. Prompts are
passed an eighth of the slots at a time, what follows them in all slots at once: the larger of the two is counted.
`cache_bytes`, where the user gives it, is for the cache alone. An eighth is for the keys and values of shared
beginnings (prefixes.py).
"""

from __future__ import annotations

import bisect
import math
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medtune_jax.errors import UserError
from medtune_jax.generate.cache import stored_dtype
from medtune_jax.model.llama import LlamaConfig
from medtune_jax.processes import everyones
from medtune_jax.sharding import BATCH_AXES

_CPU_SHARE = 0.5  # of the machine's available memory: others live there too
_DEVICE_SHARE = 0.9  # of what is free on an accelerator: its allocator cannot use every gap
_UNTOLD = 2.0**62  # bytes
_PREFIXES = 8  # one part in so many is for shared beginnings
_CPU_SLOTS = 32  # more are not faster per row on a few cores
# A bfloat16 product with W weights reads 2 W bytes and does 2 W operations a row: accelerators of 2020 to 2025 do 200
# to 300 operations in the time of a byte, so with about as many rows on each a step is no longer bound by the weights.
_ACCELERATOR_SLOTS = 256
# Queries whose scores are held at once (model/attention.py): of a prompt; of a pass against the cache, whose widths up
# to 128 need not be multiples of the block there.
_PROMPT_QUERIES, _CACHED_QUERIES = 64, 128
_MANY_SLOTS = 2**30


@dataclass(frozen=True)
class Budget:
    """What a cache may take of each device.

    Attributes:
      size: bytes; more than any device has where it does not tell.
      alone: the cache's own; otherwise the temporaries of a pass come out of it too.
      origin: what it is, for messages.
    """

    size: float
    alone: bool
    origin: str

    @property
    def slots(self) -> float:
        """Bytes for slots."""
        return self.size - self.prefixes

    @property
    def prefixes(self) -> float:
        """Bytes for shared beginnings."""
        return self.size / _PREFIXES


def find_budget(mesh: Mesh | None, cache_bytes: int | None) -> Budget:
    """Returns the budget of each device of the mesh: the least over devices and processes.

    To be called by all processes, when the weights are placed and before any cache is.

    Raises:
      UserError: cache_bytes is not above 0.
    """
    if cache_bytes is not None:
        if cache_bytes <= 0:
            raise UserError(f"A cache of {cache_bytes} bytes holds nothing: give more, or leave it to the machine.")
        return Budget(cache_bytes, True, "the cache's size as given")
    devices = jax.local_devices()[:1] if mesh is None else list(mesh.local_devices)
    if devices[0].platform == "cpu":
        hosts = everyones("host", socket.gethostname())  # processes of one host live in one memory
        share = _CPU_SHARE / len(devices) / hosts.count(socket.gethostname())
        origin = "half of the machine's available memory"
        free: float = available_memory()
    else:
        share, origin = _DEVICE_SHARE, "what the device has free beside the weights"
        free = min(_free(device) for device in devices)
    return Budget(min(everyones("cache", share * free)), False, origin)


def _free(device: Any) -> float:
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return _UNTOLD
    return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))


def available_memory(root: Path = Path("/")) -> float:
    """Returns the bytes of memory that this process may still take: of the machine and of its control group.

    root: above proc/ and sys/. Where neither is there (not on Linux), more than any has.
    """
    found = [_UNTOLD]
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(1024 * float(line.split()[1]))
    groups = root / "sys/fs/cgroup"
    own = [line.split("::/")[1] for line in _lines(root / "proc/self/cgroup") if line.startswith("0::/")]
    for folder, limit, used, files in (
        *((groups / path, "memory.max", "memory.current", "file ") for path in {"", *own}),
        (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "cache "),
    ):
        texts = [*_lines(folder / limit), *_lines(folder / used)]
        if len(texts) == 2 and texts[0] != "max":
            cached = [float(line.split()[1]) for line in _lines(folder / "memory.stat") if line.startswith(files)]
            found.append(float(texts[0]) - float(texts[1]) + sum(cached))  # what caches files is given back
    return max(0.0, min(found))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def default_slots(ways: int) -> int:
    """Returns how many slots are used where memory allows it; ways: devices among which they are shared out."""
    return _CPU_SLOTS if jax.default_backend() == "cpu" else _ACCELERATOR_SLOTS * ways


def position_bytes(config: LlamaConfig, dtype: Any, mesh: Mesh | None) -> int:
    """Returns the bytes of one position of one slot on a device that holds the slot: keys and values of all layers.

    Key-value heads are shared out over `tensor` where it divides them; otherwise every device holds all.

    Args:
      dtype: of the cache; int8 has a float32 scale per head.
    """
    dtype = stored_dtype(dtype)
    head = config.head_dim * dtype.itemsize + (4 if dtype == jnp.int8 else 0)
    return 2 * config.num_layers * (config.num_kv_heads // _split(config.num_kv_heads, mesh)) * head


@dataclass(frozen=True)
class Step:
    """What a driver's widest pass behind the prompts is made of.

    Attributes:
      tokens: passed in each slot; logits: of them, those whose logits over the vocabulary are held at once.
      block: the same where logits are computed block after block: positions of all slots together.
    """

    tokens: int = 1
    logits: int = 1
    block: int = 0


ONE_TOKEN = Step()


def prefill_bytes(config: LlamaConfig, dtype: Any, mesh: Mesh | None, length: int) -> int:
    """Returns an estimate from above of the temporaries of a prompt of `length` tokens, per slot and device.

    One layer's activations, float32 scores and weights of a block of queries, and the keys and values of one layer
    before they are in the cache, twice.

    Args:
      dtype: of activations.
    """
    scores = 2 * 4 * _heads(config, mesh) * max(_PROMPT_QUERIES, length // 16)
    return length * (_activations(config, dtype, mesh) + scores + 2 * _layer_position(config, dtype, mesh))


def step_bytes(config: LlamaConfig, dtype: Any, mesh: Mesh | None, length: int, step: Step) -> int:
    """Returns the same of a pass against the cache, without the logits that are computed in blocks.

    One layer's activations, its cache rewritten, and float32 scores and weights of a block of queries; or the logits
    with what choosing makes of them, where these are larger.
    """
    scores = 2 * 4 * _heads(config, mesh) * min(step.tokens, _CACHED_QUERIES)
    logits = 0 if step.block else step.logits * _logits(config)
    cached = length * (scores + _layer_position(config, dtype, mesh))
    return max(step.tokens * _activations(config, dtype, mesh) + cached, logits)


def _activations(config: LlamaConfig, dtype: Any, mesh: Mesh | None) -> int:
    """Bytes per token of one layer: hidden states, queries, keys, values and outputs (6 D), feed-forward (3 F)."""
    wide = config.intermediate_size // _split(config.intermediate_size, mesh)
    narrow = max(config.hidden_size, config.num_heads * config.head_dim)
    return (6 * narrow + 3 * wide) * jnp.dtype(dtype).itemsize


def _layer_position(config: LlamaConfig, dtype: Any, mesh: Mesh | None) -> int:
    return position_bytes(config, dtype, mesh) // config.num_layers


def _heads(config: LlamaConfig, mesh: Mesh | None) -> int:
    return config.num_heads // _split(config.num_heads, mesh)


def _logits(config: LlamaConfig) -> int:
    """Bytes of the float32 logits [V] of one position with what choosing makes of them: sorted, with ids, as sums."""
    return 4 * 4 * config.padded_vocab


def _split(size: int, mesh: Mesh | None) -> int:
    ways = 1 if mesh is None else mesh.shape["tensor"]
    return ways if size % ways == 0 else 1


def whole_batch(slots: int, ways: int) -> tuple[int, int]:
    """Returns (slots that are used of so many, how many of them are prefilled together: an eighth, at least two).

    Never more than `slots`, but for one on each of the `ways` devices among which they are shared out.
    """
    slots = max(slots, ways)
    chunk = max(1, max(min(slots, 2), slots // 8) // ways) * ways
    return slots // chunk * chunk, chunk


@dataclass(frozen=True)
class Demand:
    """What slots of one length take of each device.

    Attributes:
      length: positions; position: bytes of one.
      prefill: bytes of temporaries of a slot that is prefilled; step: of a slot in a pass behind the prompts; block:
        of that pass however many slots there are.
      ways: devices among which slots are shared out.
    """

    length: int
    position: int
    prefill: int
    step: int
    block: int
    ways: int

    def temporaries(self, slots: int) -> int:
        """Returns the bytes beside the cache on each device."""
        slots, chunk = whole_batch(slots, self.ways)
        return max(chunk // self.ways * self.prefill, slots // self.ways * self.step, self.block)

    def size(self, slots: int) -> int:
        """Returns the bytes of so many slots on each device."""
        held = whole_batch(slots, self.ways)[0] // self.ways
        return held * self.length * self.position + self.temporaries(slots)

    def fitting(self, budget: Budget) -> int:
        """Returns how many slots fit, a whole batch; 0 where not even one does on each device."""
        if self.size(self.ways) > budget.slots:
            return 0
        # `size` does not fall with the slots.
        found = bisect.bisect_right(range(_MANY_SLOTS), budget.slots, lo=self.ways, key=self.size) - 1
        return whole_batch(found, self.ways)[0]

    def default(self, budget: Budget, most: int) -> int:
        """Returns the slots to use, at most `most`.

        On every device a power of two: what is free varies a little from one start to the next, and rows of a run that
        was stopped are to find the batches that they had.

        Raises:
          UserError: not even one slot fits on each device.
        """
        most, _ = whole_batch(most, self.ways)
        fitting = self.fitting(budget)
        if fitting >= most:
            return most
        if not fitting:
            raise self.refusal(budget, self.ways)
        return self.ways << (fitting // self.ways).bit_length() - 1

    def refusal(self, budget: Budget, slots: int) -> UserError:
        """Returns the error about `slots` slots that do not fit."""
        slots, fitting = whole_batch(slots, self.ways)[0], self.fitting(budget)
        beside = f" and {_size(self.temporaries(slots))} of temporaries" if self.step else ""
        instead = f"--batch_size={fitting} fits; " if fitting else ""
        return UserError(
            f"The cache does not fit: {slots // self.ways} slots x {self.length:,} positions x {self.position:,} bytes"
            f"{beside} = {_size(self.size(slots))} on each device, and there are {_size(budget.slots)} for slots "
            f"({budget.origin}, less an eighth for shared beginnings): {fitting} slots fit. {instead}"
            "--cache_dtype=int8 makes positions smaller, a lower --max_new_tokens or shorter prompts make rows "
            "shorter, --mesh shares the cache out over more devices."
        )


def find_demand(
    config: LlamaConfig, dtype: Any, stored: Any, mesh: Mesh | None, budget: Budget, length: int, step: Step
) -> Demand:
    """Returns what slots of `length` positions take.

    Args:
      dtype: of activations; stored: of the cache.
    """
    ways = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    position = position_bytes(config, stored, mesh)
    if budget.alone:
        return Demand(length, position, 0, 0, 0, ways)
    prefill = prefill_bytes(config, dtype, mesh, length)
    passed = step_bytes(config, dtype, mesh, length, step)
    return Demand(length, position, prefill, passed, step.block * _logits(config), ways)


def _size(size: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} bytes"
