"""A LoRA run through the command line: trained, resumed, exported both ways, and the same function everywhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_run import lora_settings
from tiny_run import MODEL, flags, write_data, write_model

from medtune_jax.cli.main import dispatch
from medtune_jax.config import MeshConfig
from medtune_jax.convert.hf_import import load_params, read_config
from medtune_jax.errors import UserError
from medtune_jax.model.llama import forward, logits
from medtune_jax.sharding import make_mesh
from medtune_jax.train.inputs import read_inputs
from medtune_jax.train.load import load_adapter, load_model
from medtune_jax.train.trainable import init_trainable

TOKENS = np.arange(40, 57)[None]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, rows/ and run/: adapters after four updates, resumed after two."""
    folder = tmp_path_factory.mktemp("lora")
    write_model(folder / "base")
    write_data(folder / "rows", train=60, validation=0)
    config = lora_settings(
        folder / "base",
        folder / "rows",
        targets=["q_proj", "v_proj", "down_proj"],
        dropout=0.1,
        train__steps=4,
        train__batch_size=8,
        evaluation__every_steps=0,
        optimizer__learning_rate=0.02,
    )
    assert dispatch(flags(config, folder / "run")) == 0
    shutil.copytree(folder / "run", folder / "cut")
    shutil.rmtree(folder / "cut" / "checkpoints" / "4")
    assert dispatch(["train", f"--workdir={folder / 'cut'}"]) == 0
    return folder


def medtune(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any], str]:
    status = dispatch(["export", *argv, "--json"])
    printed, error = capsys.readouterr()
    return status, json.loads(printed.splitlines()[-1]) if status == 0 else {}, error


def our_logits(params: Any) -> np.ndarray:
    return np.asarray(_logits(params))


@jax.jit
def _logits(params: Any) -> jax.Array:
    positions = jnp.arange(TOKENS.shape[1])[None]
    hidden = forward(params, MODEL, jnp.asarray(TOKENS, jnp.int32), positions_BS=positions)
    return logits(params, MODEL, hidden)[..., : MODEL.vocab_size]


def test_resumed_adapters_are_bit_equal(home: Path) -> None:
    straight, resumed = load_adapter(home / "run"), load_adapter(home / "cut")
    jax.tree.map(np.testing.assert_array_equal, straight.params, resumed.params)
    assert straight.sha256 == resumed.sha256
    assert np.abs(straight.params["layers"]["down_proj"]["b"]).max() > 1e-3


def test_the_run_its_adapter_on_peft_and_its_merged_export_compute_the_same(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"--run={home / 'run'}"
    status, said, _ = medtune(capsys, run, f"--out={tmp_path / 'adapter'}", "--adapter")
    assert (status, said["kind"], said["tensors_verified"]) == (0, "adapter", 3 * 2 * 2)
    assert (said["base"], said["parameters"]) == (str(home / "base"), 2 * 4 * (32 + 32 + 32 + 16 + 48 + 32))
    status, said, _ = medtune(capsys, run, f"--out={tmp_path / 'merged'}", "--merge")
    assert (status, said["kind"], said["template"]) == (0, "merged weights", "medtuned_train")

    ours = our_logits(load_model(home / "run").params)
    merged = load_params(tmp_path / "merged", read_config(tmp_path / "merged"), "float32")
    np.testing.assert_array_equal(our_logits(merged), ours)
    base = our_logits(load_params(home / "base", MODEL, "float32"))
    theirs = pefts_logits(home / "base", tmp_path / "adapter")
    assert np.abs(ours - base).max() > 0.01
    assert np.linalg.norm(theirs - ours) < 1e-5 * np.linalg.norm(ours)


def pefts_logits(base: Path, adapter: Path) -> np.ndarray:
    import torch
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        return PeftModel.from_pretrained(model, str(adapter)).eval()(torch.from_numpy(TOKENS)).logits.numpy()


def test_training_goes_on_from_an_exported_adapter_and_remembers_its_rows(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert medtune(capsys, f"--run={home / 'run'}", f"--out={tmp_path / 'adapter'}", "--adapter")[0] == 0
    config = lora_settings(
        home / "base", home / "rows", targets=["q_proj", "v_proj", "down_proj"], path=str(tmp_path / "adapter")
    )
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    inputs = read_inputs(config, mesh)
    assert inputs.identity.adapter and inputs.origin.data["sample-disease"].rows == 2 * 60
    started = init_trainable(config, inputs.model, inputs.source, mesh)
    jax.tree.map(np.testing.assert_array_equal, started, load_adapter(home / "run").params)


def test_generate_answers_with_the_adapters(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", f"--model={home / 'run'}", "--prompt=fever in patients", "--max_new_tokens=3", "--json"]
    assert dispatch(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["prompt"] == "fever in patients"


def test_two_exports_at_once_and_options_without_effect_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = f"--run={home / 'run'}", f"--out={tmp_path / 'out'}"
    for words, message in (
        ((run, "--adapter", "--merge"), "two exports"),
        ((run, "--adapter", "--dtype=bfloat16"), "--dtype has no effect on an adapter"),
        ((f"--run={home / 'base'}", "--adapter"), "is no run folder"),
        ((f"--run={home / 'base'}", "--merge"), "nothing to merge"),
    ):
        status, _, error = medtune(capsys, *words, out)
        assert status == 2 and message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_names_its_base_by_a_path_is_not_pushed(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"--run={home / 'run'}", f"--out={tmp_path / 'out'}", "--adapter", "--push=me/adapter")
    status, _, error = medtune(capsys, *words, "--base_licence=MIT")
    assert status == 2 and "base_model_name_or_path" in error
    assert not (tmp_path / "out").exists()


def test_a_base_that_was_moved_is_found_again_and_another_is_refused(home: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(home / "run", tmp_path / "run"))

    def point_to(base: Path) -> None:
        values = json.loads((run / "config.json").read_text())
        values["model"]["path"] = str(base)
        (run / "config.json").write_text(json.dumps(values))

    point_to(tmp_path / "moved")
    with pytest.raises(UserError, match=r"read from .*/moved, which is no .* directory.*model\.path of .*config\.json"):
        load_model(run)
    assert load_adapter(run).lora.rank == 4  # needs no base
    shutil.copytree(home / "base", tmp_path / "moved")
    assert load_model(run).sha256 == load_model(home / "run").sha256
    for part in ("checkpoints", "model"):
        shutil.copytree(run / part, run / "best" / part)
    assert load_adapter(run / "best").base == tmp_path / "moved"
    weights = tmp_path / "moved" / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[-1] ^= 1
    weights.write_bytes(whole)
    with pytest.raises(UserError, match=r"adapters for other weights than those in .*/moved \(SHA-256"):
        load_model(run)
