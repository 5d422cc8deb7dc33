"""What devices send each other in a step of decoding: activations over `tensor`, and over `data` a flag."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_engine import tiny_config

from medtune_jax.config import MeshConfig
from medtune_jax.generate.beam_steps import beam_steps
from medtune_jax.generate.cache import empty_cache
from medtune_jax.generate.decode import decode_steps
from medtune_jax.generate.sampling import Greedy, Sample
from medtune_jax.generate.weights import decoding_weights
from medtune_jax.model.llama import init_params
from medtune_jax.sharding import make_mesh

CONFIG = tiny_config(256, num_heads=8, num_kv_heads=4, num_layers=1, head_dim=16, hidden_size=128)
SLOTS, POSITIONS, BEAMS, STEPS, TENSOR = 16, 128, 2, 16, 2
_COLLECTIVE = re.compile(r" = (.+?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
_SIZES = re.compile(r"\w+\[([\d,]*)\]")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("method", [Greedy(1.2), Sample(), Sample(top_k=5), Sample(top_p=0.9), "beams"], ids=str)
def test_over_data_a_step_sends_flags_alone(method: Any, dtype: str) -> None:
    if dtype == "int8" and method not in (Greedy(1.2), "beams"):
        pytest.skip("the cache is written alike, however a token is chosen")
    mesh = make_mesh(MeshConfig(data=4, fsdp=1, tensor=TENSOR))
    weights = decoding_weights(init_params(jax.random.key(0), CONFIG), CONFIG, jnp.dtype("float32"), mesh)
    row, enough = np.zeros(SLOTS, np.int32), np.int32(SLOTS)
    with jax.set_mesh(mesh):
        cache = empty_cache(CONFIG, SLOTS, POSITIONS, jnp.dtype(dtype))
        if method == "beams":
            scores, scales = np.zeros((SLOTS, BEAMS), np.float32), np.ones((SLOTS, STEPS), np.float32)
            seen = np.zeros((SLOTS, BEAMS, POSITIONS), bool)
            token = np.zeros((SLOTS, BEAMS), np.int32)
            state = (token, seen, scores, scores, row, row, row, scales, scales, enough)
            lowered = beam_steps.lower(weights, cache, *state, config=CONFIG, at_once=False, eos_id=2)
        else:
            texts = np.zeros((SLOTS, POSITIONS), np.int32)
            state = (row, row, row, row, row, np.uint32(0), texts, enough)
            lowered = decode_steps.lower(weights, cache, *state, config=CONFIG, method=method, eos_id=2, steps=STEPS)
    sent = across_data(lowered.compile().as_text())
    assert sent, "the count of rows that are done crosses the mesh"
    assert max(sent.values()) == 1, sent


def across_data(program: str) -> dict[str, int]:
    """Returns collectives in loops whose groups hold devices of several data shards, to the values of their result."""
    inside = program[: program.index("\nENTRY ")]
    found = {}
    for line in inside.splitlines():
        told = _COLLECTIVE.search(line)
        if told and any(len({device // TENSOR for device in group}) > 1 for group in groups(line)):
            found[line.strip()] = max(int(np.prod([int(n) for n in s.split(",") if n])) for s in _SIZES.findall(told[1]))
    return found


def groups(line: str) -> list[list[int]]:
    """Returns the devices that speak with each other."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        return [list(map(int, pair)) for pair in re.findall(r"(\d+),(\d+)", pairs[1])]
    if told := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, of, order = ([int(n) for n in (part or "").split(",") if n] for part in told.groups())
        devices = np.arange(np.prod(of)).reshape(of)
        return np.transpose(devices, order or None).reshape(shape).tolist()
    told = re.search(r"replica_groups=\{(.*?)\}(?:,|$| )", line)
    assert told, f"unknown groups: {line}"
    return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", "{" + told[1].strip("{}") + "}")]
