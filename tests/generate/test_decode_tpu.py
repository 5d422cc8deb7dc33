"""What decoding does otherwise on a TPU: as its real compiler makes it, without a TPU, and computed on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_engine import LongestMatch, tiny_config

from medtune_jax.config import MeshConfig
from medtune_jax.generate.cache import empty_cache
from medtune_jax.generate.decode import decode_steps
from medtune_jax.generate.engine import Engine
from medtune_jax.generate.sampling import Beam, Greedy
from medtune_jax.generate.weights import decoding_weights
from medtune_jax.model.llama import abstract_params, init_params
from medtune_jax.sharding import BATCH_AXES, make_mesh

CONFIG = tiny_config(
    512, hidden_size=512, intermediate_size=1024, num_heads=8, num_kv_heads=8, head_dim=128, max_positions=2048
)
SLOTS, POSITIONS = 32, 2048


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_cache_is_written_in_place(
    dtype: str, tpu_devices: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    mesh = make_mesh(MeshConfig(data=4, fsdp=1, tensor=2), tpu_devices("v5e:2x4"))

    def placed(leaf: Any, *axes: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    def weight(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path)
        if leaf.ndim == 1:
            return placed(leaf)
        rows = any(part in name for part in ("o_proj", "down_proj", "embedding"))
        return placed(leaf, "tensor", None) if rows else placed(leaf, None, "tensor")

    weights = jax.eval_shape(
        lambda params: decoding_weights(params, CONFIG, jnp.bfloat16, None), abstract_params(CONFIG, jnp.bfloat16)
    )
    weights = jax.tree_util.tree_map_with_path(weight, weights)
    shapes = jax.eval_shape(lambda: empty_cache(CONFIG, SLOTS, POSITIONS, jnp.dtype(dtype)))
    assert shapes.length == POSITIONS
    # Values have tokens before heads there, scales heads before tokens.
    cache = jax.tree.map(lambda leaf: placed(leaf, BATCH_AXES, *(None,) * (leaf.ndim - 3), "tensor"), shapes)
    of_rows = [placed(jax.ShapeDtypeStruct((SLOTS,), jnp.int32))] * 5
    seed = placed(jax.ShapeDtypeStruct((), jnp.uint32))
    with jax.set_mesh(mesh):
        compiled: Any = decode_steps.lower(
            weights, cache, *of_rows, seed, config=CONFIG, method=Greedy(), eos_id=2, steps=16
        ).compile()
    memory = compiled.memory_analysis()
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)) // mesh.size
    assert memory.alias_size_in_bytes >= whole, "the cache is not given up"
    assert memory.temp_size_in_bytes < whole / (2 * CONFIG.num_layers), "some keys or values are held twice"


@pytest.mark.parametrize("cache_dtype", ["int8", pytest.param(None, marks=pytest.mark.slow)])
def test_what_serves_a_tpu_changes_no_text(cache_dtype: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens before heads in the cache, and queries padded to whole rows of the matrix unit, computed on the CPU."""
    tokenizer = LongestMatch()
    config = tiny_config(tokenizer.vocab_size, num_layers=1, hidden_size=24, intermediate_size=40, head_dim=6)
    params = init_params(jax.random.key(1), config)
    prompts = [[1, *range(5, 5 + n)] for n in (3, 40, 11)]
    beam = Beam(num_beams=2)

    def texts() -> list[Any]:
        engine = Engine(params, config, tokenizer, cache_dtype=cache_dtype)
        drafted = engine.generate(prompts, method=Greedy(), max_new_tokens=20, batch_size=2, draft="prompt")
        written = [
            engine.generate(prompts, method=method, max_new_tokens=20, batch_size=2) for method in (Greedy(), beam)
        ]
        return [[answer.tokens for answer in answers] for answers in (drafted, *written)]

    plain = texts()
    jax.clear_caches()
    with monkeypatch.context() as patched:
        patched.setattr(jax, "default_backend", lambda: "tpu")
        assert texts() == plain
    jax.clear_caches()  # what was traced for a TPU
