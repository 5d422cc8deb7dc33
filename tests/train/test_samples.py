"""During training held-out rows are answered as evaluation answers them, on any mesh, and nothing is left behind."""

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from kills import metric_lines
from lora_run import lora_settings, random_adapter
from tiny_run import GRID_MODEL, MODEL, ner_rows, settings
from together import log, running, wait

from medtune_jax.config import MeshConfig
from medtune_jax.evaluate.predictions import read_predictions
from medtune_jax.evaluate.score import score
from medtune_jax.generate.weights import decoding_mesh, decoding_weights
from medtune_jax.model.llama import init_params
from medtune_jax.model.lora import LoraAdapter, scale
from medtune_jax.model.quantize import dequantize, quantize
from medtune_jax.sharding import make_mesh
from medtune_jax.tasks.registry import SOURCES, get_source
from medtune_jax.tasks.rows import Row, write_rows
from medtune_jax.train import samples
from medtune_jax.train.held_out import HeldOut
from medtune_jax.train.inputs import read_inputs
from medtune_jax.train.samples import choose, make_sample, scored_sources
from medtune_jax.train.saved import run_folder
from medtune_jax.train.trainable import init_trainable

GATED = next(source.name for source in SOURCES.values() if source.credentialed)
SAID = ("The man is ill .", "He is well .", "Contradiction")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def nli_rows(count: int) -> list[Row]:
    """Rows of a second source."""
    input, output = get_source("sample-nli").task.render(SAID)
    return [Row("Compare.", input, output, "sample-nli", id=f"n{index}") for index in range(count)]


def test_rows_are_dealt_evenly_and_are_the_same_ones_each_time():
    rows = [*ner_rows(20, 0), *nli_rows(3)]
    chosen = choose(rows, 8)
    assert Counter(one.source.name for one in chosen) == {"sample-disease": 5, "sample-nli": 3}
    assert [one.number for one in choose(rows, 8)] == [one.number for one in chosen]
    assert all(rows[one.number] is one.row for one in chosen)
    assert len(choose(rows, 99)) == 23


def test_rows_that_cannot_be_scored_are_left_out_and_counted(caplog):
    rows = [*ner_rows(2, 0), replace(ner_rows(1, 1)[0], output="secret"), Row("Do.", "x", "y", "ward-notes")]
    assert len(choose(rows, 9)) == 2
    assert "1 held-out rows of source 'ward-notes'" in caplog.text
    assert "1 held-out rows of source 'sample-disease'" in caplog.text and "secret" not in caplog.text
    caplog.clear()
    assert scored_sources(rows, 9) == {"sample-disease"} and not caplog.text  # said once in a run


