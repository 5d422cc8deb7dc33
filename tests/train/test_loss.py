"""The fused loss against the plain one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import MODEL, distance

from medtune_jax.config import MeshConfig
from medtune_jax.model.llama import mask_padding
from medtune_jax.sharding import make_mesh
from medtune_jax.train.loss import PIECE_BYTES, chunk_size, linear_cross_entropy

B, M, D = 3, 50, MODEL.hidden_size
TARGET = 4 * MODEL.padded_vocab  # bytes of its logits


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, M, D)).astype(dtype)
    head = jax.random.normal(keys[1], (D, MODEL.padded_vocab)) * 0.3
    targets = jax.random.randint(keys[2], (B, M), 0, MODEL.vocab_size)
    weights = jnp.where(jax.random.uniform(keys[3], (B, M)) < 0.3, 0.0, 1.0).at[:, ::5].mul(5.0)
    return hidden, head, targets, weights


def plain_loss(hidden, head, targets, weights):
    logits = mask_padding(jnp.matmul(hidden.astype(jnp.float32), head), MODEL)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return jnp.sum(nll * weights), jnp.sum(nll * (weights > 0))


def fused_in_16s(hidden, head, targets, weights):
    return linear_cross_entropy(hidden, head, targets, weights, MODEL, 16 * TARGET)


def value_and_gradients(function, hidden, head, targets, weights):
    return jax.value_and_grad(lambda *x: function(*x, targets, weights), argnums=(0, 1), has_aux=True)(hidden, head)


@pytest.mark.parametrize("chunk", [1, 7, 50, 64, 128, 150, 1000])
def test_sums_and_gradients_are_those_of_the_plain_loss(chunk):
    def fused(hidden, head, targets, weights):
        return linear_cross_entropy(hidden, head, targets, weights, MODEL, chunk * TARGET)

    with jax.default_matmul_precision("highest"):
        (weighted, plain), grads = value_and_gradients(fused, *inputs())
        (expected_weighted, expected_plain), expected = value_and_gradients(plain_loss, *inputs())
        np.testing.assert_allclose([weighted, plain], [expected_weighted, expected_plain], rtol=1e-6)
        np.testing.assert_allclose(fused(*inputs()), [weighted, plain], rtol=1e-6)  # without gradients
    assert distance(grads, expected) < 2e-6


def test_padding_columns_get_no_probability_and_no_gradient():
    hidden, head, targets, weights = inputs()
    head = head.at[:, MODEL.vocab_size :].set(50.0)
    _, (_, d_head) = value_and_gradients(fused_in_16s, hidden, head, targets, weights)
    assert not np.any(d_head[:, MODEL.vocab_size :])


def test_bfloat16_activations_leave_loss_and_gradient_near_float32():
    (weighted, _), (d_hidden, d_head) = value_and_gradients(fused_in_16s, *inputs(jnp.bfloat16))
    (expected, _), grads = value_and_gradients(fused_in_16s, *inputs())
    assert d_hidden.dtype == jnp.bfloat16 and d_head.dtype == jnp.float32
    assert float(weighted) == pytest.approx(float(expected), rel=5e-3)
    assert distance((d_hidden.astype(jnp.float32), d_head), grads) < 2e-2


SHAPES = [(256, 48), (32, 300), (1, 4096)]
WIDE = dataclasses.replace(MODEL, vocab_size=32_000)


def traced(rows, targets):
    """Returns the program of the loss and its gradients for 32,000 tokens."""

    def function(hidden, head, targets, weights):
        return linear_cross_entropy(hidden, head, targets, weights, WIDE)[0]

    shapes = [((rows, targets, D), "float32"), ((D, 32_000), "float32")]
    shapes += [((rows, targets), "int32"), ((rows, targets), "float32")]
    gradients = jax.value_and_grad(function, argnums=(0, 1))
    return jax.make_jaxpr(gradients)(*(jax.ShapeDtypeStruct(*shape) for shape in shapes)).jaxpr


@pytest.mark.parametrize(("rows", "targets"), SHAPES)
def test_no_array_is_larger_than_a_piece_however_many_rows_there_are(rows, targets):
    assert PIECE_BYTES / 2 < 4 * largest_array(traced(rows, targets)) <= PIECE_BYTES


def test_eight_devices_hold_a_piece_each_of_their_own_targets():
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        own = largest_array(traced(256, 48))
    assert PIECE_BYTES / 2 < 4 * own <= PIECE_BYTES < 4 * 256 * 48 * 32_000 / 8


def largest_array(jaxpr) -> int:
    sizes = [var.aval.size for equation in jaxpr.eqns for var in equation.outvars if hasattr(var.aval, "size")]
    inner = [value for equation in jaxpr.eqns for value in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr)]
    return max(sizes + [largest_array(getattr(x, "jaxpr", x)) for x in inner if _is_jaxpr(x)])


def _is_jaxpr(value) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


@given(targets=st.integers(1, 10**6), vocab=st.integers(1, 300_000), budget=st.integers(1, 2**28))
def test_pieces_are_as_few_and_as_even_as_the_budget_allows(targets, vocab, budget):
    chunk = chunk_size(targets, vocab, budget)
    most = max(1, budget // (4 * vocab))
    assert 1 <= chunk <= min(most, targets)
    assert chunk == targets or chunk % 128 == 0 or most < 128
    pieces = -(-targets // chunk)
    assert pieces <= -(-targets // max(1, most - most % 128))
    assert pieces * chunk - targets < 128 * pieces


def test_llama_2_on_one_device_has_pieces_that_keep_the_multipliers_busy():
    """0.75 operations a byte and target, where an H100 does 295 (see train/loss.py)."""
    assert chunk_size(4096, 32_000) == 1024
    assert chunk_size(1100, 32_000) == 640  # not 1,024 and then 76 filled up with zeros


def test_unused_targets_do_not_count():
    hidden, head, targets, weights = inputs()
    unpadded = dataclasses.replace(MODEL, vocab_size=MODEL.padded_vocab)
    used = linear_cross_entropy(hidden, head, targets, weights, unpadded, 16 * TARGET)
    other = linear_cross_entropy(hidden, head, jnp.where(weights > 0, targets, 3), weights, unpadded, 16 * TARGET)
    assert [float(x) for x in used] == [float(x) for x in other]
