"""AdamW, its schedule and clipping against torch and transformers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from medtune_jax.config import OptimizerConfig
from medtune_jax.train.optimizer import make_optimizer, make_schedule

TOTAL, WARMUP, PEAK = 40, 7, 3e-3


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_the_learning_rate_is_transformers_at_every_step(name, warmup):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=PEAK)
    kind = "constant_with_warmup" if name == "constant" else name
    theirs = transformers.get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=TOTAL)
    ours = make_schedule(OptimizerConfig(learning_rate=PEAK, warmup_steps=warmup, schedule=name), TOTAL)
    for step in range(TOTAL):
        assert float(ours(step)) == pytest.approx(theirs.get_last_lr()[0], rel=1e-5, abs=PEAK * 1e-6)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_the_decay_ends_at_end_factor(name):
    schedule = make_schedule(OptimizerConfig(learning_rate=PEAK, warmup_steps=5, schedule=name, end_factor=0.1), TOTAL)
    assert float(schedule(TOTAL)) == pytest.approx(PEAK * 0.1)


def test_a_warm_up_longer_than_the_run_still_rises():
    schedule = make_schedule(OptimizerConfig(learning_rate=PEAK, warmup_steps=100), 10)
    assert [float(schedule(step)) for step in (0, 5, 9)] == pytest.approx([0.0, PEAK * 0.05, PEAK * 0.09])


def _params() -> dict:
    keys = jax.random.split(jax.random.key(3), 3)
    return {
        "embed_tokens": {"embedding": jax.random.normal(keys[0], (5, 4))},
        "layers": {
            "q_proj": {"kernel": jax.random.normal(keys[1], (2, 4, 4))},
            "input_layernorm": {"scale": jnp.ones((2, 4))},
        },
        "norm": {"scale": 1 + jax.random.normal(keys[2], (4,))},
    }


def _gradients(step: int, params: dict) -> dict:
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)


def test_ten_updates_equal_torchs_adamw_with_clipping():
    config = OptimizerConfig(learning_rate=1e-2, schedule="constant", weight_decay=0.2, clip_norm=1.5, b2=0.95)
    optimizer = make_optimizer(config, 10)
    params = _params()
    theirs = [torch.nn.Parameter(torch.from_numpy(np.array(x))) for x in jax.tree.leaves(params)]
    is_matrix = [path[-1].key != "scale" for path, _ in jax.tree.leaves_with_path(params)]
    groups = [
        {"params": [p for p, matrix in zip(theirs, is_matrix, strict=True) if matrix], "weight_decay": 0.2},
        {"params": [p for p, matrix in zip(theirs, is_matrix, strict=True) if not matrix], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    state = optimizer.transform.init(params)
    for step in range(10):
        grads = _gradients(step, params)
        updates, state = optimizer.transform.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for parameter, grad in zip(theirs, jax.tree.leaves(grads), strict=True):
            parameter.grad = torch.from_numpy(np.array(grad))
        torch.nn.utils.clip_grad_norm_(theirs, 1.5)
        adamw.step()
    for ours, parameter in zip(jax.tree.leaves(params), theirs, strict=True):
        np.testing.assert_allclose(ours, parameter.detach().numpy(), rtol=1e-5, atol=1e-7)


def test_weight_decay_moves_matrices_and_not_the_scales_of_norms():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0, schedule="constant", weight_decay=0.5), 10)
    params = _params()
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.transform.update(nothing, optimizer.transform.init(params), params)
    for (path, update), param in zip(jax.tree.leaves_with_path(updates), jax.tree.leaves(params), strict=True):
        expected = jnp.zeros_like(param) if path[-1].key == "scale" else -0.5 * param
        np.testing.assert_allclose(update, expected, rtol=1e-6)


def test_the_first_moment_may_be_bfloat16_and_the_second_is_float32():
    optimizer = make_optimizer(OptimizerConfig(first_moment_dtype="bfloat16"), 10)
    adam = next(s for s in jax.tree.leaves(optimizer.transform.init(_params()), is_leaf=_is_adam) if _is_adam(s))
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.mu)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.nu)} == {jnp.dtype(jnp.float32)}


def _is_adam(x) -> bool:
    return isinstance(x, optax.ScaleByAdamState)


def test_no_clipping_where_clip_norm_is_none():
    config = OptimizerConfig(learning_rate=1.0, schedule="constant", clip_norm=None, eps=1e3)  # nearly linear in g
    params = _params()
    sizes = []
    for factor in (1.0, 10.0):
        optimizer = make_optimizer(config, 10)
        grads = jax.tree.map(lambda g, factor=factor: factor * g, _gradients(0, params))
        updates, _ = optimizer.transform.update(grads, optimizer.transform.init(params), params)
        sizes.append(float(np.linalg.norm(np.concatenate([x.ravel() for x in jax.tree.leaves(updates)]))))
    assert math.isclose(sizes[1] / sizes[0], 10.0, rel_tol=0.05)
