"""The cache's budget: what is counted is what is allocated, and what does not fit is refused before."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_engine import LongestMatch, tiny_config

from medtune_jax.config import MeshConfig
from medtune_jax.errors import UserError
from medtune_jax.generate import budget, decode, scored, slots
from medtune_jax.generate import core as core_module
from medtune_jax.generate.beam_steps import beam_steps
from medtune_jax.generate.budget import ONE_TOKEN
from medtune_jax.generate.cache import empty_cache
from medtune_jax.generate.engine import Engine
from medtune_jax.generate.free import Prompt
from medtune_jax.generate.sampling import Greedy, Sample
from medtune_jax.generate.weights import decoding_weights
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
    assert "2 slots fit. --batch_size=2 fits; --cache_dtype=int8" in said, "of 3 the third would stay empty"
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
    demand = budget.find_demand(CONFIG, jnp.float32, jnp.int8, None, given, 384, ONE_TOKEN)
    assert (demand.position, demand.temporaries(8)) == (2 * 2 * 4 * (8 + 4), 0)
    assert demand.fitting(given) == 1


def test_slots_are_shared_out_over_data_axes() -> None:
    mesh = make_mesh(MeshConfig(data=4, fsdp=1, tensor=2))
    given = budget.Budget(8 * 10_000 / 7, True, "given")
    demand = budget.find_demand(CONFIG, jnp.float32, jnp.float32, mesh, given, 128, ONE_TOKEN)
    slot = 128 * POSITION // 2
    assert ([demand.size(slots) for slots in (1, 4, 8, 11)], demand.ways) == ([slot, slot, 2 * slot, 2 * slot], 4)
    found = budget.Budget(8 / 7 * 3.5 * slot, True, "given")
    assert demand.fitting(found) == 12
    assert demand.default(found, 64) == 8
    assert demand.default(found, 4) == 4


@pytest.mark.parametrize("room", [1, 2, 3, 9, 17, 31, 85])
def test_the_batch_that_a_refusal_names_is_taken(room: int) -> None:
    core = Engine(PARAMS, CONFIG, TOKENIZER, cache_bytes=room_for(room))._core
    rows = [Prompt(index, [1, 5], 8, index, []) for index in range(300)]
    with pytest.raises(UserError) as refused:
        core.batch_size(rows, 256)
    [named] = re.findall(r"--batch_size=(\d+) fits", str(refused.value))
    assert core.batch(300, core.batch_size(rows, int(named)))[0] == int(named) <= room
    slots, chunk = core.batch(300, core.batch_size(rows, room))
    assert slots <= room and slots % chunk == 0
    assert core.batch(300, core.batch_size(rows, None))[0] <= room


def test_beams_of_a_usual_batch_are_no_more_slots_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "default_slots", lambda ways: 256)
    rows = [Prompt(index, [1, 5], 8, index, []) for index in range(300)]
    for most in (256 // 3, 9, 17):
        core = Engine(PARAMS, CONFIG, TOKENIZER, cache_bytes=room_for(most))._core
        slots, chunk = core.batch(300, core.batch_size(rows, None, most=most))
        assert most - chunk < slots <= most


def compiled_bytes(run: Any, *args: Any, **static: Any) -> int:
    """Returns what a compiled program takes beside its arguments."""
    memory = run.lower(*args, **static).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def test_temporaries_are_no_less_than_what_xla_takes_and_not_many_times_more() -> None:
    slots, chunk, length, beams, width = 16, 2, 256, 4, 64
    config = tiny_config(8192, hidden_size=128, intermediate_size=256, num_heads=8, num_kv_heads=4, head_dim=16)
    weights = decoding_weights(init_params(jax.random.key(0), config), config, jnp.dtype("float32"), None, None)
    cache = empty_cache(config, slots, length, jnp.float32)
    free = budget.Budget(2.0**30, False, "free")

    def ints(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.int32)

    def floats(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def counted(step: budget.Step) -> int:
        demand = budget.find_demand(config, jnp.float32, jnp.float32, None, free, length, step)
        return max(slots * demand.step, demand.block)

    x, rope = decode._embed(weights, ints(chunk, length), ints(chunk), config=config)
    prefill = {"rope": rope, "lengths_R": jnp.asarray(ints(chunk)), "dtype": jnp.dtype("float32"), "config": config}
    demand = budget.find_demand(config, jnp.float32, jnp.float32, None, free, length, ONE_TOKEN)
    shared = {"config": config, "eos_id": 2}
    stepped = (weights, cache, *(ints(slots) for _ in range(5)), np.uint32(0), None, np.int32(1))
    beam = (ints(slots, beams), np.zeros((slots, beams, length), bool), *(floats(slots, beams) for _ in range(2)))
    beam = (*beam, *(ints(slots) for _ in range(3)), *(floats(slots, 16) for _ in range(2)), np.int32(1))
    drafted, turned = decode._embed(weights, ints(slots, width), ints(slots), config=config)
    layer = {"rope": turned, "start_B": jnp.asarray(ints(slots)), "config": config}
    blocks = counted(budget.Step(width, block=decode.LOGITS))
    took = {
        "prefill": (
            compiled_bytes(decode._prefill_layer, weights.layers[0], x, **prefill), chunk * demand.prefill
        ),
        "steps": (
            compiled_bytes(decode.decode_steps, *stepped, method=Sample(1.0, top_k=20, top_p=0.9), steps=16, **shared),
            counted(ONE_TOKEN),
        ),
        "beams": (
            compiled_bytes(beam_steps, weights, cache, *beam, at_once=False, **shared),
            counted(budget.Step(beams, beams)),
        ),
        "draft": (
            compiled_bytes(decode._draft_layer, weights.layers[0], drafted, cache.k[0], cache.v[0], **layer),
            counted(budget.Step(width)),
        ),
        "log-likelihoods": (
            compiled_bytes(scored._logprobs, weights, drafted, jnp.asarray(ints(slots, 8)), config=config), blocks
        ),
        "template": (
            compiled_bytes(
                decode._chosen_logits, weights, drafted, ints(slots, width), ints(64), config=config
            ),
            counted(budget.Step(width)),
        ),
    }  # fmt: skip
    assert {name: (xla, ours) for name, (xla, ours) in took.items() if xla > ours} == {}
    assert {name: (xla, ours) for name, (xla, ours) in took.items() if ours > 6 * xla and name != "template"} == {}


def test_one_token_a_slot_is_counted_as_one() -> None:
    # Llama-3-8B in bfloat16, 1,024 positions, beside 50 GiB that are free: 175 slots would fit without temporaries,
    # of which whole chunks are 168.
    llama = tiny_config(
        128256, hidden_size=4096, intermediate_size=14336, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128
    )  # fmt: skip
    free = budget.Budget(0.9 * 50 * 2.0**30 * 8 / 7, False, "free")

    def fitting(step: budget.Step) -> int:
        return budget.find_demand(llama, jnp.bfloat16, jnp.bfloat16, None, free, 1024, step).fitting(free)

    assert fitting(ONE_TOKEN) >= 160
    assert fitting(budget.Step(512)) < fitting(ONE_TOKEN) == fitting(budget.Step(4, 4)), (
        "a prompt takes more than 4 beams"
    )
    with pytest.raises(UserError, match=r"bytes and .* GiB of temporaries = "):
        raise budget.find_demand(llama, jnp.bfloat16, jnp.bfloat16, None, free, 1024, ONE_TOKEN).refusal(free, 10**6)


def test_log_likelihoods_never_hold_the_vocabulary_at_every_position() -> None:
    config = tiny_config(8192, num_layers=1)
    weights = decoding_weights(init_params(jax.random.key(0), config), config, jnp.dtype("float32"), None, None)
    slots, width = 64, 64
    x, targets = jnp.zeros((slots, width, config.hidden_size)), jnp.zeros((slots, 8), jnp.int32)
    whole = slots * width * 8192 * 4
    assert compiled_bytes(scored._logprobs, weights, x, targets, config=config) < whole / 2


def test_a_run_that_is_continued_has_the_batches_of_its_first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Prompt(index, [1, *[7] * 40, 5], 8, index, []) for index in range(300)]

    def engine(free: float) -> Engine:
        monkeypatch.setattr(budget, "available_memory", lambda: free / budget._CPU_SHARE)
        return Engine(PARAMS, CONFIG, TOKENIZER)

    first = engine(6e6)
    slots, kept = first._core.batch_size(rows, None), first._core.prefixes(rows).slots
    later = engine(3 * 6e6)
    assert later._core.batch_size(rows, None) > slots
    later.keep_budget(first.free_bytes)
    assert (later._core.batch_size(rows, None), later._core.prefixes(rows).slots) == (slots, kept)
    smaller = engine(6e6 / 4)
    smaller.keep_budget(first.free_bytes)
    with pytest.raises(UserError, match=rf"The cache does not fit: {slots} slots .* fits"):
        smaller._core.batch_size(rows, None)
    assert smaller._core.batch_size(rows, 1) == 1, "what is asked is not what was kept"


def test_the_least_of_all_processes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda: 1000.0)
    other: dict[str, Any] = {"host": "another", "cache": 300.0}
    monkeypatch.setattr(budget, "everyones", lambda name, value: [value, other[name]])
    assert budget.find_budget(None, None).size == 300
    other["cache"] = 900.0
    assert budget.find_budget(None, None).size == 500, "half of the machine's"
    other["host"] = socket.gethostname()
    assert budget.find_budget(None, None).size == 250, "two processes live in one memory"
    other["host"] = "another"
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
