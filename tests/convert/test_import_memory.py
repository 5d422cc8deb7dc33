"""Import takes the memory that the weights need, and a process of several reads and keeps its own share alone."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hf_folder import tensors_of, write_folder
from safetensors.numpy import save_file

from medtune_jax.config import MeshConfig
from medtune_jax.convert import hf_import, safetensors_file
from medtune_jax.convert.hf_config import config_to_hf
from medtune_jax.convert.hf_import import load_params
from medtune_jax.convert.layout import tensor_names, tensor_shape
from medtune_jax.model.llama import LlamaConfig, abstract_params, get_param, num_params, parameter_rows
from medtune_jax.model.quantize import quantize
from medtune_jax.sharding import make_mesh

TINYLLAMA = LlamaConfig(  # the shape of TinyLlama-1.1B
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_layers=22,
    num_heads=32,
    num_kv_heads=4,
    head_dim=64,
    max_positions=2048,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
)
SMALL = dataclasses.replace(
    TINYLLAMA, vocab_size=500, hidden_size=256, intermediate_size=384, num_layers=2, num_heads=4, num_kv_heads=2
)
MEGABYTE = 10**6
ALLOWED = 500 * MEGABYTE
FORMATS = [("float32", "compute"), ("bfloat16", "compute"), ("bfloat16", "int8"), ("bfloat16", "nf4")]
PROBE = Path(__file__).with_name("import_probe.py")
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc/self/status")


def probe(folder: Path, dtype: str, base: str, processes: int = 1) -> list[dict[str, int]]:
    """Imports in as many processes, one CPU device each; returns what each tells."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    arguments = [sys.executable, str(PROBE), str(folder), dtype, base, coordinator, str(processes)]
    running = [
        subprocess.Popen([*arguments, str(index)], env=environment, stdout=subprocess.PIPE, text=True)
        for index in range(processes)
    ]
    told = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes
    return [json.loads(text.splitlines()[-1]) for text in told]


def shard_bytes(config: LlamaConfig, dtype: str, base: str, processes: int) -> int:
    """Bytes of one process's shards: every matrix is split over fsdp, vectors are not."""
    leaves = jax.tree.leaves(abstract_params(config, jnp.dtype(dtype), quantize=None if base == "compute" else base))
    vectors = sum(leaf.size for leaf in leaves if leaf.shape[-2:] in {(config.num_layers, config.hidden_size)})
    vectors = jnp.dtype(dtype).itemsize * (vectors + config.hidden_size)
    return (sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) - vectors) // processes + vectors


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_import_quantises_as_quantising_the_imported_weights_does(
    sizes: dict[str, int], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_file, "BLOCK_BYTES", 100 * 256 * 2)  # blocks that no shard's edge divides
    folder = write_folder(tmp_path, SMALL, tensors_of(SMALL, ml_dtypes.bfloat16))
    mesh = make_mesh(MeshConfig(**sizes)) if sizes else None
    found = load_params(folder, SMALL, "bfloat16", mesh, quantize=kind)
    plain = load_params(folder, SMALL, "bfloat16")
    structs = abstract_params(SMALL, jnp.bfloat16, mesh, quantize=kind)
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, structs)
    if mesh is not None:
        assert jax.tree.map(lambda leaf: leaf.sharding, found) == jax.tree.map(lambda leaf: leaf.sharding, structs)
    for row in parameter_rows(SMALL):
        expected = get_param(plain, row)
        expected = quantize(expected, kind) if row.path.endswith("_proj/kernel") else expected
        jax.tree.map(np.testing.assert_array_equal, get_param(found, row), expected)


@needs_proc
def test_each_of_two_processes_reads_its_share_and_the_hash_is_that_of_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, SMALL, tensors_of(SMALL, ml_dtypes.bfloat16))
    told = probe(folder, "bfloat16", "nf4", processes=2)
    stored = 2 * num_params(SMALL)
    vectors = 2 * SMALL.hidden_size * (2 * SMALL.num_layers + 1)  # the scales of norms, which both hold
    assert [each["read"] for each in told] == [(stored - vectors) // 2 + vectors] * 2
    assert [each["resident"] for each in told] == [shard_bytes(SMALL, "bfloat16", "nf4", 2)] * 2
    assert sum(each["hashed"] for each in told) == stored
    assert all(each["peak"] <= each["resident"] + ALLOWED for each in told)
    assert all(0.25 * stored < each["hashed"] < 0.75 * stored for each in told)
    assert {each["sha256"] for each in told} == {hf_import.weights_sha256(folder)}


# --------------------------------------------------------------------------------------------------- a real size, once


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Synthetic bfloat16 weights of TinyLlama's shape, 2.2 GB in files of a few layers each."""
    folder = tmp_path_factory.mktemp("tinyllama")
    (folder / "config.json").write_text(json.dumps(config_to_hf(TINYLLAMA)))
    normal = (0.02 * np.random.default_rng(0).standard_normal(1 << 20)).astype(ml_dtypes.bfloat16)
    shapes = {
        name: tensor_shape(row, TINYLLAMA) for row in parameter_rows(TINYLLAMA) for name in tensor_names(row, TINYLLAMA)
    }
    places: dict[str, str] = {}
    names = sorted(shapes)
    for part in range(8):
        file = f"model-{part + 1:05}-of-00008.safetensors"
        tensors = {name: np.resize(normal, shapes[name]) for name in names[part::8]}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    yield folder
    for path in folder.iterdir():  # pytest keeps its folders for a while
        path.unlink()


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("dtype", "base"), FORMATS)
def test_a_billion_weights_are_imported_in_their_own_size_and_half_a_gigabyte(
    dtype: str, base: str, processes: int, checkpoint: Path
) -> None:
    told = probe(checkpoint, dtype, base, processes)
    share = shard_bytes(TINYLLAMA, dtype, base, processes)
    for each in told:
        above = {name: round((each[name] - share) / MEGABYTE) for name in ("before", "peak")}
        print(f"{dtype} {base}, {processes} process(es): {share / MEGABYTE:,.0f} MB resident, {above} MB above")
    assert [each["resident"] for each in told] == [share] * processes
    assert all(each["peak"] <= share + ALLOWED for each in told)
