"""The memory that a cache may take, and how many slots fit into it, computed before anything is allocated.

What a device has free once the weights are placed is shared by the cache and by the temporaries of a pass; both grow
with the slots, so a slot is counted with its part of the temporaries. `cache_bytes`, where the user gives it, is for
the cache alone. An eighth is for the keys and values of shared beginnings (prefixes.py).
"""

from __future__ import annotations

import math
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
_QUERIES = 32  # of a pass whose scores are held at once (model/attention.py)


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
        share, origin = _CPU_SHARE / len(devices), "half of the machine's available memory"
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


def temporary_bytes(config: LlamaConfig, dtype: Any, mesh: Mesh | None, length: int) -> int:
    """Returns an estimate from above of the bytes that one slot adds to the temporaries of a pass, per device.

    As if all its positions were passed at once: the hidden states, queries, keys, values and their outputs (6 D) and
    the feed-forward's (3 F) of one layer in `dtype`, its cache rewritten, float32 scores and weights of a block of
    queries, and float32 logits with what sampling makes of them (4 V).

    Args:
      dtype: of activations; length: positions of the slot.
    """
    wide = config.intermediate_size // _split(config.intermediate_size, mesh)
    heads = config.num_heads // _split(config.num_heads, mesh)
    activations = (6 * config.hidden_size + 3 * wide) * jnp.dtype(dtype).itemsize
    layer_cache = position_bytes(config, dtype, mesh) // config.num_layers
    return length * (activations + layer_cache + 2 * 4 * heads * _QUERIES) + 4 * 4 * config.padded_vocab


def _split(size: int, mesh: Mesh | None) -> int:
    ways = 1 if mesh is None else mesh.shape["tensor"]
    return ways if size % ways == 0 else 1


@dataclass(frozen=True)
class Demand:
    """What slots of one length take of each device.

    Attributes:
      length: positions; position: bytes of one; temporary: bytes of one slot beside its positions.
      ways: devices among which slots are shared out.
    """

    length: int
    position: int
    temporary: int
    ways: int

    @property
    def slot(self) -> int:
        """Bytes of a slot on the device that holds it."""
        return self.length * self.position + self.temporary

    def fitting(self, budget: Budget) -> int:
        """Returns how many slots fit."""
        return int(budget.slots // self.slot) * self.ways

    def default(self, budget: Budget, most: int) -> int:
        """Returns the slots to use, at most `most`.

        On every device a power of two: what is free varies a little from one start to the next, and rows of a run that
        was stopped are to find the batches that they had.

        Raises:
          UserError: not even one slot fits on each device.
        """
        fitting = self.fitting(budget)
        if fitting >= most:
            return most
        if fitting < self.ways:
            raise self.refusal(budget, self.ways)
        return self.ways << (fitting // self.ways).bit_length() - 1

    def refusal(self, budget: Budget, slots: int) -> UserError:
        """Returns the error about `slots` slots that do not fit."""
        held = -(-slots // self.ways)
        beside = f" and {_size(self.temporary)} of temporaries each" if self.temporary else ""
        fitting = self.fitting(budget)
        instead = f"--batch_size={fitting} fits; " if fitting >= self.ways else ""
        return UserError(
            f"The cache does not fit: {held} slots x {self.length:,} positions x {self.position:,} bytes{beside} = "
            f"{_size(held * self.slot)} on each device, and there are {_size(budget.slots)} for slots "
            f"({budget.origin}, less an eighth for shared beginnings): {fitting} slots fit. {instead}"
            "--cache_dtype=int8 makes positions smaller, a lower --max_new_tokens or shorter prompts make rows "
            "shorter, --mesh shares the cache out over more devices."
        )


def find_demand(config: LlamaConfig, dtype: Any, stored: Any, mesh: Mesh | None, budget: Budget, length: int) -> Demand:
    """Returns what slots of `length` positions take.

    Args:
      dtype: of activations; stored: of the cache.
    """
    temporary = 0 if budget.alone else temporary_bytes(config, dtype, mesh, length)
    ways = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return Demand(length, position_bytes(config, stored, mesh), temporary, ways)


def _size(size: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} bytes"
