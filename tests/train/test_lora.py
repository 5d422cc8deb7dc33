"""What of a LoRA run is trained, kept and repeatable: adapters, and nothing else."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from lora_run import lora_settings, run_lora_steps
from tiny_run import GRID_MODEL, MODEL, distance, settings, tiny_data

from medtune_jax.config import MeshConfig
from medtune_jax.config_values import override
from medtune_jax.model.llama import parameter_rows
from medtune_jax.sharding import make_mesh
from medtune_jax.train.abstract import full_batch
from medtune_jax.train.loop import train
from medtune_jax.train.optimizer import make_optimizer
from medtune_jax.train.saved.checkpoints import Checkpoints
from medtune_jax.train.state import abstract_state
from medtune_jax.train.step import _dropout_keys, abstract_batch, make_eval_step, make_train_step
from medtune_jax.train.trainable import abstract_frozen

ROWS = {"train__batch_size": 8, "train__steps": 3}


@pytest.fixture(scope="module")
def dropped(tokenizer) -> Any:
    """(configuration with dropout, batches, what one device makes of them)."""
    config = lora_settings(dropout=0.3, **ROWS)
    data = tiny_data(tokenizer, config, count=100)
    batches = [data.batch(step) for step in range(3)]
    return config, batches, run_lora_steps(config, GRID_MODEL, batches)


@pytest.mark.parametrize(
    ("accumulation", "mesh"),
    [(1, MeshConfig(data=2, fsdp=2, tensor=2)), (4, None)],
    ids=["data, fsdp and tensor", "four micro-batches"],
)
def test_dropout_does_not_depend_on_the_layout(dropped, accumulation, mesh):
    config, batches, (expected_state, expected) = dropped
    config = override(config, {"train.accumulation": str(accumulation)})
    state, metrics = run_lora_steps(config, GRID_MODEL, batches, mesh=mesh)
    np.testing.assert_allclose([m["loss"] for m in metrics], [m["loss"] for m in expected], rtol=1e-5)
    assert distance(state.params, expected_state.params) < 1e-4


def test_dropout_is_decided_by_the_seed_the_step_and_the_row():
    keys = [_dropout_keys(seed, np.int32(step), 3) for seed, step in ((0, 0), (0, 1), (1, 0))]
    drawn = {tuple(data) for key in keys for data in np.asarray(jax.random.key_data(key)).tolist()}
    assert len(drawn) == 3 * 3
    np.testing.assert_array_equal(*(jax.random.key_data(_dropout_keys(0, np.int32(1), rows)[:2]) for rows in (2, 5)))


def test_evaluation_draws_no_random_numbers(dropped):
    config, [batch, *_], _ = dropped
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, 3)
    with jax.set_mesh(mesh):
        frozen, inputs = abstract_frozen(config, GRID_MODEL, mesh), abstract_batch(batch, mesh)
        state = abstract_state(config, GRID_MODEL, optimizer, mesh)
        update = jax.make_jaxpr(make_train_step(config, GRID_MODEL, optimizer, mesh))(state, frozen, inputs)
        evaluation = jax.make_jaxpr(make_eval_step(config, GRID_MODEL, mesh))(state.params, frozen, inputs)
    assert "random_bits" in str(update)
    assert "random" not in str(evaluation)


def products(jaxpr: Any) -> set[tuple[int, ...]]:
    """Returns the shapes of all products in a program, within loops and shard_maps too."""
    found = {var.aval.shape for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general" for var in eqn.outvars}
    params = [value for eqn in jaxpr.eqns for value in jax.tree.leaves(eqn.params, is_leaf=is_jaxpr)]
    return found.union(*(products(getattr(value, "jaxpr", value)) for value in params if is_jaxpr(value)))


def is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def gradients_of_weights(config: Any, sizes: MeshConfig) -> set[str]:
    """Names the base's matrices of whose shape (or its transpose) some product is that the update needs.

    Of the head, one device's columns: its gradient is computed within a shard_map.
    """
    mesh = make_mesh(sizes, jax.devices()[: 8 if sizes.tensor > 1 else 1])
    optimizer = make_optimizer(config.optimizer, 6)
    with jax.set_mesh(mesh):
        update = make_train_step(config, MODEL, optimizer, mesh)
        state, frozen = abstract_state(config, MODEL, optimizer, mesh), abstract_frozen(config, MODEL, mesh)
        jaxpr = jax.make_jaxpr(update)(state, frozen, abstract_batch(full_batch(config), mesh)).jaxpr
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    shapes = products(used)
    matrices = {row.path: row.shape(MODEL)[-2:] for row in parameter_rows(MODEL) if row.path.endswith("kernel")}
    matrices["lm_head/kernel"] = (MODEL.hidden_size, MODEL.padded_vocab // sizes.tensor)
    return {path for path, shape in matrices.items() if {shape, shape[::-1]} & shapes}


@pytest.mark.parametrize("precision", ["float32", "bf16_compute"])
@pytest.mark.parametrize("sizes", [MeshConfig(fsdp=1), MeshConfig(data=2, fsdp=2, tensor=2)], ids=["one", "eight"])
def test_no_gradient_of_the_base_nor_of_its_head_is_computed(sizes, precision):
    changes = {"train__precision": precision, "train__batch_size": 8}
    every = {row.path for row in parameter_rows(MODEL) if row.path.endswith("kernel")}
    assert gradients_of_weights(settings(**changes), sizes) == every
    assert gradients_of_weights(lora_settings(**changes), sizes) == set()


def test_state_and_checkpoint_hold_adapters_only(model_folder, data_folder, tmp_path):
    config = lora_settings(
        model_folder,
        data_folder,
        targets=["q_proj", "v_proj"],
        train__steps=1,
        train__batch_size=8,
        evaluation__every_steps=0,
    )
    train(config, tmp_path / "run")
    state = abstract_state(
        config, MODEL, make_optimizer(config.optimizer, 1), make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    )
    shapes = [(2, 32, 4), (2, 4, 32), (2, 32, 4), (2, 4, 16)]
    assert [leaf.shape for leaf in jax.tree.leaves(state.params)] == shapes
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == sorted(shapes * 2)
    numbers = sum(int(np.prod(shape)) for shape in shapes)
    params, optimizer = (bytes_of(tmp_path / "run" / "checkpoints" / "1" / name) for name in ("params", "optimizer"))
    assert params < 4 * numbers + 40_000  # Orbax's own files; the base is 149,120 bytes, its moments twice that
    assert optimizer < 8 * numbers + 40_000
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        tree, _ = checkpoints.read_params(lambda meta: state.params)
    assert [leaf.shape for leaf in jax.tree.leaves(tree)] == shapes


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
