"""The cache's budget: what is counted is what is allocated, and what does not fit is refused before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from tiny_engine import LongestMatch, tiny_config

from medtune_jax.config import MeshConfig
from medtune_jax.errors import UserError
from medtune_jax.generate import budget, slots
from medtune_jax.generate.cache import empty_cache
from medtune_jax.generate.engine import Engine
from medtune_jax.generate.sampling import Greedy
from medtune_jax.model.llama import init_params
from medtune_jax.sharding import make_mesh

TOKENIZER = LongestMatch()
CONFIG = tiny_config(TOKENIZER.vocab_size, num_heads=8, num_kv_heads=4, intermediate_size=64)
PARAMS = init_params(jax.random.key(0), CONFIG)
POSITION = 2 * 2 * 4 * 8 * 4  # keys and values, layers, heads, width, bytes
PROMPTS = [[1, *range(5, 5 + n)] for n in (1, 30, 7, 64, 17, 3, 50)]
ASK: dict[str, Any] = {"method": Greedy(), "max_new_tokens": 8}


def room_for(slots: float, length: int = 128) -> int:
    return int(slots * length * POSITION * 8 / 7) + 8  # an eighth is for shared beginnings


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
@pytest.mark.parametrize("tensor", [1, 4, 8])  # 8 devices do not divide 4 heads
def test_bytes_counted_are_bytes_allocated(dtype: Any, tensor: int) -> None:
    mesh = make_mesh(MeshConfig(data=8 // tensor, fsdp=1, tensor=tensor))
    with jax.set_mesh(mesh):
        cache = empty_cache(CONFIG, 8, 128, dtype)
    first = jax.devices()[0]
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(cache)
        for shard in leaf.addressable_shards
        if shard.device == first
    )
    assert held == 8 // (8 // tensor) * 128 * budget.position_bytes(CONFIG, dtype, mesh)


def test_as_many_slots_as_fit_and_a_power_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    allocate = slots.empty_cache

    def counted(config: Any, batch: int, *rest: Any) -> Any:
        made.append(batch)
        return allocate(config, batch, *rest)

    monkeypatch.setattr(slots, "empty_cache", counted)
    whole = Engine(PARAMS, CONFIG, TOKENIZER).generate(PROMPTS, **ASK)
    assert made == [8], "all rows at once"
    for room, expected in ((7.9, 4), (1, 1)):
        engine = Engine(PARAMS, CONFIG, TOKENIZER, cache_bytes=room_for(room))
        made.clear()
        assert engine.generate(PROMPTS, **ASK) == whole
        assert made == [expected]


def test_a_batch_that_does_not_fit_is_refused_with_the_numbers_and_nothing_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "empty_cache", None)
    engine = Engine(PARAMS, CONFIG, TOKENIZER, cache_bytes=room_for(3))
    with pytest.raises(UserError) as refused:
        engine.generate(PROMPTS, batch_size=4, **ASK)
    said = str(refused.value)
    assert said.startswith(f"The cache does not fit: 4 slots x 128 positions x {POSITION} bytes = 256.0 KiB on each")
    assert "there are 192.0 KiB for slots (the cache's size as given" in said
    assert "3 slots fit. --batch_size=3 fits; --cache_dtype=int8" in said
    assert "--max_new_tokens" in said and "--mesh" in said


def test_a_slot_that_does_not_fit_is_refused() -> None:
    engine = Engine(PARAMS, CONFIG, TOKENIZER, cache_bytes=room_for(0.9))
    with pytest.raises(UserError, match=r"1 slots x 128 positions .* 0 slots fit\. --cache_dtype"):
        engine.generate(PROMPTS, **ASK)
    with pytest.raises(UserError, match="batch_size 0 is below 1"):
        engine.generate(PROMPTS, batch_size=0, **ASK)
    with pytest.raises(UserError, match="A cache of 0 bytes holds nothing"):
        Engine(PARAMS, CONFIG, TOKENIZER, cache_bytes=0).generate(PROMPTS, **ASK)


def test_the_longest_row_counts_and_int8_holds_more() -> None:
    long = [*PROMPTS, [1, *[7] * 300]]
    with pytest.raises(UserError, match="1 slots x 384 positions"):
        Engine(PARAMS, CONFIG, TOKENIZER, cache_bytes=room_for(2)).generate(long, **ASK)
    given = budget.Budget(room_for(2), True, "given")
    demand = budget.find_demand(CONFIG, jnp.float32, jnp.int8, None, given, 384)
    assert demand.position == 2 * 2 * 4 * (8 + 4)
    assert demand.fitting(given) == 1


def test_slots_are_shared_out_over_data_axes() -> None:
    mesh = make_mesh(MeshConfig(data=4, fsdp=1, tensor=2))
    given = budget.Budget(8 * 10_000 / 7, True, "given")
    demand = budget.find_demand(CONFIG, jnp.float32, jnp.float32, mesh, given, 128)
    assert (demand.slot, demand.ways) == (128 * POSITION // 2, 4)
    found = budget.Budget(8 / 7 * 3.5 * demand.slot, True, "given")
    assert demand.fitting(found) == 12
    assert demand.default(found, 64) == 8
    assert demand.default(found, 4) == 4


def test_temporaries_are_counted_where_the_budget_is_all_that_is_free() -> None:
    free = budget.Budget(2.0**30, False, "free")
    demand = budget.find_demand(CONFIG, jnp.float32, jnp.float32, None, free, 128)
    assert demand.temporary > 128 * 4 * (6 * CONFIG.hidden_size + 3 * CONFIG.intermediate_size)
    with pytest.raises(UserError, match="of temporaries each"):
        raise demand.refusal(free, 10**6)


def test_the_least_of_all_processes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda: 1000.0)
    monkeypatch.setattr(budget, "everyones", lambda name, value: [value, 300.0])
    assert budget.find_budget(None, None).size == 300
    monkeypatch.setattr(budget, "everyones", lambda name, value: [value, 900.0])
    assert budget.find_budget(None, None).size == 500, "half of the machine's"
    mesh = make_mesh(MeshConfig(data=8, fsdp=1, tensor=1))
    assert budget.find_budget(mesh, None).size == 500 / 8, "fake devices live in one memory"


def test_an_accelerator_tells_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        platform = "gpu"

        def __init__(self, stats: dict[str, int] | None):
            self.memory_stats = lambda: stats

    for stats, expected in (({"bytes_limit": 100, "bytes_in_use": 40}, 54), (None, 0.9 * 2**62)):
        monkeypatch.setattr(jax, "local_devices", lambda stats=stats: [Device(stats)])
        assert budget.find_budget(None, None).size == pytest.approx(expected)


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_available_memory_is_the_machines_or_the_control_groups(tmp_path: Path) -> None:
    assert budget.available_memory(tmp_path) == 2.0**62
    write(tmp_path, proc__meminfo="MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert budget.available_memory(tmp_path) == 4000 * 1024
    write(tmp_path, sys__fs__cgroup__memory_DOT_max="max\n", sys__fs__cgroup__memory_DOT_current="5\n")
    assert budget.available_memory(tmp_path) == 4000 * 1024
    write(tmp_path, sys__fs__cgroup__memory_DOT_max="1000\n", sys__fs__cgroup__memory_DOT_current="600\n")
    write(tmp_path, sys__fs__cgroup__memory_DOT_stat="anon 300\nfile 250\nfile_dirty 7\n")
    assert budget.available_memory(tmp_path) == 650, "what caches files is given back"
    write(tmp_path, proc__self__cgroup="0::/job/step\n", sys__fs__cgroup__job__step__memory_DOT_max="100\n")
    write(tmp_path, sys__fs__cgroup__job__step__memory_DOT_current="90\n")
    assert budget.available_memory(tmp_path) == 10
