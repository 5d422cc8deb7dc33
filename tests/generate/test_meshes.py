"""Meshes by the command line: the same texts on eight devices as on one, shards that fit, sizes that do not divide."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import MODEL, ner_rows, write_model

from medtune_jax.cli.main import dispatch
from medtune_jax.config import MeshConfig
from medtune_jax.convert.hf_import import load_params, read_config
from medtune_jax.errors import UserError
from medtune_jax.generate.placing import mesh_for, parse_mesh
from medtune_jax.generate.weights import decoding_weights
from medtune_jax.model.llama import LlamaConfig, init_params
from medtune_jax.tasks.rows import write_rows
from medtune_jax.train.load import load_model

# Four heads of either kind, so that `tensor` may be 4; logits that lie far apart.
CONFIG = dataclasses.replace(MODEL, num_kv_heads=4, initializer_range=0.4, max_positions=256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("meshes")
    write_model(home / "model", CONFIG)
    (home / "p.txt").write_text(
        "breast cancer in patients\nfever\ncolon cancer in patients with fever colon cancer in\n"
    )
    (home / "rows").mkdir()
    write_rows(home / "rows" / "test.parquet", ner_rows(4, 3))
    return home


def test_a_mesh_is_written_as_axes_and_sizes() -> None:
    assert parse_mesh("data=2,tensor=4") == MeshConfig(data=2, fsdp=1, tensor=4)
    assert parse_mesh("tensor=-1") == MeshConfig(fsdp=1, tensor=-1)
    assert parse_mesh("auto") is parse_mesh("none") is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("tenser=2", "no axis is called 'tenser'. Did you mean 'tensor'"),
        ("data", "the size of 'data' is a number"),
        ("data=3", "needs 3 devices, there are 8"),
        ("tensor=8", r"tensor=8 does not divide num_attention_heads \(4\) of this model"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused_by_name(asked: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        mesh_for(asked, CONFIG)


def test_a_model_is_loaded_onto_a_mesh_or_onto_what_gives_one(folder: Path) -> None:
    mesh = mesh_for("data=2,tensor=4", CONFIG)
    for asked in (mesh, lambda config: mesh):
        loaded = load_model(folder / "model", mesh=asked)
        assert loaded.mesh is mesh and len(loaded.params["norm"]["scale"].sharding.device_set) == 8
    assert load_model(folder / "model", mesh=lambda config: None).mesh is None


def test_auto_is_all_devices_with_as_much_tensor_as_the_model_divides_by() -> None:
    mesh = mesh_for("auto", CONFIG)
    assert mesh is not None and (mesh.size, mesh.shape["tensor"], mesh.shape["data"]) == (8, 4, 2)
    assert mesh_for("none", CONFIG) is None


@pytest.mark.parametrize(
    "words",
    [
        ["--method=greedy"],
        ["--method=sample", "--seed=3"],
        pytest.param(["--method=beam", "--num_beams=2"], marks=pytest.mark.slow),
        pytest.param(["--draft=prompt"], marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_generate_on_eight_devices_writes_what_it_writes_on_one(
    folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for mesh in ("none", "data=2,tensor=4"):
        common = [f"--model={folder / 'model'}", f"--input_file={folder / 'p.txt'}", "--max_new_tokens=8", "--json"]
        assert dispatch(["generate", *common, f"--mesh={mesh}", *words]) == 0
        found = json.loads(capsys.readouterr().out.strip().split("\n")[-1])
        texts.append([one["generated"] for one in found])
    assert texts[0] == texts[1] and all(texts[0])


@pytest.mark.parametrize("decode", ["template", "loglikelihood"])
def test_evaluate_on_eight_devices_answers_what_it_answers_on_one(folder: Path, tmp_path: Path, decode: str) -> None:
    if decode == "loglikelihood":
        rows = [
            dataclasses.replace(
                row, source="sample-nli", output="neutral", input=f"Premise: {row.input}\nHypothesis: a"
            )
            for row in ner_rows(4, 3)
        ]
        write_rows(folder / "rows" / "validation.parquet", rows)
    split = "validation" if decode == "loglikelihood" else "test"
    for mesh in ("none", "data=2,tensor=4"):
        words = [f"--model={folder / 'model'}", f"--data={folder / 'rows'}", f"--split={split}", f"--decode={decode}"]
        words += ["--template=medtuned_eval", f"--mesh={mesh}", f"--out={tmp_path / mesh}"]
        assert dispatch(["evaluate", *words]) == 0
    one, eight = (
        [json.loads(line) for line in (tmp_path / mesh / "predictions.jsonl").read_text().splitlines()]
        for mesh in ("none", "data=2,tensor=4")
    )
    for alone, spread in zip(one, eight, strict=True):
        assert alone["generated"] == spread["generated"]
        for candidate, value in (alone.get("loglikelihoods") or {}).items():
            assert spread["loglikelihoods"][candidate] == pytest.approx(value, abs=1e-4)


# ------------------------------------------------------------------------------------------------------------ memory


def test_each_device_is_given_its_shard_alone(folder: Path) -> None:
    """Weights over tensor=4 come from the file as a quarter each; only norms are whole."""
    config = read_config(folder / "model")
    mesh = mesh_for("data=2,tensor=4", config)
    params = load_params(folder / "model", config, "bfloat16", mesh)
    split = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 2 or leaf.shape[0] == config.padded_vocab]
    assert len(split) >= 8
    for leaf in split:
        for shard in leaf.addressable_shards:
            assert 4 * shard.data.size == leaf.size and isinstance(leaf, jax.Array)


def test_weights_given_up_are_freed_and_are_the_weights_that_are_kept() -> None:
    config: LlamaConfig = dataclasses.replace(CONFIG, tie_embeddings=False)
    for dtype in (jnp.float32, jnp.bfloat16):
        params = init_params(jax.random.key(0), config)
        mesh = mesh_for("data=2,tensor=4", config)
        kept = decoding_weights(params, config, jnp.dtype(dtype), mesh)
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
        given = decoding_weights(params, config, jnp.dtype(dtype), mesh, donate=True)
        stacks = jax.tree.leaves(params["layers"])
        assert all(leaf.is_deleted() for leaf in stacks)
        for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(given), strict=True):
            assert one.dtype == other.dtype and one.sharding.is_equivalent_to(other.sharding, one.ndim)
            np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