def test_texts_are_for_their_owner_only_also_in_a_folder_that_others_could_read(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir(mode=0o755)
    samples._write(folder, 1, [], [], [])
    assert (mode(folder), mode(folder / "1.jsonl")) == (0o700, 0o600)


@pytest.mark.parametrize("source, closed", [("sample-disease", False), (GATED, True)])
def test_held_out_rows_of_gated_text_close_the_run_folder(tmp_path, monkeypatch, source, closed):
    monkeypatch.setattr(run_folder, "describe_model", lambda *args: None)
    workdir = tmp_path / "run"
    workdir.mkdir(mode=0o755)
    held_out = HeldOut("other", (Row("Tag.", "x", "y", source),))
    inputs = SimpleNamespace(origin=SimpleNamespace(credentialed=[]), held_out=held_out)
    run_folder.write_run_folder(workdir, settings(), inputs)
    assert mode(workdir) == (0o700 if closed else 0o755)


@pytest.mark.parametrize(
    ("model", "mesh", "tensor"),
    [
        (MODEL, MeshConfig(fsdp=8), 2),  # as many as there are key-value heads
        (GRID_MODEL, MeshConfig(fsdp=8), 8),
        (GRID_MODEL, MeshConfig(dcn_data=2, fsdp=4), 4),  # within a slice
    ],
)
def test_answering_splits_over_tensor_what_the_model_and_a_slice_allow(model, mesh, tensor):
    trained = make_mesh(mesh)
    answering = decoding_mesh(trained, model)
    assert answering.shape["tensor"] == tensor and answering.size == 8
    assert list(answering.devices.flat) == list(trained.devices.flat)


@pytest.mark.parametrize("kind", [None, "nf4"])
def test_adapters_are_in_the_weights_that_answer_and_the_base_stays_as_it_is(kind):
    config = lora_settings(targets=["q_proj"])
    model = replace(MODEL, hidden_size=64)
    params, adapter = init_params(jax.random.key(0), model), random_adapter(config, model)
    kernel = params["layers"]["q_proj"]["kernel"]
    stored = kernel if kind is None else quantize(kernel, kind)
    params["layers"]["q_proj"]["kernel"] = stored
    weights = decoding_weights(params, model, np.dtype("float32"), None, LoraAdapter(adapter, config.model.lora))
    base = np.asarray(kernel if kind is None else dequantize(stored, np.float32))
    for number, layer in enumerate(weights.layers):
        part = {name: np.asarray(value[number]) for name, value in adapter["layers"]["q_proj"].items()}
        update = scale(config.model.lora) * part["a"] @ part["b"]
        assert np.abs(update).max() > 1e-4
        np.testing.assert_allclose(layer["q_proj"]["kernel"], base[number] + update, atol=1e-6)
        np.testing.assert_array_equal(layer["k_proj"]["kernel"], params["layers"]["k_proj"]["kernel"][number])


@pytest.fixture(scope="module")
def answered(model_folder, tmp_path_factory):
    """Returns a function: mesh -> (the figures, a function that answers once more, the folder of the texts)."""
    data = tmp_path_factory.mktemp("sampled")
    write_rows(data / "train.parquet", ner_rows(9, 0))
    write_rows(data / "validation.parquet", [*ner_rows(4, 1), *nli_rows(2)])

    def answer(mesh_config, name):
        config = settings(model_folder, data, evaluation__samples_every_steps=1, train__batch_size=8)
        mesh = make_mesh(mesh_config, jax.devices() if mesh_config.tensor > 1 else jax.devices()[:1])
        inputs = read_inputs(config, mesh)
        params = init_trainable(config, inputs.model, model_folder, mesh)
        sample = make_sample(config, inputs, {}, mesh, data / name)
        assert sample is not None

        def at(step):
            with jax.set_mesh(mesh):  # as the loop does
                return sample(step, params)

        return at(1), lambda: at(2), data / name

    return answer


@pytest.fixture(scope="module")
def alone(answered):
    return answered(MeshConfig(fsdp=1), "alone")


def test_scores_are_those_that_evaluation_gives_the_same_answers(alone):
    line, _, folder = alone
    found = score(read_predictions(folder / "1.jsonl")).document["sources"]
    assert found.keys() == line["samples"].keys() == {"sample-disease", "sample-nli"}
    for name, entry in found.items():
        told = line["samples"][name]
        assert told == {
            "metric": entry["metric"],
            "value": entry["metrics"][entry["metric"]],
            "n": entry["n"],
            "unparsable": entry["parse"]["unparsable"],
        }
        assert line[f"samples_{name}"] == told["value"]
    assert line["samples_mean"] == pytest.approx(np.mean([one["value"] for one in line["samples"].values()]))


def test_texts_are_in_the_run_folder_and_not_in_the_line(alone):
    line, _, folder = alone
    written = [json.loads(text) for text in (folder / "1.jsonl").read_text().splitlines()]
    assert [one["row"] for one in written] == list(range(6))
    assert all(one["status"] == "exact" and one["finish_reason"] == "constrained" for one in written)
    assert not any(one["generated"] in json.dumps(line) or one["input"] in json.dumps(line) for one in written)


def test_a_second_time_compiles_nothing_and_nothing_stays_on_the_device(alone, caplog):
    line, again, folder = alone
    before = sum(array.nbytes for array in jax.live_arrays())
    with jax.log_compiles(), caplog.at_level(logging.DEBUG):
        assert again() == line
    assert not [record for record in caplog.records if "XLA compilation" in record.getMessage()]
    assert sum(array.nbytes for array in jax.live_arrays()) == before
    assert (folder / "2.jsonl").read_text() == (folder / "1.jsonl").read_text()


def test_on_a_mesh_the_answers_are_the_same(alone, answered):
    line, _, folder = answered(MeshConfig(data=2, fsdp=2, tensor=2), "mesh")
    assert line == alone[0]
    assert (folder / "1.jsonl").read_text() == (alone[2] / "1.jsonl").read_text()


@pytest.mark.slow
def test_two_processes_answer_together_and_one_writes(model_folder, data_folder, tmp_path):
    """Two key-value heads, one on each process: they answer in lockstep, and both choose the same best."""
    config = settings(
        model_folder.absolute(),
        data_folder.absolute(),
        train__steps=2,
        evaluation__every_steps=0,
        evaluation__samples_every_steps=2,
        checkpoint__best="samples",
    )
    with running(config, tmp_path / "run", timeout=300) as pair:
        assert wait(pair, tmp_path / "run") == [0, 0], log(tmp_path / "run", 0)[-3000:]
    [line] = [line for line in metric_lines(tmp_path / "run") if "samples" in line]
    assert line["samples"]["sample-disease"]["n"] == 6
    assert len((tmp_path / "run" / "samples" / "2.jsonl").read_text().splitlines()) == 6
    assert json.loads((tmp_path / "run" / "best" / "best.json").read_text())["value"] == line["samples_mean"]
