"""What devices that share out the slots send each other in a step of decoding: a flag."""

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
SLOTS, POSITIONS, BEAMS, STEPS = 16, 128, 2, 16
_KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
_COLLECTIVE = re.compile(rf" = (.+?) (?:{_KINDS})(?:-start)?\(")
_SIZES = re.compile(r"\w+\[([\d,]*)\]")


# The cache is written alike, however a token is chosen.
METHODS = [Greedy(1.2), Sample(), Sample(top_k=5), Sample(top_p=0.9), "beams"]
CASES = [*((method, "float32") for method in METHODS), (Greedy(1.2), "int8"), ("beams", "int8")]


@pytest.mark.parametrize(("method", "dtype"), CASES, ids=str)
def test_over_data_a_step_sends_flags_alone(method: Any, dtype: str) -> None:
    mesh = make_mesh(MeshConfig(data=8, fsdp=1))
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
    sent = sent_in_loops(lowered.compile().as_text())
    assert sent, "the count of rows that are done crosses the mesh"
    assert max(sent.values()) == 1, sent


def sent_in_loops(program: str) -> dict[str, int]:
    """Returns the collectives in loops, to the values of their largest result."""
    found = {}
    for line in program[: program.index("\nENTRY ")].splitlines():
        if told := _COLLECTIVE.search(line):
            shapes = [[int(n) for n in sizes.split(",") if n] for sizes in _SIZES.findall(told[1])]
            found[line.strip()] = max(int(np.prod(shape)) for shape in shapes)
    return found
