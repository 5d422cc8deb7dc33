"""An export is complete, bit-equal and verified, or it is not there."""

import dataclasses
import errno
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from hf_folder import CONFIG, tensors_of, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from medtune_jax.cli.main import dispatch
from medtune_jax.config import MeshConfig
from medtune_jax.convert import hf_export
from medtune_jax.convert.hf_export import export_params, verify_export
from medtune_jax.convert.hf_import import load_params, read_config, read_template, weights_sha256
from medtune_jax.errors import UserError
from medtune_jax.model.llama import LlamaConfig, Params, RopeScaling, init_params
from medtune_jax.sharding import make_mesh

WIDE = dataclasses.replace(CONFIG, num_heads=8, num_kv_heads=4)


@pytest.fixture(scope="module")
def params() -> Params:
    return jax.jit(init_params, static_argnums=1)(jax.random.key(0), CONFIG)


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Returns every tensor, as the safetensors library reads it."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@st.composite
def configs(draw: st.DrawFn) -> LlamaConfig:
    kv_heads = draw(st.integers(1, 2))
    return LlamaConfig(
        vocab_size=draw(st.sampled_from([5, 128, 131])),
        hidden_size=draw(st.integers(1, 4)) * 4,
        intermediate_size=draw(st.integers(1, 9)),
        num_layers=draw(st.integers(1, 2)),
        num_heads=kv_heads * draw(st.integers(1, 2)),
        num_kv_heads=kv_heads,
        head_dim=draw(st.integers(1, 3)) * 2,
        max_positions=draw(st.integers(1, 10**5)),
        rms_norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        rope_theta=draw(st.floats(100, 1e6)),
        rope_scaling=draw(st.sampled_from([None, RopeScaling(8.0, 1.0, 4.0, 512)])),
        tie_embeddings=draw(st.booleans()),
    )


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs(), st.sampled_from(["float32", "bfloat16", "float16"]), st.integers(100, 4000))
def test_import_and_export_are_inverse_for_any_shape_and_dtype(
    tmp_path_factory: pytest.TempPathFactory, config: LlamaConfig, dtype: str, max_file_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("round")
    tensors = tensors_of(config, dtype)
    write_folder(folder / "a", config, tensors)
    params = load_params(folder / "a", read_config(folder / "a"), dtype)
    export_params(params, config, folder / "b", dtype=dtype, max_file_bytes=max_file_bytes)
    verify_export(params, config, folder / "b")
    assert read_config(folder / "b") == config
    found = stored(folder / "b")
    assert found.keys() == tensors.keys()
    assert all(found[name].tobytes() == tensors[name].tobytes() for name in tensors)
    assert weights_sha256(folder / "a") == weights_sha256(folder / "b")


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_sharded_parameters_are_exported_whole(sizes: dict[str, int], tmp_path: Path) -> None:
    tensors = tensors_of(WIDE)
    mesh = make_mesh(MeshConfig(**{"fsdp": 1, **sizes}))
    params = load_params(write_folder(tmp_path / "a", WIDE, tensors), WIDE, "float32", mesh)
    export_params(params, WIDE, tmp_path / "b")
    verify_export(params, WIDE, tmp_path / "b")
    assert all(np.array_equal(array, tensors[name]) for name, array in stored(tmp_path / "b").items())


def test_bfloat16_is_the_rounding_of_float32(params: Params, tmp_path: Path) -> None:
    export_params(params, CONFIG, tmp_path / "a")
    export_params(params, CONFIG, tmp_path / "b", dtype="bfloat16")
    verify_export(params, CONFIG, tmp_path / "b")
    exact, rounded = stored(tmp_path / "a"), stored(tmp_path / "b")
    assert all(array.dtype == "bfloat16" for array in rounded.values())
    assert all(np.array_equal(exact[name].astype("bfloat16"), rounded[name]) for name in exact)


def test_no_file_is_larger_than_asked_and_the_index_names_every_tensor(params: Params, tmp_path: Path) -> None:
    export_params(params, CONFIG, tmp_path / "out", max_file_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors_of(CONFIG).keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in stored(tmp_path / "out").values())
    for file in set(index["weight_map"].values()):
        arrays = load_file(tmp_path / "out" / file).values()
        assert sum(array.nbytes for array in arrays) <= 20_000 or len(arrays) == 1


def test_the_config_has_both_spellings_of_rope_and_of_dtype(params: Params, tmp_path: Path) -> None:
    export_params(params, CONFIG, tmp_path / "out", dtype="bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == CONFIG.rope_theta
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    ids = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert ids == {"bos_token_id": CONFIG.bos_id, "eos_token_id": CONFIG.eos_id}


def test_both_configs_name_the_ends_of_the_tokenizer_that_training_used(params: Params, tmp_path: Path) -> None:
    """Llama-3-Instruct: config.json lists several ends of text, the tokenizer's own is not the first."""
    tokenizer: Any = SimpleNamespace(bos_id=5, eos_id=9, copy_to=lambda folder: None)
    config = dataclasses.replace(CONFIG, bos_id=5, eos_id=7)
    export_params(params, config, tmp_path / "out", tokenizer=tokenizer)
    for name in ("config.json", "generation_config.json"):
        found = json.loads((tmp_path / "out" / name).read_text())
        assert (found["bos_token_id"], found["eos_token_id"]) == (5, 9)
    assert verify_export(params, config, tmp_path / "out", tokenizer=tokenizer) > 0


def test_the_template_travels_with_the_model(params: Params, tmp_path: Path) -> None:
    export_params(params, CONFIG, tmp_path / "a", template="alpaca")
    export_params(params, CONFIG, tmp_path / "b")
    assert (read_template(tmp_path / "a"), read_template(tmp_path / "b")) == ("alpaca", None)


def test_an_empty_folder_is_filled_and_a_full_one_refused(params: Params, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_params(params, CONFIG, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="not an empty folder"):
        export_params(params, CONFIG, out)
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="not an empty folder"):
        export_params(params, CONFIG, out / "config.json")


def test_a_full_disk_is_named_and_leaves_nothing(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        export_params(params, CONFIG, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_on_the_way_leaves_nothing(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_export, "write_json", lambda path, value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_params(params, CONFIG, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_one_flipped_bit_of_the_weights_fails_the_verification(
    params: Params, tmp_path_factory: pytest.TempPathFactory, where: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("flip") / "out"
    export_params(params, CONFIG, folder)
    path = folder / "model.safetensors"
    whole = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(whole[:8], "little")
    whole[begin + where % (len(whole) - begin)] ^= 1 << bit
    path.write_bytes(whole)
    with pytest.raises(RuntimeError, match="does not read back"):
        verify_export(params, CONFIG, folder)


def test_a_changed_config_or_a_lost_tensor_fails_the_verification(params: Params, tmp_path: Path) -> None:
    export_params(params, CONFIG, tmp_path / "out")
    with pytest.raises(RuntimeError, match=r"config.json"):
        verify_export(params, dataclasses.replace(CONFIG, rope_theta=1.0), tmp_path / "out")
    write_folder(tmp_path / "less", CONFIG, {"model.norm.weight": np.ones(32, np.float32)})
    with pytest.raises(RuntimeError, match="tensors that were exported"):
        verify_export(params, CONFIG, tmp_path / "less")


# ----------------------------------------------------------------------------------------------------------- the verb


def medtune(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = dispatch(["export", *argv])
    return status, *capsys.readouterr()


def test_the_verb_exports_stories260k_and_reports_it(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = shared_data / "models" / "stories260K", tmp_path / "out"
    status, printed, _ = medtune(capsys, f"--run={source}", f"--out={out}", "--json")
    assert status == 0
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert (result["parameters"], result["tensors_verified"], result["template"]) == (260_032, 47, None)
    assert set(result["files"]) == {path.name for path in out.iterdir()}
    assert result["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert weights_sha256(out) == weights_sha256(source)
    assert (out / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    status, _, error = medtune(capsys, f"--run={source}", f"--out={out}")
    assert status == 2 and "not an empty folder" in error and "Traceback" not in error


def test_the_verb_names_a_cut_file_and_exits_with_2(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in (shared_data / "models" / "stories260K").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, io.SEEK_END) - 1000)
    status, _, error = medtune(capsys, f"--run={model}", f"--out={tmp_path / 'out'}")
    assert status == 2 and "model.safetensors is cut off" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()
