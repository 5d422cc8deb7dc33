"""The training step as the real TPU compiler makes it, for TPUs that are not there: layout, memory, collectives."""

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from medtune_jax.cli.experiments import load
from medtune_jax.config import Config, MeshConfig
from medtune_jax.config_values import from_dict
from medtune_jax.model.llama import LlamaConfig, abstract_params
from medtune_jax.sharding import make_mesh
from medtune_jax.train.abstract import lower_step
from medtune_jax.train.footprint import footprint, peak

LLAMA2_7B = LlamaConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    max_positions=4096,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
)
LLAMA2_13B = dataclasses.replace(
    LLAMA2_7B, hidden_size=5120, intermediate_size=13_824, num_layers=40, num_heads=40, num_kv_heads=40
)
SMALL = dataclasses.replace(
    LLAMA2_7B, hidden_size=256, intermediate_size=512, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=64
)
V5E_BYTES = 15.75 * 2**30  # of high-bandwidth memory on a chip that a program may use
SEQUENCE = 1024
ROWS = 4  # of a device: the loss takes 2,048 of its 4,096 targets at a time


class Compiled(NamedTuple):
    step: Any
    text: str
    mesh: Any
    config: Config


def settings(mesh: MeshConfig, *, batch: int, sequence: int, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "model": {"path": "unread"},
        "data": {"path": "unread", "max_length": sequence},
        "train": {"steps": 1, "batch_size": batch},
        "mesh": dataclasses.asdict(mesh),
    }
    for name, value in changes.items():
        group, leaf = name.split("__")
        values[group][leaf] = value
    return from_dict(values)


def compile_step(model: LlamaConfig, config: Config, devices: list[Any]) -> Compiled:
    mesh = make_mesh(config.mesh, devices)
    step = lower_step(config, model, mesh).compile()
    return Compiled(step, step.as_text(), mesh, config)


@pytest.fixture(scope="module")
def small(tpu_devices: Callable[..., list[Any]]) -> Compiled:
    mesh = MeshConfig(fsdp=4, tensor=2)
    return compile_step(SMALL, settings(mesh, batch=4 * ROWS, sequence=SEQUENCE), tpu_devices("v5e:2x4"))


def shapes(text: str, dtype: str) -> list[tuple[int, ...]]:
    """Returns the shapes of all arrays of `dtype` that a compiled program names."""
    return [tuple(int(size) for size in dims.split(",")) for dims in re.findall(rf"\b{dtype}\[([\d,]+)\]", text)]


def bodies(text: str) -> dict[str, str]:
    """Returns the computations of a compiled program by name; the one that runs first is ENTRY."""
    found = re.findall(r"^(ENTRY )?%?([\w.\-]+)[^\n]*\{\n(.*?)^\}", text, re.M | re.S)
    return {"ENTRY" if entry else name: body for entry, name, body in found}


def test_attention_is_the_splash_kernel_with_segments(small: Compiled) -> None:
    kernels = re.findall(r"%splash_mha_(\w+?)_segmented\S* = [^\n]*tpu_custom_call", small.text)
    assert sorted(kernels) == ["dkv", "dq", "fwd", "fwd"]  # the second forward is that of the recomputed layer


def test_the_state_is_given_up(small: Compiled) -> None:
    [aliases] = re.findall(r"input_output_alias=\{(.*?)\}, entry", small.text)
    memory = small.step.memory_analysis()
    batch = 6 * ROWS * SEQUENCE * 4  # rows of six arrays on each device, which stay
    assert aliases.count("-alias)") == len(jax.tree.leaves(small.step.input_shardings[0][0]))
    assert memory.argument_size_in_bytes - memory.alias_size_in_bytes <= 2 * batch  # filled up to whole tiles


def test_parameters_and_moments_lie_as_the_table_says(small: Compiled) -> None:
    state = small.step.input_shardings[0][0]
    table = jax.tree.leaves(abstract_params(SMALL, mesh=small.mesh))
    for tree in (state.params, moments(state, "mu"), moments(state, "nu")):
        found = jax.tree.leaves(tree)
        assert all(a.is_equivalent_to(b.sharding, b.ndim) for a, b in zip(found, table, strict=True))
    assert sum(not leaf.sharding.is_fully_replicated for leaf in table) == 9  # all but the scales of norms


def moments(state: Any, name: str) -> Any:
    [found] = [
        getattr(part, name)
        for part in jax.tree.leaves(state.opt_state, is_leaf=lambda part: hasattr(part, name))
        if hasattr(part, name)
    ]
    return found


def test_no_device_holds_the_logits_of_its_tokens(small: Compiled) -> None:
    tokens = small.config.train.batch_size // small.mesh.shape["fsdp"] * SEQUENCE
    largest = max(np.prod(shape) for shape in shapes(small.text, "f32"))
    assert largest < tokens * SMALL.padded_vocab / small.mesh.shape["tensor"]


def test_what_a_device_holds_is_what_was_computed_for_it(small: Compiled) -> None:
    """Within a tenth: the loss is the largest phase here, that of the paper's runs below is the layers."""
    memory = small.step.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    computed = peak(footprint(small.config, SMALL, small.mesh.shape))
    print(f"{held:,} bytes compiled, {computed:,} computed")
    assert held == pytest.approx(computed, rel=0.1)


def test_weights_are_gathered_a_layer_at_a_time_in_bfloat16(small: Compiled) -> None:
    gathers = re.findall(r"= ([^=\n]*?) all-gather(?:-start)?\(", small.text)
    assert gathers and not any(shapes(result, "f32") for result in gathers)
    stacked = [shape for result in gathers for shape in shapes(result, "bf16") if len(shape) == 3 and shape[0] > 1]
    assert SMALL.num_layers > 1 and not stacked


def test_gradients_of_kernels_are_scattered(small: Compiled) -> None:
    """The TPU compiler writes it as a reduce-scatter, or as a fusion by that name around an all-reduce."""
    assert re.search(r" reduce-scatter(-start)?\(", small.text)  # of the head, once
    smallest = SMALL.hidden_size * SMALL.hidden_size // small.mesh.shape["tensor"]
    for name, body in bodies(small.text).items():
        for line in body.splitlines():
            if re.search(r" all-reduce(-start)?\(", line) and "all-reduce-scatter" not in name:
                whole = [shape for shape in shapes(line.split(" all-reduce")[0], "f32") if np.prod(shape) >= smallest]
                assert not whole, (name, line)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "model", "topology"),
    [("llama2_7b_medtuned", LLAMA2_7B, "v5e:4x4"), ("llama2_13b_medtuned", LLAMA2_13B, "v5e:8x8")],
)
def test_the_papers_runs_fit(
    experiment: str, model: LlamaConfig, topology: str, tpu_devices: Callable[..., list[Any]]
) -> None:
    started = time.monotonic()
    compiled = compile_step(model, load(experiment), tpu_devices(topology))
    seconds = time.monotonic() - started
    memory = compiled.step.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    held += memory.output_size_in_bytes - memory.alias_size_in_bytes
    print(f"\n{experiment} on {topology}: {held / 2**30:.2f} GiB, compiled in {seconds:.0f} s: {memory}")
    computed = peak(footprint(compiled.config, model, compiled.mesh.shape))
    assert computed < held < 1.6 * computed  # the compiler has several layers' weights under way between chips
    assert held < V5E_BYTES
    assert "splash" in compiled.text
