"""The fused loss against the plain one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import MODEL, distance

from medtune_jax.model.llama import mask_padding
from medtune_jax.train.loss import chunk_size, linear_cross_entropy

B, M, D = 3, 50, MODEL.hidden_size


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
    return linear_cross_entropy(hidden, head, targets, weights, MODEL, 16)


def value_and_gradients(function, hidden, head, targets, weights):
    return jax.value_and_grad(lambda *x: function(*x, targets, weights), argnums=(0, 1), has_aux=True)(hidden, head)


@pytest.mark.parametrize("chunk", [1, 7, 25, 50, 64])
def test_sums_and_gradients_are_those_of_the_plain_loss(chunk):
    def fused(hidden, head, targets, weights):
        return linear_cross_entropy(hidden, head, targets, weights, MODEL, chunk)

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


def test_no_array_holds_the_logits_of_all_targets():
    hidden, head, targets, weights = inputs()

    def function(hidden, head):
        return linear_cross_entropy(hidden, head, targets, weights, MODEL, 10)[0]

    jaxpr = jax.make_jaxpr(jax.grad(function, argnums=(0, 1)))(hidden, head)
    assert largest_array(jaxpr.jaxpr) < B * M * MODEL.padded_vocab / 4


def largest_array(jaxpr) -> int:
    sizes = [var.aval.size for equation in jaxpr.eqns for var in equation.outvars if hasattr(var.aval, "size")]
    inner = [value for equation in jaxpr.eqns for value in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr)]
    return max(sizes + [largest_array(getattr(x, "jaxpr", x)) for x in inner if _is_jaxpr(x)])


def _is_jaxpr(value) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def test_a_piece_of_logits_stays_below_its_budget():
    for rows, vocab in [(1, 32_000), (8, 32_000), (4, 128_256), (1, 512)]:
        assert chunk_size(rows, vocab) % 64 == 0
        assert chunk_size(rows, vocab) == 64 or 4 * rows * vocab * chunk_size(rows, vocab) <= 2**25


def test_unused_targets_do_not_count():
    hidden, head, targets, weights = inputs()
    unpadded = dataclasses.replace(MODEL, vocab_size=MODEL.padded_vocab)
    used = linear_cross_entropy(hidden, head, targets, weights, unpadded, 16)
    other = linear_cross_entropy(hidden, head, jnp.where(weights > 0, targets, 3), weights, unpadded, 16)
    assert [float(x) for x in used] == [float(x) for x in other]
