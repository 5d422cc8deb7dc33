"""What a step holds: recomputation and host memory change no number, logits exist in pieces, the state is given up."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from tiny_run import GRID_MODEL, MODEL, distance, keep_gradients, run_steps, settings, tiny_data

from medtune_jax import sharding
from medtune_jax.config import MeshConfig
from medtune_jax.errors import UserError
from medtune_jax.model.llama import abstract_params, forward
from medtune_jax.train.abstract import full_batch, lower_step
from medtune_jax.train.step import make_eval_step

EIGHT = MeshConfig(data=2, fsdp=2, tensor=2)


def mesh_of(config: MeshConfig, count: int):
    return sharding.make_mesh(config, jax.devices()[:count])


@pytest.fixture(scope="module")
def batches(tokenizer):
    config = settings(train__batch_size=4, train__steps=3)
    data = tiny_data(tokenizer, config)
    return [data.batch(step) for step in range(3)]


@pytest.fixture(scope="module")
def everything_kept(batches):
    state, _ = run_steps(settings(train__batch_size=4), GRID_MODEL, batches[:1], optimizer=keep_gradients())
    return state.opt_state


@pytest.mark.parametrize("remat", ["dots", "offload", "full"])
def test_gradients_do_not_depend_on_what_is_kept(remat, batches, everything_kept):
    config = settings(model__remat=remat, train__batch_size=4)
    state, _ = run_steps(config, GRID_MODEL, batches[:1], optimizer=keep_gradients())
    assert distance(state.opt_state, everything_kept) < 1e-6


def test_layer_inputs_wait_in_host_memory_on_a_mesh_too(batches, everything_kept):
    config = settings(model__remat="offload", train__batch_size=4)
    state, _ = run_steps(config, GRID_MODEL, batches[:1], mesh=EIGHT, optimizer=keep_gradients())
    assert distance(state.opt_state, everything_kept) < 1e-5


@pytest.mark.parametrize(
    "mesh",
    [pytest.param(None, marks=pytest.mark.slow, id="one device"), pytest.param(EIGHT, id="data, fsdp and tensor")],
)
def test_moments_in_host_memory_give_the_same_state(mesh, batches):
    found = {}
    for offload in (False, True):
        config = settings(optimizer__offload=offload, train__batch_size=4, train__steps=3)
        found[offload], _ = run_steps(config, GRID_MODEL, batches, mesh=mesh)
    moments = [leaf for leaf in jax.tree.leaves(found[True].opt_state) if leaf.ndim]
    assert {leaf.sharding.memory_kind for leaf in moments} == {"pinned_host"}
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(found[True].params)} == {"device"}
    for ours, expected in zip(jax.tree.leaves(found[True]), jax.tree.leaves(found[False]), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"optimizer__offload": True}, "optimizer.offload"), ({"model__remat": "offload"}, "model.remat=offload")],
)
def test_a_backend_without_host_memory_is_an_error_that_names_the_setting(changes, words, monkeypatch):
    monkeypatch.setattr(sharding, "_HOST", "memory_of_another_backend")
    with pytest.raises(UserError, match=words):
        lower_step(settings(**changes), MODEL, mesh_of(MeshConfig(fsdp=1), 1))


def test_the_largest_batch_has_the_arrays_of_a_real_one(batches):
    real = {name: (x.shape[0], x.dtype) for name, x in batches[0].items()}
    planned = full_batch(settings(train__batch_size=4))
    assert {name: (x.shape[0], x.dtype) for name, x in planned.items()} == real
    assert all(planned[name].shape[1] >= x.shape[1] for name, x in batches[0].items())


@pytest.mark.parametrize(
    ("sizes", "rows", "length"),
    [(MeshConfig(fsdp=1), 256, 48), (EIGHT, 8, 2048)],
    ids=["one device, many short rows", "data, fsdp and tensor"],
)
def test_a_step_gives_its_state_up_and_holds_logits_in_pieces(sizes, rows, length):
    """12,288 targets of 32,000 tokens, and 4,096 on each device of half as many: 1.5 GB and 262 MB in float32."""
    model = dataclasses.replace(GRID_MODEL, vocab_size=32_000, num_layers=1, max_positions=length)
    config = settings(data__max_length=length, train__batch_size=rows, model__remat="full")
    mesh = mesh_of(sizes, 1 if sizes.tensor == 1 else 8)
    lowered = lower_step(config, model, mesh)
    compiled = lowered.compile()
    text = compiled.as_text()

    state = jax.tree.leaves(lowered.in_tree.unflatten(jax.tree.leaves(compiled.input_shardings[0]))[0][0])
    [aliases] = re.findall(r"input_output_alias=\{(.*?)\}, entry", text)
    assert aliases.count("-alias)") == len(state)

    logits = rows * length * model.padded_vocab // mesh.size
    sizes_of_floats = [np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
    assert max(sizes_of_floats) <= logits / 2


@pytest.mark.parametrize(("batch", "accumulation"), [(6, 1), (8, 4)])
def test_a_batch_that_the_devices_cannot_share_out_is_refused_before_it_is_compiled(batch, accumulation):
    config = settings(train__batch_size=batch, train__accumulation=accumulation)
    mesh = mesh_of(MeshConfig(fsdp=8), 8)
    for make in (lower_step, make_eval_step):
        with pytest.raises(
            UserError, match=rf"micro-batch of {batch // accumulation} .* cannot be split over 8 devices"
        ):
            make(config, GRID_MODEL, mesh)


def forward_kernels(remat):
    """Returns how often the gradient of the layers' loop runs the forward pass of splash attention."""
    model = dataclasses.replace(GRID_MODEL, head_dim=64, max_positions=128)
    tokens = np.ones((1, 128), np.int32)

    def objective(params):
        return forward(params, model, tokens, positions_BS=tokens, attention="splash", remat=remat).sum()

    jaxpr = jax.make_jaxpr(jax.grad(objective))(abstract_params(model)).jaxpr
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return str(used).count("name=splash_mha_fwd")


def test_dots_keeps_what_splash_attention_needs_of_its_forward_pass():
    assert forward_kernels("full") > forward_kernels("dots") == forward_kernels("none")
