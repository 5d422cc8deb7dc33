"""What the model promises beside parity: documents do not leak, the cache changes nothing, one table rules."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medtune_jax.model.linen import Llama
from medtune_jax.model.llama import (
    PARAMETERS,
    LlamaConfig,
    Params,
    RopeScaling,
    abstract_params,
    forward,
    init_params,
    logits,
    num_params,
    parameter_rows,
)

CONFIG = LlamaConfig(
    vocab_size=131,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=256,
    rms_norm_eps=1e-5,
    rope_theta=1000.0,
    rope_scaling=RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64),
    initializer_range=0.2,
)
LENGTHS = (100, 1, 60, 40)  # documents of one pack; the blocks of 128 queries cut the third
PADDING = 23


@pytest.fixture(scope="module")
def params() -> Params:
    return init_params(jax.random.key(0), CONFIG)


@jax.jit
def _logits(params: Params, tokens_BS: jax.Array, positions_BS: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
    hidden = forward(params, CONFIG, tokens_BS, positions_BS=positions_BS, segment_ids_BS=segment_ids_BS)
    return logits(params, CONFIG, hidden)[..., : CONFIG.vocab_size]


def pack(documents: list[np.ndarray]) -> tuple[jax.Array, ...]:
    """Returns tokens, positions and segment ids, each [1, S]."""
    padding = [0] * PADDING
    tokens = np.concatenate([*documents, padding])
    positions = np.concatenate([*(np.arange(len(document)) for document in documents), padding])
    segments = np.concatenate([*(np.full(len(document), i + 1) for i, document in enumerate(documents)), padding])
    return tuple(jnp.asarray(values[None], jnp.int32) for values in (tokens, positions, segments))


def documents() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, CONFIG.vocab_size, length, dtype=np.int32) for length in LENGTHS]


def bounds(i: int) -> slice:
    return slice(sum(LENGTHS[:i]), sum(LENGTHS[: i + 1]))


@pytest.mark.parametrize("changed", range(len(LENGTHS)))
def test_changing_a_document_leaves_its_neighbours_bit_unchanged(changed: int, params: Params) -> None:
    before = np.asarray(_logits(params, *pack(documents())))
    perturbed = documents()
    perturbed[changed] = (perturbed[changed] + 7) % CONFIG.vocab_size
    after = np.asarray(_logits(params, *pack(perturbed)))
    assert np.isfinite(before).all()
    for i in range(len(LENGTHS)):
        assert np.array_equal(before[0, bounds(i)], after[0, bounds(i)]) == (i != changed)


def test_a_later_token_does_not_reach_an_earlier_one(params: Params) -> None:
    before = np.asarray(_logits(params, *pack(documents())))
    perturbed = documents()
    perturbed[0][50] = (perturbed[0][50] + 1) % CONFIG.vocab_size
    after = np.asarray(_logits(params, *pack(perturbed)))
    assert np.array_equal(before[0, :50], after[0, :50])
    assert not np.array_equal(before[0, 50], after[0, 50])


def test_packed_documents_give_the_logits_of_each_alone(params: Params) -> None:
    packed = np.asarray(_logits(params, *pack(documents())))
    for i, document in enumerate(documents()):
        alone = np.asarray(_logits(params, *pack([document])))[0, : len(document)]
        np.testing.assert_allclose(packed[0, bounds(i)], alone, atol=2e-5, rtol=0)


def test_padding_gives_finite_gradients(params: Params) -> None:
    batch = pack(documents())
    gradient = jax.jit(jax.grad(lambda p: jnp.mean(_logits(p, *batch) ** 2)))(params)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_remat_changes_no_gradient(params: Params) -> None:
    tokens, positions, segments = pack(documents()[1:3])

    def gradient(remat: str) -> Params:
        def loss(p: Params) -> jax.Array:
            hidden = forward(p, CONFIG, tokens, positions_BS=positions, segment_ids_BS=segments, remat=remat)
            return jnp.mean(hidden**2)

        return jax.jit(jax.grad(loss))(params)

    for a, b in zip(jax.tree.leaves(gradient("none")), jax.tree.leaves(gradient("full")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_the_linen_module_has_the_table_as_its_tree_and_the_same_logits(tied: bool) -> None:
    config = LlamaConfig(**{**CONFIG.__dict__, "tie_embeddings": tied})
    tokens = jnp.arange(24).reshape(2, 12)
    variables = jax.jit(Llama(config).init)(jax.random.key(0), tokens)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables["params"])
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_params(config))
    positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)
    hidden = forward(variables["params"], config, tokens, positions_BS=positions)
    expected = logits(variables["params"], config, hidden)
    np.testing.assert_allclose(np.asarray(Llama(config).apply(variables, tokens)), expected, atol=1e-5, rtol=1e-5)


def test_the_number_of_parameters_is_that_of_llama_2_7b() -> None:
    seven = LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128, 4096, 1e-5, 10000.0)
    assert num_params(seven) == 6_738_415_616  # the figure of its model card's checkpoint


def test_every_leaf_is_drawn_from_its_own_stream_and_norms_begin_at_one(params: Params) -> None:
    leaves = {"/".join(str(k.key) for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    assert set(leaves) == {row.path for row in PARAMETERS} == {row.path for row in parameter_rows(CONFIG)}
    for row in PARAMETERS:
        if row.ones:
            assert np.all(leaves[row.path] == 1)
        else:
            assert np.std(leaves[row.path]) == pytest.approx(CONFIG.initializer_range, rel=0.1)
    assert not np.array_equal(leaves["layers/gate_proj/kernel"], leaves["layers/up_proj/kernel"])


def test_the_embeddings_gradient_adds_up_in_the_parameters_dtype_whatever_is_computed_in(params: Params) -> None:
    def loss(params: Params) -> jax.Array:
        tokens = jnp.zeros((1, 8), jnp.int32)
        hidden = forward(params, CONFIG, tokens, positions_BS=tokens, compute_dtype=jnp.bfloat16)
        return jnp.sum(hidden.astype(jnp.float32))

    sums = re.findall(r"(\w+)\[256,32\] = scatter-add", str(jax.make_jaxpr(jax.grad(loss))(params)))
    assert sums == ["f32"]  # in bfloat16 a token's 257th occurrence of the same gradient would be lost
