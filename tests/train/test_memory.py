"""What a step holds: recomputation and host memory change no number, logits exist in pieces, the state is given up."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from tiny_run import GRID_MODEL, MODEL, distance, keep_gradients, run_steps, settings, tiny_data

from medtune_jax import sharding
from medtune_jax.config import MeshConfig
from medtune_jax.errors import UserError
from medtune_jax.train.abstract import full_batch, lower_step

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


@pytest.mark.parametrize("mesh", [None, EIGHT], ids=["one device", "data, fsdp and tensor"])
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


@pytest.mark.parametrize("sizes", [MeshConfig(fsdp=1), EIGHT], ids=["one device", "data, fsdp and tensor"])
def test_a_step_gives_its_state_up_and_holds_logits_in_pieces(sizes):
    """8 x 512 targets of 32,000 tokens: in float32, half a GB on one device."""
    model = dataclasses.replace(GRID_MODEL, vocab_size=32_000, num_layers=1, max_positions=512)
    config = settings(data__max_length=512, train__batch_size=8, model__remat="full")
    mesh = mesh_of(sizes, 1 if sizes.tensor == 1 else 8)
    lowered = lower_step(config, model, mesh)
    compiled = lowered.compile()
    text = compiled.as_text()

    state = jax.tree.leaves(lowered.in_tree.unflatten(jax.tree.leaves(compiled.input_shardings[0]))[0][0])
    [aliases] = re.findall(r"input_output_alias=\{(.*?)\}, entry", text)
    assert aliases.count("-alias)") == len(state)

    logits = 8 * 512 * model.padded_vocab // mesh.size
    sizes_of_floats = [np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
    assert max(sizes_of_floats) <= logits / 2
