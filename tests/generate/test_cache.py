"""The cache: int8 storage is close to exact and as small as it says, no step copies it, and a mesh changes nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine import LongestMatch, tiny_config, tiny_engine

from medtune_jax.config import MeshConfig
from medtune_jax.data.prompts import get_template
from medtune_jax.errors import UserError
from medtune_jax.generate import decode
from medtune_jax.generate.cache import Cache, Stored, copy_in, copy_out, empty_cache, resize, write
from medtune_jax.generate.engine import Engine, TemplateRequest
from medtune_jax.generate.sampling import Greedy
from medtune_jax.generate.weights import decoding_weights
from medtune_jax.model.llama import init_params
from medtune_jax.sharding import make_mesh
from medtune_jax.tasks.ner import NerTask

TOKENIZER = LongestMatch()
CONFIG = tiny_config(TOKENIZER.vocab_size, num_heads=8, num_kv_heads=4, intermediate_size=64)
PARAMS = init_params(jax.random.key(0), CONFIG)
PROMPTS = [[1, *(np.random.default_rng(n).integers(3, 90, n).tolist())] for n in (1, 30, 7, 64, 17)]
TASK = NerTask()
TEXTS = ("a b c", "fever of T-cell x", "ataxia")
REQUESTS = [TemplateRequest("Tag.", text, TASK.allowed(text)) for text in TEXTS]


@pytest.fixture(scope="module")
def exact() -> Engine:
    return Engine(PARAMS, CONFIG, TOKENIZER)


@pytest.fixture(scope="module")
def small() -> Engine:
    return Engine(PARAMS, CONFIG, TOKENIZER, cache_dtype="int8")


def test_logits_behind_an_int8_cache_are_within_four_percent_of_their_spread() -> None:
    weights = decoding_weights(PARAMS, CONFIG, jnp.dtype("float32"), None)
    tokens = np.random.default_rng(0).integers(3, 90, (4, 96)).astype(np.int32)
    seen = []
    for dtype in (jnp.float32, jnp.int8):
        cache = empty_cache(CONFIG, 4, 128, dtype)
        cache = decode.prefill(weights, cache, tokens[:, :64], np.full(4, 64), np.arange(4), config=CONFIG)
        where = np.broadcast_to(np.arange(32), (4, 32))
        columns = np.arange(CONFIG.vocab_size)
        start = np.full(4, 64, np.int32)
        _, logits = decode.draft_logits(weights, cache, tokens[:, 64:], start, where, columns, config=CONFIG)
        seen.append(np.asarray(logits))
    error = np.sqrt(np.mean((seen[0] - seen[1]) ** 2)) / seen[0].std()
    assert 0 < error < 0.04  # 0.020 was seen: this model is drawn so that its logits hang on everything


def test_greedy_with_an_int8_cache_mostly_agrees(exact: Engine, small: Engine) -> None:
    whole = exact.generate(PROMPTS, method=Greedy(), max_new_tokens=8)
    also = small.generate(PROMPTS, method=Greedy(), max_new_tokens=8)
    agreed = [a == b for x, y in zip(whole, also, strict=True) for a, b in zip(x.tokens, y.tokens, strict=False)]
    assert sum(agreed) > 0.7 * len(agreed) > 20


def test_template_outputs_stay_well_formed_with_an_int8_cache(small: Engine) -> None:
    for request, answer in zip(REQUESTS, small.decode_template(REQUESTS, get_template("alpaca")), strict=True):
        assert not TASK.parse(answer.text, request.input).problems


def test_a_mesh_changes_nothing_of_an_int8_cache(small: Engine) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=4))
    many = Engine(PARAMS, CONFIG, TOKENIZER, mesh=mesh, cache_dtype="int8")
    ask: dict[str, Any] = {"method": Greedy(), "max_new_tokens": 8}
    assert many.generate(PROMPTS, **ask) == small.generate(PROMPTS, **ask)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_no_step_copies_the_cache(dtype: Any) -> None:
    config = tiny_config(TOKENIZER.vocab_size, head_dim=64)  # so that scores are small beside keys
    weights = decoding_weights(init_params(jax.random.key(0), config), config, jnp.dtype("float32"), None)
    cache = empty_cache(config, 8, 4096, dtype)
    row = np.ones(8, np.int32)
    compiled: Any = decode.decode_steps.lower(
        weights, cache, *[row] * 5, np.uint32(0), config=config, method=Greedy(), eos_id=2, steps=16
    ).compile()
    one_layer = sum(leaf.nbytes for leaf in jax.tree.leaves((cache.k[0], cache.v[0])))
    assert compiled.memory_analysis().temp_size_in_bytes < one_layer


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-20, 1e-3, 1.0, 1e4]))
def test_what_is_written_as_int8_is_read_within_half_a_step(seed: int, size: float) -> None:
    new = size * jax.random.normal(jax.random.key(seed), (2, 3, 4, 8))
    empty = Stored(jnp.zeros((2, 4, 16, 8), jnp.int8), jnp.zeros((2, 4, 16)))
    positions = jnp.array([[0, 1, 2], [14, 15, 16]])
    full = write(empty, new, positions)
    assert full.scale is not None
    read = np.moveaxis(np.asarray(full.values * full.scale[..., None]), 1, 2)
    step = np.abs(new).max(axis=-1, keepdims=True) / 127
    assert (np.abs(read[0, :3] - new[0]) <= 0.501 * step[0]).all()
    assert (np.abs(read[1, 14:] - new[1, :2]) <= 0.501 * step[1, :2]).all()
    assert not read[0, 3:].any() and not read[1, :14].any(), "what lies beyond the end is written nowhere"


def test_zeros_are_written_as_zeros() -> None:
    empty = Stored(jnp.ones((1, 1, 1, 8), jnp.int8), jnp.ones((1, 1, 1)))
    full = write(empty, jnp.zeros((1, 1, 1, 8)), jnp.zeros((1, 1), jnp.int32))
    assert not full.values.any() and full.scale is not None and not full.scale.any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_what_a_cache_holds_outlives_a_change_of_its_length(dtype: Any) -> None:
    cache = empty_cache(CONFIG, 2, 128, dtype)
    new = jax.random.normal(jax.random.key(0), (2, 5, CONFIG.num_kv_heads, CONFIG.head_dim))
    positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
    cache = Cache(*(tuple(write(stored, new, positions) for stored in part) for part in cache))
    before = jax.tree.map(lambda leaf: np.array(leaf[:, :, :5]), cache)
    longer = resize(cache, 256)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
    assert longer.length == 256
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(lambda leaf: leaf[:, :, :5], longer))
    shorter = resize(longer, 64)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(lambda leaf: leaf[:, :, :5], shorter))


def test_a_beginning_is_copied_with_its_scales() -> None:
    values = jnp.arange(3 * 2 * 4 * 8, dtype=jnp.int8).reshape(3, 2, 4, 8)
    kept = Stored(values, jnp.arange(24.0).reshape(3, 2, 4))
    part = copy_out(kept, jnp.array([2, 0]), 6)
    assert part.values.shape == (2, 2, 6, 8) and part.scale is not None and not part.scale[:, :, 4:].any()
    full = Stored(jnp.zeros((4, 2, 10, 8), jnp.int8), jnp.zeros((4, 2, 10)))
    full = copy_in(full, part, jnp.array([3, 4]))  # 4 is beyond the last slot
    np.testing.assert_array_equal(full.values[3, :, :4], values[2])
    assert not full.values[:3].any()


def test_other_storage_is_refused() -> None:
    with pytest.raises(UserError, match="cache_dtype 'fp8' is not known: int8"):
        Engine(PARAMS, CONFIG, TOKENIZER, cache_dtype="fp8")
    assert tiny_engine(TOKENIZER)[0]._core.stored == jnp.float32
